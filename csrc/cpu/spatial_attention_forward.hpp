// The forward pass of a group of maps, in a thread's workspace: project all heads of all maps at once, attend map by
// map and head by head, project the output, add the residual, normalise, store.
#pragma once

#include "cpu/spatial_attention_map.hpp"

namespace simmst::cpu::SIMMST_ISA::spatial {

// Keys per block, so that a block's weights for one tile of queries, its keys and its values stay in the first-level
// cache.
constexpr int64_t kKeyBlock = 96;
template <typename T>
constexpr T kLowest = sizeof(T) == 8 ? -1022 : -126;  // smaller powers of two are not normal numbers
template <typename T>
constexpr T kMostScore = 100;  // largest score, to the base 2, that is exponentiated without a base
template <typename T>
constexpr T kLn2 = static_cast<T>(0.6931471805599453);
template <typename T>
constexpr int64_t kTileWidth = kTileVectors<T> * kLanes<T>;  // positions per tile

// A thread's buffers for a group. A map has N positions; all columns of the group are in rows of ld.
template <typename T>
struct GroupBuffers {
  T* x;           // (C, ld)
  T* projected;   // (3C, ld): queries (scaled), keys, values
  T* heads;       // (C, ld): attention of all heads
  T* normal;      // (C, ld): LayerNorm's input, normalised; for backward
  T* base;        // (heads, ld): the base subtracted from the scores of each query, to the base 2
  T* sum;         // (heads, ld): sum over the keys of 2^(score - base)
  T* reciprocal;  // (ld,): reciprocal standard deviations
  T* query;       // (D, tile width)
  T* weights;     // (key block, tile width): 2^(score - base)
  T* value;       // (N, value_ld): values of one head of one map, one row per key that is not ignored
  T* key;         // (D, map_ld): the keys that are not ignored, next to each other; only with a mask
  T* columns;     // (D, map_ld): the values in the same way
  int64_t* kept;  // (N,): positions that are not ignored, ascending
  int64_t ld, map_ld, value_ld;
};

// The same buffers, with those that backward needs at `rows`: kept_rows() rows of ld.
template <typename T>
GroupBuffers<T> place_kept(const Problem& problem, GroupBuffers<T> buffers, T* rows) {
  if (rows == nullptr) return buffers;  // only the size of the workspace is needed
  const int64_t ld = buffers.ld, channels = problem.channels;
  buffers.projected = rows;
  buffers.heads = rows + 3 * channels * ld;
  buffers.normal = rows + 4 * channels * ld;
  buffers.base = rows + 5 * channels * ld;
  buffers.sum = buffers.base + problem.heads * ld;
  buffers.reciprocal = buffers.sum + problem.heads * ld;
  return buffers;
}

template <typename T>
GroupBuffers<T> take_group_buffers(const Problem& problem, bool with_kept, Workspace& workspace) {
  const int64_t channels = problem.channels, width = problem.width(), positions = problem.positions();
  GroupBuffers<T> buffers;
  buffers.ld = group_ld(problem);
  buffers.map_ld = vectors_for<T>(positions) * kLanes<T>;
  buffers.value_ld = vectors_for<T>(width) * kLanes<T>;
  buffers.x = workspace.take<T>(channels * buffers.ld);
  buffers.query = workspace.take<T>(width * kTileWidth<T>);
  buffers.weights = workspace.take<T>(kKeyBlock * kTileWidth<T>);
  buffers.value = workspace.take<T>(positions * buffers.value_ld);
  buffers.key = workspace.take<T>(width * buffers.map_ld);
  buffers.columns = workspace.take<T>(width * buffers.map_ld);
  buffers.kept = workspace.take<int64_t>(positions);
  return with_kept ? place_kept(problem, buffers, workspace.take<T>(kept_rows(problem) * buffers.ld)) : buffers;
}

// Lists the positions that are not ignored and returns their number. Without a mask, `kept` is not written.
inline int64_t keep_positions(const bool* mask, int64_t positions, int64_t* kept) {
  if (mask == nullptr) return positions;
  int64_t count = 0;
  for (int64_t n = 0; n < positions; ++n)
    if (!mask[n]) kept[count++] = n;
  return count;
}

// Leaving out ignored positions saves work, and nothing in them (NaN) can reach another position.
template <typename T>
void gather_columns(const T* in, int64_t rows, int64_t ld_in, const int64_t* kept, int64_t count, T* out,
                    int64_t ld_out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < count; ++k) out[r * ld_out + k] = in[r * ld_in + kept[k]];
}

