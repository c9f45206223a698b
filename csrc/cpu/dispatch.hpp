// Every hot path's kernels exist once per instruction set, in the namespace simmst::cpu::<set>. A stem's header declares
// a struct of function pointers; SIMMST_FOR_EACH_ISA declares one instance per set, and pick() returns the one in use.
//
// Kernel files must not instantiate inline functions or templates with external linkage (most of the standard library's
// containers and algorithms): the linker keeps one copy of those, and it could be the copy compiled for AVX-512, run on
// a machine without it. Everything a kernel file defines is static, in an anonymous namespace, or in SIMMST_ISA.
#pragma once

#include <initializer_list>

#include "cpu/instruction_set.hpp"

#if defined(__x86_64__)
#define SIMMST_FOR_EACH_ISA(declare) declare(portable) declare(avx2) declare(avx512) declare(avx512_bf16)
#else
#define SIMMST_FOR_EACH_ISA(declare) declare(portable)
#endif

namespace simmst::cpu {

// The instance of `Table` for an instruction set, given the one of every set in ascending order.
template <typename Table>
const Table& pick(InstructionSet set, std::initializer_list<const Table*> tables) {
  return **(tables.begin() + static_cast<int>(set));
}

}  // namespace simmst::cpu
