// The measure on each query's own samples, gathered: a query's products with the keys that it drew.
//
// The limit is the transfer of rows of K from the L2 cache. (Taking the keys one tile at a time, with tiles that fit in
// the L1 cache and samples sorted by tile, is slower at every length up to 12,000: the uneven numbers of samples per
// tile are unpredictable branches, and leave groups half full.)
#pragma once

#include "cpu/prob_sparse_attention_tiles.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {

// A dot product of two rows, one vector at a time: in the compute type, or in bfloat16 where the processor multiplies
// pairs of bfloat16.
template <typename Storage>
struct RowProduct {
  using T = Compute<Storage>;
  using Element = T;
  using Part = Vec<T>;
  static constexpr int kWidth = kLanes<T>;
  static Part read(const T* p) { return load(p); }
  static Vec<T> add(Vec<T> sum, Part a, Part b) { return sum + a * b; }
  static void copy(const Storage* from, int64_t width, int64_t padded, T* to) {
    copy_row(from, width, padded, T(1), to);
  }
};

#if defined(__AVX512BF16__)
template <>
struct RowProduct<bfloat16> {
  using T = float;
  using Element = bfloat16;
  using Part = __m512bh;
  static constexpr int kWidth = 32;
  static Part read(const bfloat16* p) { return bit_cast<Part>(_mm512_loadu_si512(p)); }
  static Vec<float> add(Vec<float> sum, Part a, Part b) {
    return bit_cast<Vec<float>>(_mm512_dpbf16_ps(bit_cast<__m512>(sum), a, b));
  }
  static void copy(const bfloat16* from, int64_t width, int64_t padded, bfloat16* to) {
    __builtin_memcpy(to, from, static_cast<size_t>(width) * sizeof(bfloat16));
    __builtin_memset(to + width, 0, static_cast<size_t>(padded - width) * sizeof(bfloat16));
  }
};
#endif

constexpr int kGroup = 4;            // products that are formed in parallel
constexpr int64_t kRunQueries = 32;  // queries whose products are stored before the first of them is reduced

// A query's products with the keys index[0..count), one group at a time; whole groups are written. The query is held in
// kParts registers, or read again for every key if kParts is 0. Rows are padded with zeros to whole parts.
template <typename Storage, int kParts, typename T = Compute<Storage>>
SIMMST_INLINE void add_products(const typename RowProduct<Storage>::Element* query,
                                const typename RowProduct<Storage>::Element* keys, int64_t stride, int64_t parts,
                                const int64_t* index, int64_t count, T* products) {
  using Row = RowProduct<Storage>;
  constexpr int kVectors = kLanes<T> < kGroup ? kGroup / kLanes<T> : 1, kStored = kGroup / kVectors;
  typename Row::Part held[kParts > 0 ? kParts : 1];
  unrolled<kParts>([&](int c) SIMMST_ALWAYS_INLINE { held[c] = Row::read(query + c * Row::kWidth); });
  const auto group = [&](int64_t s, int64_t last) SIMMST_ALWAYS_INLINE {
    Vec<T> sum[kGroup];
    unrolled<kGroup>([&](int i) SIMMST_ALWAYS_INLINE {
      const auto* key = keys + index[smaller<int64_t>(s + i, last)] * stride;
      Vec<T> one{};
      if constexpr (kParts > 0) {
        unrolled<kParts>([&](int c)
                             SIMMST_ALWAYS_INLINE { one = Row::add(one, held[c], Row::read(key + c * Row::kWidth)); });
      } else {
        for (int64_t c = 0; c < parts; ++c)
          one = Row::add(one, Row::read(query + c * Row::kWidth), Row::read(key + c * Row::kWidth));
      }
      sum[i] = one;
    });
    unrolled<kVectors>([&](int v) SIMMST_ALWAYS_INLINE {
      const Vec<T> each = reduce_each<T, kStored>(sum + v * kStored);
      __builtin_memcpy(products + s + v * kStored, &each, kStored * sizeof(T));
    });
  };
  int64_t s = 0;
  for (; s + kGroup <= count; s += kGroup) group(s, s + kGroup - 1);
  if (s < count) group(s, count - 1);
}

// How the keys are read: in place, or from copies in the compute type, padded to whole parts. The copies are made of
// all keys beforehand, or of a query's own keys. Rows that are far apart share few cache lines, so keys that are read
// often are copied.
enum class Copies { kNone, kAll, kOwn };

// One thread's arrays for `queries` queries.
template <typename Storage>
struct GatherBuffers {
  using Element = typename RowProduct<Storage>::Element;
  using T = Compute<Storage>;
  int64_t padded;  // the width, rounded up to whole parts
  int64_t pitch;   // length of a row of products
  bool lies;       // whether a row can be read in place
  Copies copies;
  Element* keys;   // (L_K or samples, padded)
  int64_t* own;    // (samples): 0, 1, 2, ...
  Element* query;  // (padded)
  T* products;     // (kRunQueries, pitch)

