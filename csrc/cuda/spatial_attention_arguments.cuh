// Turns the untyped arguments of a call into those of a kernel for entries of type T, on the host side. Files with
// kernels are compiled once per type, SIMMST_ENTRY, so that several are compiled in parallel; without SIMMST_ENTRY, for
// all types.
#pragma once

#include "cuda/spatial_attention.hpp"
#include "cuda/spatial_attention_tiles.cuh"

#if defined(SIMMST_ENTRY)
#define SIMMST_FOR_EACH_ENTRY(instantiate) instantiate(SIMMST_ENTRY)
#else
#define SIMMST_FOR_EACH_ENTRY(instantiate) instantiate(float) instantiate(bfloat16) instantiate(float16)
#endif

namespace simmst::cuda::spatial {

inline bool is_multiple_of_16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// Whether rows of C entries are aligned if the first one is.
template <typename T>
bool rows_align(const Problem& problem) {
  return problem.channels % kPackSize<T> == 0;
}

template <typename T>
Maps<const T> as_maps(const Problem& problem, const Map& map) {
  const auto is_aligned = [](std::int64_t stride) { return stride % kPackSize<T> == 0; };
  const bool packed = map.channel == 1 && rows_align<T>(problem) && is_multiple_of_16(map.data) &&
                      is_aligned(map.batch) && is_aligned(map.row) && is_aligned(map.column);
  return {static_cast<const T*>(map.data),   map.batch, map.channel, map.row, map.column,
          static_cast<int>(problem.columns), packed};
}

// A contiguous result.
template <typename T>
Maps<T> result_maps(const Problem& problem, void* data) {
  const std::int64_t positions = problem.rows * problem.columns, batch = positions * problem.channels;
  const std::int64_t column = problem.channels_last ? problem.channels : 1;
  return {static_cast<T*>(data),
          batch,
          problem.channels_last ? 1 : positions,
          problem.columns * column,
          column,
          static_cast<int>(problem.columns),
          problem.channels_last && rows_align<T>(problem) && is_multiple_of_16(data)};
}

template <typename T>
const T* as(const void* data) {
  return static_cast<const T*>(data);
}

}  // namespace simmst::cuda::spatial
