// The functions that launch.hpp declares, on the CUDA runtime.
#include <cuda_runtime_api.h>

#include <array>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/launch.hpp"

namespace simmst::cuda {

void check(cudaError_t status, const Launch& launch);
void allow_shared_memory(const void* kernel, const Launch& launch);

namespace {

std::string version_text(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

std::string explain_error(int status) {
  int driver = 0, device = 0, major = 0, minor = 0;
  switch (status) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion: {
      cudaGetDevice(&device);
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      const std::string capability = std::to_string(major) + std::to_string(minor);
      return "this build of simmst._cuda has no code that device " + std::to_string(device) + " (sm_" + capability +
             ") can run" +
             (status == cudaErrorUnsupportedPtxVersion ? ", and its driver is too old to make some" : "") +
             "; it was compiled for " SIMMST_CUDA_ARCHITECTURES ". Rebuild simmst from source with CUDAARCHS=" +
             capability + (major < 8 ? " (the kernels need sm_80 or newer), or choose another backend" : "");
    }
    case cudaErrorInsufficientDriver:
      cudaDriverGetVersion(&driver);
      return (driver == 0 ? std::string("no NVIDIA driver is installed")
                          : "the NVIDIA driver supports CUDA up to " + version_text(driver)) +
             "; this build needs CUDA " + version_text(CUDART_VERSION / 1000 * 1000) +
             " or newer. Update the driver, or rebuild simmst with an older nvcc";
    case cudaErrorMemoryAllocation:
      return "the device is out of memory; free tensors or use a smaller batch";
    case cudaErrorInvalidDevice: {
      int count = 0;
      cudaGetDeviceCount(&count);
      return "no such device; this process sees " + std::to_string(count);
    }
    case cudaErrorNoDevice:
      return "this process sees no CUDA device";
    default: {
      const auto error = static_cast<cudaError_t>(status);
      return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
    }
  }
}

namespace {

void check_call(cudaError_t status, const std::string& doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error for the next call
  throw LaunchError(doing + ": " + explain_error(status));
}

}  // namespace

void check(cudaError_t status, const Launch& launch) {
  if (status != cudaSuccess) check_call(status, describe(launch));
}

void allow_shared_memory(const void* kernel, const Launch& launch) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, std::size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), launch);
  const std::lock_guard lock(mutex);
  const auto [known, is_new] = allowed.try_emplace({kernel, device}, 48 * 1024);
  if (is_new) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
          launch);
  }
  if (launch.shared_bytes <= known->second) return;
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(launch.shared_bytes)),
      launch);
  known->second = launch.shared_bytes;
}

const DeviceLimits& device_limits(int device) {
  static std::array<DeviceLimits, 64> known;
  static std::array<std::once_flag, 64> once;
  if (device < 0 || device >= 64) throw LaunchError("device " + std::to_string(device) + " is none of 0 to 63");
  std::call_once(once[device], [&] {
    int bytes = 0, multiprocessors = 0;
    const std::string doing = "looking up device " + std::to_string(device);
    check_call(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), doing);
    check_call(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), doing);
    known[device] = {multiprocessors, static_cast<std::size_t>(bytes)};
  });
  return known[device];
}

DeviceGuard::DeviceGuard(int device) {
  int before = 0;
  const std::string doing = "making device " + std::to_string(device) + " current";
  check_call(cudaGetDevice(&before), doing);
  if (before == device) return;
  check_call(cudaSetDevice(device), doing);
  before_ = before;
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

}  // namespace simmst::cuda
