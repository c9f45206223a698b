// Spatial attention on the CPU: the declarations that all instruction sets share.
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
  bool masked;  // there is a mask
  bool keeps;   // backward gets the results that forward keeps

  int64_t positions() const { return rows * columns; }
  int64_t width() const { return channels / heads; }
};

// The number of maps processed together: enough to fill a few tiles of columns while all rows stay in the second-level
// cache, and few enough to leave 16 groups. With a mask it is one, because every map ignores other positions.
static inline int64_t maps_in_group(const Problem& problem) {
  const int64_t affordable = 8192 / problem.channels, columns = affordable < 256 ? affordable : 256;
  const int64_t maps = problem.masked ? 1 : columns / problem.positions(), most = problem.batch / 16;
  return maps < 1 || most < 1 ? 1 : maps < most ? maps : most;
}
static inline int64_t group_count(const Problem& problem) {
  const int64_t maps = maps_in_group(problem);
  return (problem.batch + maps - 1) / maps;
}
// The number of entries from one row of a group to the next, whatever the instruction set. The last map's last vector
// ends within its row, and rows of float are an odd number of cache lines, so that they spread over all sets of the
// cache.
static inline int64_t group_ld(const Problem& problem) {
  return (2 * ((maps_in_group(problem) * problem.positions() + 30) / 32) + 1) * 16;
}
// The number of rows that forward keeps for backward: queries, keys, values, heads and normalised sums of all channels,
// base and sum of every head, and the reciprocal deviations. simmst/core/spatial_attention.py counts the same.
static inline int64_t kept_rows(const Problem& problem) { return 5 * problem.channels + 2 * problem.heads + 1; }
static inline int64_t kept_entries(const Problem& problem) {
  return group_count(problem) * kept_rows(problem) * group_ld(problem);
}

// `mask` is (B, N) bool, contiguous, true where a position is ignored, or null. `lse` is (B, heads, N), double for
// double and float otherwise; backward does not use it. `kept` has kept_entries() of that type, aligned to a vector; if
// it is null, backward computes the results again. `workspace` has the number of bytes that forward_bytes or
// backward_bytes returns, aligned to 64.
struct Kernels {
  int64_t (*forward_bytes)(const Problem&);
  void (*forward)(const Problem&, const Map& x, const Weights&, const bool* mask, void* out, void* lse, void* kept,
                  void* workspace);
  int64_t (*backward_bytes)(const Problem&);
  void (*backward)(const Problem&, const Map& grad, const Map& x, const Weights&, const bool* mask, const void* kept,
                   const Gradients&, void* workspace);
};

}  // namespace simmst::cpu::spatial

namespace simmst::cpu {

#define SIMMST_DECLARE(isa)                   \
  namespace isa::spatial {                    \
  extern const cpu::spatial::Kernels kernels; \
  }
SIMMST_FOR_EACH_ISA(SIMMST_DECLARE)
#undef SIMMST_DECLARE

}  // namespace simmst::cpu
