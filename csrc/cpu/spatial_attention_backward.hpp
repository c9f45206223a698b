// The backward pass of a group of maps. If the forward pass kept its results, only the scores are computed again, in
// blocks of keys. Otherwise projections and attention are recomputed from x, and for small maps the weights P are then
// kept until their gradients are taken.
//
// With P = exp(S - largest) = Z softmax(S), O = softmax(S) V, and G the gradient of O divided by Z, row by row:
// dV = P^T G, dS = P (G V^T - rowsum(G O)), dQ = scale dS K, dK = scale dS^T Q. Dividing G rather than P costs nothing
// per score, and using the saved lse would round once more.
#pragma once

#include "cpu/spatial_attention_forward.hpp"

namespace simmst::cpu::SIMMST_ISA::spatial {

// Weights in their given layout, in the compute type.
template <typename T>
struct PackedBackward {
  T* in;       // (3C, C)
  T* out;      // (C, C)
  int64_t ld;  // row length of both
};

// Sums over the maps of a chunk. Rows have length ld, so that whole vectors can be added.
template <typename T>
struct Sums {
  T* in;         // (3C, ld)
  T* out;        // (C, ld)
  T* in_bias;    // (3C,)
  T* out_bias;   // (C,)
  T* norm;       // (C,)
  T* norm_bias;  // (C,)
  int64_t ld;
};

template <typename T>
struct BackwardBuffers {
  GroupBuffers<T> group;
  T* grad;         // (C, ld): gradient of the output, then of LayerNorm's input
  T* grad_heads;   // (C, ld): gradient of all heads
  T* grad_packed;  // (3C, ld): gradient of queries, keys, values
  T* tokens;       // (columns, channel_ld): one row per position, of x or of the heads
  T* all;          // (maps, heads, N, map_ld): P, or null where there is no room for all of it
  T* weights;      // (key block, map_ld): P of a block of keys of one head, where `all` is null
  T* grad_scores;  // (key block, map_ld): gradient of the scores of a block of keys of one head, laid out as P
  T* divided;      // (D, map_ld): G of one head
  T* row;          // (map_ld,): rowsum(G O)
  T* key_rows;     // (N, value_ld): times the scale
  T* query_rows;   // (N, value_ld): as projected, times ln 2: it carries scale * log2(e)
  T* grad_rows;    // (N, value_ld): G
  T* grad_key;     // (key block, value_ld)
  T* grad_value;   // (key block, value_ld)
  int64_t channel_ld;
};

template <typename T>
PackedBackward<T> take_packed_backward(const Problem& problem, Workspace& workspace) {
  PackedBackward<T> packed;
  packed.ld = row_length<T>(problem.channels);
  packed.in = workspace.take<T>(3 * problem.channels * packed.ld);
  packed.out = workspace.take<T>(problem.channels * packed.ld);
  return packed;
}

template <typename Storage, typename T>
void pack_backward(const Problem& problem, const Weights& weights, const PackedBackward<T>& packed) {
  const int64_t channels = problem.channels;
  const Storage* in = static_cast<const Storage*>(weights.in);
  const Storage* out = static_cast<const Storage*>(weights.out);
  for (int64_t r = 0; r < 3 * channels; ++r)
    for (int64_t c = 0; c < channels; ++c) packed.in[r * packed.ld + c] = to_compute(in[r * channels + c]);
  for (int64_t o = 0; o < channels; ++o)
    for (int64_t i = 0; i < channels; ++i) packed.out[o * packed.ld + i] = to_compute(out[o * channels + i]);
}

template <typename T>
Sums<T> take_sums(const Problem& problem, Workspace& workspace) {
  Sums<T> sums;
  const int64_t channels = problem.channels;
  sums.ld = vectors_for<T>(channels) * kLanes<T>;
  sums.in = workspace.take<T>(3 * channels * sums.ld);
  sums.out = workspace.take<T>(channels * sums.ld);
  sums.in_bias = workspace.take<T>(3 * channels);
  sums.out_bias = workspace.take<T>(channels);
  sums.norm = workspace.take<T>(channels);
  sums.norm_bias = workspace.take<T>(channels);
  return sums;
}

// The most weights that are kept: 4 MiB of float.
constexpr int64_t kMostKept = int64_t{1} << 20;

template <typename T>
BackwardBuffers<T> take_backward_buffers(const Problem& problem, Workspace& workspace) {
  const int64_t channels = problem.channels, width = problem.width(), positions = problem.positions();
  BackwardBuffers<T> buffers;
  buffers.group = take_group_buffers<T>(problem, !problem.keeps, workspace);
  const int64_t ld = buffers.group.ld, map_ld = buffers.group.map_ld, value_ld = buffers.group.value_ld;
  const int64_t maps = maps_in_group(problem), all = maps * problem.heads * positions * map_ld;
  const bool keeps_all = !problem.keeps && all <= kMostKept;
  buffers.channel_ld = vectors_for<T>(channels) * kLanes<T>;
  buffers.grad = workspace.take<T>(channels * ld);
  buffers.grad_heads = workspace.take<T>(channels * ld);
  buffers.grad_packed = workspace.take<T>(3 * channels * ld);
  buffers.tokens = workspace.take<T>(maps * positions * buffers.channel_ld);
  buffers.all = keeps_all ? workspace.take<T>(all) : nullptr;
  buffers.weights = keeps_all ? nullptr : workspace.take<T>(kKeyBlock * map_ld);
  buffers.grad_scores = workspace.take<T>(kKeyBlock * map_ld);
  buffers.divided = workspace.take<T>(width * map_ld);
  buffers.row = workspace.take<T>(map_ld);
  buffers.key_rows = workspace.take<T>(positions * value_ld);
  buffers.query_rows = workspace.take<T>(positions * value_ld);
  buffers.grad_rows = workspace.take<T>(positions * value_ld);
  buffers.grad_key = workspace.take<T>(kKeyBlock * value_ld);
  buffers.grad_value = workspace.take<T>(kKeyBlock * value_ld);
  return buffers;
}

template <typename T>
void clear(T* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = T(0);
}

// --- sums over positions -------------------------------------------------------------------------------------------

// to[r] += sum over n < count of rows[r][n].
template <typename T>
void add_row_sums(const T* rows, int64_t height, int64_t ld, int64_t count, T* to) {
  for (int64_t r = 0; r < height; ++r) {
    Vec<T> sum{};
    int64_t n = 0;
    for (; n + kLanes<T> <= count; n += kLanes<T>) sum += load(rows + r * ld + n);
    if (n < count) sum += load_partial(rows + r * ld + n, static_cast<int>(count - n));
    to[r] += reduce_add<T>(sum);
  }
}

// to[r][c] += sum over n < count of a[r * a_row + n] * b[n * b_step + c], for `vectors` vectors of c.
template <typename T>
void add_outer(const T* a, int64_t a_row, int64_t count, const T* b, int64_t b_step, T* to, int64_t ld, int64_t height,
               int64_t vectors) {
  for_vectors<T>(vectors, [&]<int V>(int64_t first) SIMMST_ALWAYS_INLINE {
    const int64_t c = first * kLanes<T>;
    for_tiles<T, kTileRows<T, V>>(0, height, [&]<int R>(int64_t r) SIMMST_ALWAYS_INLINE {
      Tile<R, V, T> tile;
      tile.fill(Vec<T>{});
      tile.multiply(a + r * a_row, 1, a_row, b + c, b_step, count);
      tile.add_to(to + r * ld + c, ld);
    });
  });
}

// --- LayerNorm -----------------------------------------------------------------------------------------------------

// Turns grad (V vectors of columns) from the gradient of LayerNorm's output into that of its input. `columns` holds the
// normalised input.
template <int V, typename T>
void norm_backward_columns(const Problem& problem, const T* weight, const T* columns, const T* reciprocal_of, T* grad,
                           int64_t ld, T* grad_weight) {
  const int64_t channels = problem.channels;
  Vec<T> reciprocal[V], sum[V] = {}, product[V] = {};
  for (int v = 0; v < V; ++v) reciprocal[v] = load(reciprocal_of + v * kLanes<T>);
  for (int64_t c = 0; c < channels; ++c) {
    Vec<T> along{};
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const Vec<T> normal = load(columns + c * ld + v * kLanes<T>);
      T* upstream = grad + c * ld + v * kLanes<T>;
      const Vec<T> scaled = load(upstream) * weight[c];
      along += load(upstream) * normal;
      sum[v] += scaled;
      product[v] += scaled * normal;
      store(upstream, scaled);  // rounded in the same way as the terms of sum, so that a single channel gives 0
    }
    grad_weight[c] += reduce_add<T>(along);
  }
  for (int v = 0; v < V; ++v) {
    sum[v] /= static_cast<T>(channels);
    product[v] /= static_cast<T>(channels);
  }
  for (int64_t c = 0; c < channels; ++c)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      T* at = grad + c * ld + v * kLanes<T>;
      const Vec<T> normal = load(columns + c * ld + v * kLanes<T>);
      store(at, reciprocal[v] * (load(at) - sum[v] - normal * product[v]));
    }
}

