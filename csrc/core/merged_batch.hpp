// Merging of the leading dimensions of a call's tensors into as few as possible.
#pragma once

#include <cstddef>

#include "core/batched_matrices.hpp"

namespace simmst {

// Merges neighbouring batch dimensions where every tensor steps through the two as through one, so that finding an
// entry takes fewer divisions. Entries keep their numbers.
template <std::size_t N>
void merge_dimensions(Batch& batch, Matrices* const (&tensors)[N]) {
  int kept = 0;
  for (int i = 0; i < batch.dims; ++i) {
    if (batch.size[i] == 1) continue;
    bool joins = kept > 0;
    for (const Matrices* tensor : tensors)
      joins = joins && tensor->batch_stride[kept - 1] == batch.size[i] * tensor->batch_stride[i];
    if (joins) {
      batch.size[kept - 1] *= batch.size[i];
    } else {
      batch.size[kept++] = batch.size[i];
    }
    for (Matrices* tensor : tensors) tensor->batch_stride[kept - 1] = tensor->batch_stride[i];
  }
  batch.dims = kept;
}

}  // namespace simmst
