// ProbSparse attention on the CPU: the parts of a call, and a table of kernels per instruction set. The formulas are
// those of simmst/reference/prob_sparse_attention.py.
#pragma once

#include <cstdint>

#include "core/batched_matrices.hpp"
#include "core/dtype.hpp"
#include "cpu/instruction_set.hpp"

namespace simmst::cpu::prob_sparse {

enum class Fill : int { kMean, kCumsum, kCummean };

using simmst::Batch;
using simmst::kMaxBatchDims;
using simmst::Matrices;

struct SelectCall {
  DataType type;
  int threads;
  Batch batch;
  Matrices query, key;
  const int64_t* sample;  // (L_Q, samples), or (samples,) when shared; contiguous
  int64_t samples;
  bool shared;
  int64_t selected;  // u
  double divisor;    // divides the sum in the measure
  int64_t* top;      // (batch, u)
  void* measure;     // (batch, L_Q), float, or double for float64
};

struct AttendCall {
  DataType type;
  int threads;
  Batch batch;
  Matrices query, key, value, out;
  const int64_t* top;  // (batch, u), distinct, in any order
  int64_t selected;
  double scale;
  bool is_causal;
  Fill fill;
  double dropout_p;
  uint32_t seed[2];
  void* lse;  // (batch, u), float, or double for float64; null if it is not wanted
};

struct BackwardCall {
  AttendCall forward;  // with its results in out and lse
  Matrices grad_out, grad_query, grad_key, grad_value;
};

struct Kernels {
  // Returns false when there is no memory for the workspace.
  bool (*select)(const SelectCall&);
  bool (*attend)(const AttendCall&);
  bool (*backward)(const BackwardCall&);
  // Whether 0 <= index < upper for every index.
  bool (*in_range)(const int64_t* indices, int64_t count, int64_t upper);
};

}  // namespace simmst::cpu::prob_sparse

// Defined in _select.cpp, _attend.cpp and _backward.cpp.
#define SIMMST_DECLARE(isa)                                                     \
  namespace simmst::cpu::isa::prob_sparse {                                     \
  using namespace simmst::cpu::prob_sparse;                                     \
  bool select_queries(const SelectCall& call);                                  \
  bool in_range(const int64_t* indices, int64_t count, int64_t upper);          \
  bool attend(const AttendCall& call);                                          \
  bool backward(const BackwardCall& call);                                      \
  constexpr Kernels kernels = {&select_queries, &attend, &backward, &in_range}; \
  }
SIMMST_FOR_EACH_ISA_AND_BF16(SIMMST_DECLARE)
#undef SIMMST_DECLARE
