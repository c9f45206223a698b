// The gradients of attend in closed form, without atomics: three launches.
//
//   1. For each span of rows: the sum of dO over the rows that hold the fill, and rowsum(dO O) of the selected rows.
//   2. A block goes through a span of keys, last tile first, and owns its rows of dK and dV. A warp takes 16 keys of
//      the tile against all selected queries, recomputes their weights from lse, and keeps dK and dV in registers. dS
//      goes through shared memory, transposed, for the block's part of dQ. The fill's gradient is added when dV is
//      written: a constant row for the mean, otherwise the sum of dO from the key's row on, carried from tile to tile.
//   3. dQ: the spans' parts, added in order, in the selected rows; zero in the others.
//
// Counts for bfloat16, D = 64, 64 heads, a row of 128 bytes: launch 1 reads dO (L rows), launch 2
// reads K and V and writes dK and dV (4 L rows; 5 L with a running fill), launch 3 writes dQ (L rows): 6 L rows, 201 MB
// and 47 us at L = 4096 and 4.3 TB/s; with the forward pass 0.3 GB, 80 us. Products of 2 * 64 * 64 * 64 * L, 2.1
// GFLOP at L = 4096: five, three of them with weights of two terms: 17 GFLOP, 43 us at 400 TFLOP/s, beside the loads.
#include "cuda/prob_sparse_attention_backward.cuh"

