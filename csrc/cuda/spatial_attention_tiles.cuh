// Tiles of spatial attention for every dtype. 16-bit entries go to the tensor cores in the layout of matrix.hpp;
// float32 goes through the FMA units (IEEE), in tiles that have every entry in the same place. Also the exponential,
// and the transfer of a map's rows between global and shared memory.
#pragma once

#include "core/spatial_attention_plan.hpp"
#include "cuda/device.hpp"

namespace simmst::cuda::spatial {

using simmst::spatial::kColumnTiles;
using simmst::spatial::kTile;
using simmst::spatial::kWeightRows;

// A of float32: part 2 i + e is entry (row g + 8 (i % 2), column 2 t + 8 (i / 2) + e).
struct WideA {
  float part[8];
};
// B of float32 stays in shared memory: entry (k, n) at k * k_step + n * n_step.
struct WideB {
  const float* first;
  int k_step, n_step;
};

template <typename T>
struct Operand {
  using A = TileA;
  using B = TileB;
};
template <>
struct Operand<float> {
  using A = WideA;
  using B = WideB;
};

SIMMST_DEVICE void clear(TileA& a) {
  SIMMST_UNROLL
  for (int i = 0; i < 4; ++i) a.part[i] = 0;
}
SIMMST_DEVICE void clear(WideA& a) {
  SIMMST_UNROLL
  for (int i = 0; i < 8; ++i) a.part[i] = 0.0f;
}

// Loads A, and two neighbouring B, from shared memory, as load_a, load_b_columns and load_b_rows of matrix.hpp do.
template <typename T>
SIMMST_DEVICE void read_a(TileA& a, const T* tile, int pitch) {
  a = load_a(tile, pitch);
}
SIMMST_DEVICE void read_a(WideA& a, const float* tile, int pitch) {
  SIMMST_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float* at = tile + (tile_row() + 8 * (i % 2)) * pitch + tile_column() + 8 * (i / 2);
    const auto pair = load_pack<Pack<float, 2>>(at);
    a.part[2 * i] = pair.at[0];
    a.part[2 * i + 1] = pair.at[1];
  }
}
template <typename T>
SIMMST_DEVICE void read_a_transposed(TileA& a, const T* tile, int pitch) {
  a = load_a_transposed(tile, pitch);
}
SIMMST_DEVICE void read_a_transposed(WideA& a, const float* tile, int pitch) {
  SIMMST_UNROLL
  for (int i = 0; i < 8; ++i)
    a.part[i] = tile[(tile_column() + 8 * (i / 4) + i % 2) * pitch + tile_row() + 8 * (i / 2 % 2)];
}
template <typename T>
SIMMST_DEVICE void read_columns(TileB (&b)[2], const T* tile, int pitch) {
  load_b_columns(b, tile, pitch);
}
SIMMST_DEVICE void read_columns(WideB (&b)[2], const float* tile, int pitch) {
  b[0] = {tile, 1, pitch};
  b[1] = {tile + 8 * pitch, 1, pitch};
}
template <typename T>
SIMMST_DEVICE void read_rows(TileB (&b)[2], const T* tile, int pitch) {
  load_b_rows(b, tile, pitch);
}
SIMMST_DEVICE void read_rows(WideB (&b)[2], const float* tile, int pitch) {
  b[0] = {tile, pitch, 1};
  b[1] = {tile + 8, pitch, 1};
}

// Turns two neighbouring C into an A of T.
template <typename T>
SIMMST_DEVICE typename Operand<T>::A to_a(const TileC& left, const TileC& right) {
  if constexpr (sizeof(T) == 2) {
    return as_a<T>(left, right);
  } else {
    return {{left.part[0], left.part[1], left.part[2], left.part[3], right.part[0], right.part[1], right.part[2],
             right.part[3]}};
  }
}

// Clears the columns of A outside of [first, last).
SIMMST_DEVICE void keep_columns(TileA& a, int first, int last) {
  SIMMST_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int column = tile_column() + 8 * (i / 2);
    const std::uint32_t low = column >= first && column < last ? 0x0000ffffu : 0;
    const std::uint32_t high = column + 1 >= first && column + 1 < last ? 0xffff0000u : 0;
    a.part[i] &= low | high;
  }
}
SIMMST_DEVICE void keep_columns(WideA& a, int first, int last) {
  SIMMST_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int column = tile_column() + 8 * (i / 4) + i % 2;
    if (column < first || column >= last) a.part[i] = 0.0f;
  }
}

// c[m][n] += a[m] b[n].
template <typename T, int M>
SIMMST_DEVICE void multiply(TileC (&c)[M][2], const typename Operand<T>::A (&a)[M],
                            const typename Operand<T>::B (&b)[2]) {
  if constexpr (sizeof(T) == 2) {
    SIMMST_UNROLL
    for (int m = 0; m < M; ++m) {
      SIMMST_UNROLL
      for (int n = 0; n < 2; ++n) multiply_add<T>(c[m][n], a[m], b[n]);
    }
  } else {
    const int lane = lane_index();
    SIMMST_UNROLL
    for (int k = 0; k < kTile; ++k) {
      float left[M][2];
      SIMMST_UNROLL
      for (int i = 0; i < 2 * M; ++i)
        left[i / 2][i % 2] = shuffle(a[i / 2].part[4 * (k / 8) + 2 * (i % 2) + k % 2], (lane & ~3) | k % 8 / 2);
      SIMMST_UNROLL
      for (int n = 0; n < 2; ++n) {
        const float* at = b[n].first + k * b[n].k_step + tile_column() * b[n].n_step;
        const float right[2] = {at[0], at[b[n].n_step]};
        SIMMST_UNROLL
        for (int i = 0; i < 4 * M; ++i)
          c[i / 4][n].part[i % 4] = fmaf(left[i / 4][i / 2 % 2], right[i % 2], c[i / 4][n].part[i % 4]);
      }
    }
  }
}

