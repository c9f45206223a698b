// Spatial attention on the CPU: what the kernels of every instruction set share.
#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "core/spatial_attention.hpp"
#include "cpu/instruction_set.hpp"

namespace simmst::cpu::spatial {

using simmst::spatial::Gradients;
using simmst::spatial::Map;
using simmst::spatial::Weights;

// The sizes and options of a call. Positions are numbered row by row: N = rows * columns.
struct Problem {
  int64_t batch, channels, rows, columns, heads;
  bool channels_last;  // results are (B, N, C) tokens rather than (B, C, rows, columns) maps
  bool residual;
  double eps, scale;
  DataType type;
  int threads;

  int64_t positions() const { return rows * columns; }
  int64_t width() const { return channels / heads; }
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
