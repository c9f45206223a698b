// Attention of slots over days on the CPU: the declarations that all instruction sets share. Everything is float32
// (`known` bool) and contiguous.
#pragma once

#include <cstdint>

#include "cpu/instruction_set.hpp"

namespace simmst::cpu::day_attention {

struct Problem {
  int64_t series, slots, days, heads, width;
  int threads;
};

struct Inputs {
  const float* query;         // (series, slots, heads, width)
  const float* key;           // (series, days, heads, width)
  const float* bias;          // (heads, days)
  const float* alike;         // (series, days, slots, 2)
  const float* alike_weight;  // (heads, 2)
  const bool* known;          // (series, days, slots)
  const float* values;        // (series, days, slots)
  const float* apart;         // (series, days)
};

// All of them are written.
struct Gradients {
  float *query, *key, *bias, *alike_weight;
};

// out and grad are (series, slots, 2 heads): the weighted means of the values, then the weighted means of how far apart
// the days are. `workspace` has the number of bytes that `bytes` returns, aligned to 64.
struct Kernels {
  int64_t (*bytes)(const Problem&, bool backward);
  void (*forward)(const Problem&, const Inputs&, float* out, void* workspace);
  void (*backward)(const Problem&, const Inputs&, const float* grad, const Gradients&, void* workspace);
};

}  // namespace simmst::cpu::day_attention

namespace simmst::cpu {

#define SIMMST_DECLARE(isa)                         \
  namespace isa::day_attention {                    \
  extern const cpu::day_attention::Kernels kernels; \
  }
SIMMST_FOR_EACH_ISA(SIMMST_DECLARE)
#undef SIMMST_DECLARE

}  // namespace simmst::cpu
