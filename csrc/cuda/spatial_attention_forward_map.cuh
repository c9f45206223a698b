// A map in the forward pass of spatial attention, before and after its attention: the positions that are keys, the
// input and output projections, residual and LayerNorm. spatial_attention_forward.cuh gives an overview.
#pragma once

#include "cuda/spatial_attention_tiles.cuh"

namespace simmst::cuda::spatial {

constexpr float kLn2 = 0.6931471805599453f;

template <typename T>
struct ForwardArguments {
  Maps<const T> x;
  Maps<T> y;
  const T *in, *in_bias, *out, *out_bias, *norm,
      *norm_bias;            // as in nn.MultiheadAttention; biases and norm may be null
  const std::uint8_t* mask;  // (B, N), 1 where ignored, or null
  float* lse;                // (B, heads, N)
  std::int64_t batch;
  int positions, channels, heads;
  bool residual;
  bool aligned;  // rows of the weights start at multiples of 16 bytes
  float eps;
  float factor;  // scale * log2(e)
};

// One map in the shared memory of a block, with every step except the attention: keys, projections, and the output.
template <typename T, int WarpTiles>
struct ForwardMap {
  using A = typename Operand<T>::A;
  static constexpr int kWarpTiles = WarpTiles;
  static constexpr int kMostWarps = simmst::spatial::kMostWarps;

  const ForwardArguments<T>& given;
  int rows, pitch, width, chunks;  // chunks: number of chunks of 32 rows in the C rows of weights
  T *stage, *key, *value;          // (rows, pitch)
  float *query_norms, *key_norms;  // (warps, column tiles): largest squared norm
  WeightRing<T> ring;
  int first;  // first position of the warp

  SIMMST_DEVICE_MEMBER ForwardMap(const ForwardArguments<T>& arguments, unsigned char* memory)
      : given(arguments),
        rows(static_cast<int>(round_up_to(arguments.positions, kTile))),
        pitch(static_cast<int>(simmst::spatial::pitch_of(arguments.channels))),
        width(arguments.channels / arguments.heads),
        chunks(static_cast<int>(ceil_div(arguments.channels, kWeightRows))),
        first(warp_index() * kWarpTiles * kTile) {
    stage = reinterpret_cast<T*>(memory);
    key = stage + rows * pitch;
    value = key + rows * pitch;
    ring = {value + rows * pitch, pitch};
    query_norms = reinterpret_cast<float*>(ring.slot(1) + kWeightRows * pitch);
    key_norms = query_norms + kMostWarps * kColumnTiles;
  }

  SIMMST_DEVICE_MEMBER bool has_tile(int t) const { return first + kTile * t < rows; }
  SIMMST_DEVICE_MEMBER T* tile_of(T* matrix, int t) const { return matrix + (first + kTile * t) * pitch; }

  // ---- which positions are keys

  // Finds the places of this lane's positions (row g + 8 h of tile t) among the keys: -1 for ignored positions and
  // beyond N. Returns the number of keys.
  SIMMST_DEVICE_MEMBER int find_keys(std::int64_t map, int (&slot)[kWarpTiles][2]) const {
    const std::uint8_t* mask = given.mask == nullptr ? nullptr : given.mask + map * given.positions;
    int count = given.positions, before = first;
    std::uint32_t kept = ~0u;
    if (mask != nullptr) {
      count = before = 0;
      for (int n = 0; n < given.positions; n += kWarp) {
        const int position = n + lane_index();
        const std::uint32_t bits = ballot(position < given.positions && mask[position] == 0);
        if (n <= first) {
          // `own`: how many of these 32 positions come before the warp's own.
          const int own = first - n < kWarp ? first - n : 0;
          before += count_bits(own == 0 && n < first ? bits : bits & ((1u << own) - 1));
          kept = bits >> own;
        }
        count += count_bits(bits);
      }
    }
    SIMMST_UNROLL
    for (int i = 0; i < 2 * kWarpTiles; ++i) {
      const int row = 8 * i + tile_row();
      const bool is_key = first + row < given.positions && (kept >> row & 1u) != 0;
      slot[i / 2][i % 2] = is_key ? before + count_bits(kept & ((1u << row) - 1)) : -1;
    }
    return count;
  }

  // ---- projections

  SIMMST_DEVICE_MEMBER void start_in(int i) const {  // chunk i of keys, values, queries
    const int part = (i / chunks + 1) % 3;
    const T* matrix = given.in + static_cast<std::int64_t>(part) * given.channels * given.channels;
    copy_weights(matrix, i % chunks * kWeightRows, given.channels, given.channels, given.aligned, ring.slot(i), pitch);
  }
  SIMMST_DEVICE_MEMBER void start_out(int i) const {  // after the 3 * chunks of the projections in
    copy_weights(given.out, i % chunks * kWeightRows, given.channels, given.channels, given.aligned,
                 ring.slot(3 * chunks + i), pitch);
  }

