// The measure on each query's own samples, where they are a good part of the keys: all scores are computed, in register
// tiles with the queries in the lanes, and each counts as often as its key was drawn.
#pragma once

#include "cpu/prob_sparse_attention_tiles.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {

// Compares the vector operations for the scores of kLanes queries: all scores, or the sampled ones with their
// reductions.
template <typename T>
bool is_dense(const SelectCall& call) {
  const int64_t width = call.query.columns;
  return call.key.rows * (width + 5) < call.samples * (round_up(width, kLanes<T>) + 6 * kLanes<T>);
}

template <typename T>
struct Draws {
  int64_t pitch;  // L_Q, rounded up to whole panels
  T* drawn;       // (L_K + kMostTileKeys, pitch): minus how often query i drew key j

  Draws(const SelectCall& call, Arena& arena) : pitch(round_up(call.query.rows, kLanes<T>)) {
    drawn = arena.take<T>((call.key.rows + kMostTileKeys) * pitch);
  }

  void count(const SelectCall& call) {
    for (int64_t i = 0; i < (call.key.rows + kMostTileKeys) * pitch; ++i) drawn[i] = T(0);
    for (int64_t i = 0; i < call.query.rows; ++i)
      for (int64_t s = 0; s < call.samples; ++s) drawn[call.sample[i * call.samples + s] * pitch + i] -= T(1);
  }
};

template <typename T>
struct DenseBuffers {
  int64_t pitch, padded;
  T* rows;    // (pitch, padded): the queries
  T* packed;  // (D, pitch)
  T* keys;    // (L_K, padded)

  DenseBuffers(const SelectCall& call, Arena& arena)
      : pitch(round_up(call.query.rows, kLanes<T>)), padded(round_up(call.query.columns, kLanes<T>)) {
    rows = arena.take<T>(pitch * padded);
    packed = arena.take<T>(call.query.columns * pitch);
    keys = arena.take<T>(call.key.rows * padded);
  }
};

// The measure of kPanels panels of queries; `packed` and `drawn` point to their columns.
template <typename T, int kPanels>
void dense_panels(const SelectCall& call, Rows<T> keys, const T* packed, int64_t pitch, const T* drawn,
                  int64_t drawn_pitch, T* measure) {
  constexpr int kKeys = tile_keys(kPanels);
  const Vec<T> lowest = broadcast<T>(static_cast<T>(-__builtin_inf()));
  Vec<T> largest[kPanels], total[kPanels];
  unrolled<kPanels>([&](int i) SIMMST_ALWAYS_INLINE { largest[i] = lowest, total[i] = Vec<T>{}; });
  for (int64_t j = 0; j < call.key.rows; j += kKeys) {
    const T* row[kKeys];  // past the end, the last row again, which is never drawn
    for (int t = 0; t < kKeys; ++t) row[t] = keys.data + smaller(j + t, call.key.rows - 1) * keys.stride;
    Vec<T> sum[kKeys * kPanels];
    unrolled<kKeys * kPanels>([&](int n) SIMMST_ALWAYS_INLINE { sum[n] = Vec<T>{}; });
    for (int64_t c = 0; c < call.query.columns; ++c) {
      Vec<T> column[kPanels];
      unrolled<kPanels>([&](int i) SIMMST_ALWAYS_INLINE { column[i] = load(packed + c * pitch + i * kLanes<T>); });
      unrolled<kKeys>([&](int t) SIMMST_ALWAYS_INLINE {
        const Vec<T> x = broadcast_from(row[t] + c);
        unrolled<kPanels>([&](int i) SIMMST_ALWAYS_INLINE { sum[t * kPanels + i] += x * column[i]; });
      });
    }
    unrolled<kKeys * kPanels>([&](int n) SIMMST_ALWAYS_INLINE {
      const int t = n / kPanels, i = n % kPanels;
      const Vec<T> often = load(drawn + (j + t) * drawn_pitch + i * kLanes<T>);
      largest[i] = max(select_negative(often, sum[n], lowest), largest[i]);
      total[i] -= select_negative(often, sum[n], Vec<T>{}) * often;
    });
  }
  const Vec<T> divisor = broadcast<T>(static_cast<T>(call.divisor));
  unrolled<kPanels>([&](int i)
                        SIMMST_ALWAYS_INLINE { store(measure + i * kLanes<T>, largest[i] - total[i] / divisor); });
}

template <typename Storage, typename T = Compute<Storage>>
void measure_dense(const SelectCall& call, const Draws<T>& draws, int64_t b, int64_t first, int64_t last, char* memory,
                   T* measure) {
  Arena arena(memory);
  const DenseBuffers<T> w(call, arena);
  const int64_t width = call.query.columns, count = last - first, pitch = round_up(count, kLanes<T>);
  const Storage* query = entry<Storage>(call.query, call.batch, b) + first * call.query.row_stride;
  for (int64_t i = 0; i < pitch; ++i)
    copy_row(query + smaller(i, count - 1) * call.query.row_stride, width, w.padded, T(1), w.rows + i * w.padded);
  transpose(w.rows, w.padded, pitch, width, w.packed);
  const Rows<T> keys =
      rows_of(entry<Storage>(call.key, call.batch, b), call.key.row_stride, call.key.rows, width, false, w.keys);
  const int64_t panels = pitch / kLanes<T>;
  T* found = w.rows;  // no longer needed
  for (int64_t p = 0; p < panels;) {
    const auto run = [&](auto size) {
      const int64_t at = p * kLanes<T>;
      dense_panels<T, size()>(call, keys, w.packed + at, pitch, draws.drawn + first + at, draws.pitch, found + at);
      p += size();
    };
    const int64_t left = panels - p;
    if (left == 1) {
      run(std::integral_constant<int, 1>{});
    } else if (left == 2 || left == 4) {
      run(std::integral_constant<int, 2>{});
    } else {
      run(std::integral_constant<int, 3>{});
    }
  }
  for (int64_t i = 0; i < count; ++i) measure[i] = found[i];
}

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
