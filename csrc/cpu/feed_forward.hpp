// The feed-forward part on the CPU: what the kernels of every instruction set share. Everything is float32 and contiguous.
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
  // Features that are normalised.
  int64_t normed() const { return norm == Norm::kAfter ? outputs : inputs; }
};

// Laid out as in nn.Linear; null where there is none.
struct Weights {
  const float* in;         // (hidden, inputs)
  const float* in_bias;    // (hidden,)
  const float* out;        // (outputs, hidden)
  const float* out_bias;   // (outputs,)
  const float* norm;       // (normed,)
  const float* norm_bias;  // (normed,)
  const float* addend;     // (series, hidden), added to the hidden layer before its GELU
  const float* scale;      // (series, outputs), multiplies the branch
};

// Null where not wanted.
struct Gradients {
  float *x, *in, *in_bias, *out, *out_bias, *norm, *norm_bias, *addend;
};

// x (rows, inputs), out and grad (rows, outputs). `workspace` has as many bytes as forward_bytes or backward_bytes say,
// aligned to 64.
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
