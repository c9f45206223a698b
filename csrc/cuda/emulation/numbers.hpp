// The 16-bit floats in plain C++, converted as the device does: to nearest, ties to even, NaN stays NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/dtype.hpp"

namespace simmst::cuda::emulation {

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline float widen(bfloat16 x) { return float_of(static_cast<std::uint32_t>(x.bits) << 16); }
inline float widen(float16 x) {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

inline void narrow(float x, bfloat16& out) {
  const std::uint32_t bits = bits_of(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<std::uint16_t>(nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void narrow(float x, float16& out) {
  const std::uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    out.bits = 0x7fff;
    return;
  }
  if (magnitude >= 0x47800000u) {  // 65536 and beyond, and infinity
    half = 0x7c00;
  } else if (magnitude >= 0x38800000u) {  // normal from 2^-14; rounding up may carry into infinity
    half = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000u) >> 13;
  } else {
    half = static_cast<std::uint32_t>(std::nearbyint(float_of(magnitude) * 0x1p24f));
  }
  out.bits = static_cast<std::uint16_t>(sign | half);
}
inline float widen(float x) { return x; }
inline void narrow(float x, float& out) { out = x; }

}  // namespace simmst::cuda::emulation
