// Self-attention over the positions of each map, with projections, residual and LayerNorm: the tensors of a call.
// Weights are contiguous and laid out as in nn.MultiheadAttention; x and the gradient of the output may have any
// strides; results are contiguous and have the shape of x.
#pragma once

#include <cstdint>

namespace simmst::spatial {

// A tensor (B, C, rows, columns) of the problem's dtype; strides in entries.
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

}  // namespace simmst::spatial
