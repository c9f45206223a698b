// Linear layers before and behind attention on the CPU: what the kernels of every instruction set share. Everything is
// float32 and contiguous.
#pragma once

#include <cstdint>

#include "cpu/instruction_set.hpp"

namespace simmst::cpu::projection {

constexpr int kMostParts = 3;

// `series` sequences of `steps` tokens each go through `parts` layers of `outputs` features. Tokens lie one behind the
// other, (series, steps, features), or head by head, (series, heads, steps, features / heads), where there are heads.
struct Problem {
  int64_t series, steps, inputs, outputs, parts;
  int64_t input_heads, output_heads;  // 0: none
  float eps;
  int threads;

  int64_t rows() const { return series * steps; }
};

// Null where there is none. Layers are laid out as in nn.Linear.
struct Weights {
  const float* weight[kMostParts];  // (outputs, inputs)
  const float* bias[kMostParts];    // (outputs,)
  const float* norm;                // (inputs,): no LayerNorm without
  const float* norm_bias;           // (inputs,)
  const float* residual;            // (series, steps, outputs), added to the first part
  const float* scale;               // (series, outputs), multiplies it before
};

struct Outputs {
  float* part[kMostParts];
};

// Null where not wanted.
struct Gradients {
  float* x;
  float* weight[kMostParts];
  float* bias[kMostParts];
  float *norm, *norm_bias;
};

// `workspace` has as many bytes as `bytes` says, aligned to 64.
struct Kernels {
  int64_t (*bytes)(const Problem&, bool backward);
  void (*forward)(const Problem&, const float* x, const Weights&, const Outputs&, void* workspace);
  void (*backward)(const Problem&, const float* const* grads, const float* x, const Weights&, const Gradients&,
                   void* workspace);
};

}  // namespace simmst::cpu::projection

namespace simmst::cpu {

#define SIMMST_DECLARE(isa)                      \
  namespace isa::projection {                    \
  extern const cpu::projection::Kernels kernels; \
  }
SIMMST_FOR_EACH_ISA(SIMMST_DECLARE)
#undef SIMMST_DECLARE

}  // namespace simmst::cpu