// Query, key and value of one head of one map, ready for the tiles; ignored keys are left out.
template <typename T>
struct Head {
  const T* query;    // (D, ld)
  const T* key;      // (D, key_ld)
  const T* columns;  // (D, key_ld): values
  const T* value;    // (keys, value_ld)
  int64_t width, keys, ld, key_ld, value_ld;
  T square;  // largest square of a key's length, except NaN
};

template <typename T>
T largest_square(const T* key, int64_t width, int64_t keys, int64_t ld) {
  Vec<T> largest{};
  for (int64_t k = 0; k < keys; k += kLanes<T>) {
    Vec<T> square{};
    for (int64_t d = 0; d < width; ++d) square += load(key + d * ld + k) * load(key + d * ld + k);
    const IntVec<T> is_key = lane_numbers<T>() < static_cast<IntOf<T>>(keys - k < kLanes<T> ? keys - k : kLanes<T>);
    largest = max(select<T>(is_key, square, Vec<T>{}), largest);
  }
  return reduce_max<T>(largest);
}

// The head of the map that begins at `column`. `attends`: also prepares what attend_tile needs.
template <typename T>
Head<T> take_head(const Problem& problem, int64_t index, int64_t column, int64_t keys, bool attends,
                  const GroupBuffers<T>& buffers) {
  const int64_t width = problem.width(), ld = buffers.ld, part = problem.channels * ld;
  const T* query = buffers.projected + index * width * ld + column;
  Head<T> head{query, query + part, query + 2 * part, buffers.value, width, keys, ld, ld, buffers.value_ld, T(0)};
  if (keys < problem.positions()) {
    gather_columns(head.key, width, ld, buffers.kept, keys, buffers.key, buffers.map_ld);
    gather_columns(head.columns, width, ld, buffers.kept, keys, buffers.columns, buffers.map_ld);
    head.key = buffers.key;
    head.columns = buffers.columns;
    head.key_ld = buffers.map_ld;
  }
  if (!attends) return head;
  transpose_rows(head.columns, head.key_ld, width, keys, T(1), buffers.value, buffers.value_ld);
  head.square = largest_square(head.key, width, keys, head.key_ld);
  return head;
}

// Copies the V vectors of queries at q next to each other, and computes the squares of their lengths.
template <int V, typename T>
SIMMST_INLINE void copy_query(const Head<T>& head, int64_t q, T* query, Vec<T> (&square)[V]) {
  for (int v = 0; v < V; ++v) square[v] = Vec<T>{};
  for (int64_t d = 0; d < head.width; ++d)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const Vec<T> entry = load(head.query + d * head.ld + q + v * kLanes<T>);
      store(query + (d * V + v) * kLanes<T>, entry);
      square[v] += entry * entry;
    }
}

// Turns the scores of a tile, less `base` if kFromBase, into the weights 2^score, and adds up the weights of the rows:
// first in pairs, then per tile, because an error in the sum shifts all of a row's gradients the same way.
template <bool kFromBase, int R, int V, typename T>
SIMMST_INLINE void keep_weights(const Tile<R, V, T>& tile, const Vec<T>* base, T* weights, Vec<T> (&sum)[V]) {
  tile.store_to(weights, V * kLanes<T>);  // so that a few at a time go through the exponential in registers
  Vec<T> pair[V], rows[V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    Vec<T> row[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      row[v] = load(weights + (r * V + v) * kLanes<T>);
      if constexpr (kFromBase) row[v] = max(broadcast<T>(kLowest<T>), row[v] - base[v]);
    }
    exp2_in_range(row);
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      store(weights + (r * V + v) * kLanes<T>, row[v]);
      if (r % 2 == 0) pair[v] = row[v];
      else pair[v] += row[v];
      if (r == 1 || R == 1) rows[v] = pair[v];
      else if (r % 2 == 1 || r + 1 == R) rows[v] += pair[v];
    }
  }
