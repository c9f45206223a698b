// The forward pass of spatial attention: a block per map, a warp per 32 positions.
//
//   1. Every warp reads its positions of x, by any strides, into registers as the left operand of all projections.
//   2. The weights pass through shared memory once per block; keys and values go to shared memory without the ignored
//      positions, queries (times scale * log2(e)) to where x was.
//   3. Head by head, 16 keys at a time, scores and softmax weights stay in registers. A sum of weights is a product with
//      ones, so that the tensor cores compute it. No score exceeds the product of the largest norms of queries and keys:
//      where that is small, softmax needs no maximum; otherwise a first pass over the keys finds it.
//   4. The heads, written over their queries, are projected out; bias, residual and LayerNorm follow in registers.
//
// Counted for bf16, 4 heads, C = 64, per map of N = 121 / 225 / 400; not run on a GPU yet:
//   exponentials   0.07 / 0.24 / 0.67 million with the padding, a quarter of them on the FMA units: 3.1 / 11.5 / 31
//                  thousand cycles of the special-function units of a multiprocessor (16 a cycle)
//   instructions   105 for 16 keys of 32 queries (sm_90; 12 of them exponentials, 10 products of the tensor cores):
//                  3.4 / 12.6 / 34 thousand cycles, and about 3 / 6 / 10 thousand for all the rest. Where the maximum is
//                  needed, 150.
//   global memory  31 / 58 / 102 KB: x read and y written once, 2 N C entries. From the second-level cache x again for
//                  the residual and 32 KB of weights.
//   launches       1
//   shared memory  66 / 114 / 183 KB: 3 / 2 / 1 blocks of 4 / 8 / 13 warps on a multiprocessor with 228 KB
// So 1024 maps need at least 28 / 83 / 195 us on 132 multiprocessors at 1.75 GHz. The chain of linear, SDPA, linear,
// residual and LayerNorm moves 18 N C entries, 66 / 123 / 219 us at 4.3 TB/s, in 6 launches, and its SDPA is bound by
// exponentials, too, none of them on the FMA units: 20 / 80 / 290 us with tiles of 128 x 128. That is a ratio of about 3 /
// 2.4 / 2.6, without the launches.
#pragma once

#include "cuda/spatial_attention_weights.cuh"

namespace simmst::cuda::spatial {

constexpr float kLn2 = 0.6931471805599453f;

template <typename T>
struct ForwardArguments {
  Maps<const T> x;
  Maps<T> y;
  const T *in, *in_bias, *out, *out_bias, *norm, *norm_bias;  // as in nn.MultiheadAttention; biases and norm may be null
  const std::uint8_t* mask;                                   // (B, N), 1 where ignored, or null
  float* lse;                                                 // (B, heads, N)
  std::int64_t batch;
  int positions, channels, heads;
  bool residual;
  bool aligned;  // rows of the weights start at multiples of 16 bytes
  float eps;
  float factor;  // scale * log2(e)
};

// The largest score (to the base 2) for which weights without a maximum keep their relative precision in T, and half
// of the range is left for their sum.
template <typename T>
constexpr float kBoundedScore = 60.0f;
template <>
inline constexpr float kBoundedScore<float16> = 12.0f;

template <typename T, int kHeadTiles>
struct ForwardBlock {
  using A = typename Operand<T>::A;
  using B = typename Operand<T>::B;
  static constexpr int kWarpTiles = simmst::spatial::kWarpTiles;
  static constexpr int kMostWarps = simmst::spatial::kMostWarps;
  // Tiles of queries that attend at once, as registers allow.
  static constexpr int kQueries = kHeadTiles > 2 ? 1 : kWarpTiles;

  const ForwardArguments<T>& given;
  int rows, pitch, width, chunks;  // chunks: of 32 rows in C rows of weights
  T *stage, *key, *value;          // (rows, pitch)
  float *query_norms, *key_norms;  // (warps, column tiles): largest squared norm
  WeightRing<T> ring;
  int first;  // of the warp's positions

  SIMMST_DEVICE_MEMBER ForwardBlock(const ForwardArguments<T>& arguments, unsigned char* memory)
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

