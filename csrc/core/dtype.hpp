// The types of an array's entries, and the 16-bit floats as stored in memory.
#pragma once

#include <cstdint>

#include "core/arithmetic.hpp"

namespace simmst {

struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

// The type codes that Python passes. Packed signs of planes are kUint8.
enum class DataType : std::uint8_t { kFloat32, kFloat64, kBfloat16, kFloat16, kUint8, kInt64, kBool, kInt32 };

SIMMST_HOST_DEVICE constexpr std::int64_t item_size(DataType type) {
  constexpr std::int64_t sizes[] = {4, 8, 2, 2, 1, 8, 1, 4};
  return sizes[static_cast<int>(type)];
}

}  // namespace simmst