namespace simmst::cuda::prob_sparse {
namespace {

using namespace simmst::prob_sparse;

constexpr int kThreads = kBackwardThreads;
constexpr int kChunk = 16;  // queries whose weights a warp holds at a time
static_assert(kThreads / kWarp * kWarpRows == kTile);

// Blocks of the second launch that a multiprocessor holds; registers are the limit.
constexpr int blocks_beside(int64_t width) { return width <= 64 ? 3 : 2; }

// ---- 1

// The sum of the rows that hold the fill is the sum of all rows less that of the selected ones. In float64 this loses
// nothing, and no thread has to test which rows are selected. A thread adds up four columns of every kRuns-th row; the
// runs are added up in order.
template <typename T, int W>
SIMMST_DEVICE void sum_rest(const BackwardParameters& p, const Rows<const T>& grad, int64_t entry, int64_t first,
                            int64_t end, double* rest) {
  constexpr int kAcross = W / 4, kRuns = kThreads / kAcross, kTogether = 8;
  auto* run_sums = reinterpret_cast<double*>(shared_memory());  // (kRuns, W)
  const int column = thread_index() % kAcross * 4, run = thread_index() / kAcross;
  double sums[4] = {};
  const auto add = [&](const Pack<T, 4>& part, double share) {
    SIMMST_UNROLL
    for (int j = 0; j < 4; ++j) sums[j] += share * static_cast<double>(to_float(part.at[j]));
  };
  int64_t row = first + run;
  if (grad.aligned && column + 4 <= grad.columns) {
    // Without a branch between them, the loads do not wait for one another.
    for (; row + (kTogether - 1) * kRuns < end; row += kTogether * kRuns) {
      Pack<T, 4> parts[kTogether];
      SIMMST_UNROLL
      for (int i = 0; i < kTogether; ++i) parts[i] = load_pack<Pack<T, 4>>(grad.row(row + i * kRuns) + column);
      SIMMST_UNROLL
      for (int i = 0; i < kTogether; ++i) add(parts[i], fill_share(p, row + i * kRuns));
    }
  }
  for (; row < end; row += kRuns) add(read_part<4>(grad, grad.row(row), column), fill_share(p, row));
  for (int64_t i = run; i < p.selected; i += kRuns) {
    const int64_t selected = clamp_index(p.top[entry * p.selected + i], grad.count);
    if (selected >= first && selected < end)
      add(read_part<4>(grad, grad.row(selected), column), -fill_share(p, selected));
  }
  SIMMST_UNROLL
  for (int j = 0; j < 4; ++j) run_sums[run * W + column + j] = sums[j];
  sync_block();
  for (int c = thread_index(); c < W; c += kThreads) {
    double sum = 0.0;
    for (int i = 0; i < kRuns; ++i) sum += run_sums[i * W + c];
    rest[c] = sum;
  }
}

constexpr std::size_t kSumBytes = kThreads * 4 * sizeof(double);

template <typename T, int W>
SIMMST_KERNEL(kThreads)
sum_rows(const BackwardParameters p) {
  const int64_t entry = block_index().x / p.spans.rows, chunk = block_index().x % p.spans.rows;
  const Rows<const T> out = rows_of<const T>(p.out, p.batch, entry),
                      grad = rows_of<const T>(p.grad_out, p.batch, entry);
  const int64_t first = chunk * p.spans.size, past = first + p.spans.size, end = past < out.count ? past : out.count;
  for (int64_t i = warp_index(); i < p.selected; i += kThreads / kWarp) {
    const int64_t row = clamp_index(p.top[entry * p.selected + i], out.count);
    if (row < first || row >= end) continue;
    float sum = 0.0f;
    for (int c = lane_index(); c < out.columns; c += kWarp)
      sum += to_float(out.row(row)[c]) * to_float(grad.row(row)[c]);
    sum = reduce_warp(sum, Sum{});
    if (lane_index() == 0) p.delta[entry * p.selected + i] = sum;
  }
  if (p.has_fill) sum_rest<T, W>(p, grad, entry, first, end, p.rest + (entry * p.spans.rows + chunk) * W);
}

// ---- 2

// Starts copying selected queries [first, first + kQueries) with their dO; the copies are not finished here.
template <typename T, int W>
SIMMST_DEVICE void start_queries(const BackwardParameters& p, const Shared<T, W>& shared, int64_t entry,
                                 int64_t first) {
  const Rows<const T> query = rows_of<const T>(p.query, p.batch, entry),
                      grad = rows_of<const T>(p.grad_out, p.batch, entry);
  const int64_t* top = p.top + entry * p.selected;
  const auto index = [&](int i) {
    return first + i < p.selected ? clamp_index(top[first + i], query.count) : int64_t{-1};
  };
  start_rows<W>(shared.queries, Shared<T, W>::kPitch, query, kQueries<T, W>, index);
  start_rows<W>(shared.grads, Shared<T, W>::kPitch, grad, kQueries<T, W>, index);
  for (int i = thread_index(); i < kQueries<T, W>; i += kThreads) {
    const bool inside = first + i < p.selected;
    shared.position[i] = static_cast<int>(index(i));
    shared.lse[i] = inside ? p.lse[entry * p.selected + first + i] * kLog2E : 0.0f;
    shared.delta[i] = inside ? p.delta[entry * p.selected + first + i] : 0.0f;
  }
}

// Computes weights and dS of a warp's keys and kChunk queries, from the scores and dO V^T; zero for a masked pair.
template <typename T, int W>
SIMMST_DEVICE void weigh(const BackwardParameters& p, const Shared<T, W>& shared, TileC (&weights)[kChunk / 8],
                         TileC (&grads)[kChunk / 8], int64_t entry, int64_t first_key, int first_query) {
  const int64_t keys = p.key.matrices.rows;
  SIMMST_UNROLL
  for (int n = 0; n < kChunk / 8; ++n) {
    SIMMST_UNROLL
    for (int part = 0; part < 4; ++part) {
      const int i = first_query + 8 * n + tile_column() + part % 2, position = shared.position[i];
      const int64_t key = first_key + tile_row() + 8 * (part / 2);
      float& weight = weights[n].part[part];
      float& grad = grads[n].part[part];
      const bool visible = position >= 0 && key < keys && (!p.is_causal || key <= position);
      const float probability = visible ? exp2_approx(weight * (p.scale * kLog2E) - shared.lse[i]) : 0.0f;
      float kept = 1.0f;
      if (p.dropout.seed != nullptr && visible) {
        const PhiloxWords words = dropout_words(p.dropout, entry, position, key);
        const int word = static_cast<int>(key % 4);
        const std::uint32_t drawn =
            word < 2 ? (word == 0 ? words.word[0] : words.word[1]) : (word == 2 ? words.word[2] : words.word[3]);
        kept = drawn >= p.dropout.threshold ? p.dropout.factor : 0.0f;
      }
      weight = probability * kept;
      grad = visible ? probability * (grad * kept - shared.delta[i]) : 0.0f;
    }
  }
}

template <typename T, int W>
SIMMST_DEVICE void store_turned(const Shared<T, W>& shared, const TileC (&grads)[kChunk / 8], int first_query) {
  T* to = shared.turned + (warp_index() * kWarpRows + tile_row()) * Shared<T, W>::kTurnedPitch + first_query +
          tile_column();
  SIMMST_UNROLL
  for (int n = 0; n < kChunk / 8; ++n) {
    SIMMST_UNROLL
    for (int r = 0; r < 2; ++r) {
      float x = grads[n].part[2 * r], y = grads[n].part[2 * r + 1];
      SIMMST_UNROLL
      for (int term = 0; term < Shared<T, W>::kTerms; ++term) {
        const Pack<T, 2> pair{{from_float<T>(x), from_float<T>(y)}};
        store_pack(to + (term * kTile + 8 * r) * Shared<T, W>::kTurnedPitch + 8 * n, pair);
        x -= to_float(pair.at[0]);
        y -= to_float(pair.at[1]);
      }
    }
  }
}

// Writes a warp's 16 rows of dK or dV through their tile in shared memory, so that whole rows are written.
template <typename T, int W>
SIMMST_DEVICE void store_rows(const TileC (&sum)[W / 8], float factor, const float* rest, int rest_pitch, T* tile,
                              const Rows<T>& to, int64_t first_key) {
  constexpr int kPitch = Products<T, W>::kPitch, kPart = 16 / static_cast<int>(sizeof(T));
  const int first = warp_index() * kWarpRows;
  SIMMST_UNROLL
  for (int c = 0; c < W / 8; ++c) {
    SIMMST_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row = first + tile_row() + 8 * r, column = 8 * c + tile_column();
      float x = sum[c].part[2 * r] * factor, y = sum[c].part[2 * r + 1] * factor;
      if (rest != nullptr) {
        x += rest[row * rest_pitch + column];
        y += rest[row * rest_pitch + column + 1];
      }
      store_pack(tile + row * kPitch + column, Pack<T, 2>{{from_float<T>(x), from_float<T>(y)}});
    }
  }
  sync_warp();
  for (int i = lane_index(); i < kWarpRows * (W / kPart); i += kWarp) {
    const int row = first + i / (W / kPart), column = i % (W / kPart) * kPart;
    if (first_key + row < to.count && column < to.columns)
      write_part(to, to.row(first_key + row), column, load_pack<Pack<T, kPart>>(tile + row * kPitch + column));
  }
}

// Moves the block's part of dQ for a warp's 16 selected queries between registers and workspace.
template <int W, typename Move>
SIMMST_DEVICE void for_grad_query(const BackwardParameters& p, TileC (&sum)[W / 8], int64_t part, int64_t first,
                                  const Move& move) {
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int64_t i = first + warp_index() * kWarpRows + tile_row() + 8 * r;
    if (i >= p.selected) continue;
    float* at = p.grad_parts + (part * p.selected + i) * W + tile_column();
    SIMMST_UNROLL
    for (int c = 0; c < W / 8; ++c) move(at + 8 * c, sum[c].part[2 * r], sum[c].part[2 * r + 1]);
  }
}

