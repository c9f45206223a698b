// The instruction sets that CPU kernels are compiled for, and the one this process uses.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace simmst::cpu {

// Ordered: every level contains the ones before it.
enum class InstructionSet { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

std::string_view name(InstructionSet set);

// The number of levels below `set` that this build has kernels for.
int position_in_build(InstructionSet set);

// The levels that this build has kernels for and this processor and operating system can run, ascending.
std::vector<InstructionSet> supported_instruction_sets();

// The highest supported level, or the one that `request` names (an empty request asks for the highest).
// Throws std::invalid_argument naming the request and the choices when it is unknown or not supported here.
InstructionSet choose_instruction_set(std::string_view request);

// The instruction set this process uses: the one that the environment variable SIMMST_CPU_ISA names, or the highest.
// Read at every call, so that tests can switch. Throws as choose_instruction_set.
InstructionSet active_instruction_set();

}  // namespace simmst::cpu
