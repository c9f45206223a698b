// The forward pass of one map, in a thread's workspace: project each head, attend in blocks of keys with an online
// softmax, project out, add the residual, normalise, store.
#pragma once

#include "cpu/spatial_attention_map.hpp"

namespace simmst::cpu::SIMMST_ISA::spatial {

// Keys per block: the scores of a block, its keys and values stay in the first-level cache.
constexpr int64_t kKeyBlock = 96;
template <typename T>
constexpr T kLn2 = static_cast<T>(0.6931471805599453);
template <typename T>
constexpr int64_t kTileWidth = kTileVectors * kLanes<T>;  // positions per tile

// What a thread needs for one map; N positions in rows of ld.
template <typename T>
struct MapBuffers {
  T* x;            // (C, ld)
  T* heads;        // (C, ld): attention of all heads
  T* projected;    // (3D, ld): query (scaled), key, value of one head
  T* key;          // (D, ld): the keys that are not ignored, side by side; only with a mask
  T* value;        // (N, value_ld): values of one head, one row per key that is not ignored
  T* scores;       // (key block, tile width)
  T* tile;         // (C, tile width)
  T* largest;      // (heads, ld): the largest score of each query, to the base 2
  T* sum;          // (heads, ld): sum over the keys of 2^(score - largest)
  int64_t* kept;   // (N,): positions that are not ignored, ascending
  int64_t ld, value_ld;
};

template <typename T>
MapBuffers<T> take_map_buffers(const Problem& problem, Workspace& workspace) {
  const int64_t channels = problem.channels, width = problem.width(), positions = problem.positions();
  MapBuffers<T> buffers;
  buffers.ld = row_length<T>(positions);
  buffers.value_ld = vectors_for<T>(width) * kLanes<T>;
  buffers.x = workspace.take<T>(channels * buffers.ld);
  buffers.heads = workspace.take<T>(channels * buffers.ld);
  buffers.projected = workspace.take<T>(3 * width * buffers.ld);
  buffers.key = workspace.take<T>(width * buffers.ld);
  buffers.value = workspace.take<T>(positions * buffers.value_ld);
  buffers.scores = workspace.take<T>(kKeyBlock * kTileWidth<T>);
  buffers.tile = workspace.take<T>(channels * kTileWidth<T>);
  buffers.largest = workspace.take<T>(problem.heads * buffers.ld);
  buffers.sum = workspace.take<T>(problem.heads * buffers.ld);
  buffers.kept = workspace.take<int64_t>(positions);
  return buffers;
}

// Query, key and value of one head, ready for the tiles: keys in columns, values in rows, ignored ones left out.
template <typename T>
struct Head {
  const T* query;  // (D, ld)
  const T* key;    // (D, ld)
  const T* value;  // (keys, value_ld)
  int64_t width, keys, ld, value_ld;
};

// The positions that are not ignored; returns how many. Without a mask `kept` is not written.
inline int64_t keep_positions(const bool* mask, int64_t positions, int64_t* kept) {
  if (mask == nullptr) return positions;
  int64_t count = 0;
  for (int64_t n = 0; n < positions; ++n)
    if (!mask[n]) kept[count++] = n;
  return count;
}

// Leaving ignored positions out saves their work, and nothing they hold (NaN) can reach another position.
template <typename T>
void gather_columns(const T* in, int64_t rows, int64_t ld, const int64_t* kept, int64_t count, T* out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < count; ++k) out[r * ld + k] = in[r * ld + kept[k]];
}

template <typename T>
Head<T> project_head(const Problem& problem, const Packed<T>& packed, int64_t head, int64_t keys,
                     const MapBuffers<T>& buffers) {
  const int64_t width = problem.width(), ld = buffers.ld, positions = problem.positions();
  product<false>(packed.in + head * problem.channels * packed.in_ld, packed.in_ld, problem.channels, buffers.x,
                 packed.in_bias + head * 3 * width, buffers.projected, 3 * width, ld, vectors_for<T>(positions));
  const T* key = buffers.projected + width * ld;
  T* value = buffers.projected + 2 * width * ld;
  if (keys < positions) {
    gather_columns(key, width, ld, buffers.kept, keys, buffers.key);
    gather_columns(value, width, ld, buffers.kept, keys, value);
    key = buffers.key;
  }
  transpose_rows(value, ld, width, keys, buffers.value, buffers.value_ld);
  return {buffers.projected, key, buffers.value, width, keys, ld, buffers.value_ld};
}

