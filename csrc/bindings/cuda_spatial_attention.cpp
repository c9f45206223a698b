// simmst._cuda.spatial_attention_*: arrays from Python, checked before anything is launched.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <vector>

#include "bindings/arrays.hpp"
#include "cuda/spatial_attention.hpp"

namespace py = pybind11;
using namespace simmst::cuda;
using simmst::Array;
using simmst::Arrays;
using simmst::DataType;
using simmst::require_contiguous;
using simmst::require_shape;

namespace {

using OptionalArrays = std::vector<py::object>;  // arrays or None
// num_heads, residual, eps, scale
using Options = std::tuple<std::int64_t, bool, double, double>;

spatial::Problem make_problem(const Array& x, const Options& options, const Queue& queue) {
  if (x.rank != 3 && x.rank != 4)
    x.refuse("must have shape (B, C, H, W) or (B, N, C)");
  const auto& [heads, residual, eps, scale] = options;
  const bool tokens = x.rank == 3;
  const std::int64_t channels = tokens ? x.shape[2] : x.shape[1];
  if (heads < 1 || channels < 1 || channels % heads != 0)
    throw py::value_error("the channels of " + x.describe() + " must be a positive multiple of num_heads=" +
                          std::to_string(heads));
  const std::int64_t rows = tokens ? 1 : x.shape[2], columns = tokens ? x.shape[1] : x.shape[3];
  return {x.shape[0], channels, rows, columns, heads, tokens, residual, eps, scale, x.type, queue};
}

spatial::Map make_map(const Array& x) {
  if (x.rank == 3) return {x.data, x.strides[0], x.strides[2], 0, x.strides[1]};
  return {x.data, x.strides[0], x.strides[1], x.strides[2], x.strides[3]};
}

// Reads the arrays of one call, all of x's type unless said otherwise.
class Reader {
 public:
  Reader(const Queue& queue, const py::handle& x)
      : read_(Arrays::on_device(queue.device)), x_(read_("x", x, {DataType::kFloat32, DataType::kBfloat16, DataType::kFloat16})) {}

  const Array& x() const { return x_; }

  // A contiguous array of this shape; null where there may be none and is none.
  void* contiguous(const char* name, const py::handle& given, std::initializer_list<std::int64_t> shape, bool optional,
                   std::optional<DataType> type = {}) const {
    if (optional && given.is_none()) return nullptr;
    const Array array = read_(name, given, {type.value_or(x_.type)});
    require_shape(array, shape);
    require_contiguous(array);
    return array.data;
  }

  // An array of the shape of x, with any strides.
  Array like_x(const char* name, const py::handle& given) const {
    const Array array = read_(name, given, {x_.type});
    if (array.rank != x_.rank || array.shape != x_.shape)
      array.refuse("must have the shape of " + x_.describe());
    return array;
  }
  void* result(const char* name, const py::handle& given, bool optional) const {
    if (optional && given.is_none()) return nullptr;
    const Array array = like_x(name, given);
    require_contiguous(array);
    return array.data;
  }

