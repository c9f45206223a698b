// One head of a map in the backward pass: two of its matrices in shared memory, tiles of 16 queries or keys per warp.
#pragma once

#include "cuda/spatial_attention_tiles.cuh"

namespace simmst::cuda::spatial {

template <typename T>
struct BackwardArguments {
  Maps<const T> grad, x;
  Maps<T> grad_x;  // data is null where not wanted
  const T *in, *in_bias, *out, *out_bias, *norm;
  const std::uint8_t* mask;
  const float* lse;
  T* matrices;  // (blocks,) of (11, rows, pitch) and float32 (heads, rows)
  float* sums;  // (blocks, count)
  std::int64_t batch;
  int positions, channels, heads;
  bool residual, aligned;
  bool wants_attention;  // some gradient goes through the scores
  bool wants_weights;    // some gradient of a projection is wanted
  float eps, scale;
};

// The places of a block's sums, for the gradients in the order of struct Gradients from `in` on.
struct SumPlaces {
  std::int64_t channels;
  SIMMST_DEVICE_MEMBER std::int64_t in() const { return 0; }
  SIMMST_DEVICE_MEMBER std::int64_t out() const { return 3 * channels * channels; }
  SIMMST_DEVICE_MEMBER std::int64_t in_bias() const { return 4 * channels * channels; }
  SIMMST_DEVICE_MEMBER std::int64_t out_bias() const { return in_bias() + 3 * channels; }
  SIMMST_DEVICE_MEMBER std::int64_t norm() const { return out_bias() + channels; }
  SIMMST_DEVICE_MEMBER std::int64_t norm_bias() const { return norm() + channels; }
  SIMMST_DEVICE_MEMBER std::int64_t count() const { return norm_bias() + channels; }
};

constexpr float kLog2E = 1.4426950408889634f;

// Loads A of 16-bit entries from global memory; rows are `pitch` apart.
template <typename T>
SIMMST_DEVICE void fetch_a(TileA& a, const T* tile, int pitch) {
  SIMMST_UNROLL
  for (int i = 0; i < 4; ++i)
    a.part[i] =
        load_pack<Pack<std::uint32_t, 1>>(tile + (tile_row() + 8 * (i % 2)) * pitch + tile_column() + 8 * (i / 2))
            .at[0];
}
SIMMST_DEVICE void fetch_a(WideA& a, const float* tile, int pitch) { read_a(a, tile, pitch); }

template <typename T>
struct HeadBuffers {
  using A = typename Operand<T>::A;
  using B = typename Operand<T>::B;

  T *first, *second;   // (rows, head pitch): queries and their gradients, or keys and values
  float *lse, *delta;  // (rows,): to the base 2, +inf beyond N; rowsum(dO O), 0 beyond N
  float* rest;         // (rows,), only float32: a correction of lse that makes the weights sum to 1
  int* place;          // (keys,): positions of the keys
  int positions, rows, pitch, width;

  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER static constexpr int pitch_for() {
    return kHeadTiles * kTile + 8;
  }

  SIMMST_DEVICE_MEMBER void read_lse(const float* from) const {
    for (int n = thread_index(); n < rows; n += block_threads()) {
      lse[n] = n < positions ? from[n] * kLog2E : INFINITY;
      if constexpr (sizeof(T) == 4) rest[n] = 0.0f;
    }
  }
  // Also adds log2 of the sums that attend() found: lse was rounded, and queries and keys may round to T differently
  // than in the forward pass. Where a weight is near 1, its gradient is a small difference, which a wrong sum would
  // swamp.
  SIMMST_DEVICE_MEMBER void read_lse(const float* from, const float* sums) const {
    for (int n = thread_index(); n < rows; n += block_threads()) {
      const float base = n < positions ? from[n] * kLog2E : INFINITY, low = n < positions ? sums[n] : 0.0f;
      if constexpr (sizeof(T) == 4) {
        lse[n] = base;
        rest[n] = low;
      } else {
        lse[n] = base + low;
      }
    }
  }
  SIMMST_DEVICE_MEMBER void read_delta(const T* gradient, const T* heads, int column) const {
    for (int n = thread_index(); n < rows; n += block_threads()) {
      float sum = 0.0f;
      for (int d = 0; n < positions && d < width; ++d)
        sum = fmaf(to_float(gradient[n * pitch + column + d]), to_float(heads[n * pitch + column + d]), sum);
      delta[n] = sum;
    }
  }

  // Copies `count` rows of the head's columns, those in `chosen` unless it is null, with zeros up to whole tiles.
  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER void stage(T* to, const T* from, int column, const int* chosen, int count) const {
    constexpr int kPitch = pitch_for<kHeadTiles>(), kSize = kPackSize<T>, kGroups = kHeadTiles * kTile / kSize;
    const bool aligned = width % kSize == 0;
    for (int i = thread_index(); i < static_cast<int>(round_up_to(count, kTile)) * kGroups; i += block_threads()) {
      const int row = i / kGroups, d = i % kGroups * kSize;
      Pack<T> group{};
      if (row < count && d < width) {
        const T* at = from + (chosen == nullptr ? row : chosen[row]) * pitch + column + d;
        if (aligned) {
          group = load_pack<Pack<T>>(at);
        } else {
          SIMMST_UNROLL
          for (int j = 0; j < kSize; ++j)
            if (d + j < width) group.at[j] = at[j];
        }
      }
      store_pack(to + row * kPitch + d, group);
    }
  }

