// Entries of the vectors along N and of the arrays with one entry per plane, for every dtype.
#pragma once

#include "cuda/cutting_plane.hpp"
#include "cuda/device.hpp"

namespace simmst::cuda {

// The bits of an entry as stored in memory, at the low end. They are converted only when used, so that loading does not
// wait.
using Raw = std::uint32_t;

SIMMST_DEVICE std::int64_t entry_of(const Strided& array, std::int64_t problem, std::int64_t index) {
  return problem * array.problem_stride + index * array.stride;
}

// For float32, bfloat16 or float16.
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

// For any numeric type.
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

// Rounds to the array's type and returns the stored value.
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

// Adam's factors that depend on the number of steps taken; for SGD, the learning rate.
struct StepSizes {
  float size, second_root;
};
// The weights are rounded from their exact values, because 1 - 0.999f has a relative error of 5e-5.
constexpr float kWeight1 = 1e-1f, kBeta2 = 0.999f, kWeight2 = 1e-3f, kEpsilon = 1e-8f;

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
  std::uint64_t anchor;  // bits as stored in memory
};

// kPlain: every vector is float32 with stride 1, a case that is worth its own instructions.
template <bool kPlain>
SIMMST_DEVICE Raw load_vector(const Strided& array, std::int64_t problem, std::int64_t column) {
  if constexpr (kPlain) {
    return (static_cast<const std::uint32_t*>(array.data) + problem * array.problem_stride)[column];
  } else {
    return load_raw(array, problem, column);
  }
}
template <bool kPlain>
SIMMST_DEVICE float store_vector(const Strided& array, std::int64_t problem, std::int64_t column, float value) {
  if constexpr (kPlain) {
    (static_cast<float*>(array.data) + problem * array.problem_stride)[column] = value;
    return value;
  } else {
    return store_float(array, problem, column, value);
  }
}
template <bool kPlain>
SIMMST_DEVICE float vector_value(Raw raw, const Strided& array) {
  return value_of(raw, kPlain ? DataType::kFloat32 : array.type);
}

template <bool kPlain>
SIMMST_DEVICE ColumnState load_column(const PlanePass& pass, std::int64_t problem, std::int64_t column) {
  ColumnState state{};
  if (pass.gradient.data != nullptr) state.gradient = load_vector<kPlain>(pass.gradient, problem, column);
  if (pass.point.data != nullptr) state.point = load_vector<kPlain>(pass.point, problem, column);
  if (pass.update == Update::kAdam) {
    state.first = load_vector<kPlain>(pass.exp_avg, problem, column);
    state.second = load_vector<kPlain>(pass.exp_avg_sq, problem, column);
  }
  if (pass.anchor.data == nullptr) return state;
  if (!kPlain && pass.anchor.type == DataType::kFloat64) {
    state.anchor = static_cast<const std::uint64_t*>(pass.anchor.data)[entry_of(pass.anchor, problem, column)];
  } else {
    state.anchor = load_vector<kPlain>(pass.anchor, problem, column);
  }
  return state;
}

// The optimiser's new point, with the operations of torch.optim.Adam in the same order.
template <bool kPlain>
SIMMST_DEVICE float updated(const PlanePass& pass, const StepSizes& sizes, const ColumnState& state,
                            std::int64_t problem, std::int64_t column, float gradient) {
  const float point = vector_value<kPlain>(state.point, pass.point);
  if (pass.update == Update::kSgd) return point - sizes.size * gradient;
  float first = vector_value<kPlain>(state.first, pass.exp_avg);
  float second = vector_value<kPlain>(state.second, pass.exp_avg_sq);
  first += kWeight1 * (gradient - first);
  second = second * kBeta2 + kWeight2 * gradient * gradient;
  store_vector<kPlain>(pass.exp_avg, problem, column, first);
  store_vector<kPlain>(pass.exp_avg_sq, problem, column, second);
  return point - sizes.size * first / (sqrtf(second) / sizes.second_root + kEpsilon);
}

// point - anchor; in double for a float64 anchor, to keep the anchor's digits.
template <bool kPlain>
SIMMST_DEVICE float moved_from(const PlanePass& pass, const ColumnState& state, float point) {
  if (pass.anchor.data == nullptr) return point;
  if (!kPlain && pass.anchor.type == DataType::kFloat64) {
    double anchor;
    memcpy(&anchor, &state.anchor, sizeof(anchor));
    return static_cast<float>(static_cast<double>(point) - anchor);
  }
  return point - vector_value<kPlain>(static_cast<Raw>(state.anchor), pass.anchor);
}

// Does everything between the two products for one column; `product` is its entry of A^T s. Returns point - anchor.
template <bool kPlain>
SIMMST_DEVICE float finish_column(const PlanePass& pass, const StepSizes& sizes, const ColumnState& state,
                                  std::int64_t problem, std::int64_t column, float product) {
  float gradient = product;
  if (pass.gradient.data != nullptr) gradient += vector_value<kPlain>(state.gradient, pass.gradient);
  if (pass.combined.data != nullptr) store_vector<kPlain>(pass.combined, problem, column, gradient);
  if (pass.point.data == nullptr) return 0.0f;
  float point;
  if (pass.update == Update::kNone) {
    point = vector_value<kPlain>(state.point, pass.point);
  } else {
    // Continue from the point as stored, after rounding.
    const float next = updated<kPlain>(pass, sizes, state, problem, column, gradient);
    point = store_vector<kPlain>(pass.point, problem, column, next);
  }
  return moved_from<kPlain>(pass, state, point);
}

}  // namespace simmst::cuda
