// Operations on rows of tokens between products: LayerNorm forward and backward, copies, sums over rows.
#pragma once

#include "cpu/matrices.hpp"

namespace simmst::cpu::SIMMST_ISA::matrices {

SIMMST_INLINE void clear(float* p, int64_t count) {
  __builtin_memset(p, 0, static_cast<size_t>(count) * sizeof(float));
}

// Copies a row of `width` entries, with zeros up to a whole vector.
SIMMST_INLINE void copy_row(const float* from, int64_t width, float* to) {
  for (int64_t n = 0; n < width; n += kWide) store(to + n, load_some(from + n, width - n));
}

// to <- (row - mean) / deviation, with zeros up to a whole vector; returns 1 / deviation. `to` may be `row`.
SIMMST_INLINE float normalise(const float* row, int64_t width, float eps, float* to) {
  Vector sum{};
  for (int64_t n = 0; n < width; n += kWide) {
    const Vector at = load_some(row + n, width - n);
    store(to + n, at);
    sum += at;
  }
  const float mean = reduce_add<float>(sum) / static_cast<float>(width);
  Vector squares{};
  for (int64_t n = 0; n < width; n += kWide) {
    Vector at = load(to + n) - mean;
    if (width - n < kWide) at = select<float>(lane_numbers<float>() < static_cast<int32_t>(width - n), at, Vector{});
    store(to + n, at);
    squares += at * at;
  }
  const float reciprocal = 1.0f / __builtin_sqrtf(reduce_add<float>(squares) / static_cast<float>(width) + eps);
  for (int64_t n = 0; n < width; n += kWide) store(to + n, load(to + n) * reciprocal);
  return reciprocal;
}

// Replaces the gradient of LayerNorm's result by that of its input, and adds to the gradients of scale and shift.
SIMMST_INLINE void normalise_backward(float* grad, const float* normal, float reciprocal, int64_t width,
                                      const float* norm, float* grad_norm, float* grad_norm_bias) {
  Vector sum{}, along{};
  for (int64_t n = 0; n < width; n += kWide) {
    const Vector at = load(grad + n), hat = load(normal + n);
    store(grad_norm + n, load(grad_norm + n) + at * hat);
    store(grad_norm_bias + n, load(grad_norm_bias + n) + at);
    const Vector scaled = at * load(norm + n);
    store(grad + n, scaled);
    sum += scaled;
    along += scaled * hat;
  }
  const float mean = reduce_add<float>(sum) / static_cast<float>(width);
  const float slope = reduce_add<float>(along) / static_cast<float>(width);
  for (int64_t n = 0; n < width; n += kWide)
    store(grad + n, (load(grad + n) - mean - load(normal + n) * slope) * reciprocal);
}

// to[n] += sum over the rows of from[r * ld + n].
SIMMST_INLINE void add_rows(const float* from, int64_t ld, int64_t rows, int64_t width, float* to) {
  for (int64_t n = 0; n < width; n += kWide) {
    Vector sum{};
    for (int64_t r = 0; r < rows; ++r) sum += load(from + r * ld + n);
    store_some(to + n, load_some(to + n, width - n) + sum, width - n);
  }
}

}  // namespace simmst::cpu::SIMMST_ISA::matrices
