// Entries of the vectors along N and of the arrays with one entry a plane, whatever their dtype.
#pragma once

#include "cuda/cutting_plane.hpp"
#include "cuda/device.hpp"

namespace simmst::cuda {

// As it lies in memory, at the low end: converted when it is used, so that loading does not wait.
using Raw = std::uint32_t;

SIMMST_DEVICE std::int64_t entry_of(const Strided& array, std::int64_t problem, std::int64_t index) {
  return problem * array.problem_stride + index * array.stride;
}

// Of float32, bfloat16 or float16.
SIMMST_DEVICE Raw load_raw(const Strided& array, std::int64_t problem, std::int64_t index) {
  const std::int64_t entry = entry_of(array, problem, index);
  if (array.type == DataType::kFloat32) return static_cast<const std::uint32_t*>(array.data)[entry];
  return static_cast<const std::uint16_t*>(array.data)[entry];
}
SIMMST_DEVICE float value_of(Raw raw, DataType type) {
  if (type == DataType::kFloat32) {
    float value;
    memcpy(&value, &raw, sizeof(value));
    return value;
  }
  const auto bits = static_cast<std::uint16_t>(raw);
  return type == DataType::kBfloat16 ? to_float(bfloat16{bits}) : to_float(float16{bits});
}

// Of any type that holds numbers.
SIMMST_DEVICE double load_number(const Strided& array, std::int64_t problem, std::int64_t index) {
  const std::int64_t entry = entry_of(array, problem, index);
  switch (array.type) {
    case DataType::kFloat64:
      return static_cast<const double*>(array.data)[entry];
    case DataType::kInt64:
      return static_cast<double>(static_cast<const std::int64_t*>(array.data)[entry]);
    case DataType::kInt32:
      return static_cast<const std::int32_t*>(array.data)[entry];
    default:
      return value_of(load_raw(array, problem, index), array.type);
  }
}

// Rounds to the type of the array. Returns what was stored.
SIMMST_DEVICE float store_float(const Strided& array, std::int64_t problem, std::int64_t index, float value) {
  const std::int64_t entry = entry_of(array, problem, index);
  if (array.type == DataType::kFloat32) {
    static_cast<float*>(array.data)[entry] = value;
    return value;
  }
  if (array.type == DataType::kBfloat16) {
    const auto half = from_float<bfloat16>(value);
    static_cast<bfloat16*>(array.data)[entry] = half;
    return to_float(half);
  }
  const auto half = from_float<float16>(value);
  static_cast<float16*>(array.data)[entry] = half;
  return to_float(half);
}
SIMMST_DEVICE void store_number(const Strided& array, std::int64_t problem, std::int64_t index, double value) {
  if (array.type == DataType::kFloat64) {
    static_cast<double*>(array.data)[entry_of(array, problem, index)] = value;
  } else {
    store_float(array, problem, index, static_cast<float>(value));
  }
}

// What Adam needs of the number of steps taken; for SGD, the learning rate.
struct StepSizes {
  float size, second_root;
};
constexpr float kBeta1 = 0.9f, kBeta2 = 0.999f, kEpsilon = 1e-8f;

SIMMST_DEVICE StepSizes step_sizes(const PlanePass& pass) {
  if (pass.update != Update::kAdam || pass.step.data == nullptr) return {pass.step_size, pass.second_root};
  constexpr double kLogBeta1 = -0.10536051565782628, kLogBeta2 = -0.0010005003335835335;
  const double taken = load_number(pass.step, 0, 0);
  return {static_cast<float>(-static_cast<double>(pass.step_size) / expm1(kLogBeta1 * taken)),
          static_cast<float>(sqrt(-expm1(kLogBeta2 * taken)))};
}

// The vectors' entries at one column.
struct ColumnState {
  Raw gradient, point, first, second;
  std::uint64_t anchor;  // as it lies in memory
};

SIMMST_DEVICE ColumnState load_column(const PlanePass& pass, std::int64_t problem, std::int64_t column) {
  ColumnState state{};
  if (column >= pass.size) return state;
  if (pass.gradient.data != nullptr) state.gradient = load_raw(pass.gradient, problem, column);
  if (pass.point.data != nullptr) state.point = load_raw(pass.point, problem, column);
  if (pass.update == Update::kAdam) {
    state.first = load_raw(pass.exp_avg, problem, column);
    state.second = load_raw(pass.exp_avg_sq, problem, column);
  }
  if (pass.anchor.data != nullptr) {
    if (pass.anchor.type == DataType::kFloat64) {
      state.anchor = static_cast<const std::uint64_t*>(pass.anchor.data)[entry_of(pass.anchor, problem, column)];
    } else {
      state.anchor = load_raw(pass.anchor, problem, column);
    }
  }
  return state;
}

SIMMST_DEVICE double anchor_of(const PlanePass& pass, const ColumnState& state) {
  if (pass.anchor.type == DataType::kFloat64) {
    double anchor;
    memcpy(&anchor, &state.anchor, sizeof(anchor));
    return anchor;
  }
  return value_of(static_cast<Raw>(state.anchor), pass.anchor.type);
}

// The optimiser's new point, with torch.optim.Adam's operations in their order.
SIMMST_DEVICE float updated(const PlanePass& pass, const StepSizes& sizes, const ColumnState& state,
                            std::int64_t problem, std::int64_t column, float gradient) {
  const float point = value_of(state.point, pass.point.type);
  if (pass.update == Update::kSgd) return point - sizes.size * gradient;
  float first = value_of(state.first, pass.exp_avg.type), second = value_of(state.second, pass.exp_avg_sq.type);
  first += (1.0f - kBeta1) * (gradient - first);
  second = second * kBeta2 + (1.0f - kBeta2) * gradient * gradient;
  store_float(pass.exp_avg, problem, column, first);
  store_float(pass.exp_avg_sq, problem, column, second);
  return point - sizes.size * first / (sqrtf(second) / sizes.second_root + kEpsilon);
}

// All that happens to one column between the two products: `product` is its entry of A^T s. Returns point - anchor.
SIMMST_DEVICE float finish_column(const PlanePass& pass, const StepSizes& sizes, const ColumnState& state,
                                  std::int64_t problem, std::int64_t column, float product) {
  const float gradient =
      pass.gradient.data == nullptr ? product : product + value_of(state.gradient, pass.gradient.type);
  if (pass.combined.data != nullptr) store_float(pass.combined, problem, column, gradient);
  if (pass.point.data == nullptr) return 0.0f;
  float point;
  if (pass.update == Update::kNone) {
    point = value_of(state.point, pass.point.type);
  } else {
    // From the point as it is stored, after rounding.
    point = store_float(pass.point, problem, column, updated(pass, sizes, state, problem, column, gradient));
  }
  if (pass.anchor.data == nullptr) return point;
  // In double for a float64 anchor; of two floats the difference is rounded the same either way.
  return static_cast<float>(static_cast<double>(point) - anchor_of(pass, state));
}

}  // namespace simmst::cuda