 private:
  Arrays read_;
  Array x_;
};

void require_fused(const spatial::Problem& problem, const Array& x) {
  const std::string reason = spatial::why_not(problem);
  if (!reason.empty())
    x.refuse("with num_heads=" + std::to_string(problem.heads) + " is beyond the fused kernels: " + reason);
}

constexpr std::array<const char*, 6> kWeightNames{"in_proj_weight",  "in_proj_bias", "out_proj_weight",
                                                  "out_proj_bias", "norm_weight",  "norm_bias"};

// The six weights, or their gradients, which may all be missing.
std::array<void*, 6> read_weights(const Reader& read, const spatial::Problem& problem, const OptionalArrays& given,
                                  bool gradients) {
  if (given.size() != 6) throw py::value_error("six weights are needed, got " + std::to_string(given.size()));
  const std::int64_t c = problem.channels;
  std::array<void*, 6> found{};
  for (std::size_t i = 0; i < 6; ++i) {
    const bool optional = gradients || (i != 0 && i != 2);
    const std::int64_t height = i < 2 ? 3 * c : c;
    found[i] = i == 0 || i == 2 ? read.contiguous(kWeightNames[i], given[i], {height, c}, optional)
                                : read.contiguous(kWeightNames[i], given[i], {height}, optional);
  }
  return found;
}

spatial::Weights make_weights(const Reader& read, const spatial::Problem& problem, const OptionalArrays& given) {
  const auto found = read_weights(read, problem, given, false);
  return {found[0], found[1], found[2], found[3], found[4], found[5]};
}

const std::uint8_t* make_mask(const Reader& read, const spatial::Problem& problem, const py::object& mask) {
  return static_cast<const std::uint8_t*>(read.contiguous(
      "key_padding_mask", mask, {problem.batch, problem.rows * problem.columns}, true, DataType::kBool));
}

float* make_lse(const Reader& read, const spatial::Problem& problem, const py::object& lse) {
  return static_cast<float*>(read.contiguous(
      "lse", lse, {problem.batch, problem.heads, problem.rows * problem.columns}, false, DataType::kFloat32));
}

void forward(const py::object& x_given, const OptionalArrays& weights_given, const py::object& mask_given,
             const py::object& out_given, const py::object& lse_given, const Options& options, int device,
             std::uintptr_t stream) {
  const Queue queue{device, stream};
  const Reader read(queue, x_given);
  const auto problem = make_problem(read.x(), options, queue);
  const auto weights = make_weights(read, problem, weights_given);
  const auto* mask = make_mask(read, problem, mask_given);
  void* out = read.result("out", out_given, false);
  float* lse = make_lse(read, problem, lse_given);
  if (read.x().empty()) return;
  require_fused(problem, read.x());
  spatial::forward(problem, make_map(read.x()), weights, mask, out, lse);
}

// `gradients`: of x and of the six weights.
void backward(const py::object& grad_given, const py::object& x_given, const OptionalArrays& weights_given,
              const py::object& mask_given, const py::object& lse_given, const OptionalArrays& gradients,
              const py::object& workspace_given, const Options& options, int device, std::uintptr_t stream) {
  const Queue queue{device, stream};
  const Reader read(queue, x_given);
  const auto problem = make_problem(read.x(), options, queue);
  if (read.x().empty()) throw py::value_error(read.x().describe() + " is empty; its gradients are zero");
  require_fused(problem, read.x());
  const Array grad = read.like_x("grad", grad_given);
  const auto weights = make_weights(read, problem, weights_given);
  const auto* mask = make_mask(read, problem, mask_given);
  const float* lse = make_lse(read, problem, lse_given);
  if (gradients.size() != 7)
    throw py::value_error("seven gradients are needed, got " + std::to_string(gradients.size()));
  void* grad_x = read.result("gradient of x", gradients[0], true);
  const auto found = read_weights(read, problem, {gradients.begin() + 1, gradients.end()}, true);
  const spatial::Gradients wanted{grad_x, found[0], found[1], found[2], found[3], found[4], found[5]};
  void* workspace =
      read.contiguous("workspace", workspace_given, {spatial::backward_bytes(problem)}, false, DataType::kUint8);
  if (reinterpret_cast<std::uintptr_t>(workspace) % 16 != 0)
    throw py::value_error("workspace must begin at a multiple of 16 bytes");
  spatial::backward(problem, make_map(grad), make_map(read.x()), weights, mask, lse, wanted, workspace);
}

spatial::Problem sized_problem(int dtype, std::int64_t batch, std::int64_t positions, std::int64_t channels,
                               std::int64_t heads, int device) {
  if (heads < 1 || channels < 1 || channels % heads != 0)
    throw py::value_error("the channels must be a positive multiple of num_heads=" + std::to_string(heads) + ", got " +
                          std::to_string(channels));
  if (dtype != 0 && dtype != 2 && dtype != 3)
    throw py::value_error("dtype must be 0, 2 or 3, got " + std::to_string(dtype));
  return {batch, channels, 1, positions, heads, true, false, 0.0, 0.0, static_cast<DataType>(dtype), {device, 0}};
}

std::string why_not(int dtype, std::int64_t positions, std::int64_t channels, std::int64_t heads, int device) {
  return spatial::why_not(sized_problem(dtype, 1, positions, channels, heads, device));
}

std::int64_t backward_bytes(int dtype, std::int64_t batch, std::int64_t positions, std::int64_t channels,
                            std::int64_t heads, int device) {
  return spatial::backward_bytes(sized_problem(dtype, batch, positions, channels, heads, device));
}

}  // namespace

void bind_spatial_attention(py::module_& module) {
  module.def("spatial_attention_forward", &forward, "Fused spatial attention of maps that spatial_attention_why_not allows.");
  module.def("spatial_attention_backward", &backward, "Gradients of spatial_attention_forward, those given an array.");
  module.def("spatial_attention_why_not", &why_not,
             "Why the fused kernels do not take maps of these sizes (dtype, N, C, num_heads, device); empty if they do.");
  module.def("spatial_attention_backward_bytes", &backward_bytes,
             "Bytes of the workspace of spatial_attention_backward (dtype, B, N, C, num_heads, device).");
}
