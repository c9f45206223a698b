// The forward pass of spatial attention: a block per map, a warp per 32 positions (16 where there are at most 128).
//
//   1. Every warp reads its positions of x, with any strides, into registers, as the left operand of all projections.
//   2. The weights pass through shared memory once per block. Keys and values go to shared memory without the ignored
//      positions, queries (times scale * log2(e)) to the place of x.
//   3. Head by head, 16 keys at a time, scores and softmax weights stay in registers. A sum of weights is a product
//      with ones, so that the tensor cores compute it. No score exceeds the product of the largest norms of queries and
//      keys: where that is small, softmax needs no maximum; otherwise a first pass over the keys finds it.
//   4. The heads, written over their queries, go through the output projection; bias, residual and LayerNorm follow in
//      registers.
//
// Counted for bf16, 4 heads, C = 64, per map of N = 121 / 225 / 400 (measured: docs/results/speed.md):
//   exponentials   0.07 / 0.24 / 0.67 million with the padding, a quarter of them on the FMA units: 3.1 / 11.5 / 31
//                  thousand cycles of the special-function units of a multiprocessor (16 per cycle)
//   instructions   105 for 16 keys of 32 queries (sm_90; 12 of them exponentials, 10 products of the tensor cores):
//                  3.4 / 12.6 / 34 thousand cycles, and about 3 / 6 / 10 thousand for all the rest. 150 where the
//                  maximum is needed.
//   global memory  31 / 58 / 102 KB: x read and y written once, 2 N C entries. From the second-level cache, x again for
//                  the residual and 32 KB of weights.
//   launches       1
//   shared memory  66 / 114 / 183 KB: 3 / 2 / 1 blocks of 4 / 8 / 13 warps on a multiprocessor with 228 KB
// So 1024 maps need at least 28 / 83 / 195 us on 132 multiprocessors at 1.75 GHz. The chain of linear, SDPA, linear,
// residual and LayerNorm moves 18 N C entries, 66 / 123 / 219 us at 4.3 TB/s, in 6 launches. Its SDPA is also bound by
// exponentials, none of them on the FMA units: 20 / 80 / 290 us with tiles of 128 x 128. That is a ratio of about 3 /
// 2.4 / 2.6, without the launches.
#pragma once

#include "cuda/spatial_attention_forward_map.cuh"

namespace simmst::cuda::spatial {

// The largest score (to the base 2) for which weights without a maximum keep their relative precision in T, and half
// of the range is left for their sum.
template <typename T>
constexpr float kBoundedScore = 60.0f;
template <>
inline constexpr float kBoundedScore<float16> = 12.0f;

template <typename T, int kHeadTiles, int WarpTiles>
struct ForwardBlock : ForwardMap<T, WarpTiles> {
  using Map = ForwardMap<T, WarpTiles>;
  using A = typename Operand<T>::A;
  using B = typename Operand<T>::B;
  using Map::chunks, Map::first, Map::given, Map::has_tile, Map::key, Map::kWarpTiles, Map::pitch, Map::stage,
      Map::tile_of, Map::value, Map::width;
  // Tiles of queries that attend at once, as many as the registers allow.
  static constexpr int kQueries = kHeadTiles > 2 ? 1 : kWarpTiles;

  using Map::Map;

  // Clears the values of the keys that fill up the last tile: their weights are zero, but zero times NaN is not zero.
  SIMMST_DEVICE_MEMBER void clear_last_values(int keys) const {
    const int end = static_cast<int>(round_up_to(keys, kTile));
    for (int i = keys * pitch + thread_index(); i < end * pitch; i += block_threads()) value[i] = T{};
  }

  // Whether the scores of this warp and head need no maximum; false for a NaN.
  SIMMST_DEVICE_MEMBER bool is_bounded(int head) const {
    float query = 0.0f, keys = 0.0f;
    for (int k = head * width / kTile; k <= (head * width + width - 1) / kTile; ++k) {
      float largest = 0.0f;
      for (int warp = 0; warp < block_threads() / kWarp; ++warp) {
        const float norm = Map::key_norms[warp * kColumnTiles + k];
        if (!(norm <= largest)) largest = norm;
      }
      keys += largest;
      query += Map::query_norms[warp_index() * kColumnTiles + k];
    }
    // Two per cent are allowed for the rounding of queries and keys to T.
    return query * keys * 1.04f <= kBoundedScore<T> * kBoundedScore<T>;
  }

  // c[t] += the scores of 16 keys.
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
  // Sets the scores of the keys from `left` on to -inf.
  SIMMST_DEVICE_MEMBER void cut(TileC (&c)[kQueries][2], int left) const {
    SIMMST_UNROLL
    for (int i = 0; i < 8 * kQueries; ++i)
      if (8 * (i / 4 % 2) + tile_column() + i % 2 >= left) c[i / 8][i / 4 % 2].part[i % 4] = -INFINITY;
  }

  // Finds the largest score of every row.
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

  // Computes heads = weights times values, and the sum of weights of every row. kShift: weights are 2^(score -
  // largest).
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

  // Attends with one head, for `kQueries` tiles from tile t on; the result replaces the queries.
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

  SIMMST_DEVICE_MEMBER void run(std::int64_t map) const {
    int slot[kWarpTiles][2];
    const int keys = this->find_keys(map, slot);
    if (keys == 0) {
      this->finish_without_keys(map);
      return;
    }
    clear_last_values(keys);
    this->project_in(map, slot);
    sync_block();
    if (chunks > 1) this->start_out(1);
    SIMMST_ROLLED
    for (int head = 0; head < given.heads; ++head) {
      SIMMST_UNROLL
      for (int t = 0; t < kWarpTiles; t += kQueries) attend(map, head, t, keys);
    }
    this->project_out(map);
  }
};

// Small maps leave room for two blocks per multiprocessor, so their registers must fit twice, too.
template <typename T, int WarpTiles>
constexpr int kForwardThreads =
    kWarp * (WarpTiles == 1 ? simmst::spatial::kSmallTiles : simmst::spatial::most_warps(sizeof(T)));
template <typename T, int WarpTiles>
constexpr int kForwardBlocks = WarpTiles == 1 && sizeof(T) == 2 ? 2 : 1;

template <typename T, int kHeadTiles, int WarpTiles>
SIMMST_KERNEL(kForwardThreads<T, WarpTiles>, kForwardBlocks<T, WarpTiles>)
spatial_attention_forward(ForwardArguments<T> given) {
  const ForwardBlock<T, kHeadTiles, WarpTiles> block(given, shared_memory());
  for (std::int64_t map = block_index().x; map < given.batch; map += grid_size().x) {
    block.run(map);
    sync_block();
  }
}

}  // namespace simmst::cuda::spatial