// Stores two neighbouring entries, at an even place.
template <typename T>
SIMMST_DEVICE void store_pair(T* target, float low, float high) {
  if constexpr (sizeof(T) == 2) {
    store_pack(target, Pack<std::uint32_t, 1>{{pack_pair<T>(low, high)}});
  } else {
    store_pack(target, Pack<float, 2>{{low, high}});
  }
}
template <typename T>
SIMMST_DEVICE Pack<float, 2> load_pair(const T* source) {
  const auto pair = load_pack<Pack<T, 2>>(source);
  return {{to_float(pair.at[0]), to_float(pair.at[1])}};
}

SIMMST_DEVICE float bits_as_float(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
SIMMST_DEVICE std::uint32_t float_as_bits(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

// 2^x on the FMA units, to 2.4e-7 relative: 2^round(x) is exact, and the polynomial (minimax) covers the rest. For x
// from -126 to 127. NaN gives NaN because the last step is a product; adding to the exponent's bits would turn a NaN
// into a number.
SIMMST_DEVICE float exp2_polynomial(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23, so that the sum has no bits for a fraction
  const float shifted = x + kRound, r = x - (shifted - kRound);
  float p = fmaf(r, 0x1.5c08e6p-10f, 0x1.3d0c52p-7f);
  p = fmaf(p, r, 0x1.c6b6e4p-5f);
  p = fmaf(p, r, 0x1.ebf918p-3f);
  p = fmaf(p, r, 0x1.62e428p-1f);
  p = fmaf(p, r, 0x1.000002p+0f);
  return p * bits_as_float((float_as_bits(shifted) << 23) + 0x3f800000u);
}

// Turns a tile of scores x into softmax weights 2^x. One in four goes to the FMA units when 16-bit entries and narrow
// heads make the special-function unit the bottleneck. Below -126 the weights are 0 or tiny.
template <typename T, bool kShared>
SIMMST_DEVICE void exponentiate(TileC& c) {
  if constexpr (sizeof(T) == 4) {
    SIMMST_UNROLL
    for (int i = 0; i < 4; ++i) c.part[i] = exp2f(c.part[i]);
  } else {
    SIMMST_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (kShared && i == 3) {
        c.part[i] = exp2_polynomial(c.part[i] < -126.0f ? -126.0f : c.part[i]);
      } else {
        c.part[i] = exp2_approx(c.part[i]);
      }
    }
  }
}

// A batch of maps, N positions by C channels, with any strides (in entries); positions run row by row.
template <typename T>
struct Maps {
  T* data;
  std::int64_t batch, channel, row, column;
  int columns;  // positions in a row
  bool packed;  // channels are consecutive and start at multiples of 16 bytes

  SIMMST_DEVICE_MEMBER T* at(std::int64_t map, int position) const {
    const int r = position / columns;
    return data + map * batch + r * row + (position - r * columns) * column;
  }
};

template <typename T>
constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

// Loads rows [first, first + 16) of a map to shared memory, by one warp, with zeros beyond N and C.
template <typename T>
SIMMST_DEVICE void load_rows(const Maps<const T>& maps, std::int64_t map, int first, int positions, int channels, T* to,
                             int pitch) {
  using Group = Pack<T>;
  const int row = lane_index() % kTile, position = first + row;
  const T* from = maps.at(map, position < positions ? position : 0);
  for (int c = lane_index() / kTile * Group::kSize; c < pitch - 8; c += 2 * Group::kSize) {
    Group group{};
    if (position < positions) {
      if (maps.packed) {
        if (c < channels) group = load_pack<Group>(from + c);
      } else {
        SIMMST_UNROLL
        for (int i = 0; i < Group::kSize; ++i)
          if (c + i < channels) group.at[i] = from[(c + i) * maps.channel];
      }
    }
    store_pack(to + row * pitch + c, group);
  }
}

// Stores them back.
template <typename T>
SIMMST_DEVICE void store_rows(const Maps<T>& maps, std::int64_t map, int first, int positions, int channels,
                              const T* from, int pitch) {
  using Group = Pack<T>;
  const int row = lane_index() % kTile, position = first + row;
  if (position >= positions) return;
  T* to = maps.at(map, position);
  for (int c = lane_index() / kTile * Group::kSize; c < channels; c += 2 * Group::kSize) {
    const auto group = load_pack<Group>(from + row * pitch + c);
    if (maps.packed) {
      store_pack(to + c, group);
    } else {
      SIMMST_UNROLL
      for (int i = 0; i < Group::kSize; ++i)
        if (c + i < channels) to[(c + i) * maps.channel] = group.at[i];
    }
  }
}

// ---- weights on their way from global memory (where the second-level cache keeps them) to the multiplying warps:
// slots of 32 rows in shared memory, one filled while the other is read

// Starts copying rows [first, first + 32) of a matrix (rows, channels) to a slot, with zeros beyond both.
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

// The slots of one operation's chunks: chunk i is in slot i % 2. `start(i)` may be called once all warps have read
// chunk i - 2, which `arrive()` for chunk i - 1 ensures.
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

// sums[m] += a[k][m] (rows, channels) times 16 rows of weights at `tile`, transposed, over all channels.
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

// sums[n] += 16 rows, whose columns from k on `fetch(a, k)` reads, times column n of the tiles of weights in shared
// memory, which have `columns` columns; the transpose of the weights if kTransposed.
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
