// ProbSparse attention on a GPU: the arguments of a call, and the calls. The formulas are those of
// simmst/reference/prob_sparse_attention.py; core/prob_sparse_schedule.hpp divides the work.
#pragma once

#include <cstdint>

#include "core/batched_matrices.hpp"
#include "core/prob_sparse_schedule.hpp"
#include "core/dtype.hpp"
#include "cuda/launch.hpp"

namespace simmst::cuda::prob_sparse {

using simmst::Batch;
using simmst::Matrices;
using std::int64_t;

enum class Fill : int { kMean, kCumsum, kCummean };

// One matrix operand of a kernel.
struct Operand {
  Matrices matrices;
  bool aligned = false;  // every row begins at a multiple of 16 bytes
};

struct Dropout {
  const int64_t* seed = nullptr;  // (2,), on the device; null without dropout
  std::uint32_t threshold = 0;    // the smallest word that survives
  float factor = 1.0f;            // factor of the survivors, 1 / (1 - p)
};

struct Problem {
  DataType type = DataType::kFloat32;
  int64_t width = 0;  // width of the kernels: 16, 32, 64 or 128
  Batch batch;
  Operand query, key;
};

struct SelectCall {
  Problem problem;
  const int64_t* sample = nullptr;  // (L_Q, samples), or (samples,) when shared; contiguous
  int64_t samples = 0;
  bool shared = false;
  int64_t selected = 0;      // u
  float divisor = 1.0f;      // divides the sum in the measure
  int64_t* top = nullptr;    // (batch, u)
  float* measure = nullptr;  // (batch, L_Q)
  void* workspace = nullptr;
};

struct AttendCall {
  Problem problem;
  Operand value, out;
  const int64_t* top = nullptr;  // (batch, u), distinct, in any order
  int64_t selected = 0;
  float scale = 1.0f;
  bool is_causal = false;
  Fill fill = Fill::kMean;
  Dropout dropout;
  float* lse = nullptr;  // (batch, u)
  void* workspace = nullptr;
};

struct BackwardCall {
  AttendCall forward;  // with its results in out and lse
  Operand grad_out, grad_query, grad_key, grad_value;
};

// Bytes of workspace, aligned to 16.
int64_t select_workspace(const SelectCall& call, const Queue& queue);
int64_t attend_workspace(const AttendCall& call, const Queue& queue);
int64_t backward_workspace(const BackwardCall& call, const Queue& queue);

void select_queries(const SelectCall& call, const Queue& queue);
void attend(const AttendCall& call, const Queue& queue);
void backward(const BackwardCall& call, const Queue& queue);

// Whether a block has room for a whole entry, so that forward_in_one_launch() can do both calls. The calls share the
// problem and the selection, and need no workspace.
bool fits_one_launch(const SelectCall& select, const Queue& queue);
void forward_in_one_launch(const SelectCall& select, const AttendCall& attend, const Queue& queue);

}  // namespace simmst::cuda::prob_sparse