template <typename T, int W>
SIMMST_KERNEL(kThreads, blocks_beside(W))
backward_span(const BackwardParameters p) {
  using Product = Products<T, W>;
  constexpr int kPitch = Product::kPitch;
  const int64_t part = block_index().x, entry = part / p.spans.keys, span = part % p.spans.keys;
  const bool running = p.has_fill && p.fill != Fill::kMean;
  const Shared<T, W> shared(running);
  const Rows<const T> key = rows_of<const T>(p.key, p.batch, entry), value = rows_of<const T>(p.value, p.batch, entry);
  const int64_t begin = span * p.spans.size;
  int64_t end = running && p.query.matrices.rows > key.count ? p.query.matrices.rows : key.count;
  end = end < begin + p.spans.size ? end : begin + p.spans.size;
  const bool one_query_tile = p.selected <= kQueries<T, W>;
  const bool keeps_grad_query = W <= 64 && one_query_tile;  // kept in registers from tile to tile
  const int first_row = warp_index() * kWarpRows;
  RunningRest<T, W> rest(p, entry, span);
  if (!running) constant_rest<W>(p, entry, shared.rest);
  if (one_query_tile) start_queries(p, shared, entry, 0);

  TileC grad_query[W / 8];
  bool is_first = true;
  for (int64_t first = begin + (end - begin - 1) / kTile * kTile; first >= begin; first -= kTile) {
    if (running) rest.add_tile(shared, first);
    if (first >= key.count) continue;
    sync_block();
    start_tile<W>(shared.keys, kPitch, key, first, key.count);
    start_tile<W>(shared.values, kPitch, value, first, key.count);
    TileC grad_key[W / 8], grad_value[W / 8];
    for (int64_t first_query = 0; first_query < p.selected; first_query += kQueries<T, W>) {
      if (!one_query_tile) start_queries(p, shared, entry, first_query);
      finish_copies();
      const int64_t left = p.selected - first_query;
      const int count = static_cast<int>(left < kQueries<T, W> ? left : kQueries<T, W>);
      for (int i = 0; i < count; i += kChunk) {
        TileC weights[kChunk / 8], grads[kChunk / 8];
        Product::scores(weights, Product::left(shared.keys + first_row * kPitch), shared.queries + i * kPitch);
        Product::scores(grads, Product::left(shared.values + first_row * kPitch), shared.grads + i * kPitch);
        weigh(p, shared, weights, grads, entry, first + first_row, i);
        store_turned(shared, grads, i);
        Product::update(grad_value, weights, shared.grads + i * kPitch, shared.scratch);
        Product::update(grad_key, grads, shared.queries + i * kPitch, shared.scratch);
      }
      sync_block();
      if (first_row < count) {
        if (!keeps_grad_query) {
          SIMMST_UNROLL
          for (int c = 0; c < W / 8; ++c) grad_query[c] = TileC();
          if (!is_first)
            for_grad_query<W>(p, grad_query, part, first_query, [](const float* at, float& x, float& y) {
              const auto pair = load_pack<Pack<float, 2>>(at);
              x = pair.at[0];
              y = pair.at[1];
            });
        }
        Product::update_transposed(grad_query, shared.turned + first_row, Shared<T, W>::kTurnedPitch, shared.keys);
        if (!keeps_grad_query || first == begin)
          for_grad_query<W>(p, grad_query, part, first_query,
                            [](float* at, float& x, float& y) { store_pack(at, Pack<float, 2>{{x, y}}); });
      }
      sync_block();
    }
    if (p.selected == 0) finish_copies();
    is_first = false;
    store_rows<T, W>(grad_key, p.scale, nullptr, 0, shared.keys, rows_of<T>(p.grad_key, p.batch, entry), first);
    store_rows<T, W>(grad_value, 1.0f, shared.rest, running ? W : 0, shared.values,
                     rows_of<T>(p.grad_value, p.batch, entry), first);
  }
}

