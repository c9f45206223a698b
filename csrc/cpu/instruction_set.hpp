// The instruction sets that CPU kernels are compiled for, and the one this process uses.
//
// The kernels of every operator exist once per instruction set, in the namespace simmst::cpu::<set>. An operator's
// header declares a struct of function pointers; SIMMST_FOR_EACH_ISA declares one instance per set, and pick() returns
// the one in use. Only ProbSparse attention has kernels of its own for avx512_bf16 (SIMMST_FOR_EACH_ISA_AND_BF16),
// whose instructions it multiplies with; the other operators run theirs for avx512 there.
//
// Kernel files must not instantiate inline functions or templates with external linkage (most of the standard library's
// containers and algorithms). The linker keeps one copy of those, and that could be the copy compiled for AVX-512,
// which a machine without it cannot run. Everything a kernel file defines is static, in an anonymous namespace, or in
// SIMMST_ISA.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

// The build defines SIMMST_BUILDS_<set> for each set it compiles; SIMMST_FOR_EACH_ISA leaves the others out.
#ifdef SIMMST_BUILDS_portable
#define SIMMST_WITH_PORTABLE(declare) declare(portable)
#else
#define SIMMST_WITH_PORTABLE(declare)
#endif
#ifdef SIMMST_BUILDS_avx2
#define SIMMST_WITH_AVX2(declare) declare(avx2)
#else
#define SIMMST_WITH_AVX2(declare)
#endif
#ifdef SIMMST_BUILDS_avx512
#define SIMMST_WITH_AVX512(declare) declare(avx512)
#else
#define SIMMST_WITH_AVX512(declare)
#endif
#ifdef SIMMST_BUILDS_avx512_bf16
#define SIMMST_WITH_AVX512_BF16(declare) declare(avx512_bf16)
#else
#define SIMMST_WITH_AVX512_BF16(declare)
#endif
#define SIMMST_FOR_EACH_ISA(declare) SIMMST_WITH_PORTABLE(declare) SIMMST_WITH_AVX2(declare) SIMMST_WITH_AVX512(declare)
#define SIMMST_FOR_EACH_ISA_AND_BF16(declare) SIMMST_FOR_EACH_ISA(declare) SIMMST_WITH_AVX512_BF16(declare)

namespace simmst::cpu {

// In ascending order: every level contains the ones before it.
enum class InstructionSet { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

std::string_view name(InstructionSet set);

// The number of levels below `set` that this build has kernels for.
int position_in_build(InstructionSet set);

// The levels that this build has kernels for and that this processor and operating system can run, ascending.
std::vector<InstructionSet> supported_instruction_sets();

// The highest supported level, or the one that `request` names if it is not empty. Throws std::invalid_argument, which
// names the request and the choices, if the level is unknown or not supported here.
InstructionSet choose_instruction_set(std::string_view request);

// The instruction set that this process uses: the one that the environment variable SIMMST_CPU_ISA names, or the
// highest. Read at every call, so that tests can switch. Throws as choose_instruction_set does.
InstructionSet active_instruction_set();

// The instance of `Table` for the instruction set in use; the arguments are those of all sets of this build, ascending.
// Without one for avx512_bf16, which must have avx512 beside it, it is the one for avx512.
template <typename Table>
const Table& pick(std::initializer_list<const Table*> tables) {
  const int position = position_in_build(active_instruction_set()), last = static_cast<int>(tables.size()) - 1;
  return **(tables.begin() + (position < last ? position : last));
}

}  // namespace simmst::cpu
