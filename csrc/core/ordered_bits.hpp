// Floats as unsigned integers in the same order, for radix selection and for comparing (value, index) pairs in one word.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.hpp"

namespace simmst {

// a < b exactly when ordered_bits(a) < ordered_bits(b); both zeros are equal and every NaN is the largest.
SIMMST_HOST_DEVICE std::uint32_t ordered_bits(float value) {
  if (value != value) return 0xffffffffu;
  value += 0.0f;  // -0 becomes +0
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The float of some ordered_bits; a NaN for the largest.
SIMMST_HOST_DEVICE float from_ordered_bits(std::uint32_t ordered) {
  const std::uint32_t bits = ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace simmst
