// Which queries get attention: the sparsity measure on sampled keys, and its u largest values.
#include <omp.h>

#include "cpu/prob_sparse_attention_tiles.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {
namespace {

constexpr int64_t kMeasureRows = 64;  // queries measured at a time

// A dot product of two rows in storage precision, a vector at a time, summed in compute precision.
template <typename Storage>
struct RowProduct {
  using T = Compute<Storage>;
  using Part = Vec<T>;
  static constexpr int kWidth = kLanes<T>;
  static Part read(const Storage* p) { return load(p); }
  static Part read(const Storage* p, int count) { return load_partial(p, count); }
  static Vec<T> add(Vec<T> sum, Part a, Part b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
template <>
struct RowProduct<bfloat16> {
  using T = float;
  using Part = __m512bh;
  static constexpr int kWidth = 32;
  static Part read(const bfloat16* p) { return bit_cast<Part>(_mm512_loadu_si512(p)); }
  static Part read(const bfloat16* p, int count) {
    return bit_cast<Part>(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << count) - 1), p));
  }
  static Vec<float> add(Vec<float> sum, Part a, Part b) {
    return bit_cast<Vec<float>>(_mm512_dpbf16_ps(bit_cast<__m512>(sum), a, b));
  }
};
#endif

template <typename Storage>
struct Measured {
  const Storage* query;
  const Storage* key;
  int64_t key_stride;
  int64_t width;
};

// Lane i of the result is the product with key index[i % kCount], from `count` on with the last key. The query is held
// in kParts registers, or read again for every key if kParts is 0.
template <typename Storage, int kParts, int kCount>
SIMMST_INLINE Vec<Compute<Storage>> products(const Measured<Storage>& m,
                                             const typename RowProduct<Storage>::Part* query, const int64_t* index,
                                             int64_t count) {
  using Row = RowProduct<Storage>;
  using T = Compute<Storage>;
  Vec<T> sum[kCount];
  const int tail = static_cast<int>(m.width % Row::kWidth);
#pragma GCC unroll 16  // keeps the sums in registers
  for (int i = 0; i < kCount; ++i) {
    const Storage* key = m.key + index[smaller<int64_t>(i, count - 1)] * m.key_stride;
    sum[i] = Vec<T>{};
    if constexpr (kParts > 0) {
      for (int c = 0; c < kParts - 1; ++c) sum[i] = Row::add(sum[i], query[c], Row::read(key + c * Row::kWidth));
      const Storage* last = key + (kParts - 1) * Row::kWidth;
      sum[i] = Row::add(sum[i], query[kParts - 1], tail == 0 ? Row::read(last) : Row::read(last, tail));
    } else {
      int64_t c = 0;
      for (; c + Row::kWidth <= m.width; c += Row::kWidth)
        sum[i] = Row::add(sum[i], Row::read(m.query + c), Row::read(key + c));
      if (tail != 0) sum[i] = Row::add(sum[i], Row::read(m.query + c, tail), Row::read(key + c, tail));
    }
  }
  return reduce_each<T, kCount>(sum);
}

// Largest and sum over the keys index[0..count).
template <typename T>
struct Extremes {
  Vec<T> largest, sum;
};

template <typename Storage, int kParts, int kCount, typename T = Compute<Storage>>
SIMMST_INLINE void add_products(const Measured<Storage>& m, const typename RowProduct<Storage>::Part* query,
                                const int64_t* index, int64_t count, Extremes<T>& found) {
  constexpr int kCopies = kLanes<T> / kCount;
  const Vec<T> x = products<Storage, kParts, kCount>(m, query, index, count);
  found.largest = max(x, found.largest);  // loses NaN, which the sum keeps
  if (kCopies == 1 && count >= kCount) {
    found.sum += x;
  } else {
    const IntVec<T> lane = lane_numbers<T>();
    found.sum += select<T>(lane < static_cast<IntOf<T>>(smaller<int64_t>(count, kCount)), x, Vec<T>{});
  }
}