template <typename T>
void norm_backward(const Problem& problem, const Packed<T>& packed, int64_t columns, const GroupBuffers<T>& group,
                   T* grad, const Sums<T>& sums) {
  add_row_sums(grad, problem.channels, group.ld, columns, sums.norm_bias);
  for_vectors<T>(vectors_for<T>(columns), [&]<int V>(int64_t vector) SIMMST_ALWAYS_INLINE {
    const int64_t n = vector * kLanes<T>;
    norm_backward_columns<V>(problem, packed.norm, group.normal + n, group.reciprocal + n, grad + n, group.ld,
                             sums.norm);
  });
}

// --- one head of one map -------------------------------------------------------------------------------------------

// Computes G = dO / Z and rowsum(G O) of the head at `grad`, `heads` and `sum`.
template <typename T>
void divide_gradient(const Problem& problem, const T* grad, const T* heads, const T* sum,
                     const BackwardBuffers<T>& buffers) {
  const int64_t ld = buffers.group.ld, map_ld = buffers.group.map_ld;
  for (int64_t n = 0; n < map_ld; n += kLanes<T>) {
    const Vec<T> reciprocal = T(1) / load(sum + n);
    Vec<T> row{};
    for (int64_t d = 0; d < problem.width(); ++d) {
      const Vec<T> divided = load(grad + d * ld + n) * reciprocal;
      store(buffers.divided + d * map_ld + n, divided);
      row += load(heads + d * ld + n) * divided;
    }
    store(buffers.row + n, row);
  }
}

