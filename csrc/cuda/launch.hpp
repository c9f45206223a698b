// The host side's way to start kernels: streams, devices, checked launches. The same under nvcc and in the emulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace simmst::cuda {

// A device and one of its streams, as Python gives them: the number and the handle of torch's current stream.
struct Queue {
  int device = 0;
  std::uintptr_t stream = 0;
};

struct Grid {
  std::int64_t x = 1, y = 1, z = 1;  // up to 2^31 - 1, 65535, 65535 blocks
};

struct NamedSize {
  const char* name;
  std::int64_t value;
};

// One launch. `sizes` describe the call in error messages.
struct Launch {
  const char* kernel;
  Grid grid;
  int threads;  // a multiple of 32; at most the constant given to SIMMST_KERNEL
  std::size_t shared_bytes;
  std::uintptr_t stream;
  std::initializer_list<NamedSize> sizes;
};

class LaunchError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// For example "kernel (P=2, L=64) on a grid of 8 x 1 x 1 blocks of 256 threads with 1024 bytes of shared memory".
std::string describe(const Launch& launch);

// Throws LaunchError for a launch that no device of compute capability 8.0 to 10.0 accepts. That includes a grid
// without blocks: a caller with nothing to do must not launch.
void check_limits(const Launch& launch);

#if !defined(SIMMST_EMULATED)
// An explanation of a CUDA runtime error, given by number, with a remedy.
std::string explain_error(int status);
#endif

// The limits that kernels are sized by.
struct DeviceLimits {
  int multiprocessors = 0;
  std::size_t shared_bytes = 0;  // the most shared memory that one block can have
};
const DeviceLimits& device_limits(int device);

// Makes a device current, and restores the previous one on destruction.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

}  // namespace simmst::cuda
