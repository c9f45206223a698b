// Linear layers before and after attention on the CPU: the declarations that all instruction sets share. Everything is
// float32 and contiguous.
#pragma once

#include <cstdint>

#include "cpu/instruction_set.hpp"

namespace simmst::cpu::projection {

constexpr int kMostParts = 3;

// `series` sequences of `steps` tokens each go through `parts` layers of `outputs` features. Tokens are stored one
// after another, (series, steps, features), or by heads, (series, heads, steps, features / heads), where there are
// heads.
struct Problem {
  int64_t series, steps, inputs, outputs, parts;
  int64_t input_heads, output_heads;  // 0: none
  float eps;
  int threads;

  int64_t rows() const { return series * steps; }
};

// Null for a missing weight. Layers are laid out as in nn.Linear.
struct Weights {
  const float* weight[kMostParts];  // (outputs, inputs)
  const float* bias[kMostParts];    // (outputs,)
  const float* norm;                // (inputs,); null: no LayerNorm
  const float* norm_bias;           // (inputs,)
  const float* residual;            // (series, steps, outputs), added to the first part
  const float* scale;               // (series, outputs), a factor of the first part, before the residual is added
};

struct Outputs {
  float* part[kMostParts];
};

// Null for a gradient that is not wanted.
struct Gradients {
  float* x;
  float* weight[kMostParts];
  float* bias[kMostParts];
  float *norm, *norm_bias;
};

// `workspace` has the number of bytes that `bytes` returns, aligned to 64.
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
