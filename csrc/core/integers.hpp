// Whole-number arithmetic of tilings, in 64 bits.
#pragma once

#include <cstdint>

#include "core/host_device.hpp"

namespace simmst {

SIMMST_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}

SIMMST_HOST_DEVICE constexpr std::int64_t round_up_to(std::int64_t count, std::int64_t multiple) {
  return ceil_div(count, multiple) * multiple;
}

}  // namespace simmst
