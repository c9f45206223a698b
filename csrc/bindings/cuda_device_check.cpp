// simmst._cuda.device_check: the words that kernels are written in, one by one, for tests.
#include <pybind11/pybind11.h>

#include "bindings/cuda_arrays.hpp"
#include "cuda/device_check.hpp"

namespace py = pybind11;
using namespace simmst::cuda;

namespace {

void check(const std::string& name, const py::tuple& in, const py::tuple& out, int device, std::uintptr_t stream) {
  const Queue queue{device, stream};
  const Arrays read(queue);
  const Array input = read("in", in, {DataType::kFloat32}), output = read("out", out, {DataType::kInt32});
  if (input.rank != 1) throw py::value_error(input.describe() + " must have one dimension");
  require_contiguous(input);
  require_contiguous(output);
  require_shape(output, {device_check_outputs(name, input.shape[0])});
  const DeviceGuard guard(device);
  device_check(name, input.as<float>(), output.as<std::uint32_t>(), input.shape[0], queue);
}

}  // namespace

void bind_device_check(py::module_& module) {
  module.def("device_check", &check, "Run the check of that name; in is float32, out int32.");
  module.def("device_check_outputs", &device_check_outputs, "Words that a check writes.");
#if defined(SIMMST_EMULATED)
  module.def(
      "device_misuse",
      [](const std::string& name, const py::tuple& out) {
        const Array output = Arrays({-1, 0})("out", out, {DataType::kInt32});
        require_shape(output, {64});
        device_misuse(name, output.as<std::uint32_t>());
      },
      "Run a kernel with the mistake of that name.");
#endif
}
