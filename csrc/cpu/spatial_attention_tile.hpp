// The one inner kernel that every product of spatial attention goes through, and what surrounds it: exponential,
// logarithm, transposition. Vectors lie along positions (the lanes) and the other operand is broadcast, so no head
// width or channel count wastes lanes and the softmax over keys needs no reduction across lanes.
#pragma once

#include "cpu/simd.hpp"

#define SIMMST_ALWAYS_INLINE __attribute__((always_inline))

namespace simmst::cpu::SIMMST_ISA::spatial {

// A register tile: kTileRows broadcast rows by up to kTileVectors vectors, with room left for the operands.
constexpr int kTileRows = kRegisters >= 32 ? 8 : 4;
constexpr int kTileVectors = 3;

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

// Calls f.template operator()<R>(first) over [from, to) in steps of R, then of R/2, ... 1: no row is computed in vain.
template <int R, typename F>
SIMMST_INLINE void for_tiles(int64_t from, int64_t to, const F& f) {
  for (; to - from >= R; from += R) f.template operator()<R>(from);
  if constexpr (R > 1) for_tiles<R / 2>(from, to, f);
}

// Calls f.template operator()<V>(first) over `count` vectors, three at a time; the rest as 2 + 2 rather than 3 + 1.
template <typename F>
SIMMST_INLINE void for_vectors(int64_t count, const F& f) {
  int64_t from = 0;
  for (; count - from > 4 || count - from == 3; from += 3) f.template operator()<3>(from);
  for (; count - from >= 2; from += 2) f.template operator()<2>(from);
  if (count > from) f.template operator()<1>(from);
}

// A row length of at least `count` whole vectors and an odd number of them: rows then spread over all cache sets.
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
  for_tiles<kTileRows>(0, rows, [&]<int R>(int64_t r) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    if (bias == nullptr) tile.fill(Vec<T>{});
    else tile.fill_rows(bias + r);
    tile.multiply(a + r * a_row, a_step, a_row, b, ld_b, depth);
    if constexpr (kAccumulate) tile.add_to(out + r * ld_out, ld_out);  // rounds once, not `depth` times
    else tile.store_to(out + r * ld_out, ld_out);
  });
}

// The same for all of `vectors` whole vectors; a is (depth, rows), b and out have rows of ld.
template <bool kAccumulate, typename T>
void product(const T* a, int64_t a_step, int64_t depth, const T* b, const T* bias, T* out, int64_t rows, int64_t ld,
             int64_t vectors) {
  for_vectors(vectors, [&]<int V>(int64_t first) SIMMST_ALWAYS_INLINE {
    const int64_t n = first * kLanes<T>;
    product_columns<V, kAccumulate>(a, a_step, 1, depth, b + n, ld, bias, out + n, ld, rows);
  });
}

// --- exponential and logarithm to the base 2 -----------------------------------------------------------------------

// 2^x for x up to about 100 (1000 for double) to about 1 ulp; below the normal range the result is 0 or tiny, NaN for
// NaN. Cheaper than exp: 2^floor(x) is exact and the polynomial, minimax in relative error, covers the rest.
SIMMST_INLINE Vec<float> exp2(Vec<float> x) {
#if defined(__AVX512F__)
  const Vec<float> r = bit_cast<Vec<float>>(_mm512_maskz_reduce_ps(0xffff, bit_cast<__m512>(x), 0x09));
#else
  x = max(broadcast<float>(-126.0f), x);
  const Vec<float> shifted = (x - 0.5f) + 0x1.8p23f;
  const Vec<float> r = x - (shifted - 0x1.8p23f);
#endif
  Vec<float> p = r * 0x1.c72118p-13f + 0x1.461956p-10f;
  p = p * r + 0x1.3d28p-7f;
  p = p * r + 0x1.c685p-5f;
  p = p * r + 0x1.ebfd9ep-3f;
  p = p * r + 0x1.62e42ap-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_maskz_scalef_ps(0xffff, bit_cast<__m512>(p), bit_cast<__m512>(x)));
#else
  const IntVec<float> n = bit_cast<IntVec<float>>(shifted) - bit_cast<IntVec<float>>(broadcast<float>(0x1.8p23f));
  return p * power_of_two(n);
#endif
}
SIMMST_INLINE Vec<double> exp2(Vec<double> x) {
  x = max(broadcast<double>(-1022.0), x);
  const Vec<double> shifted = x + 0x1.8p52;
  const Vec<double> r = x - (shifted - 0x1.8p52);
  const IntVec<double> n = bit_cast<IntVec<double>>(shifted) - bit_cast<IntVec<double>>(broadcast<double>(0x1.8p52));
  return exp_reduced(r * 0.6931471805599453) * power_of_two(n);
}

// log2(x) for normal positive x; NaN for NaN.
template <typename T>
SIMMST_INLINE Vec<T> log2(Vec<T> x) {
  constexpr int kMantissa = sizeof(T) == 8 ? 52 : 23;
  const IntVec<T> bits = bit_cast<IntVec<T>>(x);
  // The exponent that leaves a mantissa from 2/3 to 4/3.
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

// A square of lanes x lanes, in place: interleaving v[i] with v[i + lanes / 2] once per bit of the index turns it over.
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

// out[n * ld_out + r] = in[r * ld_in + n] for r < rows and n < columns; in every row of out the lanes up to a whole
// vector are written too, with zeros. Rows of `in` must be readable up to a whole vector.
template <typename T>
void transpose_rows(const T* in, int64_t ld_in, int64_t rows, int64_t columns, T* out, int64_t ld_out) {
  for (int64_t n = 0; n < columns; n += kLanes<T>) {
    const int64_t wanted = columns - n < kLanes<T> ? columns - n : kLanes<T>;
    for (int64_t r = 0; r < rows; r += kLanes<T>) {
      Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) square[i] = r + i < rows ? load(in + (r + i) * ld_in + n) : Vec<T>{};
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i)
        if (i < wanted) store(out + (n + i) * ld_out + r, square[i]);
    }
  }
}

}  // namespace simmst::cpu::SIMMST_ISA::spatial