// Computes P again for V vectors of queries and a block of keys, as attend_tile does.
template <int V, typename T>
void weigh_again(const Head<T>& head, int64_t q, int64_t first, int64_t count, const T* base_of, T* query, T* weights) {
  Vec<T> base[V], sum[V] = {}, square[V];
  IntVec<T> is_far[V];
  for (int v = 0; v < V; ++v) {
    base[v] = load(base_of + q + v * kLanes<T>);
    is_far[v] = base[v] != T(0);
  }
  copy_query<V>(head, q, query, square);
  if (!is_any<V, T>(is_far)) weight_block<V, false>(head, query, first, count, base, weights, sum);
  else weight_block<V, true>(head, query, first, count, base, weights, sum);
}

// grad_scores[k][q] = P * (sum over d of value[d][k] G[d][q] - row[q]) for a block of keys.
template <int V, typename T>
void score_gradient_block(const Head<T>& head, int64_t q, int64_t first, int64_t count, const T* weights,
                          const BackwardBuffers<T>& buffers, T* grad_scores) {
  Vec<T> row[V];
  for (int v = 0; v < V; ++v) row[v] = load(buffers.row + q + v * kLanes<T>);
  for_tiles<T, kTileRows<T, V>>(0, count, [&]<int R>(int64_t k) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    tile.fill(Vec<T>{});
    tile.multiply(head.columns + first + k, head.key_ld, 1, buffers.divided + q, buffers.group.map_ld, head.width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        const int64_t at = ((k + r) * V + v) * kLanes<T>;
        store(grad_scores + at, load(weights + at) * (tile.at[r][v] - row[v]));
      }
  });
}

// to[k][d] = sum over all queries of panels[k][q] * rows[q][d] for a block of keys; panels are laid out as P. A few
// panels are added up before they join the sum, which rounds less than adding all queries one by one.
constexpr int64_t kQueryBlock = 48;
template <typename T>
void sum_over_queries(const T* panels, int64_t count, int64_t positions, const T* rows, int64_t value_ld, T* to) {
  for_vectors<T>(value_ld / kLanes<T>, [&]<int V>(int64_t vector) SIMMST_ALWAYS_INLINE {
    const int64_t d = vector * kLanes<T>;
    for_tiles<T, kTileRows<T, V>>(0, count, [&]<int R>(int64_t k) SIMMST_ALWAYS_INLINE {
      for (int64_t q = 0; q < positions;) {
        const bool is_first = q == 0;
        const int64_t end = q + kQueryBlock;
        Tile<R, V, T> tile;
        tile.fill(Vec<T>{});
        for (int64_t width; q < end && q < positions; q += width) {
          width = next_vectors<T>(vectors_for<T>(positions - q)) * kLanes<T>;
          tile.multiply(panels + q * count + k * width, 1, width, rows + q * value_ld + d, value_ld,
                        positions - q < width ? positions - q : width);
        }
        if (is_first) tile.store_to(to + k * value_ld + d, value_ld);
        else tile.add_to(to + k * value_ld + d, value_ld);
      }
    });
  });
}

