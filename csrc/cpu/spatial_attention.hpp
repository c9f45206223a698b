// Self-attention over the positions of each map, projections, residual and LayerNorm included: what the kernels of
// every instruction set share. Weights are laid out as in nn.MultiheadAttention and contiguous; x and the gradient of
// the output may have any strides; results are contiguous and have the shape of x.
#pragma once

#include <cstdint>

#include "cpu/dispatch.hpp"

namespace simmst::cpu::spatial {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// The sizes and options of a call. Positions are numbered row by row: N = rows * columns.
struct Problem {
  int64_t batch, channels, rows, columns, heads;
  bool channels_last;  // results are (B, N, C) tokens rather than (B, C, rows, columns) maps
  bool residual;
  double eps, scale;
  Dtype dtype;
  int threads;

  int64_t positions() const { return rows * columns; }
  int64_t width() const { return channels / heads; }
};

// A tensor (B, C, rows, columns) of the problem's dtype; strides in elements.
struct Map {
  const void* data;
  int64_t batch, channel, row, column;
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

// `mask` is (B, N) bool, contiguous, true where a position is ignored, or null. `lse` is (B, heads, N) float, double
// for double; backward recomputes it. `workspace` has as many bytes as forward_bytes or backward_bytes say, aligned to
// 64.
struct Kernels {
  int64_t (*forward_bytes)(const Problem&);
  void (*forward)(const Problem&, const Map& x, const Weights&, const bool* mask, void* out, void* lse,
                  void* workspace);
  int64_t (*backward_bytes)(const Problem&);
  void (*backward)(const Problem&, const Map& grad, const Map& x, const Weights&, const bool* mask,
                   const Gradients&, void* workspace);
};

}  // namespace simmst::cpu::spatial

namespace simmst::cpu {

#define SIMMST_DECLARE(isa) \
  namespace isa::spatial {  \
  extern const cpu::spatial::Kernels kernels; \
  }
SIMMST_FOR_EACH_ISA(SIMMST_DECLARE)
#undef SIMMST_DECLARE

}  // namespace simmst::cpu
