// The backward pass of one map. Projections, attention and scores are recomputed from x; nothing of size N x N exists.
// With P = exp(S - largest) = Z softmax(S), O = softmax(S) V, and G the gradient of O divided by Z, row by row:
// dV = P^T G, dS = P (G V^T - rowsum(G O)), dQ = scale dS K, dK = scale dS^T Q. Dividing G rather than P costs nothing
// per score, and going through the saved lse would round once more.
#pragma once

#include "cpu/spatial_attention_forward.hpp"

namespace simmst::cpu::SIMMST_ISA::spatial {

// Broadcast rows of the products whose vectors lie along channels or the head's width: few vectors, so more rows.
template <int V>
constexpr int kRowsFor = V == 1 ? 2 * kTileRows : kTileRows;

// Weights as they are given, in the dtype of the computation.
template <typename T>
struct PackedBackward {
  T* in;       // (heads, 3D, C): the projection's rows of each head
  T* out;      // (C, C)
  int64_t ld;  // of both
};

// Sums over the maps of a chunk. Rows of ld so that whole vectors can be added.
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
  MapBuffers<T> map;
  T* grad;        // (C, ld): gradient of the output, then of what LayerNorm was given
  T* grad_x;      // (C, ld)
  T* grad_heads;  // (D, ld): G of one head
  T* grad_packed; // (3D, ld): of one head's query, key, value
  T* weights;     // (key block, tile width): P
  T* row;         // (ld,): rowsum(G O)
  T* key_rows;    // (N, value_ld)
  T* query_rows;  // (ld, value_ld)
  T* grad_rows;   // (ld, value_ld): G
  T* grad_key;    // (N, value_ld)
  T* grad_value;  // (N, value_ld)
  T* tokens;      // (N, channel_ld): one row per position, of x or of the heads
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
  const int64_t channels = problem.channels, height = 3 * problem.width();
  const Storage* in = static_cast<const Storage*>(weights.in);
  const Storage* out = static_cast<const Storage*>(weights.out);
  for (int64_t r = 0; r < 3 * channels; ++r) {
    const int64_t row = projection_row(problem, r / height, r % height);
    for (int64_t c = 0; c < channels; ++c) packed.in[r * packed.ld + c] = to_compute(in[row * channels + c]);
  }
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

template <typename T>
BackwardBuffers<T> take_backward_buffers(const Problem& problem, Workspace& workspace) {
  const int64_t channels = problem.channels, width = problem.width(), positions = problem.positions();
  BackwardBuffers<T> buffers;
  buffers.map = take_map_buffers<T>(problem, workspace);
  const int64_t ld = buffers.map.ld, value_ld = buffers.map.value_ld;
  buffers.channel_ld = vectors_for<T>(channels) * kLanes<T>;
  buffers.grad = workspace.take<T>(channels * ld);
  buffers.grad_x = workspace.take<T>(channels * ld);
  buffers.grad_heads = workspace.take<T>(width * ld);
  buffers.grad_packed = workspace.take<T>(3 * width * ld);
  buffers.weights = workspace.take<T>(kKeyBlock * kTileWidth<T>);
  buffers.row = workspace.take<T>(ld);
  buffers.key_rows = workspace.take<T>(positions * value_ld);
  buffers.query_rows = workspace.take<T>(ld * value_ld);
  buffers.grad_rows = workspace.take<T>(ld * value_ld);
  buffers.grad_key = workspace.take<T>(positions * value_ld);
  buffers.grad_value = workspace.take<T>(positions * value_ld);
  buffers.tokens = workspace.take<T>(positions * buffers.channel_ld);
  return buffers;
}

template <typename T>
void clear(T* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = T(0);
}

// --- sums over positions -------------------------------------------------------------------------------------------

// to[r] += sum over n < count of rows[r][n]
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
  for_vectors(vectors, [&]<int V>(int64_t first) SIMMST_ALWAYS_INLINE {
    const int64_t c = first * kLanes<T>;
    for_tiles<kRowsFor<V>>(0, height, [&]<int R>(int64_t r) SIMMST_ALWAYS_INLINE {
      Tile<R, V, T> tile;
      tile.fill(Vec<T>{});
      tile.multiply(a + r * a_row, 1, a_row, b + c, b_step, count);
      tile.add_to(to + r * ld + c, ld);
    });
  });
}

// --- LayerNorm -----------------------------------------------------------------------------------------------------