// to[d][n] = rows[k][d], where n is the k-th position that is not ignored.
template <typename T>
void scatter_rows(const T* rows, int64_t value_ld, int64_t count, int64_t width, const int64_t* kept, T* to,
                  int64_t ld) {
  for (int64_t k = 0; k < count; ++k)
    for (int64_t d = 0; d < width; ++d) to[d * ld + kept[k]] = rows[k * value_ld + d];
}

// Computes grad_packed for one head of the map that begins at `column`.
template <typename T>
void backward_head(const Problem& problem, int64_t index, int64_t column, int64_t keys, const T* all,
                   const BackwardBuffers<T>& buffers) {
  const GroupBuffers<T>& group = buffers.group;
  const int64_t width = problem.width(), positions = problem.positions(), ld = group.ld, map_ld = group.map_ld;
  const int64_t value_ld = group.value_ld, part = problem.channels * ld, place = index * width * ld + column;
  const Head<T> head = take_head(problem, index, column, keys, false, group);
  divide_gradient(problem, buffers.grad_heads + place, group.heads + place, group.sum + index * ld + column, buffers);
  transpose_rows(head.key, head.key_ld, width, keys, static_cast<T>(problem.scale), buffers.key_rows, value_ld);
  transpose_rows(head.query, ld, width, positions, kLn2<T>, buffers.query_rows, value_ld);
  transpose_rows(static_cast<const T*>(buffers.divided), map_ld, width, positions, T(1), buffers.grad_rows, value_ld);
  T *grad_query = buffers.grad_packed + place, *grad_key = grad_query + part, *grad_value = grad_key + part;
  const bool masked = keys < positions;
  if (masked)
    for (int64_t d = 0; d < width; ++d)
      for (int64_t n = 0; n < positions; ++n) grad_key[d * ld + n] = grad_value[d * ld + n] = T(0);
  for (int64_t first = 0; first < keys; first += kKeyBlock) {
    const int64_t count = keys - first < kKeyBlock ? keys - first : kKeyBlock;
    const T* block = all == nullptr ? buffers.weights : all + first * map_ld;
    for_vectors<T>(map_ld / kLanes<T>, [&]<int V>(int64_t vector) SIMMST_ALWAYS_INLINE {
      const int64_t q = vector * kLanes<T>;
      if (all == nullptr)
        weigh_again<V>(head, q, first, count, group.base + index * ld + column, group.query,
                       buffers.weights + q * count);
      T* grad_scores = buffers.grad_scores + q * count;
      score_gradient_block<V>(head, q, first, count, block + q * count, buffers, grad_scores);
      const T *rows = buffers.key_rows + first * value_ld, *none = nullptr, *right = grad_scores;
      if (first == 0)
        product_columns<V, false>(rows, value_ld, 1, count, right, V * kLanes<T>, none, grad_query + q, ld, width);
      else product_columns<V, true>(rows, value_ld, 1, count, right, V * kLanes<T>, none, grad_query + q, ld, width);
    });
    const T *grad_scores = buffers.grad_scores, *query_rows = buffers.query_rows, *grad_rows = buffers.grad_rows;
    sum_over_queries(grad_scores, count, positions, query_rows, value_ld, buffers.grad_key);
    sum_over_queries(block, count, positions, grad_rows, value_ld, buffers.grad_value);
    if (masked) {
      scatter_rows(buffers.grad_key, value_ld, count, width, group.kept + first, grad_key, ld);
      scatter_rows(buffers.grad_value, value_ld, count, width, group.kept + first, grad_value, ld);
    } else {
      transpose_rows(static_cast<const T*>(buffers.grad_key), value_ld, count, width, T(1), grad_key + first, ld);
      transpose_rows(static_cast<const T*>(buffers.grad_value), value_ld, count, width, T(1), grad_value + first, ld);
    }
  }
}

// --- one group -----------------------------------------------------------------------------------------------------

template <typename T>
void backward_heads(const Problem& problem, const PackedBackward<T>& plain, const Group& maps, int64_t keys,
                    int64_t per_head, const BackwardBuffers<T>& buffers) {
  const int64_t positions = problem.positions(), ld = buffers.group.ld, channels = problem.channels;
  // dO[i][n] = sum over o of w_out[o][i] * grad[o][n]
  product<false>(static_cast<const T*>(plain.out), plain.ld, channels, static_cast<const T*>(buffers.grad),
                 static_cast<const T*>(nullptr), buffers.grad_heads, channels, ld,
                 vectors_for<T>(maps.count * positions));
  for (int64_t g = 0; g < maps.count; ++g)  // in this order, because a map may write a few columns of the next
    for (int64_t head = 0; head < problem.heads; ++head)
      backward_head(problem, head, g * positions, keys,
                    buffers.all == nullptr ? nullptr : buffers.all + (g * problem.heads + head) * per_head, buffers);
}