  // Stores the largest sum of squares along a row of 16 columns, over the warp's rows.
  SIMMST_DEVICE_MEMBER void keep_norm(const TileC (&c)[kWarpTiles][2], const bool (&counts)[kWarpTiles][2],
                                      float* norms, int column) const {
    float largest = 0.0f;
    SIMMST_UNROLL
    for (int i = 0; i < 2 * kWarpTiles; ++i) {
      float sum = 0.0f;
      SIMMST_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float entry = c[i / 2][j / 2].part[2 * (i % 2) + j % 2];
        sum = fmaf(entry, entry, sum);
      }
      sum = reduce_warp<4>(sum, Sum{});
      // A NaN must survive, because it turns the bound off.
      if (counts[i / 2][i % 2] && !(sum <= largest)) largest = sum;
    }
    SIMMST_UNROLL
    for (int distance = 4; distance < kWarp; distance *= 2) {
      const float other = shuffle_xor(largest, distance);
      if (!(other <= largest)) largest = other;
    }
    if (lane_index() == 0) norms[warp_index() * kColumnTiles + column / kTile] = largest;
  }

  // Stores 16 columns of keys (part 0), values (1) or queries (2).
  SIMMST_DEVICE_MEMBER void keep_projected(TileC (&c)[kWarpTiles][2], int part, int column,
                                           const int (&slot)[kWarpTiles][2]) const {
    const T* bias = given.in_bias == nullptr ? nullptr : given.in_bias + (part + 1) % 3 * given.channels;
    const float factor = part == 2 ? given.factor : 1.0f;
    bool counts[kWarpTiles][2];
    SIMMST_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int at = column + 8 * (j / 2) + tile_column() + j % 2;
      const float shift = bias == nullptr || at >= given.channels ? 0.0f : to_float(bias[at]);
      SIMMST_UNROLL
      for (int i = 0; i < 2 * kWarpTiles; ++i) {
        float& entry = c[i / 2][j / 2].part[2 * (i % 2) + j % 2];
        entry = (entry + shift) * factor;
      }
    }
    SIMMST_UNROLL
    for (int i = 0; i < 2 * kWarpTiles; ++i) {
      const int t = i / 2, h = i % 2;
      const int row = part == 2 ? first + 8 * i + tile_row() : slot[t][h];
      counts[t][h] = part == 2 ? has_tile(t) : row >= 0;
      T* target = (part == 0 ? key : part == 1 ? value : stage) + row * pitch + column + tile_column();
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j)
        if (counts[t][h]) store_pair(target + 8 * j, c[t][j].part[2 * h], c[t][j].part[2 * h + 1]);
    }
    if (part != 1) keep_norm(c, counts, part == 0 ? key_norms : query_norms, column);
  }

  // Computes keys, values and queries of the warp's positions.
  SIMMST_DEVICE_MEMBER void project_in(std::int64_t map, const int (&slot)[kWarpTiles][2]) const {
    start_in(0);
    A x[kColumnTiles][kWarpTiles];
    SIMMST_UNROLL
    for (int t = 0; t < kWarpTiles; ++t)
      if (has_tile(t))
        load_rows(given.x, map, first + kTile * t, given.positions, given.channels, tile_of(stage, t), pitch);
    sync_warp();
    SIMMST_UNROLL
    for (int i = 0; i < kColumnTiles * kWarpTiles; ++i) {
      const int k = i / kWarpTiles, t = i % kWarpTiles;
      clear(x[k][t]);
      if (has_tile(t) && kTile * k < pitch - 8) read_a(x[k][t], tile_of(stage, t) + kTile * k, pitch);
    }
    SIMMST_ROLLED
    for (int i = 0; i < 3 * chunks; ++i) {
      ring.arrive();
      if (i + 1 < 3 * chunks) start_in(i + 1);
      else start_out(0);
      const int start = i % chunks * kWeightRows;
      SIMMST_ROLLED
      for (int n = 0; n < kWeightRows && start + n < pitch - 8; n += kTile) {
        TileC c[kWarpTiles][2];
        multiply_weights<T>(c, x, ring.slot(i) + n * pitch, pitch);
        keep_projected(c, i / chunks, start + n, slot);
      }
    }
  }

  // ---- output projection, residual, LayerNorm

  // Finishes tile t with the branch y, which is zero for a map without keys.
  SIMMST_DEVICE_MEMBER void finish(std::int64_t map, int t, TileC (&y)[kColumnTiles][1][2], bool has_keys) const {
    if (!has_tile(t)) return;
    T* tile = tile_of(stage, t);
    sync_warp();
    if (given.residual) load_rows(given.x, map, first + kTile * t, given.positions, given.channels, tile, pitch);
    sync_warp();
    const T* bias = has_keys ? given.out_bias : nullptr;
    float mean[2] = {}, deviation[2] = {};
    SIMMST_UNROLL
    for (int i = 0; i < 4 * kColumnTiles; ++i) {
      const int column = 8 * (i / 2) + tile_column() + i % 2;
      if (column >= given.channels) continue;
      const float shift = bias == nullptr ? 0.0f : to_float(bias[column]);
      SIMMST_UNROLL
      for (int h = 0; h < 2; ++h) {
        float& entry = y[i / 4][0][i / 2 % 2].part[2 * h + i % 2];
        entry += shift;
        if (given.residual) entry += to_float(tile[(8 * h + tile_row()) * pitch + column]);
        mean[h] += entry;
      }
    }
    if (given.norm != nullptr) normalise(y, mean, deviation);
    SIMMST_UNROLL
    for (int i = 0; i < 4 * kColumnTiles; ++i) {
      const int column = 8 * (i / 2) + tile_column();
      if (column < pitch - 8 && i % 2 == 0) {
        SIMMST_UNROLL
        for (int h = 0; h < 2; ++h) {
          const float* pair = y[i / 4][0][i / 2 % 2].part + 2 * h;
          store_pair(tile + (8 * h + tile_row()) * pitch + column, pair[0], pair[1]);
        }
      }
    }
    sync_warp();
    store_rows(given.y, map, first + kTile * t, given.positions, given.channels, tile, pitch);
    sync_warp();
  }

  SIMMST_DEVICE_MEMBER void normalise(TileC (&y)[kColumnTiles][1][2], float (&mean)[2], float (&deviation)[2]) const {
    const float count = static_cast<float>(given.channels);
    SIMMST_UNROLL
    for (int h = 0; h < 2; ++h) mean[h] = reduce_warp<4>(mean[h], Sum{}) / count;
    SIMMST_UNROLL
    for (int i = 0; i < 8 * kColumnTiles; ++i) {
      const int column = 8 * (i / 4) + tile_column() + i % 2, h = i / 2 % 2;
      float& entry = y[i / 8][0][i / 4 % 2].part[i % 4];
      entry -= mean[h];
      if (column < given.channels) deviation[h] = fmaf(entry, entry, deviation[h]);
    }
    SIMMST_UNROLL
    for (int h = 0; h < 2; ++h) deviation[h] = 1.0f / sqrtf(reduce_warp<4>(deviation[h], Sum{}) / count + given.eps);
    SIMMST_UNROLL
    for (int i = 0; i < 8 * kColumnTiles; ++i) {
      const int column = 8 * (i / 4) + tile_column() + i % 2;
      if (column >= given.channels) continue;
      float& entry = y[i / 8][0][i / 4 % 2].part[i % 4];
      const float shift = given.norm_bias == nullptr ? 0.0f : to_float(given.norm_bias[column]);
      entry = fmaf(entry * deviation[i / 2 % 2], to_float(given.norm[column]), shift);
    }
  }

  // The weights stay in the ring for both tiles if they have at most two chunks.
  SIMMST_DEVICE_MEMBER void project_out(std::int64_t map) const {
    const bool stay = chunks <= 2;
    SIMMST_ROLLED
    for (int t = 0; t < kWarpTiles; ++t) {
      const auto fetch = [&](A& a, int k) {
        clear(a);
        if (has_tile(t)) read_a(a, tile_of(stage, t) + k, pitch);
      };
      constexpr int kChunks = kColumnTiles * kTile / kWeightRows, kTiles = kWeightRows / kTile;
      TileC y[kColumnTiles][1][2];
      SIMMST_UNROLL
      for (int c = 0; c < kChunks; ++c) {
        if (c >= chunks) continue;
        const int i = t * chunks + c;
        if (i == 0 || !stay) {
          ring.arrive();
          if (i > 0 && i + 1 < kWarpTiles * chunks) start_out(i + 1);
        }
        TileC part[kTiles][1][2];
        multiply_rows<T, true>(part, fetch, ring.slot(3 * chunks + (stay ? c : i)), pitch, pitch - 8 - c * kWeightRows);
        SIMMST_UNROLL
        for (int n = 0; n < 2 * kTiles; ++n) y[c * kTiles + n / 2][0][n % 2] = part[n / 2][0][n % 2];
      }
      finish(map, t, y, true);
    }
  }

  SIMMST_DEVICE_MEMBER void finish_without_keys(std::int64_t map) const {
    for (int i = thread_index(); i < given.heads * given.positions; i += block_threads())
      given.lse[map * given.heads * given.positions + i] = INFINITY;
    for (int t = 0; t < kWarpTiles; ++t) {
      TileC y[kColumnTiles][1][2];
      finish(map, t, y, false);
    }
  }
};

}  // namespace simmst::cuda::spatial
