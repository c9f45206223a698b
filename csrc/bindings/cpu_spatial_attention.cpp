// simmst._cpu.spatial_attention_forward and _backward: addresses, shapes, strides and a dtype code from Python, checked
// here before any memory is touched; the interpreter lock is released while the kernels run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/spatial_attention.hpp"

namespace py = pybind11;
namespace cpu = simmst::cpu;
namespace spatial = simmst::cpu::spatial;

namespace {

using Sizes = std::vector<int64_t>;
// Address and size in bytes of a contiguous tensor; address 0 where there is none.
using Buffer = std::pair<uintptr_t, int64_t>;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

std::unique_ptr<void, Free> allocate(int64_t bytes) {
  void* memory = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  if (memory == nullptr && bytes > 0) throw std::bad_alloc();
  return std::unique_ptr<void, Free>(memory);
}

const spatial::Kernels& kernels() {
#define SIMMST_TABLE(isa) &cpu::isa::spatial::kernels,
  return cpu::pick<spatial::Kernels>(cpu::active_instruction_set(), {SIMMST_FOR_EACH_ISA(SIMMST_TABLE)});
#undef SIMMST_TABLE
}

std::string describe(const Sizes& sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return text + ")";
}

int64_t item_size(spatial::Dtype dtype) {
  return dtype == spatial::Dtype::kFloat64 ? 8 : dtype == spatial::Dtype::kFloat32 ? 4 : 2;
}

spatial::Problem make_problem(int dtype, const Sizes& shape, int64_t heads, bool residual, double eps, double scale,
                              int threads) {
  if (dtype < 0 || dtype > 3) throw std::invalid_argument("dtype code must be 0 to 3, got " + std::to_string(dtype));
  if (shape.size() != 3 && shape.size() != 4)
    throw std::invalid_argument("x must have shape (B, C, H, W) or (B, N, C), got " + describe(shape));
  for (const int64_t size : shape)
    if (size < 0) throw std::invalid_argument("x has a negative size: " + describe(shape));
  const bool tokens = shape.size() == 3;
  const int64_t channels = tokens ? shape[2] : shape[1];
  if (heads < 1 || channels < 1 || channels % heads != 0)
    throw std::invalid_argument("the channels of x must be a positive multiple of num_heads=" + std::to_string(heads) +
                                ", got x " + describe(shape));
  if (threads < 1) throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
  const int64_t rows = tokens ? 1 : shape[2], columns = tokens ? shape[1] : shape[3];
  return {shape[0], channels, rows, columns, heads, tokens, residual, eps, scale, static_cast<spatial::Dtype>(dtype),
          threads};
}

spatial::Map make_map(const char* name, uintptr_t address, const Sizes& shape, const Sizes& strides) {
  if (strides.size() != shape.size())
    throw std::invalid_argument(std::string(name) + " must have as many strides as sizes, got " + describe(strides) +
                                " for " + describe(shape));
  const void* data = reinterpret_cast<const void*>(address);
  if (shape.size() == 3) return {data, strides[0], strides[2], 0, strides[1]};
  return {data, strides[0], strides[1], strides[2], strides[3]};
}

// The address of a buffer that must hold exactly `count` items of `size` bytes; null where it may be and is missing.
void* checked(const char* name, const Buffer& buffer, int64_t count, int64_t size, bool optional) {
  if (optional && buffer.first == 0) return nullptr;
  if (buffer.second != count * size || (buffer.first == 0 && count > 0))
    throw std::invalid_argument(std::string(name) + " must hold " + std::to_string(count * size) + " bytes, got " +
                                std::to_string(buffer.first == 0 ? 0 : buffer.second));
  return reinterpret_cast<void*>(buffer.first);
}

// in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
spatial::Weights make_weights(const spatial::Problem& problem, const std::vector<Buffer>& buffers) {
  if (buffers.size() != 6) throw std::invalid_argument("six weights are needed, got " + std::to_string(buffers.size()));
  const int64_t c = problem.channels, size = item_size(problem.dtype);
  return {checked("in_proj_weight", buffers[0], 3 * c * c, size, false),
          checked("in_proj_bias", buffers[1], 3 * c, size, true),
          checked("out_proj_weight", buffers[2], c * c, size, false),
          checked("out_proj_bias", buffers[3], c, size, true),
          checked("norm_weight", buffers[4], c, size, true),
          checked("norm_bias", buffers[5], c, size, true)};
}

const bool* make_mask(const spatial::Problem& problem, const Buffer& mask) {
  return static_cast<const bool*>(checked("key_padding_mask", mask, problem.batch * problem.positions(), 1, true));
}

void forward(int dtype, uintptr_t x_address, const Sizes& shape, const Sizes& strides,
             const std::vector<Buffer>& weight_buffers, const Buffer& mask_buffer, const Buffer& out_buffer,
             const Buffer& lse_buffer, int64_t heads, bool residual, double eps, double scale, int threads) {
  const auto problem = make_problem(dtype, shape, heads, residual, eps, scale, threads);
  const auto x = make_map("x", x_address, shape, strides);
  const auto weights = make_weights(problem, weight_buffers);
  const bool* mask = make_mask(problem, mask_buffer);
  const int64_t count = problem.batch * problem.channels * problem.positions(), wide = dtype == 1 ? 8 : 4;
  void* lse = checked("lse", lse_buffer, count / problem.channels * problem.heads, wide, false);
  void* out = checked("out", out_buffer, count, item_size(problem.dtype), false);
  if (count == 0) return;
  if (x_address == 0) throw std::invalid_argument("x has no data");
  const auto& table = kernels();
  const py::gil_scoped_release release;
  const auto workspace = allocate(table.forward_bytes(problem));
  table.forward(problem, x, weights, mask, out, lse, workspace.get());
}

// Gradients to fill: x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias.
spatial::Gradients make_gradients(const spatial::Problem& problem, const std::vector<Buffer>& buffers) {
  if (buffers.size() != 7)
    throw std::invalid_argument("seven gradients are needed, got " + std::to_string(buffers.size()));
  const int64_t c = problem.channels, size = item_size(problem.dtype);
  return {checked("gradient of x", buffers[0], problem.batch * c * problem.positions(), size, true),
          checked("gradient of in_proj_weight", buffers[1], 3 * c * c, size, true),
          checked("gradient of in_proj_bias", buffers[2], 3 * c, size, true),
          checked("gradient of out_proj_weight", buffers[3], c * c, size, true),
          checked("gradient of out_proj_bias", buffers[4], c, size, true),
          checked("gradient of norm_weight", buffers[5], c, size, true),
          checked("gradient of norm_bias", buffers[6], c, size, true)};
}

void backward(int dtype, uintptr_t grad_address, const Sizes& grad_shape, const Sizes& grad_strides,
              uintptr_t x_address, const Sizes& shape, const Sizes& strides, const std::vector<Buffer>& weight_buffers,
              const Buffer& mask_buffer, const std::vector<Buffer>& gradient_buffers,
              int64_t heads, bool residual, double eps, double scale, int threads) {
  const auto problem = make_problem(dtype, shape, heads, residual, eps, scale, threads);
  if (grad_shape != shape)
    throw std::invalid_argument("grad must have the shape of x, got " + describe(grad_shape) + " and " +
                                describe(shape));
  const auto grad = make_map("grad", grad_address, grad_shape, grad_strides);
  const auto x = make_map("x", x_address, shape, strides);
  const auto weights = make_weights(problem, weight_buffers);
  const bool* mask = make_mask(problem, mask_buffer);
  const auto gradients = make_gradients(problem, gradient_buffers);
  if (problem.batch * problem.positions() == 0)
    throw std::invalid_argument("x " + describe(shape) + " is empty; its gradients are zero");
  if (x_address == 0 || grad_address == 0) throw std::invalid_argument("x or grad has no data");
  const auto& table = kernels();
  const py::gil_scoped_release release;
  const auto workspace = allocate(table.backward_bytes(problem));
  table.backward(problem, grad, x, weights, mask, gradients, workspace.get());
}

}  // namespace

void bind_spatial_attention(py::module_& module) {
  module.def("spatial_attention_forward", &forward,
             "Fused spatial attention; weights, mask, out and lse are (address, bytes) of contiguous tensors.");
  module.def("spatial_attention_backward", &backward,
             "Gradients of spatial_attention_forward, those that are given an address.");
}