// ---- 3

template <typename T, int W>
SIMMST_KERNEL(kThreads)
finish_grad_query(const BackwardParameters p) {
  constexpr int kPart = 16 / static_cast<int>(sizeof(T));
  const int64_t entry = block_index().x / p.spans.rows, chunk = block_index().x % p.spans.rows;
  const Rows<T> grad = rows_of<T>(p.grad_query, p.batch, entry);
  const int64_t first = chunk * p.spans.size, past = first + p.spans.size, end = past < grad.count ? past : grad.count;
  constexpr int kAcross = W / kPart;
  const int64_t* top = p.top + entry * p.selected;
  const int column = thread_index() % kAcross * kPart;
  for (int64_t row = first + thread_index() / kAcross; row < end; row += kThreads / kAcross)
    if (column < grad.columns) write_part(grad, grad.row(row), column, Pack<T, kPart>{});
  sync_block();
  for (int64_t i = warp_index(); i < p.selected; i += kThreads / kWarp) {
    const int64_t row = clamp_index(top[i], grad.count);
    if (row < first || row >= end) continue;
    for (int c = lane_index(); c < grad.columns; c += kWarp) {
      float sum = 0.0f;
      for (int64_t s = 0; s < p.spans.keys; ++s)
        sum += p.grad_parts[((entry * p.spans.keys + s) * p.selected + i) * W + c];
      grad.row(row)[c] = from_float<T>(sum * p.scale);
    }
  }
}

