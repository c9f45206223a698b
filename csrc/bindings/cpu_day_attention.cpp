// simmst._cpu.day_attention_forward and _backward. All arguments are checked here, before any memory is touched; the
// interpreter lock is released while the kernels run. Every tensor is contiguous and is given as (address, bytes); all
// are float32 except `known`.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/workspace.hpp"
#include "cpu/day_attention.hpp"

namespace py = pybind11;
namespace cpu = simmst::cpu;
namespace day_attention = simmst::cpu::day_attention;

namespace {

using Buffers = std::vector<py::object>;

const day_attention::Kernels& kernels() {
#define SIMMST_TABLE(isa) &cpu::isa::day_attention::kernels,
  return cpu::pick<day_attention::Kernels>({SIMMST_FOR_EACH_ISA(SIMMST_TABLE)});
#undef SIMMST_TABLE
}

// sizes: series, slots, days, heads, width
day_attention::Problem make_problem(const std::vector<int64_t>& sizes, int threads) {
  if (sizes.size() != 5) throw py::value_error("five sizes are needed, got " + std::to_string(sizes.size()));
  for (const int64_t size : sizes)
    if (size < 1) throw py::value_error("a size is too small: " + std::to_string(size));
  if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], threads};
}

// A buffer of exactly `count` items.
template <typename T = float>
T* checked(const char* name, const py::object& given, int64_t count) {
  const simmst::Array buffer = simmst::make_bytes(name, given);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  if (buffer.size(0) != bytes)
    throw py::value_error(std::string(name) + " must hold " + std::to_string(bytes) + " bytes, got " +
                          std::to_string(buffer.size(0)));
  return reinterpret_cast<T*>(buffer.data);
}

// query, key, bias, alike, alike_weight, known, values, apart
day_attention::Inputs make_inputs(const day_attention::Problem& problem, const Buffers& buffers) {
  if (buffers.size() != 8) throw py::value_error("eight inputs are needed, got " + std::to_string(buffers.size()));
  const int64_t features = problem.heads * problem.width, pairs = problem.series * problem.days * problem.slots;
  return {checked("query", buffers[0], problem.series * problem.slots * features),
          checked("key", buffers[1], problem.series * problem.days * features),
          checked("bias", buffers[2], problem.heads * problem.days),
          checked("alike", buffers[3], 2 * pairs),
          checked("alike_weight", buffers[4], 2 * problem.heads),
          checked<bool>("known", buffers[5], pairs),
          checked("values", buffers[6], pairs),
          checked("apart", buffers[7], problem.series * problem.days)};
}

void forward(const std::vector<int64_t>& sizes, const Buffers& input_buffers, const py::object& out_buffer,
             int threads) {
  const auto problem = make_problem(sizes, threads);
  const auto inputs = make_inputs(problem, input_buffers);
  float* out = checked("out", out_buffer, problem.series * problem.slots * 2 * problem.heads);
  const auto& table = kernels();
  const py::gil_scoped_release release;
  const auto workspace = simmst::allocate(table.bytes(problem, false));
  table.forward(problem, inputs, out, workspace.get());
}

// Gradients to fill: query, key, bias, alike_weight.
void backward(const std::vector<int64_t>& sizes, const py::object& grad_buffer, const Buffers& input_buffers,
              const Buffers& gradient_buffers, int threads) {
  const auto problem = make_problem(sizes, threads);
  const auto inputs = make_inputs(problem, input_buffers);
  const float* grad = checked("grad", grad_buffer, problem.series * problem.slots * 2 * problem.heads);
  if (gradient_buffers.size() != 4)
    throw py::value_error("four gradients are needed, got " + std::to_string(gradient_buffers.size()));
  const int64_t features = problem.heads * problem.width;
  const day_attention::Gradients gradients{
      checked("gradient of query", gradient_buffers[0], problem.series * problem.slots * features),
      checked("gradient of key", gradient_buffers[1], problem.series * problem.days * features),
      checked("gradient of bias", gradient_buffers[2], problem.heads * problem.days),
      checked("gradient of alike_weight", gradient_buffers[3], 2 * problem.heads)};
  const auto& table = kernels();
  const py::gil_scoped_release release;
  const auto workspace = simmst::allocate(table.bytes(problem, true));
  table.backward(problem, inputs, grad, gradients, workspace.get());
}

}  // namespace

void bind_day_attention(py::module_& module) {
  module.def("day_attention_forward", &forward, "Attention of slots over days; tensors are (address, bytes).");
  module.def("day_attention_backward", &backward, "Gradients of day_attention_forward.");
}
