// Tensors (batch..., rows, columns) as addresses and strides, and the place of a batch entry in memory.
#pragma once

#include <cstdint>

#include "core/arithmetic.hpp"

namespace simmst {

constexpr int kMaxBatchDims = 16;

// The leading sizes that all tensors of a call share. Batch entries are numbered as in a contiguous tensor.
struct Batch {
  int dims = 0;
  std::int64_t size[kMaxBatchDims] = {};
  std::int64_t count = 1;
};

// A tensor (..., rows, columns) with a contiguous last dimension; strides count elements.
struct Matrices {
  void* data = nullptr;
  std::int64_t rows = 0, columns = 0, row_stride = 0;
  std::int64_t batch_stride[kMaxBatchDims] = {};
};

// The offset of batch entry `index`, in elements from `data`.
SIMMST_HOST_DEVICE std::int64_t entry_offset(const Matrices& matrices, const Batch& batch, std::int64_t index) {
  std::int64_t offset = 0;
  for (int i = batch.dims - 1; i >= 0; --i) {
    offset += index % batch.size[i] * matrices.batch_stride[i];
    index /= batch.size[i];
  }
  return offset;
}

// Whether every row of every entry begins at a multiple of `bytes`.
SIMMST_HOST_DEVICE bool rows_are_aligned(const Matrices& matrices, const Batch& batch, std::int64_t item_bytes,
                                         std::int64_t bytes) {
  bool aligned = reinterpret_cast<std::uintptr_t>(matrices.data) % static_cast<std::uintptr_t>(bytes) == 0 &&
                 (matrices.rows <= 1 || matrices.row_stride * item_bytes % bytes == 0);
  for (int i = 0; i < batch.dims; ++i)
    aligned = aligned && (batch.size[i] <= 1 || matrices.batch_stride[i] * item_bytes % bytes == 0);
  return aligned;
}

}  // namespace simmst