  // Where the positions of this lane's rows (row g + 8 h of tile t) stand among the keys: -1 for ignored ones and beyond
  // N. Returns the number of keys.
  SIMMST_DEVICE_MEMBER int find_keys(std::int64_t map, int (&slot)[kWarpTiles][2]) const {
    const std::uint8_t* mask = given.mask == nullptr ? nullptr : given.mask + map * given.positions;
    int count = given.positions, before = first;
    std::uint32_t kept = ~0u;
    if (mask != nullptr) {
      count = before = 0;
      for (int n = 0; n < given.positions; n += kWarp) {
        const int position = n + lane_index();
        const std::uint32_t bits = ballot(position < given.positions && mask[position] == 0);
        if (n < first) before += count_bits(bits);
        if (n == first) kept = bits;
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

  // The largest over the warp's rows of the sum of squares along a row of 16 columns.
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
      // A NaN must survive: it turns the bound off.
      if (counts[i / 2][i % 2] && !(sum <= largest)) largest = sum;
    }
    SIMMST_UNROLL
    for (int distance = 4; distance < kWarp; distance *= 2) {
      const float other = shuffle_xor(largest, distance);
      if (!(other <= largest)) largest = other;
    }
    if (lane_index() == 0) norms[warp_index() * kColumnTiles + column / kTile] = largest;
  }

  // 16 columns of keys (part 0), values (1) or queries (2).
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

  // Keys, values and queries of the warp's positions.
  SIMMST_DEVICE_MEMBER void project_in(std::int64_t map, const int (&slot)[kWarpTiles][2]) const {
    start_in(0);
    A x[kColumnTiles][kWarpTiles];
    SIMMST_UNROLL
    for (int t = 0; t < kWarpTiles; ++t)
      if (has_tile(t)) load_rows(given.x, map, first + kTile * t, given.positions, given.channels, tile_of(stage, t), pitch);
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

  // ---- attention

  // Zero values for the keys that fill the last tile: their weights are zero, and zero times NaN is not.
  SIMMST_DEVICE_MEMBER void clear_last_values(int keys) const {
    const int end = static_cast<int>(round_up_to(keys, kTile));
    for (int i = keys * pitch + thread_index(); i < end * pitch; i += block_threads()) value[i] = T{};
  }

  // Whether no score of this warp and head needs a maximum; a NaN says no.
  SIMMST_DEVICE_MEMBER bool is_bounded(int head) const {
    float query = 0.0f, keys = 0.0f;
    for (int k = head * width / kTile; k <= (head * width + width - 1) / kTile; ++k) {
      float largest = 0.0f;
      for (int warp = 0; warp < block_threads() / kWarp; ++warp) {
        const float norm = key_norms[warp * kColumnTiles + k];
        if (!(norm <= largest)) largest = norm;
      }
      keys += largest;
      query += query_norms[warp_index() * kColumnTiles + k];
    }
    // Two per cent for the rounding of queries and keys to T.
    return query * keys * 1.04f <= kBoundedScore<T> * kBoundedScore<T>;
  }

  // c[t] = scores of 16 keys.
  SIMMST_DEVICE_MEMBER void score(TileC (&c)[kQueries][2], const A (&query)[kHeadTiles][kQueries], int tiles,
                                  const T* keys) const {
    SIMMST_UNROLL
    for (int k = 0; k < kHeadTiles; ++k) {
      if (k < tiles) {
        B b[2];
        read_columns(b, keys + kTile * k, pitch);
        multiply<T>(c, query[k], b);
      }
    }
  }
  // Scores of the keys from `left` on become -inf.
  SIMMST_DEVICE_MEMBER void cut(TileC (&c)[kQueries][2], int left) const {
    SIMMST_UNROLL
    for (int i = 0; i < 8 * kQueries; ++i)
      if (8 * (i / 4 % 2) + tile_column() + i % 2 >= left) c[i / 8][i / 4 % 2].part[i % 4] = -INFINITY;
  }

  // The largest score of every row.
  SIMMST_DEVICE_MEMBER void find_largest(float (&largest)[kQueries][2], const A (&query)[kHeadTiles][kQueries],
                                         int tiles, int column, int keys) const {
    SIMMST_UNROLL
    for (int i = 0; i < 2 * kQueries; ++i) largest[i / 2][i % 2] = -INFINITY;
    for (int n = 0; n < keys; n += kTile) {
      TileC c[kQueries][2];
      score(c, query, tiles, key + n * pitch + column);
      if (n + kTile > keys) cut(c, keys - n);
      SIMMST_UNROLL
      for (int i = 0; i < 8 * kQueries; ++i) {
        float& most = largest[i / 8][i / 2 % 2];
        most = fmaxf(most, c[i / 8][i / 4 % 2].part[i % 4]);
      }
    }
    SIMMST_UNROLL
    for (int i = 0; i < 2 * kQueries; ++i) largest[i / 2][i % 2] = reduce_warp<4>(largest[i / 2][i % 2], Maximum{});
  }

  // heads = weights times values, and the sum of weights of every row; kShift: weights are 2^(score - largest).
  template <bool kShift>
  SIMMST_DEVICE_MEMBER void weigh(TileC (&heads)[kHeadTiles][kQueries][2], float (&total)[kQueries][2],
                                  const float (&largest)[kQueries][2], const A (&query)[kHeadTiles][kQueries],
                                  int tiles, int column, int keys) const {
    TileC sums[kQueries];
    for (int n = 0; n < keys; n += kTile) {
      TileC c[kQueries][2];
      score(c, query, tiles, key + n * pitch + column);
      if (n + kTile > keys) cut(c, keys - n);
      A weights[kQueries];
      SIMMST_UNROLL
      for (int t = 0; t < kQueries; ++t) {
        SIMMST_UNROLL
        for (int j = 0; j < 2; ++j) {
          SIMMST_UNROLL
          for (int i = 0; kShift && i < 4; ++i) c[t][j].part[i] -= largest[t][i / 2];
          exponentiate<T, kHeadTiles <= 2>(c[t][j]);
        }
        weights[t] = to_a<T>(c[t][0], c[t][1]);
        if constexpr (sizeof(T) == 2) {
          const std::uint32_t one = pack_pair<T>(1.0f, 1.0f);
          multiply_add<T>(sums[t], weights[t], TileB{{one, one}});
        } else {
          SIMMST_UNROLL
          for (int i = 0; i < 8; ++i) sums[t].part[i / 2 % 2] += c[t][i / 4].part[i % 4];
        }
      }
      SIMMST_UNROLL
      for (int k = 0; k < kHeadTiles; ++k) {
        if (k < tiles) {
          B b[2];
          read_rows(b, value + n * pitch + column + kTile * k, pitch);
          multiply<T>(heads[k], weights, b);
        }
      }
    }
    SIMMST_UNROLL
    for (int i = 0; i < 2 * kQueries; ++i) {
      if constexpr (sizeof(T) == 2) total[i / 2][i % 2] = sums[i / 2].part[2 * (i % 2)];
      else total[i / 2][i % 2] = reduce_warp<4>(sums[i / 2].part[i % 2], Sum{});
    }
  }

  // One head of `kQueries` tiles from tile t on; the result replaces the queries.
  SIMMST_DEVICE_MEMBER void attend(std::int64_t map, int head, int t, int keys) const {
    const int column = head * width / kTile * kTile, end = head * width + width;
    const int tiles = (end - 1) / kTile - column / kTile + 1;
    A query[kHeadTiles][kQueries];
    SIMMST_UNROLL
    for (int i = 0; i < kHeadTiles * kQueries; ++i) {
      const int k = i / kQueries, q = i % kQueries, at = column + kTile * k;
      clear(query[k][q]);
      if (k < tiles && has_tile(t + q)) {
        read_a(query[k][q], tile_of(stage, t + q) + at, pitch);
        keep_columns(query[k][q], head * width - at, end - at);
      }
    }
    float largest[kQueries][2] = {}, total[kQueries][2];
    TileC heads[kHeadTiles][kQueries][2];
    if (is_bounded(head)) {
      weigh<false>(heads, total, largest, query, tiles, column, keys);
    } else {
      find_largest(largest, query, tiles, column, keys);
      weigh<true>(heads, total, largest, query, tiles, column, keys);
    }
    sync_warp();
    SIMMST_UNROLL
    for (int i = 0; i < 2 * kQueries; ++i) {
      const int q = i / 2, h = i % 2, row = first + kTile * (t + q) + 8 * h + tile_row();
      if (!has_tile(t + q)) continue;
      const float reciprocal = 1.0f / total[q][h];
      SIMMST_UNROLL
      for (int j = 0; j < 4 * kHeadTiles; ++j) {
        const int at = column + 8 * (j / 2) + tile_column() + j % 2;
        if (at >= head * width && at < end)
          stage[row * pitch + at] = from_float<T>(heads[j / 4][q][j / 2 % 2].part[2 * h + j % 2] * reciprocal);
      }
      if (lane_index() % 4 == 0 && row < given.positions)
        given.lse[(map * given.heads + head) * given.positions + row] = (largest[q][h] + log2f(total[q][h])) * kLn2;
    }
    sync_warp();
  }

  // ---- projection out, residual, LayerNorm

  // Of tile t with the branch y, which is zero for a map without keys.
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
    for (int h = 0; h < 2; ++h)
      deviation[h] = 1.0f / sqrtf(reduce_warp<4>(deviation[h], Sum{}) / count + given.eps);
    SIMMST_UNROLL
    for (int i = 0; i < 8 * kColumnTiles; ++i) {
      const int column = 8 * (i / 4) + tile_column() + i % 2;
      if (column >= given.channels) continue;
      float& entry = y[i / 8][0][i / 4 % 2].part[i % 4];
      const float shift = given.norm_bias == nullptr ? 0.0f : to_float(given.norm_bias[column]);
      entry = fmaf(entry * deviation[i / 2 % 2], to_float(given.norm[column]), shift);
    }
  }

  // The weights stay in the ring for both tiles if they have no more than two chunks.
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
        multiply_rows<T, true>(part, fetch, ring.slot(3 * chunks + (stay ? c : i)), pitch,
                               pitch - 8 - c * kWeightRows);
        SIMMST_UNROLL
        for (int n = 0; n < 2 * kTiles; ++n) y[c * kTiles + n / 2][0][n % 2] = part[n / 2][0][n % 2];
      }
      finish(map, t, y, true);
    }
  }

  // ---- a map

  SIMMST_DEVICE_MEMBER void finish_without_keys(std::int64_t map) const {
    for (int i = thread_index(); i < given.heads * given.positions; i += block_threads())
      given.lse[map * given.heads * given.positions + i] = INFINITY;
    for (int t = 0; t < kWarpTiles; ++t) {
      TileC y[kColumnTiles][1][2];
      finish(map, t, y, false);
    }
  }

  SIMMST_DEVICE_MEMBER void run(std::int64_t map) const {
    int slot[kWarpTiles][2];
    const int keys = find_keys(map, slot);
    if (keys == 0) {
      finish_without_keys(map);
      return;
    }
    clear_last_values(keys);
    project_in(map, slot);
    sync_block();
    if (chunks > 1) start_out(1);
    SIMMST_ROLLED
    for (int head = 0; head < given.heads; ++head) {
      SIMMST_UNROLL
      for (int t = 0; t < kWarpTiles; t += kQueries) attend(map, head, t, keys);
    }
    project_out(map);
  }
};

template <typename T>
constexpr int kForwardThreads = kWarp * simmst::spatial::most_warps(sizeof(T));

template <typename T, int kHeadTiles>
SIMMST_KERNEL(kForwardThreads<T>) spatial_attention_forward(ForwardArguments<T> given) {
  const ForwardBlock<T, kHeadTiles> block(given, shared_memory());
  for (std::int64_t map = block_index().x; map < given.batch; map += grid_size().x) {
    block.run(map);
    sync_block();
  }
}

}  // namespace simmst::cuda::spatial