template <typename Storage, int kParts, typename T = Compute<Storage>>
T measure_query(const Measured<Storage>& m, const int64_t* index, int64_t samples, T divisor) {
  using Row = RowProduct<Storage>;
  constexpr int kAll = kLanes<T>, kSome = kLanes<T> / 2, kFew = kLanes<T> >= 4 ? kLanes<T> / 4 : 1;
  typename Row::Part query[kParts > 0 ? kParts : 1];
  if constexpr (kParts > 0) {
    const int tail = static_cast<int>(m.width % Row::kWidth);
    for (int c = 0; c < kParts - 1; ++c) query[c] = Row::read(m.query + c * Row::kWidth);
    const Storage* last = m.query + (kParts - 1) * Row::kWidth;
    query[kParts - 1] = tail == 0 ? Row::read(last) : Row::read(last, tail);
  }
  Extremes<T> found{broadcast<T>(static_cast<T>(-__builtin_inf())), Vec<T>{}};
  while (samples > kAll - kFew) {
    add_products<Storage, kParts, kAll>(m, query, index, samples, found);
    index += kAll;
    samples -= kAll;
  }
  if (samples > kFew) {
    add_products<Storage, kParts, kSome>(m, query, index, samples, found);
    index += kSome;
    samples -= kSome;
  }
  while (samples > 0) {
    add_products<Storage, kParts, kFew>(m, query, index, samples, found);
    index += kFew;
    samples -= kFew;
  }
  return reduce_max<T>(found.largest) - reduce_add<T>(found.sum) / divisor;
}

template <typename Storage, int kParts, typename T = Compute<Storage>>
void measure_rows(const SelectCall& call, int64_t b, int64_t first, int64_t last, T* measure) {
  Measured<Storage> m{entry<Storage>(call.query, call.batch, b) + first * call.query.row_stride,
                      entry<Storage>(call.key, call.batch, b), call.key.row_stride, call.query.columns};
  const T divisor = static_cast<T>(call.divisor);
  for (int64_t i = first; i < last; ++i, m.query += call.query.row_stride)
    measure[i] = measure_query<Storage, kParts>(m, call.sample + i * call.samples, call.samples, divisor);
}

template <typename Storage, typename T = Compute<Storage>>
void measure_per_query(const SelectCall& call, int64_t b, int64_t first, int64_t last, T* measure) {
  constexpr int kWidth = RowProduct<Storage>::kWidth;
  switch ((call.query.columns + kWidth - 1) / kWidth) {
    case 1:
      return measure_rows<Storage, 1>(call, b, first, last, measure);
    case 2:
      return measure_rows<Storage, 2>(call, b, first, last, measure);
    case 4:
      return measure_rows<Storage, 4>(call, b, first, last, measure);
    default:
      return measure_rows<Storage, 0>(call, b, first, last, measure);
  }
}

// Samples shared by all queries: a product of Q with the sampled keys.

template <typename T>
struct SharedBuffers {
  int64_t pitch, padded;
  T* rows;     // (pitch, padded): the sampled keys
  T* packed;   // (D, pitch)
  T* queries;  // (kBlockKeys, padded)
  T* scores;   // (kBlockKeys, pitch)

  SharedBuffers(const SelectCall& call, Arena& arena)
      : pitch(round_up(call.samples, kLanes<T>)), padded(round_up(call.query.columns, kLanes<T>)) {
    rows = arena.take<T>(pitch * padded);
    packed = arena.take<T>(call.query.columns * pitch);
    queries = arena.take<T>(kBlockKeys * padded);
    scores = arena.take<T>(kBlockKeys * pitch);
  }
};

template <typename Storage, typename T = Compute<Storage>>
void measure_shared(const SelectCall& call, int64_t b, int64_t first, int64_t last, char* memory, T* measure) {
  Arena arena(memory);
  const SharedBuffers<T> w(call, arena);
  const int64_t width = call.query.columns;
  const Storage* key = entry<Storage>(call.key, call.batch, b);
  for (int64_t s = 0; s < w.pitch; ++s)
    copy_row(key + call.sample[smaller(s, call.samples - 1)] * call.key.row_stride, width, w.padded,
             T(s < call.samples), w.rows + s * w.padded);
  transpose(w.rows, w.padded, w.pitch, width, w.packed);

  const int64_t stride = call.query.row_stride, panels = w.pitch / kLanes<T>;
  const Storage* query = entry<Storage>(call.query, call.batch, b);
  const IntVec<T> lane = lane_numbers<T>() + static_cast<IntOf<T>>((panels - 1) * kLanes<T>);
  const IntVec<T> valid = lane < static_cast<IntOf<T>>(call.samples);
  const Vec<T> lowest = broadcast<T>(static_cast<T>(-__builtin_inf()));
  const T divisor = static_cast<T>(call.divisor);
  for (int64_t i = first; i < last; i += kBlockKeys) {
    const int64_t count = smaller<int64_t>(kBlockKeys, last - i);
    score_block(rows_of(query + i * stride, stride, count, width, false, w.queries), count, w.packed, w.pitch, 0,
                panels, width, w.scores);
    for (int64_t j = 0; j < count; ++j) {
      const T* score = w.scores + j * w.pitch;
      Vec<T> x = load(score + (panels - 1) * kLanes<T>);
      Extremes<T> found{max(select<T>(valid, x, lowest), lowest), select<T>(valid, x, Vec<T>{})};
      for (int64_t p = 0; p < panels - 1; ++p) {
        x = load(score + p * kLanes<T>);
        found.largest = max(x, found.largest);
        found.sum += x;
      }
      measure[i + j] = reduce_max<T>(found.largest) - reduce_add<T>(found.sum) / divisor;
    }
  }
}

