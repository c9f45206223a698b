// Plain C++ shared by the CPU kernels, the CUDA kernels and host code: integer arithmetic for tilings, and an ordering
// of floats.
#pragma once

#include <cstdint>
#include <cstring>

// Declares a free function for all three. Under nvcc it exists on both sides; elsewhere it has internal linkage and is
// inlined, so that the CPU kernels of two instruction sets never share a copy.
#if defined(__CUDACC__)
#define SIMMST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SIMMST_HOST_DEVICE static inline __attribute__((always_inline))
#endif

namespace simmst {

SIMMST_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}

SIMMST_HOST_DEVICE constexpr std::int64_t round_up_to(std::int64_t count, std::int64_t multiple) {
  return ceil_div(count, multiple) * multiple;
}

// Maps floats to unsigned integers in the same order, for radix selection and for comparing (value, index) pairs in one
// word: a < b exactly when ordered_bits(a) < ordered_bits(b); both zeros are equal and every NaN is the largest.
SIMMST_HOST_DEVICE std::uint32_t ordered_bits(float value) {
  if (value != value) return 0xffffffffu;
  value += 0.0f;  // -0 becomes +0
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The float whose ordered_bits are `ordered`; NaN for the largest.
SIMMST_HOST_DEVICE float from_ordered_bits(std::uint32_t ordered) {
  const std::uint32_t bits = ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace simmst
