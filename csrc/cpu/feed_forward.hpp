// The feed-forward part on the CPU: the declarations that all instruction sets share. Everything is float32 and
// contiguous.
#pragma once

#include <cstdint>

#include "cpu/instruction_set.hpp"

namespace simmst::cpu::feed_forward {

enum class Norm { kNone, kBefore, kAfter };

// `series` sequences of `steps` tokens each; a token has `inputs` features, then `hidden`, then `outputs`.
struct Problem {
  int64_t series, steps, inputs, hidden, outputs;
  Norm norm;
  bool residual;  // inputs == outputs
  float eps;
  int threads;

  int64_t rows() const { return series * steps; }
  // The number of features that are normalised.
  int64_t normed() const { return norm == Norm::kAfter ? outputs : inputs; }
};

// Laid out as in nn.Linear; null for a missing weight.
struct Weights {
  const float* in;         // (hidden, inputs)
  const float* in_bias;    // (hidden,)
  const float* out;        // (outputs, hidden)
  const float* out_bias;   // (outputs,)
  const float* norm;       // (normed,)
  const float* norm_bias;  // (normed,)
  const float* addend;     // (series, hidden), added to the hidden layer before its GELU
  const float* scale;      // (series, outputs), a factor of the branch
};

// Null for a gradient that is not wanted.
struct Gradients {
  float *x, *in, *in_bias, *out, *out_bias, *norm, *norm_bias, *addend;
};

// x is (rows, inputs); out and grad are (rows, outputs). `workspace` has the number of bytes that forward_bytes or
// backward_bytes returns, aligned to 64.
struct Kernels {
  int64_t (*forward_bytes)(const Problem&);
  void (*forward)(const Problem&, const float* x, const Weights&, float* out, void* workspace);
  int64_t (*backward_bytes)(const Problem&);
  void (*backward)(const Problem&, const float* grad, const float* x, const Weights&, const Gradients&,
                   void* workspace);
};

}  // namespace simmst::cpu::feed_forward

namespace simmst::cpu {

#define SIMMST_DECLARE(isa)                        \
  namespace isa::feed_forward {                    \
  extern const cpu::feed_forward::Kernels kernels; \
  }
SIMMST_FOR_EACH_ISA(SIMMST_DECLARE)
#undef SIMMST_DECLARE

}  // namespace simmst::cpu