// The u largest.

// Integers in the order of the numbers; -0 equals 0, and every NaN is the largest.
template <typename T>
void order_keys(const T* measure, int64_t count, IntOf<T>* keys) {
  using Int = IntOf<T>;
  constexpr Int kLargest = static_cast<Int>(~std::make_unsigned_t<Int>{0} >> 1);
  for (int64_t i = 0; i < count; ++i) {
    const Int bits = bit_cast<Int>(measure[i] + T(0));
    const Int key = bits < 0 ? static_cast<Int>(bits ^ kLargest) : bits;
    keys[i] = measure[i] != measure[i] ? kLargest : key;
  }
}

template <typename Int>
int64_t count_at_least(const Int* keys, int64_t count, Int limit) {
  Int found = 0;
  for (int64_t i = 0; i < count; ++i) found += keys[i] >= limit;
  return found;
}

// The u-th largest key, bit by bit from the top: one vectorised count of the keys for every bit.
template <typename Int>
Int nth_largest(const Int* keys, int64_t count, int64_t u) {
  using Unsigned = std::make_unsigned_t<Int>;
  constexpr Unsigned kTop = ~(~Unsigned{0} >> 1);
  Unsigned answer = 0;  // with the sign bit flipped, so that the order is that of unsigned numbers
  for (Unsigned bit = kTop; bit != 0; bit >>= 1) {
    if (count_at_least(keys, count, static_cast<Int>((answer | bit) ^ kTop)) >= u) answer |= bit;
  }
  return static_cast<Int>(answer ^ kTop);
}

template <typename T>
void select_top(const T* measure, int64_t count, int64_t u, IntOf<T>* keys, int64_t* top) {
  if (u == 0) return;
  order_keys(measure, count, keys);
  const IntOf<T> limit = nth_largest(keys, count, u);
  int64_t above = 0;
  for (int64_t i = 0; i < count; ++i) above += keys[i] > limit;
  int64_t ties = u - above, found = 0;  // of the keys equal to the limit, those with the lowest indices
  for (int64_t i = 0; i < count && found < u; ++i) {
    if (keys[i] > limit || (keys[i] == limit && ties-- > 0)) top[found++] = i;
  }
}

// A whole call.

template <typename Storage, typename T = Compute<Storage>>
bool select_all(const SelectCall& call) {
  const int64_t rows = call.query.rows, batch = call.batch.count;
  if (rows == 0 || batch == 0) return true;
  Arena measuring;
  if (call.shared) SharedBuffers<T>(call, measuring);
  const int64_t key_bytes = round_up(rows * static_cast<int64_t>(sizeof(T)), 64);
  const int64_t parts = batch >= call.threads ? 1 : (rows + kMeasureRows - 1) / kMeasureRows;
  const int threads = static_cast<int>(smaller<int64_t>(call.threads, batch * parts));
  const Workspaces memory(threads, measuring.used() + key_bytes);
  if (memory.failed()) return false;
  T* measure = static_cast<T*>(call.measure);

  run_team(threads, [&] {
    char* mine = memory.at(omp_get_thread_num());
#pragma omp for schedule(static)
    for (int64_t item = 0; item < batch * parts; ++item) {
      const int64_t b = item / parts, part = item % parts;
      const int64_t first = rows * part / parts, last = rows * (part + 1) / parts;
      T* to = measure + b * rows;
      if (call.shared) {
        measure_shared<Storage>(call, b, first, last, mine + key_bytes, to);
      } else {
        measure_per_query<Storage>(call, b, first, last, to);
      }
      if (parts == 1)
        select_top(to, rows, call.selected, reinterpret_cast<IntOf<T>*>(mine), call.top + b * call.selected);
    }
    if (parts > 1) {
#pragma omp for schedule(static)
      for (int64_t b = 0; b < batch; ++b)
        select_top(measure + b * rows, rows, call.selected, reinterpret_cast<IntOf<T>*>(mine),
                   call.top + b * call.selected);
    }
  });
  return true;
}

}  // namespace

bool select_queries(const SelectCall& call) {
  return with_storage(call.type, [&]<typename Storage>() { return select_all<Storage>(call); });
}

bool in_range(const int64_t* indices, int64_t count, int64_t upper) {
  const auto limit = static_cast<uint64_t>(upper);
  bool outside = false;
  for (int64_t i = 0; i < count; ++i) outside |= static_cast<uint64_t>(indices[i]) >= limit;
  return !outside;
}

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
