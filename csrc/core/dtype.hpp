// What the entries of an array are, and the 16-bit floats as they lie in memory.
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

// The numbers that Python hands over. Packed signs of planes are kUint8.
enum class DataType : std::uint8_t { kFloat32, kFloat64, kBfloat16, kFloat16, kUint8, kInt64, kBool, kInt32 };

SIMMST_HOST_DEVICE constexpr std::int64_t item_size(DataType type) {
  constexpr std::int64_t sizes[] = {4, 8, 2, 2, 1, 8, 1, 4};
  return sizes[static_cast<int>(type)];
}

}  // namespace simmst