#pragma GCC unroll 3
  for (int v = 0; v < V; ++v) sum[v] += rows[v];
}

// weights[k][q] = 2^score for a block of keys, and their sum. kFromBase: 2^(score - base), which cannot overflow.
template <int V, bool kFromBase, typename T>
SIMMST_INLINE void weight_block(const Head<T>& head, const T* query, int64_t first, int64_t count, const Vec<T>* base,
                                T* weights, Vec<T> (&sum)[V]) {
  Vec<T> block[V] = {};
  for_tiles<T, kTileRows<T, V>>(0, count, [&]<int R>(int64_t k) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    tile.fill(Vec<T>{});
    tile.multiply(head.key + first + k, head.key_ld, 1, query, V * kLanes<T>, head.width);
    keep_weights<kFromBase>(tile, base, weights + k * V * kLanes<T>, block);
  });
  for (int v = 0; v < V; ++v) sum[v] += block[v];
}

// The largest score of each query.
template <int V, typename T>
void largest_scores(const Head<T>& head, const T* query, Vec<T> (&largest)[V]) {
  for (int v = 0; v < V; ++v) largest[v] = broadcast<T>(-__builtin_inf());
  for_halves<4>(0, head.keys, [&]<int R>(int64_t k) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    tile.fill(Vec<T>{});
    tile.multiply(head.key + k, head.key_ld, 1, query, V * kLanes<T>, head.width);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) largest[v] = max(tile.at[r][v], largest[v]);
  });
}

// out[d][q] = (after the first block: +=) sum over a block of keys of weights[k][q] * value[k][d]; times after[q] in
// the last block.
template <int V, typename T>
SIMMST_INLINE void weigh_block(const Head<T>& head, int64_t first, int64_t count, const T* weights, T* out,
                               bool is_last, const Vec<T> (&after)[V]) {
  for_tiles<T, kTileRows<T, V>>(0, head.width, [&]<int R>(int64_t d) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    if (first == 0) tile.fill(Vec<T>{});
    else tile.load_from(out + d * head.ld, head.ld);
    tile.multiply(head.value + first * head.value_ld + d, head.value_ld, 1, weights, V * kLanes<T>, count);
    if (is_last) tile.scale_columns(after);
    tile.store_to(out + d * head.ld, head.ld);
  });
}

template <int V, typename T>
SIMMST_INLINE bool is_any(const IntVec<T> (&mask)[V]) {
  Vec<T> found{};
  for (int v = 0; v < V; ++v) found = select<T>(mask[v], broadcast<T>(T(1)), found);
  return reduce_max<T>(found) > T(0);
}

// Computes the attention of the V vectors of queries that start at q into `out` (D, ld), and the base and sum of their
// softmax. Scores are exponentiated without a base where the lengths of query and keys rule out an overflow, unless the
// sum turns out far from 1. For the other queries, the largest score is found and subtracted first. The result of a
// query does not depend on the other lanes. Where `all` is given, the weights go there: one block of keys after
// another, and in each block the tiles of queries.
template <int V, typename T>
void attend_tile(const Head<T>& head, int64_t q, const GroupBuffers<T>& buffers, T* all, T* out, T* base_of,
                 T* sum_of) {
  Vec<T> base[V] = {}, sum[V], after[V] = {}, square[V];
  IntVec<T> is_far[V], is_new[V];
  copy_query<V>(head, q, buffers.query, square);
  for (int v = 0; v < V; ++v) is_far[v] = ~(square[v] * head.square <= kMostScore<T> * kMostScore<T>);
  for (;;) {
    const bool from_base = is_any<V, T>(is_far);
    if (from_base) largest_scores<V>(head, buffers.query, base);
    for (int v = 0; v < V; ++v) {
      base[v] = select<T>(is_far[v], base[v], Vec<T>{});
      sum[v] = Vec<T>{};
    }
    for (int64_t first = 0; first < head.keys; first += kKeyBlock) {
      const int64_t count = head.keys - first < kKeyBlock ? head.keys - first : kKeyBlock;
      const bool is_last = first + count == head.keys;
      T* weights = all == nullptr ? buffers.weights : all + first * buffers.map_ld + q * count;
      if (from_base) weight_block<V, true>(head, buffers.query, first, count, base, weights, sum);
      else weight_block<V, false>(head, buffers.query, first, count, base, weights, sum);
      if (is_last)
        for (int v = 0; v < V; ++v) after[v] = T(1) / sum[v];
      weigh_block<V>(head, first, count, weights, out, is_last, after);
    }
    for (int v = 0; v < V; ++v) {  // in this range, weights too small to differ from 2^-126 are too small to matter
      is_new[v] = ~((sum[v] >= T(0x1p-30)) & (sum[v] <= T(0x1p40))) & ~is_far[v];
      is_far[v] |= is_new[v];
    }
    if (!is_any<V, T>(is_new)) break;
  }
  for (int v = 0; v < V; ++v) {
    store(base_of + v * kLanes<T>, base[v]);
    store(sum_of + v * kLanes<T>, sum[v]);
  }
}

