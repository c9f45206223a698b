// The exact GELU, x Phi(x), where Phi is the distribution function of the normal distribution, and its derivative.
#pragma once

#include "cpu/matrices.hpp"

namespace simmst::cpu::SIMMST_ISA::matrices {

// 1 / x to about 2 ulp for positive normal x: one Newton step from the processor's estimate.
SIMMST_INLINE Vector reciprocal_of(Vector x) {
#if defined(__AVX512F__)
  const Vector estimate = bit_cast<Vector>(_mm512_maskz_rcp14_ps(0xffff, bit_cast<__m512>(x)));
#elif defined(__AVX2__)
  const Vector estimate = bit_cast<Vector>(_mm256_rcp_ps(bit_cast<__m256>(x)));
#else
  return 1.0f / x;
#endif
#if defined(__AVX2__)
  return estimate + estimate * (1.0f - x * estimate);
#endif
}

// e^(-x^2 / 2) / sqrt(2 pi), to about 1e-7; NaN for NaN.
SIMMST_INLINE Vector normal_density(Vector x) {
  const Vector power = x * x * -0.7213475204444817f;  // a power of two
#if defined(__AVX512F__)
  const Vector r = bit_cast<Vector>(_mm512_maskz_reduce_ps(0xffff, bit_cast<__m512>(power), 0x08));
#else
  const Vector inside = power < -126.0f ? broadcast<float>(-126.0f) : power;
  const Vector shifted = inside + 0x1.8p23f;
  const Vector r = inside - (shifted - 0x1.8p23f);
#endif
  // 2^r / sqrt(2 pi), minimax in relative error, for |r| <= 1/2
  Vector p = r * 0x1.15b10ap-11f + 0x1.f9ef86p-9f;
  p = p * r + 0x1.6acf44p-6f;
  p = p * r + 0x1.8889a4p-4f;
  p = p * r + 0x1.1b298ap-2f;
  p = p * r + 0x1.988456p-2f;
#if defined(__AVX512F__)
  return bit_cast<Vector>(_mm512_maskz_scalef_ps(0xffff, bit_cast<__m512>(p), bit_cast<__m512>(power - r)));
#else
  const IntVec<float> n = bit_cast<IntVec<float> >(shifted) - bit_cast<IntVec<float> >(broadcast<float>(0x1.8p23f));
  return power < -126.0f ? Vector{} : p * power_of_two(n);
#endif
}

// The distribution function of the normal distribution, to about 2e-7: a rational minimax approximation of
// erf(x / sqrt 2) / 2x in x squared; below -5.4 it is 0.
SIMMST_INLINE Vector normal_distribution(Vector x) {
  constexpr float kEnd = 5.4f;
  Vector inside = x > kEnd ? broadcast<float>(kEnd) : x;  // keeps NaN
  inside = inside < -kEnd ? broadcast<float>(-kEnd) : inside;
  const Vector s = inside * inside;
  Vector p = s * 2.338667925982918e-08f + 6.360026418406051e-06f;
  p = p * s + 0.00016432255506515503f;
  p = p * s + 0.004650856833904982f;
  p = p * s + 0.033372312784194946f;
  p = p * s + 0.398942232131958f;
  Vector q = s * 1.2165899e-06f + 7.2400464e-05f;
  q = q * s + 0.0018589864f;
  q = q * s + 0.028378736f;
  q = q * s + 0.25031808f;
  q = q * s + 1.0f;
  const Vector found = inside * (p * reciprocal_of(q)) + 0.5f;
  return x < -kEnd ? Vector{} : found;
}

// x <- GELU(x), x Phi(x).
SIMMST_INLINE void apply_gelu(float* x, int64_t count) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < count; i += kWide) {
    const Vector at = load(x + i);
    store(x + i, at * normal_distribution(at));
  }
}

// The same; also writes the derivative Phi(x) + x phi(x) to `slope`.
SIMMST_INLINE void apply_gelu_with_slope(float* x, float* slope, int64_t count) {
  for (int64_t i = 0; i < count; i += kWide) {
    const Vector at = load(x + i), below = normal_distribution(at);
    store(slope + i, below + at * normal_density(at));
    store(x + i, at * below);
  }
}

}  // namespace simmst::cpu::SIMMST_ISA::matrices
