// The register blocks for the products of the feed-forward part and of day attention, and the helpers around them.
//
// Rows are tokens and the lanes of a vector are features, so that a row is read in its memory order. Features are
// padded with zeros to whole vectors; a matrix that is read by columns is packed in panels of kVectors vectors.
#pragma once

#include "cpu/simd.hpp"

#define SIMMST_LAMBDA __attribute__((always_inline))

namespace simmst::cpu::SIMMST_ISA::matrices {

using Vector = Vec<float>;
constexpr int kWide = kLanes<float>;
// 24 or 12 sums, the vectors of a panel and a broadcast: 27 of 32 registers, or 15 of 16.
constexpr int kVectors = 2;
constexpr int kRows = kRegisters >= 32 ? 12 : 6;
// A power of two, because most sizes here are.
constexpr int kFeatures = kRegisters >= 32 ? 8 : 4;

SIMMST_INLINE int64_t vectors_for(int64_t count) { return (count + kWide - 1) / kWide; }
SIMMST_INLINE int64_t padded(int64_t count) { return vectors_for(count) * kWide; }

template <int R, int V>
struct Sums {
  Vector at[R][V];

  // at[r][v] += sum over k < count of a[k * a_step + r * a_row] * b[k * b_step + v * kWide .. + kWide]
  SIMMST_INLINE void multiply(const float* a, int64_t a_step, int64_t a_row, const float* b, int64_t b_step,
                              int64_t count) {
    for (int64_t k = 0; k < count; ++k, a += a_step, b += b_step) {
      Vector right[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) right[v] = load(b + v * kWide);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Vector left = broadcast_from(a + r * a_row);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) at[r][v] += left * right[v];
      }
    }
  }
};

// Calls f.template operator()<R>(first) over [from, to) in steps of R, then of R/2, ... 1.
template <int R, typename F>
SIMMST_INLINE void for_steps(int64_t from, int64_t to, const F& f) {
  for (; to - from >= R; from += R) f.template operator()<R>(from);
  if constexpr (R > 1) for_steps<R / 2>(from, to, f);
}

// out[r][n] = finish(r, n, start(r, n) + sum over k < depth of a[r * ld_a + k] * panels[k][n]) for `vectors` vectors of
// n. start and finish get the row and the first of a vector's features.
template <typename Start, typename Finish>
SIMMST_INLINE void product(const float* a, int64_t ld_a, int64_t rows, int64_t depth, const float* panels,
                           int64_t vectors, const Start& start, const Finish& finish) {
  for_steps<kVectors>(0, vectors, [&]<int V>(int64_t first) SIMMST_LAMBDA {
    const float* panel = panels + first * kWide * depth;
    for_steps<kRows>(0, rows, [&]<int R>(int64_t row) SIMMST_LAMBDA {
      Sums<R, V> sums;
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums.at[r][v] = start(row + r, (first + v) * kWide);
      sums.multiply(a + row * ld_a, 1, ld_a, panel, V * kWide, depth);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) finish(row + r, (first + v) * kWide, sums.at[r][v]);
    });
  });
}

// to[i][n] += sum over r < rows of a[r][i] * b[r][n], i < features, for `vectors` vectors of n.
SIMMST_INLINE void outer_product(const float* a, int64_t ld_a, int64_t features, const float* b, int64_t ld_b,
                                 int64_t vectors, int64_t rows, float* to, int64_t ld) {
  for_steps<kVectors>(0, vectors, [&]<int V>(int64_t first) SIMMST_LAMBDA {
    const int64_t n = first * kWide;
    for_steps<kFeatures>(0, features, [&]<int R>(int64_t i) SIMMST_LAMBDA {
      Sums<R, V> sums;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums.at[r][v] = load(to + (i + r) * ld + n + v * kWide);
      sums.multiply(a + i, ld_a, 1, b + n, ld_b, rows);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store(to + (i + r) * ld + n + v * kWide, sums.at[r][v]);
    });
  });
}

// Packs the matrix m[k * step + n * across], k < depth and n < columns, into panels for product().
inline __attribute__((noinline)) void pack(const float* m, int64_t step, int64_t across, int64_t depth, int64_t columns,
                                           float* panels) {
  const int64_t vectors = vectors_for(columns);
  for_steps<kVectors>(0, vectors, [&]<int V>(int64_t first) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t i = 0; i < V * kWide; ++i) {
        const int64_t n = first * kWide + i;
        panels[first * kWide * depth + k * V * kWide + i] = n < columns ? m[k * step + n * across] : 0.0f;
      }
  });
}

// Hands out parts of a buffer, each aligned to a cache line. With a null buffer it only counts bytes.
class Parts {
 public:
  explicit Parts(void* buffer) : base_(static_cast<char*>(buffer)) {}
  template <typename T = float>
  T* take(int64_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return part;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

SIMMST_INLINE Vector load_some(const float* p, int64_t count) {
  return count >= kWide ? load(p) : load_partial(p, static_cast<int>(count));
}
SIMMST_INLINE void store_some(float* p, Vector value, int64_t count) {
  if (count >= kWide) store(p, value);
  else store_partial(p, value, static_cast<int>(count));
}

}  // namespace simmst::cpu::SIMMST_ISA::matrices
