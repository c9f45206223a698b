#include "cpu/instruction_set.hpp"

#include <cstdlib>
#include <stdexcept>

namespace simmst::cpu {
namespace {

constexpr InstructionSet kBuilt[] = {
#ifdef SIMMST_BUILDS_portable
    InstructionSet::kPortable,
#endif
#ifdef SIMMST_BUILDS_avx2
    InstructionSet::kAvx2,
#endif
#ifdef SIMMST_BUILDS_avx512
    InstructionSet::kAvx512,
#endif
#ifdef SIMMST_BUILDS_avx512_bf16
    InstructionSet::kAvx512Bf16,
#endif
};

InstructionSet highest_of_this_machine() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return InstructionSet::kAvx512Bf16;
  if (avx512) return InstructionSet::kAvx512;
  if (avx2) return InstructionSet::kAvx2;
#endif
  return InstructionSet::kPortable;
}

}  // namespace

std::string_view name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kPortable:
      return "portable";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

int position_in_build(InstructionSet set) {
  int position = 0;
  for (const auto built : kBuilt) position += built < set;
  return position;
}

std::vector<InstructionSet> supported_instruction_sets() {
  std::vector<InstructionSet> sets;
  const auto highest = highest_of_this_machine();
  for (const auto set : kBuilt) {
    if (set <= highest) sets.push_back(set);
  }
  return sets;
}

InstructionSet choose_instruction_set(std::string_view request) {
  const auto sets = supported_instruction_sets();
  if (sets.empty()) throw std::invalid_argument("this build of simmst has no kernels that this machine can run");
  if (request.empty()) return sets.back();
  std::string choices;
  for (const auto set : sets) {
    if (name(set) == request) return set;
    choices += choices.empty() ? "" : ", ";
    choices += name(set);
  }
  throw std::invalid_argument("SIMMST_CPU_ISA is '" + std::string(request) + "'; this machine can run: " + choices);
}

InstructionSet active_instruction_set() {
  static const InstructionSet highest = choose_instruction_set("");  // determined once
  const char* request = std::getenv("SIMMST_CPU_ISA");
  return request == nullptr ? highest : choose_instruction_set(request);
}

}  // namespace simmst::cpu
