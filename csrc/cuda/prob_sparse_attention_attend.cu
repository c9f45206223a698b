// Attention in the selected rows, and the fill in the others: two launches.
//
//   1. A block goes through a span of keys for 64 selected queries: 16 queries per warp, tiles of 64 keys and values
//      double-buffered, online softmax. One more "query", whose weights are all one, collects the sum of the values, so
//      that the fill needs no pass of its own.
//   2. A block finishes the rows of a span: it combines the spans' parts in order, and writes every row once. A filled
//      row gets the mean, or the running sum continued from the sums of the spans before.
//
// Counts for bfloat16, D = 64, 64 heads, a row of 128 bytes: launch 1 reads K and V once (2 L
// rows), launch 2 writes L rows (and reads V again for a running fill); parts are 64 * 8 * (u + 1) * 264 bytes.
// L = 4096: 67 + 6 MB, then 6 + 34 MB, 26 us at 4.3 TB/s; products of 2 * 64 * 48 * 64 * L, 1.6 GFLOP each
// (u = 45). There are three, because the weights have two terms: 5 GFLOP, 12 us at 400 TFLOP/s, hidden under the loads.
#include "cuda/prob_sparse_attention_attend.cuh"

namespace simmst::cuda::prob_sparse {
namespace {

using namespace simmst::prob_sparse;

constexpr int kThreads = 128, kFinishThreads = 256;

struct AttendParameters {
  Batch batch;
  Operand query, key, value;
  const int64_t* top;
  int64_t selected, rows, query_tiles;
  Spans spans;
  Softmax softmax;
  float* sums;      // (batch, spans, rows, W)
  float* extremes;  // (batch, spans, rows, 2)
};

// Tiles of keys and of values in shared memory; two do not fit for the widest rows on compute capability 8.0.
template <typename T, int W>
constexpr int kBuffers = sizeof(T) * W > 256 ? 1 : 2;

template <typename T, int W>
constexpr std::size_t attend_bytes(int threads) {
  using Product = Products<T, W>;
  const int warps = threads / kWarp;
  return (static_cast<std::size_t>(warps) * kWarpRows + 2 * kBuffers<T, W> * kTile) * Product::kPitch * sizeof(T) +
         static_cast<std::size_t>(warps) * Product::kScratch * sizeof(float);
}

template <typename T, int W>
SIMMST_KERNEL(kThreads)
attend_span(const AttendParameters p) {
  using Product = Products<T, W>;
  constexpr int kTileEntries = kTile * Product::kPitch;
  const int64_t item = block_index().x, tile = item % p.query_tiles, part = item / p.query_tiles;
  const int64_t entry = part / p.spans.keys, span = part % p.spans.keys;
  const Rows<const T> query = rows_of<const T>(p.query, p.batch, entry), key = rows_of<const T>(p.key, p.batch, entry),
                      value = rows_of<const T>(p.value, p.batch, entry);
  const int warps = block_threads() / kWarp;
  T* queries = reinterpret_cast<T*>(shared_memory());
  T* buffers = queries + warps * kWarpRows * Product::kPitch;  // kBuffers of keys and values
  float* scratch =
      reinterpret_cast<float*>(buffers + 2 * kBuffers<T, W> * kTileEntries) + warp_index() * Product::kScratch;
  const int64_t* top = p.top + entry * p.selected;
  const int64_t begin = span * p.spans.size, past = begin + p.spans.size;
  const int64_t end = past < key.count ? past : key.count;
  const auto selected_query = [&](int64_t i) {
    return i < p.selected ? clamp_index(top[i], query.count) : int64_t{-1};
  };
  const auto buffer_of = [&](int64_t first) {
    return buffers + (first - begin) / kTile % kBuffers<T, W> * 2 * kTileEntries;
  };
  const auto start = [&](int64_t first) {
    T* buffer = buffer_of(first);
    start_tile<W>(buffer, Product::kPitch, key, first, end);
    start_tile<W>(buffer + kTileEntries, Product::kPitch, value, first, end);
    commit_copies();
  };

  start_rows<W>(queries, Product::kPitch, query, warps * kWarpRows,
                [&](int r) { return selected_query(tile * kTile + r); });
  start(begin);
  const int64_t first_row = tile * kTile + warp_index() * kWarpRows;
  LaneRows rows;
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) rows.query[r] = selected_query(first_row + tile_row() + 8 * r);
  TileC sum[W / 8];
  for (int64_t first = begin; first < end; first += kTile) {
    if (kBuffers<T, W> == 2 && first + kTile < end) {
      start(first + kTile);
      wait_for_copies<1>();
    } else {
      if (kBuffers<T, W> == 1 && first > begin) start(first);
      wait_for_copies<0>();
    }
    sync_block();
    const T* keys = buffer_of(first);
    if (first_row < p.rows)
      attend_tile<T, W>(p.softmax, queries + warp_index() * kWarpRows * Product::kPitch, keys, keys + kTileEntries,
                        rows, sum, entry, first, scratch);
    sync_block();
  }
  if (first_row < p.rows) store_partial<W>({p.sums, p.extremes, p.rows}, sum, rows, part, first_row, p.rows);
}

struct FinishParameters {
  Batch batch;
  Operand value, out;
  const int64_t* top;
  int64_t selected, rows;
  Spans spans;
  Fill fill;
  float* sums;
  float* extremes;
  float* lse;
};

template <typename T, int W>
SIMMST_KERNEL(kFinishThreads)
finish_rows(const FinishParameters p) {
  const int64_t entry = block_index().x / p.spans.rows, chunk = block_index().x % p.spans.rows;
  const int64_t parts = entry * p.spans.keys * p.rows;
  const OutputRows<T> rows{rows_of<T>(p.out, p.batch, entry),
                           {p.sums + parts * W, p.extremes + parts * 2, p.rows},
                           p.spans.keys,
                           p.value.matrices.rows,
                           p.top + entry * p.selected,
                           p.selected,
                           p.fill,
                           p.lse + entry * p.selected};
  const int64_t first = chunk * p.spans.size, past = first + p.spans.size;
  const int64_t end = past < rows.out.count ? past : rows.out.count;
  if (p.selected == rows.out.count) {
    // All rows are selected.
  } else if (p.fill == Fill::kMean) {
    fill_with_mean<W>(rows, shared_memory(), first, end);
  } else {
    const Rows<const T> value = rows_of<const T>(p.value, p.batch, entry);
    const double sum = sum_of_values<W>(rows, chunk < p.spans.keys ? chunk : p.spans.keys, thread_index() % W);
    fill_with_running_sum<W, kFinishThreads>(rows, shared_memory(), first, end, sum,
                                             [&](int64_t i) { return value.row(i); });
  }
  sync_block();
  combine_rows<W>(rows, first, end);
}

Spans spans_of_call(const AttendCall& call, const Queue& queue) {
  const Problem& problem = call.problem;
  const int64_t rows = attend_rows(call.selected, problem.query.matrices.rows);
  const int64_t entries = problem.batch.count * ceil_div(rows > 0 ? rows : 1, kTileRows);
  return spans_of(problem.key.matrices.rows, problem.query.matrices.rows, entries,
                  4 * static_cast<int64_t>(device_limits(queue.device).multiprocessors));
}

}  // namespace