// Computes projection and attention of all heads of a group into buffers.heads, base and sum. `all`, where given, has
// room for the weights of all maps and heads, `per_head` entries each. A group of several maps has no mask.
template <typename T>
void attend_group(const Problem& problem, const Packed<T>& packed, const Group& group, int64_t keys, T* all,
                  int64_t per_head, const GroupBuffers<T>& buffers) {
  const int64_t ld = buffers.ld, positions = problem.positions(), channels = problem.channels;
  product<false>(packed.in, packed.in_ld, channels, buffers.x, packed.in_bias, buffers.projected, 3 * channels, ld,
                 vectors_for<T>(group.count * positions));
  for (int64_t g = 0; g < group.count; ++g)  // in this order, because a map may write a few columns of the next
    for (int64_t index = 0; index < problem.heads; ++index) {
      const int64_t column = g * positions;
      const Head<T> head = take_head(problem, index, column, keys, true, buffers);
      T* weights = all == nullptr ? nullptr : all + (g * problem.heads + index) * per_head;
      T* out = buffers.heads + index * problem.width() * ld + column;
      T *base = buffers.base + index * ld + column, *sum = buffers.sum + index * ld + column;
      for_vectors<T>(vectors_for<T>(positions), [&]<int V>(int64_t vector) SIMMST_ALWAYS_INLINE {
        const int64_t q = vector * kLanes<T>;
        attend_tile<V>(head, q, buffers, weights, out + q, base + q, sum + q);
      });
    }
  const int64_t columns = group.count * positions;
  for (int64_t c = 0; c < channels; ++c)  // backward sums over whole vectors
    for (int64_t n = columns; n < vectors_for<T>(columns) * kLanes<T>; ++n) buffers.heads[c * ld + n] = T(0);
}

// Writes lse (heads, N) of every map: +inf where there is no key.
template <typename T>
void store_lse(const Problem& problem, const Group& group, int64_t keys, const GroupBuffers<T>& buffers, T* lse) {
  const int64_t positions = problem.positions();
  lse += group.first * problem.heads * positions;
  for (int64_t g = 0; g < group.count; ++g)
    for (int64_t head = 0; head < problem.heads; ++head, lse += positions)
      for (int64_t n = 0; n < positions; n += kLanes<T>) {
        const int64_t at = head * buffers.ld + g * positions + n;
        const Vec<T> value = keys == 0 ? broadcast<T>(static_cast<T>(__builtin_inf()))
                                       : (load(buffers.base + at) + log2<T>(load(buffers.sum + at))) * kLn2<T>;
        store_some<T, T>(lse + n, value, positions - n);
      }
}