// scores[k][q] of a block of keys; the maximum over them and `largest` is returned in `largest`.
template <int V, typename T>
SIMMST_INLINE void score_block(const Head<T>& head, int64_t q, int64_t first, int64_t count, T* scores,
                               Vec<T> (&largest)[V]) {
  for_tiles<kTileRows>(0, count, [&]<int R>(int64_t k) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    tile.fill(Vec<T>{});
    tile.multiply(head.key + first + k, head.ld, 1, head.query + q, head.ld, head.width);
    tile.store_to(scores + k * V * kLanes<T>, V * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) largest[v] = max(tile.at[r][v], largest[v]);
  });
}

// scores <- 2^(scores - largest), adding each column to `sum`: in pairs, then per block, because an error in the sum
// shifts all of a row's gradients the same way.
template <int V, typename T>
SIMMST_INLINE void exponentiate_block(T* scores, int64_t count, const Vec<T> (&largest)[V], Vec<T> (&sum)[V]) {
  Vec<T> block[V] = {};
  for_tiles<4>(0, count, [&]<int R>(int64_t k) SIMMST_ALWAYS_INLINE {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      Vec<T> weight[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        T* at = scores + ((k + r) * V + v) * kLanes<T>;
        weight[r] = exp2(load(at) - largest[v]);
        store(at, weight[r]);
      }
#pragma GCC unroll 2
      for (int half = R / 2; half > 0; half /= 2)
#pragma GCC unroll 2
        for (int r = 0; r < half; ++r) weight[r] += weight[r + half];
      block[v] += weight[0];
    }
  });
  for (int v = 0; v < V; ++v) sum[v] += block[v];
}

// out[d][q] = before[q] * out[d][q] + sum over a block of keys of weights[k][q] * value[k][d], times after[q].
template <int V, typename T>
SIMMST_INLINE void weigh_block(const Head<T>& head, int64_t first, int64_t count, const T* weights, T* out,
                               bool is_first, const Vec<T> (&before)[V], bool is_last, const Vec<T> (&after)[V]) {
  for_tiles<kTileRows>(0, head.width, [&]<int R>(int64_t d) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    if (is_first) {
      tile.fill(Vec<T>{});
    } else {
      tile.load_from(out + d * head.ld, head.ld);
      tile.scale_columns(before);
    }
    tile.multiply(head.value + first * head.value_ld + d, head.value_ld, 1, weights, V * kLanes<T>, count);
    if (is_last) tile.scale_columns(after);
    tile.store_to(out + d * head.ld, head.ld);
  });
}

// Attention of V vectors of queries starting at q into out (D, ld), and what the softmax divided by.
template <int V, typename T>
void attend_tile(const Head<T>& head, int64_t q, T* scores, T* out, T* largest_of, T* sum_of) {
  Vec<T> largest[V], sum[V], before[V], after[V];
  for (int v = 0; v < V; ++v) {
    largest[v] = broadcast<T>(-__builtin_inf());
    sum[v] = before[v] = after[v] = Vec<T>{};
  }
  for (int64_t first = 0; first < head.keys; first += kKeyBlock) {
    const int64_t keys = head.keys - first < kKeyBlock ? head.keys - first : kKeyBlock;
    const bool is_last = first + keys == head.keys;
    Vec<T> old[V];
    for (int v = 0; v < V; ++v) old[v] = largest[v];
    score_block<V>(head, q, first, keys, scores, largest);
    for (int v = 0; v < V; ++v) {
      before[v] = exp2(old[v] - largest[v]);
      if (first > 0) sum[v] *= before[v];
    }
    exponentiate_block<V>(scores, keys, largest, sum);
    for (int v = 0; v < V; ++v) after[v] = T(1) / sum[v];
    weigh_block<V>(head, first, keys, scores, out, first == 0, before, is_last, after);
  }
  for (int v = 0; v < V; ++v) {
    store(largest_of + v * kLanes<T>, largest[v]);
    store(sum_of + v * kLanes<T>, sum[v]);
  }
}

// Attention of all heads of a map into buffers.heads, largest and sum.
template <typename T>
void attend_map(const Problem& problem, const Packed<T>& packed, int64_t keys, const MapBuffers<T>& buffers) {
  const int64_t ld = buffers.ld;
  for (int64_t index = 0; index < problem.heads; ++index) {
    const Head<T> head = project_head(problem, packed, index, keys, buffers);
    T* out = buffers.heads + index * problem.width() * ld;
    for_vectors(vectors_for<T>(problem.positions()), [&]<int V>(int64_t first) SIMMST_ALWAYS_INLINE {
      const int64_t q = first * kLanes<T>;
      attend_tile<V>(head, q, buffers.scores, out + q, buffers.largest + index * ld + q, buffers.sum + index * ld + q);
    });
  }
}

