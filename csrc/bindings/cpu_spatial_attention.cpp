// simmst._cpu.spatial_attention_forward and _backward. All arguments are checked here, before any memory is touched;
// the interpreter lock is released while the kernels run. Contiguous tensors are given as (address, bytes); the address
// of a missing tensor is 0.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/workspace.hpp"
#include "cpu/huge_pages.hpp"
#include "cpu/spatial_attention.hpp"

namespace py = pybind11;
namespace cpu = simmst::cpu;
namespace spatial = simmst::cpu::spatial;
using simmst::Array;
using simmst::item_size;

namespace {

using Buffers = std::vector<py::object>;

const spatial::Kernels& kernels() {
#define SIMMST_TABLE(isa) &cpu::isa::spatial::kernels,
  return cpu::pick<spatial::Kernels>({SIMMST_FOR_EACH_ISA(SIMMST_TABLE)});
#undef SIMMST_TABLE
}

spatial::Problem make_problem(const Array& x, int64_t heads, bool residual, double eps, double scale, int threads) {
  if (x.rank != 3 && x.rank != 4) x.refuse("must have shape (B, C, H, W) or (B, N, C)");
  const bool tokens = x.rank == 3;
  const int64_t channels = tokens ? x.shape[2] : x.shape[1];
  if (heads < 1 || channels < 1 || channels % heads != 0)
    throw py::value_error("the channels of " + x.describe() +
                          " must be a positive multiple of num_heads=" + std::to_string(heads));
  if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
  const int64_t rows = tokens ? 1 : x.shape[2], columns = tokens ? x.shape[1] : x.shape[3];
  return {x.shape[0], channels, rows, columns, heads, tokens, residual, eps, scale, x.type, threads, false, false};
}

spatial::Map make_map(const Array& x) {
  if (x.rank == 3) return {x.data, x.strides[0], x.strides[2], 0, x.strides[1]};
  return {x.data, x.strides[0], x.strides[1], x.strides[2], x.strides[3]};
}

// A buffer that must hold exactly `count` items of `size` bytes; null if it is optional and missing.
void* checked(const char* name, const py::object& given, int64_t count, int64_t size, bool optional) {
  const Array buffer = simmst::make_bytes(name, given);
  if (optional && buffer.data == nullptr) return nullptr;
  if (buffer.size(0) != count * size)
    throw py::value_error(std::string(name) + " must hold " + std::to_string(count * size) + " bytes, got " +
                          std::to_string(buffer.size(0)));
  return buffer.data;
}

// in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
spatial::Weights make_weights(const spatial::Problem& problem, const Buffers& buffers) {
  if (buffers.size() != 6) throw py::value_error("six weights are needed, got " + std::to_string(buffers.size()));
  const int64_t c = problem.channels, size = item_size(problem.type);
  return {checked("in_proj_weight", buffers[0], 3 * c * c, size, false),
          checked("in_proj_bias", buffers[1], 3 * c, size, true),
          checked("out_proj_weight", buffers[2], c * c, size, false),
          checked("out_proj_bias", buffers[3], c, size, true),
          checked("norm_weight", buffers[4], c, size, true),
          checked("norm_bias", buffers[5], c, size, true)};
}

const bool* make_mask(const spatial::Problem& problem, const py::object& mask) {
  return static_cast<const bool*>(checked("key_padding_mask", mask, problem.batch * problem.positions(), 1, true));
}

void forward(int dtype, uintptr_t x_address, const py::tuple& shape, const py::tuple& strides,
             const Buffers& weight_buffers, const py::object& mask_buffer, const py::object& out_buffer,
             const py::object& lse_buffer, const py::object& kept_buffer, int64_t heads, bool residual, double eps,
             double scale, int threads) {
  const Array x = simmst::make_array("x", x_address, simmst::floating_type(dtype), shape, strides);
  auto problem = make_problem(x, heads, residual, eps, scale, threads);
  const auto weights = make_weights(problem, weight_buffers);
  const bool* mask = make_mask(problem, mask_buffer);
  const int64_t count = problem.batch * problem.channels * problem.positions(), wide = dtype == 1 ? 8 : 4;
  void* lse = checked("lse", lse_buffer, count / problem.channels * problem.heads, wide, false);
  void* out = checked("out", out_buffer, count, item_size(problem.type), false);
  if (count == 0) return;
  problem.masked = mask != nullptr;
  void* kept = checked("kept", kept_buffer, spatial::kept_entries(problem), wide, true);
  problem.keeps = kept != nullptr;
  const auto& table = kernels();
  const py::gil_scoped_release release;
  cpu::prefer_huge_pages(out, count * item_size(problem.type));
  if (kept != nullptr) cpu::prefer_huge_pages(kept, spatial::kept_entries(problem) * wide);
  const auto workspace = simmst::allocate(table.forward_bytes(problem));
  table.forward(problem, make_map(x), weights, mask, out, lse, kept, workspace.get());
}

// Gradients to fill: x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias.
spatial::Gradients make_gradients(const spatial::Problem& problem, const Buffers& buffers) {
  if (buffers.size() != 7) throw py::value_error("seven gradients are needed, got " + std::to_string(buffers.size()));
  const int64_t c = problem.channels, size = item_size(problem.type);
  return {checked("gradient of x", buffers[0], problem.batch * c * problem.positions(), size, true),
          checked("gradient of in_proj_weight", buffers[1], 3 * c * c, size, true),
          checked("gradient of in_proj_bias", buffers[2], 3 * c, size, true),
          checked("gradient of out_proj_weight", buffers[3], c * c, size, true),
          checked("gradient of out_proj_bias", buffers[4], c, size, true),
          checked("gradient of norm_weight", buffers[5], c, size, true),
          checked("gradient of norm_bias", buffers[6], c, size, true)};
}

void backward(int dtype, uintptr_t grad_address, const py::tuple& grad_shape, const py::tuple& grad_strides,
              uintptr_t x_address, const py::tuple& shape, const py::tuple& strides, const Buffers& weight_buffers,
              const py::object& mask_buffer, const py::object& kept_buffer, const Buffers& gradient_buffers,
              int64_t heads, bool residual, double eps, double scale, int threads) {
  const auto type = simmst::floating_type(dtype);
  const Array x = simmst::make_array("x", x_address, type, shape, strides);
  const Array grad = simmst::make_array("grad", grad_address, type, grad_shape, grad_strides);
  auto problem = make_problem(x, heads, residual, eps, scale, threads);
  if (grad.rank != x.rank || grad.shape != x.shape) grad.refuse("must have the shape of " + x.describe());
  const auto weights = make_weights(problem, weight_buffers);
  const bool* mask = make_mask(problem, mask_buffer);
  const auto gradients = make_gradients(problem, gradient_buffers);
  if (x.empty()) x.refuse("is empty; its gradients are zero");
  problem.masked = mask != nullptr;
  const int64_t wide = problem.type == simmst::DataType::kFloat64 ? 8 : 4;
  const void* kept = checked("kept", kept_buffer, spatial::kept_entries(problem), wide, true);
  problem.keeps = kept != nullptr;
  const auto& table = kernels();
  const py::gil_scoped_release release;
  if (gradients.x != nullptr)
    cpu::prefer_huge_pages(gradients.x,
                           problem.batch * problem.channels * problem.positions() * item_size(problem.type));
  const auto workspace = simmst::allocate(table.backward_bytes(problem));
  table.backward(problem, make_map(grad), make_map(x), weights, mask, kept, gradients, workspace.get());
}

}  // namespace

void bind_spatial_attention(py::module_& module) {
  module.def("spatial_attention_forward", &forward,
             "Fused spatial attention; weights, mask, out, lse and kept are (address, bytes) of contiguous tensors.");
  module.def("spatial_attention_backward", &backward,
             "Gradients of spatial_attention_forward, those that are given an address.");
}
