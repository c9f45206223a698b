// simmst._cuda.spatial_attention_*: plans of calls, whose sizes and strides are checked once. A plan then takes
// addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/plan.hpp"
#include "cuda/spatial_attention.hpp"

namespace py = pybind11;
using namespace simmst::cuda;
using simmst::Array;
using simmst::Arrays;
using simmst::Addresses;
using simmst::DataType;
using simmst::Plan;
using simmst::require_contiguous;
using simmst::require_shape;

namespace {

using OptionalArrays = std::vector<py::object>;  // arrays or None
// num_heads, residual, eps, scale
using Options = std::tuple<std::int64_t, bool, double, double>;

spatial::Problem make_problem(const Array& x, const Options& options, const Queue& queue) {
  if (x.rank != 3 && x.rank != 4) x.refuse("must have shape (B, C, H, W) or (B, N, C)");
  const auto& [heads, residual, eps, scale] = options;
  const bool tokens = x.rank == 3;
  const std::int64_t channels = tokens ? x.shape[2] : x.shape[1];
  if (heads < 1 || channels < 1 || channels % heads != 0)
    throw py::value_error("the channels of " + x.describe() +
                          " must be a positive multiple of num_heads=" + std::to_string(heads));
  const std::int64_t rows = tokens ? 1 : x.shape[2], columns = tokens ? x.shape[1] : x.shape[3];
  return {x.shape[0], channels, rows, columns, heads, tokens, residual, eps, scale, x.type, queue};
}

spatial::Map make_map(const Array& x) {
  if (x.rank == 3) return {x.data, x.strides[0], x.strides[2], 0, x.strides[1]};
  return {x.data, x.strides[0], x.strides[1], x.strides[2], x.strides[3]};
}

// Reads the arrays of one call into the places of its plan; all have x's type unless stated otherwise.
class Reader {
 public:
  Reader(Plan& plan, const py::handle& x)
      : plan_(plan),
        read_(Arrays::planned(plan.device())),
        x_(read_("x", x, {DataType::kFloat32, DataType::kBfloat16, DataType::kFloat16})) {
    plan_.add(x_);
  }

  const Array& x() const { return x_; }

  // A contiguous array of this shape; if it is optional and None, its place stays empty.
  void contiguous(const char* name, const py::handle& given, std::initializer_list<std::int64_t> shape, bool optional,
                  std::optional<DataType> type = {}) const {
    if (optional && given.is_none()) return plan_.add_optional(name, type.value_or(x_.type));
    const Array array = read_(name, given, {type.value_or(x_.type)});
    require_shape(array, shape);
    require_contiguous(array);
    plan_.add(array);
  }

  // An array of the shape of x, with any strides.
  Array like_x(const char* name, const py::handle& given) const {
    const Array array = read_(name, given, {x_.type});
    if (array.rank != x_.rank || array.shape != x_.shape) array.refuse("must have the shape of " + x_.describe());
    plan_.add(array);
    return array;
  }