int64_t attend_workspace(const AttendCall& call, const Queue& queue) {
  const Problem& problem = call.problem;
  return simmst::prob_sparse::attend_workspace(problem.batch.count, spans_of_call(call, queue).keys,
                                               attend_rows(call.selected, problem.query.matrices.rows), problem.width);
}

void attend(const AttendCall& call, const Queue& queue) {
  const Problem& problem = call.problem;
  const int64_t queries = problem.query.matrices.rows, keys = problem.key.matrices.rows, batch = problem.batch.count;
  if (batch == 0 || queries == 0) return;
  const Spans spans = spans_of_call(call, queue);
  const int64_t rows = attend_rows(call.selected, queries), tiles = ceil_div(rows, kTileRows);
  float* sums = static_cast<float*>(call.workspace);
  float* extremes = sums + batch * spans.keys * rows * problem.width;
  const AttendParameters first{
      problem.batch, problem.query, problem.key, call.value, call.top,
      call.selected, rows,          tiles,       spans,      {keys, call.scale * kLog2E, call.is_causal, call.dropout},
      sums,          extremes};
  const FinishParameters second{problem.batch, call.value, call.out, call.top, call.selected, rows,
                                spans,         call.fill,  sums,     extremes, call.lse};
  const int threads = static_cast<int>(ceil_div(rows < kTileRows ? rows : kTileRows, kWarpRows)) * kWarp;
  for_type_and_width(problem.type, problem.width, [&](auto entry, auto width) {
    using T = decltype(entry);
    constexpr int kWidth = decltype(width)::value;
    launch({"prob_sparse attend_span",
            {batch * spans.keys * tiles},
            threads,
            attend_bytes<T, kWidth>(threads),
            queue.stream,
            {{"batch", batch}, {"L_Q", queries}, {"L_K", keys}, {"u", call.selected}, {"width", kWidth}}},
           attend_span<T, kWidth>, first);
    launch({"prob_sparse finish_rows",
            {batch * spans.rows},
            kFinishThreads,
            fill_bytes<kFinishThreads>(),
            queue.stream,
            {{"batch", batch}, {"L_Q", queries}, {"L_K", keys}, {"u", call.selected}, {"width", kWidth}}},
           finish_rows<T, kWidth>, second);
  });
}

}  // namespace simmst::cuda::prob_sparse
