// simmst._cuda: build information, devices, and the CUDA kernels of the hot paths. Imports without a GPU.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/build_info.hpp"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = simmst::version();
  info["compiler"] = simmst::compiler();
  info["nvcc"] = SIMMST_CUDA_COMPILER;
  info["architectures"] = SIMMST_CUDA_ARCHITECTURES;
  info["runtime"] = static_cast<int>(CUDART_VERSION);
  return info;
}

// {driver, devices, problem}: `problem` says in words why no device can be used, empty when one can.
py::dict devices() {
  int driver = 0;
  int count = 0;
  cudaDriverGetVersion(&driver);
  const cudaError_t status = cudaGetDeviceCount(&count);
  std::vector<std::string> names;
  std::string problem;
  if (driver == 0) {
    problem = "no NVIDIA driver is installed";
  } else if (status != cudaSuccess) {
    problem = cudaGetErrorString(status);
  }
  for (int device = 0; problem.empty() && device < count; ++device) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, device) == cudaSuccess) {
      names.push_back(std::string(properties.name) + " (sm_" + std::to_string(properties.major) +
                      std::to_string(properties.minor) + ")");
    }
  }
  py::dict found;
  found["driver"] = driver;
  found["devices"] = names;
  found["problem"] = problem;
  return found;
}

// The hot paths this build has kernels for, by the stem of their files.
std::vector<std::string> operators() { return {}; }

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "Compiled CUDA side of simmst; links no torch, and the CUDA runtime statically.";
  module.def("build_info", &build_info, "Version, compilers, architectures and CUDA runtime of this build.");
  module.def("devices", &devices, "Driver version, device names, and the problem in words when none can be used.");
  module.def("operators", &operators, "Hot paths this build has CUDA kernels for.");
}
