// Selection of lanes by a sign, and transposition of a square of lanes.
#pragma once

#include "cpu/simd.hpp"

namespace simmst::cpu::SIMMST_ISA {

// a where the sign bit of the lane of `sign` is set, else b.
SIMMST_INLINE Vec<float> select_negative(Vec<float> sign, Vec<float> a, Vec<float> b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm256_blendv_ps(bit_cast<__m256>(b), bit_cast<__m256>(a), bit_cast<__m256>(sign)));
#else
  return bit_cast<IntVec<float>>(sign) < 0 ? a : b;
#endif
}
SIMMST_INLINE Vec<double> select_negative(Vec<double> sign, Vec<double> a, Vec<double> b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return bit_cast<Vec<double>>(_mm256_blendv_pd(bit_cast<__m256d>(b), bit_cast<__m256d>(a), bit_cast<__m256d>(sign)));
#else
  return bit_cast<IntVec<double>>(sign) < 0 ? a : b;
#endif
}

// Transposes a square of kLanes x kLanes: row i of the result is column i of v. Each round interleaves the halves.
template <typename T, int... kIndex>
SIMMST_INLINE void interleave(Vec<T> a, Vec<T> b, Vec<T>& low, Vec<T>& high, std::integer_sequence<int, kIndex...>) {
  low = __builtin_shufflevector(a, b, (kIndex / 2 + kIndex % 2 * kLanes<T>)...);
  high = __builtin_shufflevector(a, b, (kLanes<T> / 2 + kIndex / 2 + kIndex % 2 * kLanes<T>)...);
}
template <typename T, int kRounds = kLanes<T>>
SIMMST_INLINE void transpose_square(Vec<T>* v) {
  if constexpr (kRounds > 1) {
    Vec<T> mixed[kLanes<T>];
    SIMMST_UNROLL
    for (int i = 0; i < kLanes<T> / 2; ++i)
      interleave<T>(v[i], v[i + kLanes<T> / 2], mixed[2 * i], mixed[2 * i + 1],
                    std::make_integer_sequence<int, kLanes<T>>{});
    SIMMST_UNROLL
    for (int i = 0; i < kLanes<T>; ++i) v[i] = mixed[i];
    transpose_square<T, kRounds / 2>(v);
  }
}

}  // namespace simmst::cpu::SIMMST_ISA