// sums += gradient (height, columns) times the tokens of (C, columns).
template <typename T>
void add_weight_gradient(const Problem& problem, const T* gradient, int64_t height, const T* channel_rows,
                         int64_t columns, const BackwardBuffers<T>& buffers, T* to, int64_t to_ld) {
  const int64_t ld = buffers.group.ld;
  transpose_rows(channel_rows, ld, problem.channels, columns, T(1), buffers.tokens, buffers.channel_ld);
  add_outer(gradient, ld, columns, static_cast<const T*>(buffers.tokens), buffers.channel_ld, to, to_ld, height,
            to_ld / kLanes<T>);
}

// Computes again what forward computed for a group and did not keep; x is unchanged.
template <typename T>
void compute_again(const Problem& problem, const Packed<T>& packed, const Group& maps, int64_t keys,
                   const BackwardBuffers<T>& buffers) {
  const GroupBuffers<T>& group = buffers.group;
  const int64_t columns = maps.count * problem.positions(), count = problem.channels * group.ld;
  if (keys > 0) attend_group(problem, packed, maps, keys, buffers.all, problem.positions() * group.map_ld, group);
  if (packed.norm == nullptr) return;
  GroupBuffers<T> scratch = group;
  scratch.x = buffers.grad_heads;  // not yet in use
  for (int64_t i = 0; i < count; ++i) scratch.x[i] = group.x[i];
  add_branch(problem, packed, columns, keys, group, scratch.x);
  normalise_group(problem, packed, columns, true, scratch);
}

template <typename Storage, typename T>
void backward_group(const Problem& problem, const Packed<T>& packed, const PackedBackward<T>& plain, const Map& grad,
                    const Map& x, const bool* mask, const Group& maps, const Gradients& wanted,
                    const BackwardBuffers<T>& buffers, const Sums<T>& sums) {
  const GroupBuffers<T>& group = buffers.group;
  const int64_t channels = problem.channels, positions = problem.positions(), ld = group.ld;
  const int64_t columns = maps.count * positions, per_head = positions * group.map_ld;
  if (wanted.in != nullptr || !problem.keeps) load_group<Storage>(problem, x, maps, group.x, ld);
  load_group<Storage>(problem, grad, maps, buffers.grad, ld);
  const int64_t keys = keep_positions(mask == nullptr ? nullptr : mask + maps.first * positions, positions, group.kept);
  if (!problem.keeps) compute_again(problem, packed, maps, keys, buffers);
  if (packed.norm != nullptr) norm_backward(problem, packed, columns, group, buffers.grad, sums);
  if (keys > 0) {
    if (wanted.out != nullptr)
      add_weight_gradient(problem, static_cast<const T*>(buffers.grad), channels, static_cast<const T*>(group.heads),
                          columns, buffers, sums.out, sums.ld);
    if (wanted.out_bias != nullptr) add_row_sums(buffers.grad, channels, ld, columns, sums.out_bias);
    if (wanted.x != nullptr || wanted.in != nullptr || wanted.in_bias != nullptr)
      backward_heads(problem, plain, maps, keys, per_head, buffers);
    if (wanted.in != nullptr)
      add_weight_gradient(problem, static_cast<const T*>(buffers.grad_packed), 3 * channels,
                          static_cast<const T*>(group.x), columns, buffers, sums.in, sums.ld);
    if (wanted.in_bias != nullptr) add_row_sums(buffers.grad_packed, 3 * channels, ld, columns, sums.in_bias);
  }
  if (wanted.x == nullptr) return;
  T* grad_x = problem.residual ? buffers.grad : group.x;
  const T *in = plain.in, *grad_packed = buffers.grad_packed, *none = nullptr;
  if (keys == 0) {
    if (!problem.residual) clear(grad_x, channels * ld);
  } else if (problem.residual) {  // added last, because it may be much larger than the rest of the sum
    product<true>(in, plain.ld, 3 * channels, grad_packed, none, grad_x, channels, ld, vectors_for<T>(columns));
  } else {
    product<false>(in, plain.ld, 3 * channels, grad_packed, none, grad_x, channels, ld, vectors_for<T>(columns));
  }
  store_group<Storage>(problem, maps, grad_x, ld, wanted.x);
}

}  // namespace simmst::cpu::SIMMST_ISA::spatial
