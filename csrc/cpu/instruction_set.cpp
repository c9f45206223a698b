#include "cpu/instruction_set.hpp"

#include <cstdlib>
#include <stdexcept>

namespace simmst::cpu {

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

std::vector<InstructionSet> supported_instruction_sets() {
  std::vector<InstructionSet> sets{InstructionSet::kPortable};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (avx2) sets.push_back(InstructionSet::kAvx2);
  if (avx512) sets.push_back(InstructionSet::kAvx512);
  if (bf16) sets.push_back(InstructionSet::kAvx512Bf16);
#endif
  return sets;
}

InstructionSet choose_instruction_set(std::string_view request) {
  const auto sets = supported_instruction_sets();
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
  const char* request = std::getenv("SIMMST_CPU_ISA");
  return choose_instruction_set(request == nullptr ? "" : request);
}

}  // namespace simmst::cpu
