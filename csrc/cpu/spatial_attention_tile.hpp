// The inner kernel of every product in spatial attention, and the functions around it: exponential, logarithm,
// transposition. Vectors run along positions (the lanes) and the other operand is broadcast, so no head width or
// channel count wastes lanes, and the softmax over keys needs no reduction across lanes.
#pragma once

#include "cpu/simd.hpp"

#define SIMMST_ALWAYS_INLINE __attribute__((always_inline))

namespace simmst::cpu::SIMMST_ISA::spatial {

// A register tile: broadcast rows by vectors, with registers left for the operands. With 16 registers a tile has 12
// sums where possible, and at least 8, which is what two units with a latency of four cycles need. double, which is for
// checks, has one small tile, because every tile costs compile time.
template <typename T>
constexpr int kTileVectors = sizeof(T) == 8 ? 1 : 3;
template <typename T, int V>
constexpr int kTileRows = sizeof(T) == 8     ? 8
                          : kRegisters >= 32 ? (V == 1 ? 16 : 8)
                          : V == 3           ? 4
                          : V == 2           ? 6
                                             : 8;

// Whether leftover rows are divided evenly among tiles of any height, rather than into halves of the full height: where
// tiles with few sums would leave the units waiting.
template <typename T>
constexpr bool kAnyHeight = sizeof(T) == 4 && kVectorBytes == 32;

template <int R, int V, typename T>
struct Tile {
  Vec<T> at[R][V];

  SIMMST_INLINE void fill(Vec<T> value) {
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) at[r][v] = value;
  }
  SIMMST_INLINE void load_from(const T* p, int64_t ld) {
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) at[r][v] = load(p + r * ld + v * kLanes<T>);
  }
  // Row r starts from bias[r] in every lane.
  SIMMST_INLINE void fill_rows(const T* bias) {
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) at[r][v] = broadcast_from(bias + r);
  }
  SIMMST_INLINE void scale_columns(const Vec<T> (&factor)[V]) {
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) at[r][v] *= factor[v];
  }
  SIMMST_INLINE void store_to(T* p, int64_t ld) const {
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) store(p + r * ld + v * kLanes<T>, at[r][v]);
  }
  SIMMST_INLINE void add_to(T* p, int64_t ld) const {
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) store(p + r * ld + v * kLanes<T>, load(p + r * ld + v * kLanes<T>) + at[r][v]);
  }
  // at[r][v] += sum over k < count of a[k * a_step + r * a_row] * b[k * b_step + v * lanes .. + lanes]
  SIMMST_INLINE void multiply(const T* a, int64_t a_step, int64_t a_row, const T* b, int64_t b_step, int64_t count) {
    for (int64_t k = 0; k < count; ++k, a += a_step, b += b_step) {
      Vec<T> right[V];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) right[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r) {
        const Vec<T> left = broadcast_from(a + r * a_row);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) at[r][v] += left * right[v];
      }
    }
  }
};

template <int R, typename F>
SIMMST_INLINE void at_height(int64_t height, int64_t first, const F& f) {
  if (height == R) f.template operator()<R>(first);
  else if constexpr (R > 1) at_height<R - 1>(height, first, f);
}
template <int R, typename F>
SIMMST_INLINE void for_halves(int64_t from, int64_t to, const F& f) {
  for (; to - from >= R; from += R) f.template operator()<R>(from);
  if constexpr (R > 1) for_halves<R / 2>(from, to, f);
}
// Calls f.template operator()<R>(first) for tiles of R <= kMost rows that cover [from, to) exactly.
template <typename T, int kMost, typename F>
SIMMST_INLINE void for_tiles(int64_t from, int64_t to, const F& f) {
  if constexpr (kAnyHeight<T>) {
    while (from < to) {
      const int64_t left = to - from;
      const int64_t height = left >= 2 * kMost || left == kMost ? kMost : left > kMost ? (left + 1) / 2 : left;
      at_height<kMost>(height, from, f);
      from += height;
    }
  } else {
    for_halves<kMost>(from, to, f);
  }
}