Spans spans_of_call(const BackwardCall& call, const Queue& queue) {
  const Problem& problem = call.forward.problem;
  return spans_of(problem.key.matrices.rows, problem.query.matrices.rows, problem.batch.count,
                  blocks_beside(problem.width) * static_cast<int64_t>(device_limits(queue.device).multiprocessors));
}

}  // namespace

int64_t backward_workspace(const BackwardCall& call, const Queue& queue) {
  const Problem& problem = call.forward.problem;
  return simmst::prob_sparse::backward_workspace(problem.batch.count, spans_of_call(call, queue), call.forward.selected,
                                                 problem.width);
}

void backward(const BackwardCall& call, const Queue& queue) {
  const AttendCall& forward = call.forward;
  const Problem& problem = forward.problem;
  const int64_t queries = problem.query.matrices.rows, keys = problem.key.matrices.rows, batch = problem.batch.count;
  if (batch == 0) return;
  const Spans spans = spans_of_call(call, queue);
  auto* rest = static_cast<double*>(forward.workspace);
  auto* grad_parts = reinterpret_cast<float*>(rest + batch * spans.rows * problem.width);
  float* delta = grad_parts + batch * spans.keys * forward.selected * problem.width;
  const BackwardParameters p{problem.batch,
                             problem.query,
                             problem.key,
                             forward.value,
                             forward.out,
                             call.grad_out,
                             call.grad_query,
                             call.grad_key,
                             call.grad_value,
                             forward.top,
                             forward.selected,
                             spans,
                             forward.scale,
                             forward.is_causal,
                             forward.selected < queries,
                             forward.fill,
                             forward.dropout,
                             forward.lse,
                             rest,
                             grad_parts,
                             delta};
  for_type_and_width(problem.type, problem.width, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kWidth = decltype(width)::value;
    const auto start = [&](const char* name, auto kernel, int64_t blocks, std::size_t bytes) {
      if (blocks == 0) return;  // no rows
      launch({name,
              {blocks},
              kThreads,
              bytes,
              queue.stream,
              {{"batch", batch}, {"L_Q", queries}, {"L_K", keys}, {"u", forward.selected}, {"width", kWidth}}},
             kernel, p);
    };
    const bool running = p.has_fill && p.fill != Fill::kMean;
    start("prob_sparse sum_rows", sum_rows<T, kWidth>, batch * spans.rows, kSumBytes);
    start("prob_sparse backward_span", backward_span<T, kWidth>, batch * spans.keys, Shared<T, kWidth>::bytes(running));
    start("prob_sparse finish_grad_query", finish_grad_query<T, kWidth>, batch * spans.rows, 0);
  });
}

}  // namespace simmst::cuda::prob_sparse
