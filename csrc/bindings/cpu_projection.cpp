// simmst._cpu.projection_forward and _backward. All arguments are checked here, before any memory is touched; the
// interpreter lock is released while the kernels run. Every tensor is contiguous float32 and is given as (address,
// bytes); the address of a missing tensor is 0.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/workspace.hpp"
#include "cpu/projection.hpp"

namespace py = pybind11;
namespace cpu = simmst::cpu;
namespace projection = simmst::cpu::projection;

namespace {

using Buffers = std::vector<py::object>;

const projection::Kernels& kernels() {
#define SIMMST_TABLE(isa) &cpu::isa::projection::kernels,
  return cpu::pick<projection::Kernels>({SIMMST_FOR_EACH_ISA(SIMMST_TABLE)});
#undef SIMMST_TABLE
}

// sizes: series, steps, inputs, outputs, parts, input heads, output heads
projection::Problem make_problem(const std::vector<int64_t>& sizes, double eps, int threads) {
  if (sizes.size() != 7) throw py::value_error("seven sizes are needed, got " + std::to_string(sizes.size()));
  for (size_t i = 0; i < 7; ++i)
    if (sizes[i] < (i < 5 ? 1 : 0)) throw py::value_error("a size is too small: " + std::to_string(sizes[i]));
  if (sizes[4] > projection::kMostParts)
    throw py::value_error("there are at most three layers, got " + std::to_string(sizes[4]));
  for (int i = 0; i < 2; ++i)
    if (sizes[5 + i] > 0 && sizes[2 + i] % sizes[5 + i] != 0)
      throw py::value_error(std::to_string(sizes[2 + i]) + " features do not divide into " +
                            std::to_string(sizes[5 + i]) + " heads");
  if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], static_cast<float>(eps), threads};
}

void need(const char* what, const Buffers& buffers, int64_t count) {
  if (static_cast<int64_t>(buffers.size()) != count)
    throw py::value_error(std::to_string(count) + " " + what + " are needed, got " + std::to_string(buffers.size()));
}

// The weight and bias of each part, norm, norm_bias, residual, scale.
projection::Weights make_weights(const projection::Problem& problem, const Buffers& buffers) {
  const int64_t parts = problem.parts;
  need("weights", buffers, 2 * parts + 4);
  projection::Weights weights{};
  for (int64_t p = 0; p < parts; ++p) {
    weights.weight[p] = simmst::make_floats("weight", buffers[2 * p], problem.outputs * problem.inputs, false);
    weights.bias[p] = simmst::make_floats("bias", buffers[2 * p + 1], problem.outputs, true);
  }
  weights.norm = simmst::make_floats("norm_weight", buffers[2 * parts], problem.inputs, true);
  weights.norm_bias = simmst::make_floats("norm_bias", buffers[2 * parts + 1], problem.inputs, true);
  weights.residual = simmst::make_floats("residual", buffers[2 * parts + 2], problem.rows() * problem.outputs, true);
  weights.scale = simmst::make_floats("scale", buffers[2 * parts + 3], problem.series * problem.outputs, true);
  return weights;
}

void forward(const std::vector<int64_t>& sizes, double eps, const py::object& x_buffer, const Buffers& weight_buffers,
             const Buffers& out_buffers, int threads) {
  const auto problem = make_problem(sizes, eps, threads);
  const float* x = simmst::make_floats("x", x_buffer, problem.rows() * problem.inputs, false);
  const auto weights = make_weights(problem, weight_buffers);
  need("results", out_buffers, problem.parts);
  projection::Outputs out{};
  for (int64_t p = 0; p < problem.parts; ++p)
    out.part[p] = simmst::make_floats("out", out_buffers[p], problem.rows() * problem.outputs, false);
  const auto& table = kernels();
  const py::gil_scoped_release release;
  const auto workspace = simmst::allocate(table.bytes(problem, false));
  table.forward(problem, x, weights, out, workspace.get());
}

// Gradients to fill: x, the weight and bias of each part, norm, norm_bias.
void backward(const std::vector<int64_t>& sizes, double eps, const Buffers& grad_buffers, const py::object& x_buffer,
              const Buffers& weight_buffers, const Buffers& gradient_buffers, int threads) {
  const auto problem = make_problem(sizes, eps, threads);
  const int64_t parts = problem.parts, square = problem.outputs * problem.inputs;
  const float* x = simmst::make_floats("x", x_buffer, problem.rows() * problem.inputs, false);
  const auto weights = make_weights(problem, weight_buffers);
  need("gradients of results", grad_buffers, parts);
  const float* grads[projection::kMostParts] = {};
  for (int64_t p = 0; p < parts; ++p)
    grads[p] = simmst::make_floats("grad", grad_buffers[p], problem.rows() * problem.outputs, false);
  need("gradients", gradient_buffers, 2 * parts + 3);
  projection::Gradients wanted{};
  wanted.x = simmst::make_floats("gradient of x", gradient_buffers[0], problem.rows() * problem.inputs, true);
  for (int64_t p = 0; p < parts; ++p) {
    wanted.weight[p] = simmst::make_floats("gradient of weight", gradient_buffers[2 * p + 1], square, true);
    wanted.bias[p] = simmst::make_floats("gradient of bias", gradient_buffers[2 * p + 2], problem.outputs, true);
  }
  wanted.norm = simmst::make_floats("gradient of norm_weight", gradient_buffers[2 * parts + 1], problem.inputs, true);
  wanted.norm_bias =
      simmst::make_floats("gradient of norm_bias", gradient_buffers[2 * parts + 2], problem.inputs, true);
  const auto& table = kernels();
  const py::gil_scoped_release release;
  const auto workspace = simmst::allocate(table.bytes(problem, true));
  table.backward(problem, grads, x, weights, wanted, workspace.get());
}

}  // namespace

void bind_projection(py::module_& module) {
  module.def("projection_forward", &forward, "Linear layers before or behind attention; tensors are (address, bytes).");
  module.def("projection_backward", &backward, "Gradients of projection_forward, those that are given an address.");
}