// Calls f.template operator()<V>(first) over `count` vectors, three at a time; the last four as 2 + 2 rather than 3 +
// 1.
template <typename T>
SIMMST_INLINE int64_t next_vectors(int64_t left) {
  if (kTileVectors<T> == 1 || left == 1) return 1;
  return left > 4 || left == 3 ? 3 : 2;
}
template <typename T, typename F>
SIMMST_INLINE void for_vectors(int64_t count, const F& f) {
  int64_t from = 0;
  if constexpr (kTileVectors<T> == 3) {
    for (; next_vectors<T>(count - from) == 3; from += 3) f.template operator()<3>(from);
    for (; count - from >= 2; from += 2) f.template operator()<2>(from);
  }
  for (; count > from; ++from) f.template operator()<1>(from);
}

// A row length of at least `count` entries that is an odd number of vectors, so that rows spread over all cache sets.
template <typename T>
constexpr int64_t row_length(int64_t count) {
  return ((count + kLanes<T> - 1) / kLanes<T> | 1) * kLanes<T>;
}
template <typename T>
constexpr int64_t vectors_for(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T>;
}

// out[r][n] (= or +=) bias[r] + sum over k of a[k * a_step + r * a_row] * b[k][n], r < rows, for V vectors of n.
// b: (depth, n) with rows of ld_b; out: (rows, n) with rows of ld_out; bias may be null.
template <int V, bool kAccumulate, typename T>
SIMMST_INLINE void product_columns(const T* a, int64_t a_step, int64_t a_row, int64_t depth, const T* b, int64_t ld_b,
                                   const T* bias, T* out, int64_t ld_out, int64_t rows) {
  for_tiles<T, kTileRows<T, V>>(0, rows, [&]<int R>(int64_t r) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    if (bias == nullptr) tile.fill(Vec<T>{});
    else tile.fill_rows(bias + r);
    tile.multiply(a + r * a_row, a_step, a_row, b, ld_b, depth);
    if constexpr (kAccumulate) tile.add_to(out + r * ld_out, ld_out);  // rounds once instead of `depth` times
    else tile.store_to(out + r * ld_out, ld_out);
  });
}

// The same for `vectors` whole vectors; a is (depth, rows), b and out have rows of ld.
template <bool kAccumulate, typename T>
void product(const T* a, int64_t a_step, int64_t depth, const T* b, const T* bias, T* out, int64_t rows, int64_t ld,
             int64_t vectors) {
  for_vectors<T>(vectors, [&]<int V>(int64_t first) SIMMST_ALWAYS_INLINE {
    const int64_t n = first * kLanes<T>;
    product_columns<V, kAccumulate>(a, a_step, 1, depth, b + n, ld, bias, out + n, ld, rows);
  });
}

// --- exponential and logarithm to the base 2 -----------------------------------------------------------------------

// 2^x for x from -126 to 127 (-1022 to 1023 for double) to about 1 ulp, and NaN for NaN; undefined beyond the range.
// Adding 1.5 * 2^(mantissa bits) rounds to an integer n in the low bits; adding the exponent's bias as well leaves 2^n
// one shift away. K vectors are computed together, because one alone is a chain of ten dependent operations.
template <int K>
SIMMST_INLINE void exp2_in_range(Vec<float> (&x)[K]) {
  constexpr float kRounding = 0x1.8p23f + 127.0f;
  // minimax in relative error
  constexpr float kTerms[] = {0x1.5f3e52p-10f, 0x1.3b2d4cp-7f, 0x1.c6aee8p-5f, 0x1.ebfbdcp-3f, 0x1.62e43p-1f, 1.0f};
  Vec<float> power[K], p[K];
#pragma GCC unroll 16
  for (int i = 0; i < K; ++i) power[i] = x[i] + kRounding;
#pragma GCC unroll 16
  for (int i = 0; i < K; ++i) x[i] -= power[i] - kRounding;
#pragma GCC unroll 16
  for (int i = 0; i < K; ++i) power[i] = bit_cast<Vec<float>>(bit_cast<IntVec<float>>(power[i]) << 23);
#pragma GCC unroll 16
  for (int i = 0; i < K; ++i) p[i] = x[i] * 0x1.41fbbcp-13f + kTerms[0];
#pragma GCC unroll 5
  for (int term = 1; term < 6; ++term)
#pragma GCC unroll 16
    for (int i = 0; i < K; ++i) p[i] = p[i] * x[i] + kTerms[term];
#pragma GCC unroll 16
  for (int i = 0; i < K; ++i) x[i] = p[i] * power[i];
}
template <int K>
SIMMST_INLINE void exp2_in_range(Vec<double> (&x)[K]) {
  for (int i = 0; i < K; ++i) {
    const Vec<double> shifted = x[i] + 0x1.8p52, r = x[i] - (shifted - 0x1.8p52);
    const IntVec<double> n = bit_cast<IntVec<double>>(shifted) - bit_cast<IntVec<double>>(broadcast<double>(0x1.8p52));
    x[i] = exp_reduced(r * 0.6931471805599453) * power_of_two(n);
  }
}

