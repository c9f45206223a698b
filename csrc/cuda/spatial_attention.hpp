// Self-attention over the positions of each map on a GPU, projections, residual and LayerNorm included. Weights are laid
// out as in nn.MultiheadAttention and contiguous; x and the gradient of the output may have any strides; results are
// contiguous and have the shape of x. All pointers are the device's.
#pragma once

#include <cstdint>
#include <string>

#include "core/spatial_attention_plan.hpp"
#include "cuda/half_types.hpp"
#include "cuda/launch.hpp"

namespace simmst::cuda::spatial {

// The sizes and options of a call. Positions are numbered row by row: N = rows * columns.
struct Problem {
  std::int64_t batch, channels, rows, columns, heads;
  bool channels_last;  // results are (B, N, C) tokens rather than (B, C, rows, columns) maps
  bool residual;
  double eps, scale;
  DataType type;  // kFloat32, kBfloat16 or kFloat16
  Queue queue;

  simmst::spatial::Sizes sizes() const { return {rows * columns, channels, heads, item_size(type)}; }
};

// A tensor (B, C, rows, columns) of the problem's type; strides in entries.
struct Map {
  const void* data;
  std::int64_t batch, channel, row, column;
};

struct Weights {
  const void* in;        // (3C, C)
  const void* in_bias;   // (3C,) or null
  const void* out;       // (C, C)
  const void* out_bias;  // (C,) or null
  const void* norm;      // (C,) or null: no LayerNorm
  const void* norm_bias;
};

// Gradients; null where not wanted.
struct Gradients {
  void *x, *in, *in_bias, *out, *out_bias, *norm, *norm_bias;
};

// Why these kernels do not take a call on its device, in words; empty if they do.
std::string why_not(const Problem& problem);

// `mask` is (B, N), contiguous, not zero where a position is ignored, or null; `lse` is (B, heads, N). The batch is not
// empty.
void forward(const Problem& problem, const Map& x, const Weights& weights, const std::uint8_t* mask, void* out,
             float* lse);

// `workspace` has backward_bytes() bytes, aligned to 16.
std::int64_t backward_bytes(const Problem& problem);
void backward(const Problem& problem, const Map& grad, const Map& x, const Weights& weights, const std::uint8_t* mask,
              const float* lse, const Gradients& wanted, void* workspace);

}  // namespace simmst::cuda::spatial
