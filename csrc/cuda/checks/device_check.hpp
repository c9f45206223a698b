// Small kernels that use one primitive of device.hpp each, to show on a device that the emulator gives the primitive
// the same meaning.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/launch.hpp"

namespace simmst::cuda {

// Runs the check with this name: reads `count` floats and writes device_check_outputs(name, count) 32-bit words. Throws
// std::invalid_argument for an unknown name.
void device_check(const std::string& name, const float* in, std::uint32_t* out, std::int64_t count, const Queue& queue);
std::int64_t device_check_outputs(const std::string& name, std::int64_t count);

#if defined(SIMMST_EMULATED)
// Kernels with one mistake each, for the emulator to find; `out` has 64 words.
void device_misuse(const std::string& name, std::uint32_t* out);
#endif

}  // namespace simmst::cuda