// lse (heads, N) of a map, +inf where there is no key.
template <typename T>
void store_lse(const Problem& problem, int64_t keys, const MapBuffers<T>& buffers, T* lse) {
  const int64_t positions = problem.positions();
  for (int64_t head = 0; head < problem.heads; ++head)
    for (int64_t n = 0; n < positions; n += kLanes<T>) {
      const int64_t at = head * buffers.ld + n;
      const Vec<T> value = keys == 0 ? broadcast<T>(static_cast<T>(__builtin_inf()))
                                     : (load(buffers.largest + at) + log2<T>(load(buffers.sum + at))) * kLn2<T>;
      store_some<T, T>(lse + head * positions + n, value, positions - n);
    }
}

// tile (C, V vectors) = the branch (output projection of the heads, 0 for a map with no key) + x with residual.
template <int V, typename T>
void branch_tile(const Problem& problem, const Packed<T>& packed, int64_t n, int64_t keys,
                 const MapBuffers<T>& buffers) {
  constexpr int64_t kWidth = V * kLanes<T>;
  const int64_t channels = problem.channels;
  if (keys > 0) {
    product_columns<V, false>(packed.out, packed.out_ld, 1, channels, buffers.heads + n, buffers.ld, packed.out_bias,
                              buffers.tile, kWidth, channels);
  } else {
    for (int64_t i = 0; i < channels * kWidth; ++i) buffers.tile[i] = T(0);
  }
  if (!problem.residual) return;
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      T* at = buffers.tile + c * kWidth + v * kLanes<T>;
      store(at, load(at) + load(buffers.x + c * buffers.ld + n + v * kLanes<T>));
    }
}

// Mean and reciprocal standard deviation of each column of a tile (C, V vectors).
template <int V, typename T>
void column_moments(const T* tile, int64_t channels, T eps, Vec<T> (&mean)[V], Vec<T> (&reciprocal)[V]) {
  Vec<T> sum[V] = {}, square[V] = {};
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) sum[v] += load(tile + (c * V + v) * kLanes<T>);
  for (int v = 0; v < V; ++v) mean[v] = sum[v] / static_cast<T>(channels);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      const Vec<T> centred = load(tile + (c * V + v) * kLanes<T>) - mean[v];
      square[v] += centred * centred;
    }
  for (int v = 0; v < V; ++v) reciprocal[v] = T(1) / sqrt_of(square[v] / static_cast<T>(channels) + eps);
}

template <int V, typename T>
void normalise_tile(const Problem& problem, const Packed<T>& packed, T* tile) {
  Vec<T> mean[V], reciprocal[V];
  column_moments<V>(tile, problem.channels, static_cast<T>(problem.eps), mean, reciprocal);
  for (int64_t c = 0; c < problem.channels; ++c) {
    const T shift = packed.norm_bias == nullptr ? T(0) : packed.norm_bias[c];
    for (int v = 0; v < V; ++v) {
      T* at = tile + (c * V + v) * kLanes<T>;
      store(at, (load(at) - mean[v]) * reciprocal[v] * packed.norm[c] + shift);
    }
  }
}

template <typename Storage, typename T>
void forward_map(const Problem& problem, const Packed<T>& packed, const Map& x, const bool* mask, int64_t b, void* out,
                 T* lse, const MapBuffers<T>& buffers) {
  const int64_t positions = problem.positions();
  load_map<Storage>(problem, x, b, buffers.x, buffers.ld);
  const int64_t keys = keep_positions(mask == nullptr ? nullptr : mask + b * positions, positions, buffers.kept);
  if (keys > 0) attend_map(problem, packed, keys, buffers);
  store_lse(problem, keys, buffers, lse + b * problem.heads * positions);
  for_vectors(vectors_for<T>(positions), [&]<int V>(int64_t first) SIMMST_ALWAYS_INLINE {
    const int64_t n = first * kLanes<T>, left = positions - n, count = left < V * kLanes<T> ? left : V * kLanes<T>;
    branch_tile<V>(problem, packed, n, keys, buffers);
    if (packed.norm != nullptr) normalise_tile<V>(problem, packed, buffers.tile);
    store_positions<Storage>(problem, b, n, count, buffers.tile, V * kLanes<T>, out);
  });
}

}  // namespace simmst::cpu::SIMMST_ISA::spatial
