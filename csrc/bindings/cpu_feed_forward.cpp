// simmst._cpu.feed_forward_forward and _backward. All arguments are checked here, before any memory is touched; the
// interpreter lock is released while the kernels run. Every tensor is contiguous float32 and is given as (address,
// bytes); the address of a missing tensor is 0.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/workspace.hpp"
#include "cpu/feed_forward.hpp"

namespace py = pybind11;
namespace cpu = simmst::cpu;
namespace feed_forward = simmst::cpu::feed_forward;

namespace {

using Buffers = std::vector<py::object>;

const feed_forward::Kernels& kernels() {
#define SIMMST_TABLE(isa) &cpu::isa::feed_forward::kernels,
  return cpu::pick<feed_forward::Kernels>({SIMMST_FOR_EACH_ISA(SIMMST_TABLE)});
#undef SIMMST_TABLE
}

// sizes: series, steps, inputs, hidden, outputs
feed_forward::Problem make_problem(const std::vector<int64_t>& sizes, int norm, bool residual, double eps,
                                   int threads) {
  if (sizes.size() != 5) throw py::value_error("five sizes are needed, got " + std::to_string(sizes.size()));
  for (size_t i = 0; i < 5; ++i)
    if (sizes[i] < (i < 2 ? 0 : 1)) throw py::value_error("a size is too small: " + std::to_string(sizes[i]));
  if (norm < 0 || norm > 2) throw py::value_error("norm must be from 0 to 2, got " + std::to_string(norm));
  if (residual && sizes[2] != sizes[4])
    throw py::value_error("a residual needs as many outputs as inputs, got " + std::to_string(sizes[4]) + " and " +
                          std::to_string(sizes[2]));
  if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
  return {sizes[0], sizes[1],
          sizes[2], sizes[3],
          sizes[4], static_cast<feed_forward::Norm>(norm),
          residual, static_cast<float>(eps),
          threads};
}

// in, in_bias, out, out_bias, norm, norm_bias, addend, scale
feed_forward::Weights make_weights(const feed_forward::Problem& problem, const Buffers& buffers) {
  if (buffers.size() != 8) throw py::value_error("eight weights are needed, got " + std::to_string(buffers.size()));
  return {simmst::make_floats("in_weight", buffers[0], problem.hidden * problem.inputs, false),
          simmst::make_floats("in_bias", buffers[1], problem.hidden, true),
          simmst::make_floats("out_weight", buffers[2], problem.outputs * problem.hidden, false),
          simmst::make_floats("out_bias", buffers[3], problem.outputs, true),
          simmst::make_floats("norm_weight", buffers[4], problem.normed(), true),
          simmst::make_floats("norm_bias", buffers[5], problem.normed(), true),
          simmst::make_floats("addend", buffers[6], problem.series * problem.hidden, true),
          simmst::make_floats("scale", buffers[7], problem.series * problem.outputs, true)};
}

void forward(const std::vector<int64_t>& sizes, int norm, bool residual, double eps, const py::object& x_buffer,
             const Buffers& weight_buffers, const py::object& out_buffer, int threads) {
  const auto problem = make_problem(sizes, norm, residual, eps, threads);
  if (problem.rows() == 0) return;
  const float* x = simmst::make_floats("x", x_buffer, problem.rows() * problem.inputs, false);
  const auto weights = make_weights(problem, weight_buffers);
  float* out = simmst::make_floats("out", out_buffer, problem.rows() * problem.outputs, false);
  const auto& table = kernels();
  const py::gil_scoped_release release;
  const auto workspace = simmst::allocate(table.forward_bytes(problem));
  table.forward(problem, x, weights, out, workspace.get());
}

// Gradients to fill: x, in, in_bias, out, out_bias, norm, norm_bias, addend.
feed_forward::Gradients make_gradients(const feed_forward::Problem& problem, const Buffers& buffers) {
  if (buffers.size() != 8) throw py::value_error("eight gradients are needed, got " + std::to_string(buffers.size()));
  return {simmst::make_floats("gradient of x", buffers[0], problem.rows() * problem.inputs, true),
          simmst::make_floats("gradient of in_weight", buffers[1], problem.hidden * problem.inputs, true),
          simmst::make_floats("gradient of in_bias", buffers[2], problem.hidden, true),
          simmst::make_floats("gradient of out_weight", buffers[3], problem.outputs * problem.hidden, true),
          simmst::make_floats("gradient of out_bias", buffers[4], problem.outputs, true),
          simmst::make_floats("gradient of norm_weight", buffers[5], problem.normed(), true),
          simmst::make_floats("gradient of norm_bias", buffers[6], problem.normed(), true),
          simmst::make_floats("gradient of addend", buffers[7], problem.series * problem.hidden, true)};
}

void backward(const std::vector<int64_t>& sizes, int norm, bool residual, double eps, const py::object& grad_buffer,
              const py::object& x_buffer, const Buffers& weight_buffers, const Buffers& gradient_buffers, int threads) {
  const auto problem = make_problem(sizes, norm, residual, eps, threads);
  if (problem.rows() == 0) throw py::value_error("x is empty; its gradients are zero");
  const float* x = simmst::make_floats("x", x_buffer, problem.rows() * problem.inputs, false);
  const float* grad = simmst::make_floats("grad", grad_buffer, problem.rows() * problem.outputs, false);
  const auto weights = make_weights(problem, weight_buffers);
  const auto gradients = make_gradients(problem, gradient_buffers);
  const auto& table = kernels();
  const py::gil_scoped_release release;
  const auto workspace = simmst::allocate(table.backward_bytes(problem));
  table.backward(problem, grad, x, weights, gradients, workspace.get());
}

}  // namespace

void bind_feed_forward(py::module_& module) {
  module.def("feed_forward_forward", &forward, "Two layers around a GELU; tensors are (address, bytes).");
  module.def("feed_forward_backward", &backward, "Gradients of feed_forward_forward, those that are given an address.");
}