  // Reads the head's columns of rows low and high (a lane's two; -1: zeros) of a matrix in global memory.
  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER void gather(A (&a)[kHeadTiles][1], const T* from, int low, int high, int column) const {
    SIMMST_UNROLL
    for (int k = 0; k < kHeadTiles; ++k) {
      float entries[8];
      SIMMST_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int row = i / 2 % 2 == 0 ? low : high, d = kTile * k + 8 * (i / 4) + tile_column() + i % 2;
        entries[i] = row >= 0 && d < width ? to_float(from[row * pitch + column + d]) : 0.0f;
      }
      const TileC left{{entries[0], entries[1], entries[2], entries[3]}};
      const TileC right{{entries[4], entries[5], entries[6], entries[7]}};
      a[k][0] = to_a<T>(left, right);  // exact
    }
  }
  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER void scatter(T* to, int low, int high, int column, const TileC (&c)[kHeadTiles][1][2],
                                    float factor) const {
    SIMMST_UNROLL
    for (int i = 0; i < 8 * kHeadTiles; ++i) {
      const int row = i / 2 % 2 == 0 ? low : high, d = 8 * (i / 4) + tile_column() + i % 2;
      if (row >= 0 && d < width)
        to[row * pitch + column + d] = from_float<T>(c[i / 8][0][i / 4 % 2].part[i % 4] * factor);
    }
  }

  // c += a times the 16 rows at `tile`, transposed.
  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER void dot(TileC (&c)[1][2], const A (&a)[kHeadTiles][1], const T* tile) const {
    SIMMST_UNROLL
    for (int k = 0; k < kHeadTiles; ++k) {
      B b[2];
      read_columns(b, tile + kTile * k, pitch_for<kHeadTiles>());
      multiply<T>(c, a[k], b);
    }
  }
  // c += a times the 16 rows at `tile`.
  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER void weigh(TileC (&c)[kHeadTiles][1][2], const A (&a)[1], const T* tile) const {
    SIMMST_UNROLL
    for (int k = 0; k < kHeadTiles; ++k) {
      B b[2];
      read_rows(b, tile + kTile * k, pitch_for<kHeadTiles>());
      multiply<T>(c[k], a, b);
    }
  }

  // Turns scores into softmax weights, with queries along the rows; columns from `left` on are not keys.
  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER void weights_of_rows(TileC (&scores)[1][2], const float (&row_lse)[2],
                                            const float (&row_rest)[2], int left) const {
    SIMMST_UNROLL
    for (int j = 0; j < 2; ++j) {
      SIMMST_UNROLL
      for (int i = 0; i < 4; ++i) {
        float& score = scores[0][j].part[i];
        score = 8 * j + tile_column() + i % 2 < left ? score - row_lse[i / 2] : -INFINITY;
        if constexpr (sizeof(T) == 4) score -= row_rest[i / 2];
      }
      exponentiate<T, kHeadTiles <= 2>(scores[0][j]);
    }
  }

  SIMMST_DEVICE_MEMBER void rows_of_tile(int n, int (&row)[2]) const {
    SIMMST_UNROLL
    for (int h = 0; h < 2; ++h) {
      row[h] = n + 8 * h + tile_row();
      if (row[h] >= positions) row[h] = -1;
    }
  }

  SIMMST_DEVICE_MEMBER void read_rest(int n, float (&row_rest)[2]) const {
    row_rest[0] = row_rest[1] = 0.0f;
    if constexpr (sizeof(T) == 4) {
      row_rest[0] = rest[n + tile_row()];
      row_rest[1] = rest[n + 8 + tile_row()];
    }
  }

  // Computes heads = P V for 16 queries, whose weights are scaled to a sum of 1, and log2 of the sums before that; keys
  // and values are staged.
  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER void attend(const T* queries, int column, int n, int keys, T* heads, float* sums) const {
    int row[2];
    rows_of_tile(n, row);
    A query[kHeadTiles][1];
    gather<kHeadTiles>(query, queries, row[0], row[1], column);
    const float row_lse[2] = {lse[n + tile_row()], lse[n + 8 + tile_row()]};
    float row_rest[2];
    read_rest(n, row_rest);
    TileC sum[kHeadTiles][1][2];
    float total[2] = {0.0f, 0.0f};
    for (int key = 0; key < keys; key += kTile) {
      TileC scores[1][2];
      dot<kHeadTiles>(scores, query, first + key * pitch_for<kHeadTiles>());
      weights_of_rows<kHeadTiles>(scores, row_lse, row_rest, keys - key);
      SIMMST_UNROLL
      for (int i = 0; i < 8; ++i) total[i / 2 % 2] += scores[0][i / 4].part[i % 4];
      const A weights[1] = {to_a<T>(scores[0][0], scores[0][1])};
      weigh<kHeadTiles>(sum, weights, second + key * pitch_for<kHeadTiles>());
    }
    SIMMST_UNROLL
    for (int h = 0; h < 2; ++h) {
      total[h] = reduce_warp<4>(total[h], Sum{});
      if (row[h] >= 0 && lane_index() % 4 == 0) sums[row[h]] = log2f(total[h]);
    }
    SIMMST_UNROLL
    for (int i = 0; i < 8 * kHeadTiles; ++i) sum[i / 8][0][i / 4 % 2].part[i % 4] /= total[i / 2 % 2];
    scatter<kHeadTiles>(heads, row[0], row[1], column, sum, 1.0f);
  }

