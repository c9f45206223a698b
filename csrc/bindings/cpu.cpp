// simmst._cpu: build information, CPU capability, and the CPU kernels of the hot paths.
#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/build_info.hpp"
#include "cpu/instruction_set.hpp"

namespace py = pybind11;
namespace cpu = simmst::cpu;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = simmst::version();
  info["compiler"] = simmst::compiler();
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["openmp"] = static_cast<int>(_OPENMP);
  return info;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto set : cpu::supported_instruction_sets()) names.emplace_back(cpu::name(set));
  return names;
}

std::string instruction_set() { return std::string(cpu::name(cpu::active_instruction_set())); }

// The operators, named by the stem of their files.
std::vector<std::string> operators() {
  return {"prob_sparse_attention", "spatial_attention", "cutting_plane", "feed_forward", "day_attention", "projection"};
}

}  // namespace

// Each operator binds its kernels in a file of its own, csrc/bindings/cpu_<stem>.cpp.
void bind_prob_sparse_attention(py::module_& module);
void bind_spatial_attention(py::module_& module);
void bind_cutting_plane(py::module_& module);
void bind_feed_forward(py::module_& module);
void bind_day_attention(py::module_& module);
void bind_projection(py::module_& module);

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Compiled CPU side of simmst; links no torch.";
  module.def("build_info", &build_info, "Version, compiler, C++ standard and OpenMP date of this build.");
  module.def("instruction_sets", &instruction_sets, "Instruction sets this machine can run, lowest first.");
  module.def("instruction_set", &instruction_set,
             "The instruction set in use: the highest, or the one SIMMST_CPU_ISA names (ValueError if it cannot run).");
  module.def("operators", &operators, "Hot paths this build has CPU kernels for.");
  bind_prob_sparse_attention(module);
  bind_spatial_attention(module);
  bind_cutting_plane(module);
  bind_feed_forward(module);
  bind_day_attention(module);
  bind_projection(module);
}
