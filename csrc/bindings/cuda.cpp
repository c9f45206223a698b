// simmst._cuda, or simmst._cuda_emulated when compiled with SIMMST_EMULATED: build information, devices, and the CUDA
// kernels of the operators. It imports without a GPU.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <string>
#include <vector>

#include "bindings/plan.hpp"
#include "core/build_info.hpp"
#include "cuda/launch.hpp"

#if !defined(SIMMST_EMULATED)
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = simmst::version();
  info["compiler"] = simmst::compiler();
#if defined(SIMMST_EMULATED)
  info["emulated"] = true;
#else
  info["nvcc"] = SIMMST_CUDA_COMPILER;
  info["architectures"] = SIMMST_CUDA_ARCHITECTURES;
  info["runtime"] = static_cast<int>(CUDART_VERSION);
#endif
  return info;
}

// Returns {driver, devices, problem}; `problem` says in words why no device can be used, and is empty when one can.
py::dict devices() {
  int driver = 0;
  std::vector<std::string> names;
  std::string problem;
#if defined(SIMMST_EMULATED)
  names.emplace_back("emulated");
#else
  int count = 0;
  cudaDriverGetVersion(&driver);
  const cudaError_t status = cudaGetDeviceCount(&count);
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
#endif
  py::dict found;
  found["driver"] = driver;
  found["devices"] = names;
  found["problem"] = problem;
  return found;
}

std::size_t shared_bytes(int device) { return simmst::cuda::device_limits(device).shared_bytes; }

// The operators, named by the stem of their files.
std::vector<std::string> operators() { return {"prob_sparse_attention", "spatial_attention", "cutting_plane"}; }

}  // namespace

// Each operator binds its kernels in a file of its own, csrc/bindings/cuda_<stem>.cpp.
void bind_prob_sparse_attention(py::module_& module);
void bind_spatial_attention(py::module_& module);
void bind_cutting_plane(py::module_& module);
#if defined(SIMMST_EMULATED)
void bind_checks(py::module_& module);  // csrc/cuda/checks/bindings.cpp
#endif

#if defined(SIMMST_EMULATED)
PYBIND11_MODULE(_cuda_emulated, module) {
#else
PYBIND11_MODULE(_cuda, module) {
#endif
  module.doc() = "Compiled CUDA side of simmst; links no torch, and the CUDA runtime statically.";
  module.def("build_info", &build_info, "Version, compilers, architectures and CUDA runtime of this build.");
  module.def("devices", &devices, "Driver version, device names, and the problem in words when none can be used.");
  module.def("operators", &operators, "Hot paths this build has CUDA kernels for.");
  module.def("shared_bytes", &shared_bytes, "The most shared memory that one block can have on a device.");
#if defined(SIMMST_EMULATED)
  bind_checks(module);
#else
  module.def("explain_error", &simmst::cuda::explain_error, "An error of the CUDA runtime, by number, in words.");
#endif
  // Local to the module, because one process may import both modules and each has its own Plan.
  py::class_<simmst::Plan>(module, "Plan", py::module_local(),
                           "A call checked once; it takes addresses, those of workspace and stream last.")
      .def("__call__", &simmst::Plan::operator())
      .def_property_readonly("workspace", &simmst::Plan::workspace, "Bytes of workspace, aligned to 16.");
  bind_prob_sparse_attention(module);
  bind_spatial_attention(module);
  bind_cutting_plane(module);
}