// grad (C, V vectors at n): gradient of LayerNorm's output -> of its input, which is in `tile`.
template <int V, typename T>
void norm_backward_tile(const Problem& problem, const T* weight, T* tile, T* grad, int64_t ld, T* grad_weight) {
  const int64_t channels = problem.channels;
  Vec<T> mean[V], reciprocal[V], sum[V] = {}, product[V] = {};
  column_moments<V>(tile, channels, static_cast<T>(problem.eps), mean, reciprocal);
  for (int64_t c = 0; c < channels; ++c) {
    Vec<T> along{};
    for (int v = 0; v < V; ++v) {
      T *at = tile + (c * V + v) * kLanes<T>, *upstream = grad + c * ld + v * kLanes<T>;
      const Vec<T> normal = (load(at) - mean[v]) * reciprocal[v], scaled = load(upstream) * weight[c];
      along += load(upstream) * normal;
      sum[v] += scaled;
      product[v] += scaled * normal;
      store(at, normal);
      store(upstream, scaled);  // rounded as the terms of sum are, so that one channel alone gives 0
    }
    grad_weight[c] += reduce_add<T>(along);
  }
  for (int v = 0; v < V; ++v) {
    sum[v] /= static_cast<T>(channels);
    product[v] /= static_cast<T>(channels);
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      T* at = grad + c * ld + v * kLanes<T>;
      const Vec<T> normal = load(tile + (c * V + v) * kLanes<T>);
      store(at, reciprocal[v] * (load(at) - sum[v] - normal * product[v]));
    }
}

template <typename T>
void norm_backward(const Problem& problem, const Packed<T>& packed, int64_t keys, const BackwardBuffers<T>& buffers,
                   const Sums<T>& sums) {
  const int64_t positions = problem.positions(), ld = buffers.map.ld;
  add_row_sums(buffers.grad, problem.channels, ld, positions, sums.norm_bias);
  for_vectors(vectors_for<T>(positions), [&]<int V>(int64_t first) SIMMST_ALWAYS_INLINE {
    const int64_t n = first * kLanes<T>;
    branch_tile<V>(problem, packed, n, keys, buffers.map);
    norm_backward_tile<V>(problem, packed.norm, buffers.map.tile, buffers.grad + n, ld, sums.norm);
  });
}

// --- one head ------------------------------------------------------------------------------------------------------

// weights[k][q] = 2^(score - largest) of a block of keys
template <int V, typename T>
SIMMST_INLINE void weight_block(const Head<T>& head, int64_t q, int64_t first, int64_t count, const T* largest,
                                T* weights) {
  Vec<T> base[V];
  for (int v = 0; v < V; ++v) base[v] = load(largest + q + v * kLanes<T>);
  for_tiles<kTileRows>(0, count, [&]<int R>(int64_t k) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    tile.fill(Vec<T>{});
    tile.multiply(head.key + first + k, head.ld, 1, head.query + q, head.ld, head.width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) tile.at[r][v] = exp2(tile.at[r][v] - base[v]);
    tile.store_to(weights + k * V * kLanes<T>, V * kLanes<T>);
  });
}

// grad_scores[k][q] = weights * (sum over d of value[d][k] G[d][q] - row[q]) of a block of keys
template <int V, typename T>
SIMMST_INLINE void score_gradient_block(const Head<T>& head, const T* value_columns, const BackwardBuffers<T>& buffers,
                                        int64_t q, int64_t first, int64_t count, T* grad_scores) {
  Vec<T> row[V];
  for (int v = 0; v < V; ++v) row[v] = load(buffers.row + q + v * kLanes<T>);
  for_tiles<kTileRows>(0, count, [&]<int R>(int64_t k) SIMMST_ALWAYS_INLINE {
    Tile<R, V, T> tile;
    tile.fill(Vec<T>{});
    tile.multiply(value_columns + first + k, head.ld, 1, buffers.grad_heads + q, head.ld, head.width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        const int64_t at = ((k + r) * V + v) * kLanes<T>;
        store(grad_scores + at, load(buffers.weights + at) * (tile.at[r][v] - row[v]));
      }
  });
}