// log2(x) for normal positive x; NaN for NaN.
template <typename T>
SIMMST_INLINE Vec<T> log2(Vec<T> x) {
  constexpr int kMantissa = sizeof(T) == 8 ? 52 : 23;
  const IntVec<T> bits = bit_cast<IntVec<T>>(x);
  // The exponent for a mantissa from 2/3 to 4/3.
  const IntVec<T> exponent = (bits - bit_cast<IntOf<T>>(T(2) / T(3))) >> kMantissa;
  const Vec<T> mantissa = bit_cast<Vec<T>>(bits - (exponent << kMantissa));
  const Vec<T> f = (mantissa - T(1)) / (mantissa + T(1)), square = f * f;  // log(m) = 2 atanh(f), |f| <= 1/5
  constexpr int kTerms = sizeof(T) == 8 ? 12 : 5;
  Vec<T> series = broadcast<T>(T(1) / (2 * kTerms + 1));
#pragma GCC unroll 12
  for (int k = kTerms - 1; k >= 0; --k) series = series * square + T(1) / (2 * k + 1);
  const Vec<T> result = __builtin_convertvector(exponent, Vec<T>) + f * series * T(2.8853900817779268);
  return x == x ? result : x;
}

SIMMST_INLINE Vec<float> sqrt_of(Vec<float> x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
SIMMST_INLINE Vec<double> sqrt_of(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}

// --- transposition -------------------------------------------------------------------------------------------------

template <int kHalf, typename T, int... kIndex>
SIMMST_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, kIndex...>) {
  constexpr int kLow = kHalf * kLanes<T> / 2;
  return __builtin_shufflevector(a, b, (kLow + kIndex / 2 + (kIndex % 2) * kLanes<T>)...);
}

// Transposes a square of lanes x lanes in place, by interleaving v[i] with v[i + lanes / 2] once per bit of the index.
template <typename T>
SIMMST_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  constexpr auto kIndices = std::make_integer_sequence<int, kLanes<T>>{};
#pragma GCC unroll 4
  for (int stage = 1; stage < kLanes<T>; stage *= 2) {
    Vec<T> w[kLanes<T>];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes<T> / 2; ++i) {
      w[2 * i] = interleave<0, T>(v[i], v[i + kLanes<T> / 2], kIndices);
      w[2 * i + 1] = interleave<1, T>(v[i], v[i + kLanes<T> / 2], kIndices);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) v[i] = w[i];
  }
}

// out[n * ld_out + r] = factor * in[r * ld_in + n] for r < rows and n < columns. In every row of out the lanes up to a
// whole vector are written too, with zeros. Rows of `in` must be readable up to a whole vector.
template <typename T>
void transpose_rows(const T* in, int64_t ld_in, int64_t rows, int64_t columns, T factor, T* out, int64_t ld_out) {
  for (int64_t n = 0; n < columns; n += kLanes<T>) {
    const int64_t wanted = columns - n < kLanes<T> ? columns - n : kLanes<T>;
    for (int64_t r = 0; r < rows; r += kLanes<T>) {
      Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) square[i] = r + i < rows ? load(in + (r + i) * ld_in + n) : Vec<T>{};
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i)
        if (i < wanted) store(out + (n + i) * ld_out + r, square[i] * factor);
    }
  }
}

}  // namespace simmst::cpu::SIMMST_ISA::spatial