  // Computes dQ of 16 queries; keys and values are staged.
  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER void query_gradients(const T* queries, const T* gradients, int column, int n, int keys,
                                            float scale, T* to) const {
    int row[2];
    rows_of_tile(n, row);
    A query[kHeadTiles][1], gradient[kHeadTiles][1];
    gather<kHeadTiles>(query, queries, row[0], row[1], column);
    gather<kHeadTiles>(gradient, gradients, row[0], row[1], column);
    const float row_lse[2] = {lse[n + tile_row()], lse[n + 8 + tile_row()]};
    const float row_delta[2] = {delta[n + tile_row()], delta[n + 8 + tile_row()]};
    float row_rest[2];
    read_rest(n, row_rest);
    TileC sum[kHeadTiles][1][2];
    for (int key = 0; key < keys; key += kTile) {
      TileC scores[1][2], along[1][2];
      dot<kHeadTiles>(scores, query, first + key * pitch_for<kHeadTiles>());
      weights_of_rows<kHeadTiles>(scores, row_lse, row_rest, keys - key);
      dot<kHeadTiles>(along, gradient, second + key * pitch_for<kHeadTiles>());
      SIMMST_UNROLL
      for (int i = 0; i < 8; ++i) scores[0][i / 4].part[i % 4] *= along[0][i / 4].part[i % 4] - row_delta[i / 2 % 2];
      const A slopes[1] = {to_a<T>(scores[0][0], scores[0][1])};
      weigh<kHeadTiles>(sum, slopes, first + key * pitch_for<kHeadTiles>());
    }
    scatter<kHeadTiles>(to, row[0], row[1], column, sum, scale);
  }

  // Computes dK and dV of 16 keys; queries and the gradients of the heads are staged.
  template <int kHeadTiles>
  SIMMST_DEVICE_MEMBER void key_gradients(const T* keys, const T* values, int column, int n, int count, T* to_keys,
                                          T* to_values) const {
    int row[2];
    SIMMST_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int at = n + 8 * h + tile_row();
      row[h] = at < count ? place[at] : -1;
    }
    A key[kHeadTiles][1], value[kHeadTiles][1];
    gather<kHeadTiles>(key, keys, row[0], row[1], column);
    gather<kHeadTiles>(value, values, row[0], row[1], column);
    TileC key_sum[kHeadTiles][1][2], value_sum[kHeadTiles][1][2];
    for (int query = 0; query < rows; query += kTile) {
      TileC scores[1][2], along[1][2];
      dot<kHeadTiles>(scores, key, first + query * pitch_for<kHeadTiles>());
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        const auto shift = load_pack<Pack<float, 2>>(lse + query + 8 * j + tile_column());
        SIMMST_UNROLL
        for (int i = 0; i < 4; ++i) scores[0][j].part[i] -= shift.at[i % 2];
        if constexpr (sizeof(T) == 4) {
          const auto low = load_pack<Pack<float, 2>>(rest + query + 8 * j + tile_column());
          SIMMST_UNROLL
          for (int i = 0; i < 4; ++i) scores[0][j].part[i] -= low.at[i % 2];
        }
        exponentiate<T, kHeadTiles <= 2>(scores[0][j]);
      }
      const A weights[1] = {to_a<T>(scores[0][0], scores[0][1])};
      dot<kHeadTiles>(along, value, second + query * pitch_for<kHeadTiles>());
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        const auto shift = load_pack<Pack<float, 2>>(delta + query + 8 * j + tile_column());
        SIMMST_UNROLL
        for (int i = 0; i < 4; ++i) scores[0][j].part[i] *= along[0][j].part[i] - shift.at[i % 2];
      }
      const A slopes[1] = {to_a<T>(scores[0][0], scores[0][1])};
      weigh<kHeadTiles>(value_sum, weights, second + query * pitch_for<kHeadTiles>());
      weigh<kHeadTiles>(key_sum, slopes, first + query * pitch_for<kHeadTiles>());
    }
    // The queries contain the factor scale * log2(e); the gradient needs only scale.
    scatter<kHeadTiles>(to_keys, row[0], row[1], column, key_sum, 1.0f / kLog2E);
    scatter<kHeadTiles>(to_values, row[0], row[1], column, value_sum, 1.0f);
  }
};

}  // namespace simmst::cuda::spatial
