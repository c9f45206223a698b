// The kernels of one instruction set, by file: _select.cpp, _attend.cpp and _backward.cpp.
#pragma once

#include "cpu/prob_sparse_attention.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {

using namespace simmst::cpu::prob_sparse;

bool select_queries(const SelectCall& call);
bool attend(const AttendCall& call);
bool backward(const BackwardCall& call);
bool in_range(const int64_t* indices, int64_t count, int64_t upper);

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