  GatherBuffers(const SelectCall& call, int64_t queries, Arena& arena)
      : padded(round_up(call.query.columns, RowProduct<Storage>::kWidth)),
        pitch(round_up(call.samples + kGroup, kLanes<T>)),
        lies(std::is_same_v<Storage, Element> && call.query.columns == padded),
        copies(Copies::kNone) {
    const bool often = queries * call.samples >= 4 * call.key.rows;
    if (often && (!lies || call.key.row_stride != padded)) copies = Copies::kAll;
    if (!often && !lies) copies = Copies::kOwn;
    const int64_t copied = copies == Copies::kAll ? call.key.rows : copies == Copies::kOwn ? call.samples : 0;
    keys = arena.take<Element>(copied * padded);
    own = arena.take<int64_t>(copies == Copies::kOwn ? call.samples : 0);
    query = arena.take<Element>(padded);
    products = arena.take<T>(kRunQueries * pitch);
  }
};

// The largest of `count` products, minus their sum / divisor.
template <typename T>
T extremes(const T* products, int64_t count, T divisor) {
  const Vec<T> lowest = broadcast<T>(static_cast<T>(-__builtin_inf()));
  Vec<T> largest = lowest, sum{};
  for (int64_t s = 0; s < count; s += kLanes<T>) {
    Vec<T> x = load(products + s), y = x;
    if (s + kLanes<T> > count) {
      const IntVec<T> valid = lane_numbers<T>() < static_cast<IntOf<T>>(count - s);
      x = select<T>(valid, x, lowest);
      y = select<T>(valid, y, Vec<T>{});
    }
    largest = max(x, largest);  // drops NaN, which the sum keeps
    sum += y;
  }
  return reduce_max<T>(largest) - reduce_add<T>(sum) / divisor;
}

template <typename Storage, int kParts, typename T = Compute<Storage>>
void measure_gathered(const SelectCall& call, int64_t b, int64_t first, int64_t last, char* memory, T* measure) {
  using Row = RowProduct<Storage>;
  using Element = typename Row::Element;
  Arena arena(memory);
  const GatherBuffers<Storage> w(call, last - first, arena);
  const int64_t width = call.query.columns, parts = w.padded / Row::kWidth;
  const Storage* query = entry<Storage>(call.query, call.batch, b);
  const Storage* key = entry<Storage>(call.key, call.batch, b);
  const auto copy = [&](int64_t from, int64_t to) {
    Row::copy(key + from * call.key.row_stride, width, w.padded, w.keys + to * w.padded);
  };
  if (w.copies == Copies::kAll)
    for (int64_t j = 0; j < call.key.rows; ++j) copy(j, j);
  if (w.copies == Copies::kOwn)
    for (int64_t s = 0; s < call.samples; ++s) w.own[s] = s;
  const Element* keys = w.copies == Copies::kNone ? reinterpret_cast<const Element*>(key) : w.keys;
  const int64_t stride = w.copies == Copies::kNone ? call.key.row_stride : w.padded;
  for (int64_t run = first; run < last; run += kRunQueries) {
    const int64_t count = smaller(kRunQueries, last - run);
    for (int64_t i = 0; i < count; ++i) {
      const Storage* row = query + (run + i) * call.query.row_stride;
      const Element* one = reinterpret_cast<const Element*>(row);
      if (!w.lies) {
        Row::copy(row, width, w.padded, w.query);
        one = w.query;
      }
      const int64_t* index = call.sample + (run + i) * call.samples;
      if (w.copies == Copies::kOwn) {
        for (int64_t s = 0; s < call.samples; ++s) copy(index[s], s);
        index = w.own;
      }
      add_products<Storage, kParts>(one, keys, stride, parts, index, call.samples, w.products + i * w.pitch);
    }
    for (int64_t i = 0; i < count; ++i)
      measure[run + i] = extremes(w.products + i * w.pitch, call.samples, static_cast<T>(call.divisor));
  }
}

template <typename Storage, typename T = Compute<Storage>>
void measure_per_query(const SelectCall& call, int64_t b, int64_t first, int64_t last, char* memory, T* measure) {
  constexpr int kWidth = RowProduct<Storage>::kWidth;
  switch ((call.query.columns + kWidth - 1) / kWidth) {
    case 2:
      return measure_gathered<Storage, 2>(call, b, first, last, memory, measure);
    case 4:
      return measure_gathered<Storage, 4>(call, b, first, last, memory, measure);
    case 8:
      return measure_gathered<Storage, 8>(call, b, first, last, memory, measure);
    default:
      return measure_gathered<Storage, 0>(call, b, first, last, memory, measure);
  }
}

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
