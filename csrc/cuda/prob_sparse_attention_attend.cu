// Attention in the selected rows, and the fill in the others: two launches.
//
//   1. A block works through a span of keys for 64 selected queries: 16 queries a warp, tiles of 64 keys and values
//      double-buffered, online softmax. One more "query", whose weights are all one, collects the sum of the values, so
//      that the fill costs no pass of its own.
//   2. A block finishes the rows beside a span: combines the spans' parts in their order, and writes every row once, the
//      mean, or the running sum continued from the sums of the spans before.
//
// Not run on a GPU yet. Counts for bfloat16, D = 64, 64 heads, a row of 128 bytes: launch 1 reads K and V once (2 L rows),
// launch 2 writes L rows (and reads V again for a running fill); parts are 64 * 8 * (u + 1) * 264 bytes. L = 4096:
// 67 + 6 MB, then 6 + 34 MB, 26 us at 4.3 TB/s; products 4 * 64 * 64 * L * 64 = 4.3 GFLOP, 64 rows of which are padding
// for u = 45, 11 us at 400 TFLOP/s, under the loads.
#include "cuda/prob_sparse_attention_tiles.cuh"

namespace simmst::cuda::prob_sparse {
namespace {

using namespace simmst::prob_sparse;

constexpr int kThreads = 128;
constexpr int kWindow = 128;  // rows finished at a time

struct AttendParameters {
  Batch batch;
  Operand query, key, value;
  const int64_t* top;
  int64_t selected, rows, query_tiles;
  Spans spans;
  float scale;  // of scores in base 2
  bool is_causal;
  Dropout dropout;
  float* sums;      // (batch, spans, rows, W)
  float* extremes;  // (batch, spans, rows, 2): largest score, and total of its exponentials
};

// What a lane knows of its two rows.
struct LaneRows {
  int64_t query[2];  // -1 for the fill
  float largest[2] = {-kInfinity, -kInfinity};
  float total[2] = {0.0f, 0.0f};
};

// Scores to weights, and the factor that the sums so far take.
template <int N>
SIMMST_DEVICE void online_softmax(const AttendParameters& p, TileC (&c)[N], LaneRows& rows, float (&factor)[2],
                                  int64_t first_key) {
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int64_t keys = p.key.matrices.rows;
    const int64_t end = p.is_causal && rows.query[r] < keys ? rows.query[r] + 1 : keys;
    const int visible = static_cast<int>(end - first_key < kTile ? end - first_key : kTile) - tile_column();
    float largest = rows.largest[r];
    SIMMST_UNROLL
    for (int n = 0; n < N; ++n) {
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        float& score = c[n].part[2 * r + j];
        score = 8 * n + j < visible ? score * p.scale : -kInfinity;
        largest = score > largest ? score : largest;
      }
    }
    largest = reduce_warp<4>(largest, Maximum{});
    const float base = largest == -kInfinity ? 0.0f : largest;  // never -inf minus -inf
    float total = 0.0f;
    const bool is_fill = rows.query[r] < 0;
    SIMMST_UNROLL
    for (int n = 0; n < N; ++n) {
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        float& weight = c[n].part[2 * r + j];
        weight = is_fill ? 1.0f : exp2_approx(weight - base);
        total += weight;
      }
    }
    factor[r] = is_fill ? 1.0f : exp2_approx(rows.largest[r] - base);
    rows.largest[r] = largest;
    rows.total[r] = rows.total[r] * factor[r] + total;
  }
}

template <int N>
SIMMST_DEVICE void drop_weights(const Dropout& dropout, TileC (&c)[N], const LaneRows& rows, int64_t entry,
                                int64_t first_key) {
  const int word = tile_column() % 4;
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    if (rows.query[r] < 0) continue;
    SIMMST_UNROLL
    for (int n = 0; n < N; ++n) {
      const PhiloxWords words = dropout_words(dropout, entry, rows.query[r], first_key + 8 * n + tile_column());
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        const std::uint32_t drawn = word == 0 ? words.word[j] : words.word[2 + j];
        c[n].part[2 * r + j] *= drawn >= dropout.threshold ? dropout.factor : 0.0f;
      }
    }
  }
}