// Gradients that the V vectors of queries at q give: their own columns of grad_packed, and to keys and values.
template <int V, typename T>
void backward_tile(const Problem& problem, const Head<T>& head, const T* value_columns, const T* largest, int64_t q,
                   const BackwardBuffers<T>& buffers) {
  constexpr int64_t kWidth = V * kLanes<T>;
  const int64_t value_ld = head.value_ld, vectors = value_ld / kLanes<T>;
  const int64_t left = problem.positions() - q, queries = left < kWidth ? left : kWidth;
  T* grad_scores = buffers.map.scores;
  T* grad_query = buffers.grad_packed + q;
  for (int64_t first = 0; first < head.keys; first += kKeyBlock) {
    const int64_t count = head.keys - first < kKeyBlock ? head.keys - first : kKeyBlock;
    weight_block<V>(head, q, first, count, largest, buffers.weights);
    score_gradient_block<V>(head, value_columns, buffers, q, first, count, grad_scores);
    const T* key = buffers.key_rows + first * value_ld;
    if (first == 0) {
      product_columns<V, false>(key, value_ld, 1, count, grad_scores, kWidth, static_cast<const T*>(nullptr),
                                grad_query, head.ld, head.width);
    } else {
      product_columns<V, true>(key, value_ld, 1, count, grad_scores, kWidth, static_cast<const T*>(nullptr),
                               grad_query, head.ld, head.width);
    }
    add_outer(buffers.weights, kWidth, queries, buffers.grad_rows + q * value_ld, value_ld,
              buffers.grad_value + first * value_ld, value_ld, count, vectors);
    add_outer(grad_scores, kWidth, queries, buffers.query_rows + q * value_ld, value_ld,
              buffers.grad_key + first * value_ld, value_ld, count, vectors);
  }
}

// to[d][n] = factor * rows[k][d] where n is the k-th position that is not ignored, 0 elsewhere
template <typename T>
void scatter_rows(const Problem& problem, const T* rows, int64_t value_ld, int64_t keys, const int64_t* kept, T factor,
                  T* to, int64_t ld) {
  const int64_t width = problem.width(), positions = problem.positions();
  if (keys < positions) clear(to, width * ld);
  for (int64_t k = 0; k < keys; ++k) {
    const int64_t n = keys < positions ? kept[k] : k;
    for (int64_t d = 0; d < width; ++d) to[d * ld + n] = factor * rows[k * value_ld + d];
  }
  for (int64_t d = 0; d < width; ++d)
    for (int64_t n = positions; n < vectors_for<T>(positions) * kLanes<T>; ++n) to[d * ld + n] = T(0);
}

// G = dO / Z in place, and rowsum(G O).
template <typename T>
void divide_gradient(const Problem& problem, const T* heads, const T* sum, const BackwardBuffers<T>& buffers) {
  const int64_t ld = buffers.map.ld;
  for (int64_t n = 0; n < problem.positions(); n += kLanes<T>) {
    const Vec<T> reciprocal = T(1) / load(sum + n);
    Vec<T> row{};
    for (int64_t d = 0; d < problem.width(); ++d) {
      T* at = buffers.grad_heads + d * ld + n;
      const Vec<T> divided = load(at) * reciprocal;
      store(at, divided);
      row += load(heads + d * ld + n) * divided;
    }
    store(buffers.row + n, row);
  }
}

// grad_packed (3D, ld) of one head
template <typename T>
void backward_head(const Problem& problem, const Packed<T>& packed, const PackedBackward<T>& plain, int64_t index,
                   int64_t keys, const BackwardBuffers<T>& buffers) {
  const int64_t width = problem.width(), positions = problem.positions(), ld = buffers.map.ld;
  const int64_t value_ld = buffers.map.value_ld, vectors = vectors_for<T>(positions);
  const Head<T> head = project_head(problem, packed, index, keys, buffers.map);
  const T* value_columns = buffers.map.projected + 2 * width * ld;
  // dO[d][n] = sum over o of w_out[o][head * D + d] * grad[o][n]
  product<false>(plain.out + index * width, plain.ld, problem.channels, buffers.grad, static_cast<const T*>(nullptr),
                 buffers.grad_heads, width, ld, vectors);
  divide_gradient(problem, buffers.map.heads + index * width * ld, buffers.map.sum + index * ld, buffers);
  transpose_rows(head.key, ld, width, keys, buffers.key_rows, value_ld);
  transpose_rows(head.query, ld, width, positions, buffers.query_rows, value_ld);
  transpose_rows(static_cast<const T*>(buffers.grad_heads), ld, width, positions, buffers.grad_rows, value_ld);
  clear(buffers.grad_key, keys * value_ld);
  clear(buffers.grad_value, keys * value_ld);
  for_vectors(vectors, [&]<int V>(int64_t first) SIMMST_ALWAYS_INLINE {
    backward_tile<V>(problem, head, value_columns, buffers.map.largest + index * ld, first * kLanes<T>, buffers);
  });
  const T scale = static_cast<T>(problem.scale);
  for (int64_t d = 0; d < width; ++d)
    for (int64_t n = 0; n < vectors * kLanes<T>; n += kLanes<T>) {
      T* at = buffers.grad_packed + d * ld + n;
      store(at, load(at) * scale);
    }
  // The recomputed query carries scale * log2(e).
  scatter_rows(problem, buffers.grad_key, value_ld, keys, buffers.map.kept, kLn2<T>,
               buffers.grad_packed + width * ld, ld);
  scatter_rows(problem, buffers.grad_value, value_ld, keys, buffers.map.kept, T(1),
               buffers.grad_packed + 2 * width * ld, ld);
}

