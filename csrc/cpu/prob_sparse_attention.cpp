#include "cpu/prob_sparse_attention.hpp"

#include "cpu/prob_sparse_attention_kernels.hpp"

namespace simmst::cpu::SIMMST_ISA {

const simmst::cpu::prob_sparse::Kernels prob_sparse_kernels = {&prob_sparse::select_queries, &prob_sparse::attend,
                                                               &prob_sparse::backward, &prob_sparse::in_range};

}  // namespace simmst::cpu::SIMMST_ISA