template <typename T, int W>
SIMMST_DEVICE void store_sums(const AttendParameters& p, const TileC (&sum)[W / 8], LaneRows& rows, int64_t part,
                              int64_t first_row) {
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float total = reduce_warp<4>(rows.total[r], Sum{});
    const int64_t i = first_row + tile_row() + 8 * r;
    if (i >= p.rows) continue;
    float* to = p.sums + (part * p.rows + i) * W + tile_column();
    SIMMST_UNROLL
    for (int c = 0; c < W / 8; ++c)
      store_pack(to + 8 * c, Pack<float, 2>{{sum[c].part[2 * r], sum[c].part[2 * r + 1]}});
    if (tile_column() == 0) store_pack(p.extremes + (part * p.rows + i) * 2, Pack<float, 2>{{rows.largest[r], total}});
  }
}

template <typename T, int W>
constexpr std::size_t attend_bytes(int threads) {
  using Product = Products<T, W>;
  const int warps = threads / kWarp;
  return (static_cast<std::size_t>(warps) * kWarpRows + 4 * kTile) * Product::kPitch * sizeof(T) +
         static_cast<std::size_t>(warps) * Product::kScratch * sizeof(float);
}

template <typename T, int W>
SIMMST_KERNEL(kThreads) attend_span(const AttendParameters p) {
  using Product = Products<T, W>;
  constexpr int kTileEntries = kTile * Product::kPitch;
  const int64_t item = block_index().x, tile = item % p.query_tiles, part = item / p.query_tiles;
  const int64_t entry = part / p.spans.keys, span = part % p.spans.keys;
  const Rows<const T> query = rows_of<const T>(p.query, p.batch, entry), key = rows_of<const T>(p.key, p.batch, entry),
                      value = rows_of<const T>(p.value, p.batch, entry);
  const int warps = block_threads() / kWarp;
  T* queries = reinterpret_cast<T*>(shared_memory());
  T* buffers = queries + warps * kWarpRows * Product::kPitch;  // two of keys and values
  float* scratch = reinterpret_cast<float*>(buffers + 4 * kTileEntries) + warp_index() * Product::kScratch;
  const int64_t* top = p.top + entry * p.selected;
  const int64_t begin = span * p.spans.size, past = begin + p.spans.size;
  const int64_t end = past < key.count ? past : key.count;
  const auto selected_query = [&](int64_t i) {
    return i < p.selected ? clamp_index(top[i], query.count) : int64_t{-1};
  };
  const auto start = [&](int64_t first) {
    T* buffer = buffers + (first - begin) / kTile % 2 * 2 * kTileEntries;
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
    if (first + kTile < end) {
      start(first + kTile);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    sync_block();
    const T* keys = buffers + (first - begin) / kTile % 2 * 2 * kTileEntries;
    if (first_row < p.rows) {
      TileC c[kTile / 8];
      Product::scores(c, Product::left(queries + warp_index() * kWarpRows * Product::kPitch), keys);
      float factor[2];
      online_softmax(p, c, rows, factor, first);
      if (p.dropout.seed != nullptr) drop_weights(p.dropout, c, rows, entry, first);
      SIMMST_UNROLL
      for (int i = 0; i < W / 8; ++i) {
        SIMMST_UNROLL
        for (int j = 0; j < 4; ++j) sum[i].part[j] *= factor[j / 2];
      }
      Product::update(sum, c, keys + kTileEntries, scratch);
    }
    sync_block();
  }
  if (first_row < p.rows) store_sums<T, W>(p, sum, rows, part, first_row);
}

struct FinishParameters {
  Batch batch;
  Operand value, out;
  const int64_t* top;
  int64_t selected, rows;
  Spans spans;
  Fill fill;
  const float* sums;
  const float* extremes;
  float* lse;
};

// The selected rows of a span of rows, a warp each: the parts weighted by their totals, in the order of the spans.
template <typename T, int W>
SIMMST_DEVICE void combine_selected(const FinishParameters& p, const Rows<T>& out, int64_t entry, int64_t first,
                                    int64_t end) {
  const int64_t* top = p.top + entry * p.selected;
  for (int64_t i = warp_index(); i < p.selected; i += block_threads() / kWarp) {
    const int64_t row = clamp_index(top[i], out.count);
    if (row < first || row >= end) continue;
    const int64_t part = entry * p.spans.keys * p.rows + i;
    float largest = -kInfinity;
    for (int64_t s = 0; s < p.spans.keys; ++s) {
      const float one = p.extremes[(part + s * p.rows) * 2];
      largest = one > largest ? one : largest;
    }
    const float base = largest == -kInfinity ? 0.0f : largest;
    float total = 0.0f, sum[(W + kWarp - 1) / kWarp] = {};
    for (int64_t s = 0; s < p.spans.keys; ++s) {
      const int64_t at = part + s * p.rows;
      const float weight = exp2_approx(p.extremes[at * 2] - base);
      total += weight * p.extremes[at * 2 + 1];
      SIMMST_UNROLL
      for (int c = 0; c < (W + kWarp - 1) / kWarp; ++c) {
        const int column = lane_index() + kWarp * c;
        if (column < W) sum[c] += weight * p.sums[at * W + column];
      }
    }
    SIMMST_UNROLL
    for (int c = 0; c < (W + kWarp - 1) / kWarp; ++c) {
      const int column = lane_index() + kWarp * c;
      if (column < out.columns) out.row(row)[column] = from_float<T>(sum[c] / total);
    }
    if (lane_index() == 0) p.lse[entry * p.selected + i] = (base + log2f(total)) * kLn2;
  }
}

// Sums of the values of spans [0, count), for the columns of a thread: the part of the query that the fill is.
template <int W>
SIMMST_DEVICE double values_before(const FinishParameters& p, int64_t entry, int64_t count, int column) {
  double sum = 0.0;
  for (int64_t s = 0; s < count; ++s)
    sum += static_cast<double>(p.sums[((entry * p.spans.keys + s) * p.rows + p.selected) * W + column]);
  return sum;
}

template <typename T, int W>
SIMMST_DEVICE void fill_with_mean(const FinishParameters& p, const Rows<T>& out, bool* flags, int64_t entry,
                                  int64_t first, int64_t end) {
  constexpr int kPart = 16 / static_cast<int>(sizeof(T));
  T* mean = reinterpret_cast<T*>(flags + kWindow);  // (W)
  for (int c = thread_index(); c < W; c += block_threads()) {
    const double keys = static_cast<double>(p.value.matrices.rows);
    mean[c] = from_float<T>(static_cast<float>(values_before<W>(p, entry, p.spans.keys, c) / keys));
  }
  for (int64_t window = first; window < end; window += kWindow) {
    const int count = static_cast<int>(end - window < kWindow ? end - window : kWindow);
    mark_selected(flags, p.top + entry * p.selected, p.selected, window, count);
    for (int i = thread_index(); i < count * (W / kPart); i += block_threads()) {
      const int row = i / (W / kPart), column = i % (W / kPart) * kPart;
      if (!flags[row] && column < out.columns)
        write_part(out, out.row(window + row), column, load_pack<Pack<T, kPart>>(mean + column));
    }
  }
}

// A thread has one column and a run of the window's rows; the runs' sums are added up in their order first.
template <typename T, int W>
SIMMST_DEVICE void fill_with_running_sum(const FinishParameters& p, const Rows<T>& out, bool* flags, int64_t entry,
                                         int64_t first, int64_t end) {
  constexpr int kRuns = kThreads / W, kRun = kWindow / kRuns;
  const Rows<const T> value = rows_of<const T>(p.value, p.batch, entry);
  double* run_sums = reinterpret_cast<double*>(flags + kWindow);  // (kRuns, W)
  const int column = thread_index() % W, run = thread_index() / W;
  const int64_t span = first / p.spans.size;
  double sum = values_before<W>(p, entry, span < p.spans.keys ? span : p.spans.keys, column);
  const bool inside = column < out.columns;
  const auto value_at = [&](int64_t i) {
    return inside && i < value.count ? static_cast<double>(to_float(value.row(i)[column])) : 0.0;
  };
  for (int64_t window = first; window < end; window += kWindow) {
    const int count = static_cast<int>(end - window < kWindow ? end - window : kWindow);
    mark_selected(flags, p.top + entry * p.selected, p.selected, window, count);
    double mine = 0.0;
    for (int i = 0; i < kRun; ++i) mine += value_at(window + run * kRun + i);
    run_sums[run * W + column] = mine;
    sync_block();
    double running = sum;
    for (int before = 0; before < kRuns; ++before) {
      if (before < run) running += run_sums[before * W + column];
      sum += run_sums[before * W + column];
    }
    for (int i = run * kRun; i < (run + 1) * kRun && i < count; ++i) {
      const int64_t row = window + i;
      running += value_at(row);
      const int64_t visible = row + 1 < value.count ? row + 1 : value.count;
      const double result = p.fill == Fill::kCummean ? running / static_cast<double>(visible) : running;
      if (inside && !flags[i]) out.row(row)[column] = from_float<T>(static_cast<float>(result));
    }
  }
}

constexpr std::size_t kFinishBytes = kWindow * sizeof(bool) + kThreads * sizeof(double);

template <typename T, int W>
SIMMST_KERNEL(kThreads) finish_rows(const FinishParameters p) {
  const int64_t entry = block_index().x / p.spans.rows, chunk = block_index().x % p.spans.rows;
  const Rows<T> out = rows_of<T>(p.out, p.batch, entry);
  const int64_t first = chunk * p.spans.size, past = first + p.spans.size, end = past < out.count ? past : out.count;
  bool* flags = reinterpret_cast<bool*>(shared_memory());
  combine_selected<T, W>(p, out, entry, first, end);
  if (p.selected == out.count) return;
  if (p.fill == Fill::kMean) {
    fill_with_mean<T, W>(p, out, flags, entry, first, end);
  } else {
    fill_with_running_sum<T, W>(p, out, flags, entry, first, end);
  }
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
  const AttendParameters first{problem.batch, problem.query, problem.key, call.value, call.top, call.selected, rows, tiles,
                               spans, call.scale * kLog2E, call.is_causal, call.dropout, sums, extremes};
  const FinishParameters second{problem.batch, call.value, call.out, call.top, call.selected, rows, spans, call.fill, sums,
                                extremes, call.lse};
  const int threads = static_cast<int>(ceil_div(rows < kTileRows ? rows : kTileRows, kWarpRows)) * kWarp;
  for_type_and_width(problem.type, problem.width, [&](auto entry, auto width) {
    using T = decltype(entry);
    constexpr int kWidth = decltype(width)::value;
    launch({"prob_sparse attend_span", {batch * spans.keys * tiles}, threads, attend_bytes<T, kWidth>(threads), queue.stream,
            {{"batch", batch}, {"L_Q", queries}, {"L_K", keys}, {"u", call.selected}, {"width", kWidth}}},
           attend_span<T, kWidth>, first);
    launch({"prob_sparse finish_rows", {batch * spans.rows}, kThreads, kFinishBytes, queue.stream,
            {{"batch", batch}, {"L_Q", queries}, {"L_K", keys}, {"u", call.selected}, {"width", kWidth}}},
           finish_rows<T, kWidth>, second);
  });
}

}  // namespace simmst::cuda::prob_sparse
