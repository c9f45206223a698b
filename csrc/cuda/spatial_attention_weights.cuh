// Weights on their way from global memory (where they stay in the second-level cache) to the multiplying warps: slots of
// 32 rows in shared memory, one filled while the other is read.
#pragma once

#include "cuda/spatial_attention_tiles.cuh"

namespace simmst::cuda::spatial {

using simmst::spatial::kWeightRows;

// Starts copying rows [first, first + 32) of a matrix (rows, channels) to a slot; zero beyond both.
template <typename T>
SIMMST_DEVICE void copy_weights(const T* matrix, int first, int rows, int channels, bool aligned, T* slot, int pitch) {
  constexpr int kSize = kPackSize<T>;
  const int groups = (pitch - 8) / kSize;
  for (int i = thread_index(); i < kWeightRows * groups; i += block_threads()) {
    const int r = i / groups, c = i % groups * kSize, row = first + r;
    const bool inside = row < rows && c < channels;
    const T* from = matrix + (inside ? static_cast<std::int64_t>(row) * channels + c : 0);
    if (aligned) {
      copy_async(slot + r * pitch + c, from, inside ? 16 : 0);
    } else {
      Pack<T> group{};
      SIMMST_UNROLL
      for (int j = 0; j < kSize; ++j)
        if (inside && c + j < channels) group.at[j] = from[j];
      store_pack(slot + r * pitch + c, group);
    }
  }
  commit_copies();
}

// Of one operation's chain of slots: chunk i lies in slot i % 2. `start(i)` may be called once all warps have read chunk
// i - 2, which `arrive()` for chunk i - 1 makes sure of.
template <typename T>
struct WeightRing {
  T* slots;
  int pitch;

  SIMMST_DEVICE_MEMBER T* slot(int i) const { return slots + i % 2 * kWeightRows * pitch; }
  SIMMST_DEVICE_MEMBER void arrive() const {
    wait_for_copies<0>();
    sync_block();
  }
};

// sums[m] += a[k][m] (rows, channels) times 16 rows of weights at `tile`, transposed; all channels.
template <typename T, int M>
SIMMST_DEVICE void multiply_weights(TileC (&sums)[M][2], const typename Operand<T>::A (&a)[kColumnTiles][M],
                                    const T* tile, int pitch) {
  SIMMST_UNROLL
  for (int k = 0; k < kColumnTiles; ++k) {
    if (kTile * k < pitch - 8) {
      typename Operand<T>::B b[2];
      read_columns(b, tile + kTile * k, pitch);
      multiply<T>(sums, a[k], b);
    }
  }
}

// sums[n] += 16 rows, whose columns from k on `fetch(a, k)` reads, times column n of tiles of the weights in shared
// memory, of which there are `columns` columns; the transpose of the weights if kTransposed.
template <typename T, bool kTransposed, int N, typename Fetch>
SIMMST_DEVICE void multiply_rows(TileC (&sums)[N][1][2], const Fetch& fetch, const T* weights, int pitch, int columns) {
  SIMMST_ROLLED
  for (int k = 0; k < pitch - 8; k += kTile) {
    typename Operand<T>::A a[1];
    fetch(a[0], k);
    SIMMST_UNROLL
    for (int n = 0; n < N; ++n) {
      if (kTile * n < columns) {
        typename Operand<T>::B b[2];
        if constexpr (kTransposed) read_columns(b, weights + kTile * n * pitch + k, pitch);
        else read_rows(b, weights + k * pitch + kTile * n, pitch);
        multiply<T>(sums[n], a, b);
      }
    }
  }
}

}  // namespace simmst::cuda::spatial
