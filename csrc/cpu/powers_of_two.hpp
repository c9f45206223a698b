// Powers of two, for a softmax whose scores contain the factor log2(e). They take half the operations of exp.
#pragma once

#include "cpu/simd.hpp"

namespace simmst::cpu::SIMMST_ISA {

template <typename T>
constexpr T kLog2E = static_cast<T>(1.442695040888963407);
template <typename T>
constexpr T kLn2 = static_cast<T>(0.693147180559945309);

// 2^r for |r| <= 1/2. float: minimax polynomial of degree 6, to 8e-8 with its rounding. double: the power series.
SIMMST_INLINE Vec<float> exp2_reduced(Vec<float> r) {
  Vec<float> p = r * 1.534581243e-4f + 1.339993090e-3f;
  p = p * r + 9.618489072e-3f;
  p = p * r + 5.550328642e-2f;
  p = p * r + 2.402264625e-1f;
  p = p * r + 6.931471825e-1f;
  return p * r + 1.0f;
}
SIMMST_INLINE Vec<double> exp2_reduced(Vec<double> r) { return exp_reduced(r * kLn2<double>); }

// 2^x for x <= 1 (rounding may put x a little above 0): 0 from -127 (double: -1023) downwards, NaN for NaN.
template <typename T>
SIMMST_INLINE Vec<T> exp2_below(Vec<T> x) {
#if defined(__AVX512F__)
  // The fraction of -inf is 0, and 2^-inf scales to 0.
  if constexpr (std::is_same_v<T, float>) {
    const Vec<T> r = bit_cast<Vec<T>>(_mm512_maskz_reduce_ps(0xffff, bit_cast<__m512>(x), 0));
    return bit_cast<Vec<T>>(_mm512_maskz_scalef_ps(0xffff, bit_cast<__m512>(exp2_reduced(r)), bit_cast<__m512>(x - r)));
  } else {
    const Vec<T> r = bit_cast<Vec<T>>(_mm512_maskz_reduce_pd(0xff, bit_cast<__m512d>(x), 0));
    return bit_cast<Vec<T>>(_mm512_maskz_scalef_pd(0xff, bit_cast<__m512d>(exp2_reduced(r)), bit_cast<__m512d>(x - r)));
  }
#else
  constexpr int kMantissa = sizeof(T) == 8 ? 52 : 23, kBias = sizeof(T) == 8 ? 1023 : 127;
  x = max(broadcast<T>(static_cast<T>(-kBias)), x);
  const Vec<T> shifted = x + ExpConstants<T>::rounding;  // the integer is in the low bits
  const Vec<T> r = x - (shifted - ExpConstants<T>::rounding);
  const IntVec<T> bias = IntVec<T>{} + (static_cast<IntOf<T>>(kBias) << kMantissa);
  return exp2_reduced(r) * bit_cast<Vec<T>>((bit_cast<IntVec<T>>(shifted) << kMantissa) + bias);
#endif
}

}  // namespace simmst::cpu::SIMMST_ISA