// to (C, ld) = the branch (output projection of the heads, 0 for a map without keys), added to the content of `to` if
// there is a residual.
template <typename T>
void add_branch(const Problem& problem, const Packed<T>& packed, int64_t columns, int64_t keys,
                const GroupBuffers<T>& buffers, T* to) {
  const int64_t channels = problem.channels, vectors = vectors_for<T>(columns);
  if (keys == 0) {
    for (int64_t i = 0; !problem.residual && i < channels * buffers.ld; ++i) to[i] = T(0);
  } else if (problem.residual) {
    product<true>(packed.out, packed.out_ld, channels, buffers.heads, packed.out_bias, to, channels, buffers.ld,
                  vectors);
  } else {
    product<false>(packed.out, packed.out_ld, channels, buffers.heads, packed.out_bias, to, channels, buffers.ld,
                   vectors);
  }
}

// Mean and reciprocal standard deviation of V vectors of columns.
template <int V, typename T>
SIMMST_INLINE void column_moments(const T* columns, int64_t channels, int64_t ld, T eps, Vec<T> (&mean)[V],
                                  Vec<T> (&reciprocal)[V]) {
  Vec<T> sum[V] = {}, square[V] = {};
  for (int64_t c = 0; c < channels; ++c)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) sum[v] += load(columns + c * ld + v * kLanes<T>);
  for (int v = 0; v < V; ++v) mean[v] = sum[v] / static_cast<T>(channels);
  for (int64_t c = 0; c < channels; ++c)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const Vec<T> centred = load(columns + c * ld + v * kLanes<T>) - mean[v];
      square[v] += centred * centred;
    }
  for (int v = 0; v < V; ++v) reciprocal[v] = T(1) / sqrt_of(square[v] / static_cast<T>(channels) + eps);
}

// Normalises V vectors of columns, then multiplies by the weight and adds the bias. The normalised columns and the
// reciprocal deviations are stored where `normal` is given.
template <int V, typename T>
void normalise_columns(const Problem& problem, const Packed<T>& packed, T* columns, int64_t ld, T* normal,
                       T* reciprocal_of) {
  Vec<T> mean[V], reciprocal[V];
  column_moments<V>(columns, problem.channels, ld, static_cast<T>(problem.eps), mean, reciprocal);
  for (int64_t c = 0; c < problem.channels; ++c) {
    const T shift = packed.norm_bias == nullptr ? T(0) : packed.norm_bias[c];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const int64_t at = c * ld + v * kLanes<T>;
      const Vec<T> value = (load(columns + at) - mean[v]) * reciprocal[v];
      if (normal != nullptr) store(normal + at, value);
      store(columns + at, value * packed.norm[c] + shift);
    }
  }
  for (int v = 0; v < V && normal != nullptr; ++v) store(reciprocal_of + v * kLanes<T>, reciprocal[v]);
}

template <typename T>
void normalise_group(const Problem& problem, const Packed<T>& packed, int64_t columns, bool keeps,
                     const GroupBuffers<T>& buffers) {
  for_vectors<T>(vectors_for<T>(columns), [&]<int V>(int64_t vector) SIMMST_ALWAYS_INLINE {
    const int64_t n = vector * kLanes<T>;
    normalise_columns<V>(problem, packed, buffers.x + n, buffers.ld, keeps ? buffers.normal + n : nullptr,
                         buffers.reciprocal + n);
  });
}

template <typename Storage, typename T>
void forward_group(const Problem& problem, const Packed<T>& packed, const Map& x, const bool* mask, const Group& group,
                   bool keeps, void* out, T* lse, const GroupBuffers<T>& buffers) {
  const int64_t positions = problem.positions(), columns = group.count * positions;
  load_group<Storage>(problem, x, group, buffers.x, buffers.ld);
  const int64_t keys =
      keep_positions(mask == nullptr ? nullptr : mask + group.first * positions, positions, buffers.kept);
  if (keys > 0) attend_group(problem, packed, group, keys, static_cast<T*>(nullptr), 0, buffers);
  store_lse(problem, group, keys, buffers, lse);
  add_branch(problem, packed, columns, keys, buffers, buffers.x);
  if (packed.norm != nullptr) normalise_group(problem, packed, columns, keeps, buffers);
  store_group<Storage>(problem, group, buffers.x, buffers.ld, out);
}

}  // namespace simmst::cpu::SIMMST_ISA::spatial