 private:
  Plan& plan_;
  Arrays read_;
  Array x_;
};

void require_fused(const spatial::Problem& problem, const Array& x) {
  const std::string reason = spatial::why_not(problem);
  if (!reason.empty())
    x.refuse("with num_heads=" + std::to_string(problem.heads) + " is beyond the fused kernels: " + reason);
}

constexpr std::array<const char*, 6> kWeightNames{"in_proj_weight", "in_proj_bias", "out_proj_weight",
                                                  "out_proj_bias",  "norm_weight",  "norm_bias"};

constexpr std::array<const char*, 6> kGradientNames{"gradient of in_proj_weight",  "gradient of in_proj_bias",
                                                    "gradient of out_proj_weight", "gradient of out_proj_bias",
                                                    "gradient of norm_weight",     "gradient of norm_bias"};

// The six weights, some of which may be None.
void read_weights(const Reader& read, const spatial::Problem& problem, const OptionalArrays& given) {
  if (given.size() != 6) throw py::value_error("six weights are needed, got " + std::to_string(given.size()));
  const std::int64_t c = problem.channels;
  for (std::size_t i = 0; i < 6; ++i) {
    const std::int64_t height = i < 2 ? 3 * c : c;
    if (i == 0 || i == 2) read.contiguous(kWeightNames[i], given[i], {height, c}, false);
    else read.contiguous(kWeightNames[i], given[i], {height}, true);
  }
}

void read_mask(const Reader& read, const spatial::Problem& problem, const py::object& mask) {
  read.contiguous("key_padding_mask", mask, {problem.batch, problem.rows * problem.columns}, true, DataType::kBool);
}

spatial::Weights weights_at(const Addresses& at, std::size_t first) {
  const auto weight = [&](std::size_t i) { return at.as<void>(first + i); };
  return {weight(0), weight(1), weight(2), weight(3), weight(4), weight(5)};
}

spatial::Map map_at(spatial::Map map, std::uintptr_t address) {
  map.data = reinterpret_cast<const void*>(address);
  return map;
}

Plan plan_forward(const py::object& x, const OptionalArrays& weights, const py::object& mask, const Options& options,
                  int device) {
  Plan plan(device);
  const Reader read(plan, x);
  const auto problem = make_problem(read.x(), options, {device, 0});
  read_weights(read, problem, weights);
  read_mask(read, problem, mask);
  const bool empty = read.x().empty();
  if (!empty) require_fused(problem, read.x());
  plan.add_needed("out", read.x().type, empty);
  plan.add_needed("lse", DataType::kFloat32, empty);
  plan.finish(0, [problem, map = make_map(read.x()), empty](const Addresses& at, const Queue& queue) {
    if (empty) return;
    spatial::Problem now = problem;
    now.queue = queue;
    spatial::forward(now, map_at(map, at[0]), weights_at(at, 1), at.as<std::uint8_t>(7), at.as<void>(8),
                     at.as<float>(9));
  });
  return plan;
}

// A gradient is wanted if it has an address.
Plan plan_backward(const py::object& grad, const py::object& x, const OptionalArrays& weights, const py::object& mask,
                   const py::object& lse, const Options& options, int device) {
  Plan plan(device);
  const Reader read(plan, x);
  const auto problem = make_problem(read.x(), options, {device, 0});
  if (read.x().empty()) throw py::value_error(read.x().describe() + " is empty; its gradients are zero");
  require_fused(problem, read.x());
  read_weights(read, problem, weights);
  read_mask(read, problem, mask);
  const spatial::Map slopes = make_map(read.like_x("grad", grad));
  read.contiguous("lse", lse, {problem.batch, problem.heads, problem.rows * problem.columns}, false,
                  DataType::kFloat32);
  plan.add_optional("gradient of x", problem.type);
  for (const char* name : kGradientNames) plan.add_optional(name, problem.type);
  plan.finish(spatial::backward_bytes(problem),
              [problem, map = make_map(read.x()), slopes](const Addresses& at, const Queue& queue) {
                spatial::Problem now = problem;
                now.queue = queue;
                const auto gradient = [&](std::size_t i) { return at.as<void>(10 + i); };
                const spatial::Gradients wanted{gradient(0), gradient(1), gradient(2), gradient(3),
                                                gradient(4), gradient(5), gradient(6)};
                spatial::backward(now, map_at(slopes, at[8]), map_at(map, at[0]), weights_at(at, 1),
                                  at.as<std::uint8_t>(7), at.as<float>(9), wanted, at.as<void>(17));
              });
  return plan;
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

}  // namespace

void bind_spatial_attention(py::module_& module) {
  module.def(
      "spatial_attention_forward", &plan_forward,
      "Plan of fused spatial attention of maps that spatial_attention_why_not allows: x, six weights, mask, out, lse.");
  module.def("spatial_attention_backward", &plan_backward,
             "Plan of its gradients: x, six weights, mask, grad, lse, the gradients of x and the weights or 0.");
  module.def(
      "spatial_attention_why_not", &why_not,
      "Why the fused kernels do not take maps of these sizes (dtype, N, C, num_heads, device); empty if they do.");
}
