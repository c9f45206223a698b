// The measure of every query, the first half of the selection.
#pragma once

#include "cuda/prob_sparse_attention.hpp"

namespace simmst::cuda::prob_sparse {

int64_t measure_workspace(const SelectCall& call, const Queue& queue);
void measure_queries(const SelectCall& call, const Queue& queue);

}  // namespace simmst::cuda::prob_sparse