// --- one map -------------------------------------------------------------------------------------------------------

template <typename T>
void backward_heads(const Problem& problem, const Packed<T>& packed, const PackedBackward<T>& plain, int64_t keys,
                    const Gradients& wanted, const BackwardBuffers<T>& buffers, const Sums<T>& sums) {
  const int64_t width = problem.width(), positions = problem.positions(), ld = buffers.map.ld;
  if (wanted.in != nullptr)
    transpose_rows(static_cast<const T*>(buffers.map.x), ld, problem.channels, positions, buffers.tokens,
                   buffers.channel_ld);
  for (int64_t head = 0; head < problem.heads; ++head) {
    backward_head(problem, packed, plain, head, keys, buffers);
    if (wanted.x != nullptr)
      product<true>(static_cast<const T*>(plain.in + head * 3 * width * plain.ld), plain.ld, 3 * width,
                    static_cast<const T*>(buffers.grad_packed), static_cast<const T*>(nullptr), buffers.grad_x,
                    problem.channels, ld, vectors_for<T>(positions));
    for (int64_t part = 0; part < 3; ++part) {
      const int64_t row = part * problem.channels + head * width;
      const T* gradient = buffers.grad_packed + part * width * ld;
      if (wanted.in != nullptr)
        add_outer(gradient, ld, positions, static_cast<const T*>(buffers.tokens), buffers.channel_ld,
                  sums.in + row * sums.ld, sums.ld, width, sums.ld / kLanes<T>);
      if (wanted.in_bias != nullptr) add_row_sums(gradient, width, ld, positions, sums.in_bias + row);
    }
  }
}

template <typename T>
void backward_out(const Problem& problem, const Gradients& wanted, const BackwardBuffers<T>& buffers,
                  const Sums<T>& sums) {
  const int64_t channels = problem.channels, positions = problem.positions(), ld = buffers.map.ld;
  if (wanted.out != nullptr) {
    transpose_rows(static_cast<const T*>(buffers.map.heads), ld, channels, positions, buffers.tokens,
                   buffers.channel_ld);
    add_outer(static_cast<const T*>(buffers.grad), ld, positions, static_cast<const T*>(buffers.tokens),
              buffers.channel_ld, sums.out, sums.ld, channels, sums.ld / kLanes<T>);
  }
  if (wanted.out_bias != nullptr) add_row_sums(buffers.grad, channels, ld, positions, sums.out_bias);
}

template <typename Storage, typename T>
void backward_map(const Problem& problem, const Packed<T>& packed, const PackedBackward<T>& plain, const Map& grad,
                  const Map& x, const bool* mask, int64_t b, const Gradients& wanted,
                  const BackwardBuffers<T>& buffers, const Sums<T>& sums) {
  const int64_t channels = problem.channels, positions = problem.positions(), ld = buffers.map.ld;
  load_map<Storage>(problem, x, b, buffers.map.x, ld);
  load_map<Storage>(problem, grad, b, buffers.grad, ld);
  const int64_t keys = keep_positions(mask == nullptr ? nullptr : mask + b * positions, positions, buffers.map.kept);
  if (keys > 0) attend_map(problem, packed, keys, buffers.map);
  if (packed.norm != nullptr) norm_backward(problem, packed, keys, buffers, sums);
  clear(buffers.grad_x, channels * ld);
  if (keys > 0) {
    backward_out(problem, wanted, buffers, sums);
    const bool is_projection_wanted = wanted.x != nullptr || wanted.in != nullptr || wanted.in_bias != nullptr;
    if (is_projection_wanted)
      backward_heads(problem, packed, plain, keys, wanted, buffers, sums);
  }
  // Last, because it may be much larger than the rest of the sum.
  if (problem.residual)
    for (int64_t i = 0; i < channels * ld; ++i) buffers.grad_x[i] += buffers.grad[i];
  if (wanted.x != nullptr) store_positions<Storage>(problem, b, 0, positions, buffers.grad_x, ld, wanted.x);
}

}  // namespace simmst::cpu::SIMMST_ISA::spatial
