// Attention of a warp's 16 queries, one tile of keys after another, with the running maximum and total of an online
// softmax. A row can stand for the fill instead: all its weights are one, and it collects the sum of the values.
#pragma once

#include "cuda/prob_sparse_attention_tiles.cuh"

namespace simmst::cuda::prob_sparse {

struct Softmax {
  int64_t keys;
  float scale;  // scale of scores in base 2
  bool is_causal;
  Dropout dropout;
};

// A lane's state for its two rows.
struct LaneRows {
  int64_t query[2];  // -1 for the fill
  float largest[2] = {-kInfinity, -kInfinity};
  float total[2] = {0.0f, 0.0f};
};

// Turns scores into weights, and computes the factor for the sums so far.
template <int N>
SIMMST_DEVICE void online_softmax(const Softmax& how, TileC (&c)[N], LaneRows& rows, float (&factor)[2],
                                  int64_t first_key) {
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int64_t end = how.is_causal && rows.query[r] < how.keys ? rows.query[r] + 1 : how.keys;
    const int visible = static_cast<int>(end - first_key < kTile ? end - first_key : kTile) - tile_column();
    float largest = rows.largest[r];
    SIMMST_UNROLL
    for (int n = 0; n < N; ++n) {
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        float& score = c[n].part[2 * r + j];
        score = 8 * n + j < visible ? score * how.scale : -kInfinity;
        largest = score > largest ? score : largest;
      }
    }
    largest = reduce_warp<4>(largest, Maximum{});
    const float base = largest == -kInfinity ? 0.0f : largest;  // avoids -inf minus -inf
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

// Processes a tile of keys and values for a warp's 16 queries.
template <typename T, int W>
SIMMST_DEVICE void attend_tile(const Softmax& how, const T* queries, const T* keys, const T* values, LaneRows& rows,
                               TileC (&sum)[W / 8], int64_t entry, int64_t first_key, float* scratch) {
  using Product = Products<T, W>;
  TileC c[kTile / 8];
  Product::scores(c, Product::left(queries), keys);
  float factor[2];
  online_softmax(how, c, rows, factor, first_key);
  if (how.dropout.seed != nullptr) drop_weights(how.dropout, c, rows, entry, first_key);
  SIMMST_UNROLL
  for (int i = 0; i < W / 8; ++i) {
    SIMMST_UNROLL
    for (int j = 0; j < 4; ++j) sum[i].part[j] *= factor[j / 2];
  }
  Product::update(sum, c, values, scratch);
}

// The partial results of rows over spans of keys: W sums, and the largest score and total of the exponentials of each
// row.
struct PartialRows {
  float* sums;
  float* extremes;
  int64_t per_span;  // rows
};

// Stores the 16 rows of a warp, from row `first` on; only those before `end` exist.
template <int W>
SIMMST_DEVICE void store_partial(const PartialRows& to, const TileC (&sum)[W / 8], const LaneRows& rows, int64_t span,
                                 int64_t first, int64_t end) {
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float total = reduce_warp<4>(rows.total[r], Sum{});
    const int64_t i = first + tile_row() + 8 * r;
    if (i >= end) continue;
    const int64_t at = span * to.per_span + i;
    SIMMST_UNROLL
    for (int c = 0; c < W / 8; ++c)
      store_pack(to.sums + at * W + tile_column() + 8 * c,
                 Pack<float, 2>{{sum[c].part[2 * r], sum[c].part[2 * r + 1]}});
    if (tile_column() == 0) store_pack(to.extremes + at * 2, Pack<float, 2>{{rows.largest[r], total}});
  }
}

// ---- the rows of the output: selected rows are combined from their parts over spans of keys, the others are filled

// The rows of one batch entry.
template <typename T>
struct OutputRows {
  Rows<T> out;
  PartialRows parts;  // row i of a span's parts is selected query i; row `selected` is the fill
  int64_t spans, keys;
  const int64_t* top;
  int64_t selected;
  Fill fill;
  float* lse;  // (u)
};

// Combines a selected row, by a warp: the parts, weighted by their totals, in the order of the spans.
template <int W, typename T>
SIMMST_DEVICE void combine_row(const OutputRows<T>& rows, int64_t i) {
  constexpr int kColumns = (W + kWarp - 1) / kWarp;  // columns per lane
  const PartialRows& parts = rows.parts;
  float largest = -kInfinity;
  for (int64_t s = 0; s < rows.spans; ++s) {
    const float one = parts.extremes[(s * parts.per_span + i) * 2];
    largest = one > largest ? one : largest;
  }
  const float base = largest == -kInfinity ? 0.0f : largest;
  float total = 0.0f, sum[kColumns] = {};
  for (int64_t s = 0; s < rows.spans; ++s) {
    const int64_t at = s * parts.per_span + i;
    const float weight = exp2_approx(parts.extremes[at * 2] - base);
    total += weight * parts.extremes[at * 2 + 1];
    SIMMST_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const int column = lane_index() + kWarp * c;
      if (column < W) sum[c] += weight * parts.sums[at * W + column];
    }
  }
  T* to = rows.out.row(clamp_index(rows.top[i], rows.out.count));
  SIMMST_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    const int column = lane_index() + kWarp * c;
    if (column < rows.out.columns) to[column] = from_float<T>(sum[c] / total);
  }
  if (lane_index() == 0) rows.lse[i] = (base + log2f(total)) * kLn2;
}

// Combines the selected rows among [first, end), one warp per row.
template <int W, typename T>
SIMMST_DEVICE void combine_rows(const OutputRows<T>& rows, int64_t first, int64_t end) {
  for (int64_t i = warp_index(); i < rows.selected; i += block_threads() / kWarp) {
    const int64_t row = clamp_index(rows.top[i], rows.out.count);
    if (row >= first && row < end) combine_row<W>(rows, i);
  }
}

// Sum of the values of spans [0, count) in a column.
template <int W, typename T>
SIMMST_DEVICE double sum_of_values(const OutputRows<T>& rows, int64_t count, int column) {
  double sum = 0.0;
  for (int64_t s = 0; s < count; ++s)
    sum += static_cast<double>(rows.parts.sums[(s * rows.parts.per_span + rows.selected) * W + column]);
  return sum;
}

constexpr int kFillWindow = 128;  // rows filled at a time
template <int Threads>
SIMMST_HOST_DEVICE constexpr std::size_t fill_bytes() {
  return kFillWindow * sizeof(bool) + Threads * sizeof(double);
}

// Writes the mean to all rows among [first, end); after a barrier, the selected ones are overwritten. `shared` has
// fill_bytes().
template <int W, typename T>
SIMMST_DEVICE void fill_with_mean(const OutputRows<T>& rows, unsigned char* shared, int64_t first, int64_t end) {
  constexpr int kPart = 16 / static_cast<int>(sizeof(T)), kAcross = W / kPart;
  T* mean = reinterpret_cast<T*>(shared + kFillWindow);  // (W)
  for (int c = thread_index(); c < W; c += block_threads())
    mean[c] = from_float<T>(static_cast<float>(sum_of_values<W>(rows, rows.spans, c) / static_cast<double>(rows.keys)));
  sync_block();
  const int column = thread_index() % kAcross * kPart;
  if (column >= rows.out.columns) return;
  const auto part = load_pack<Pack<T, kPart>>(mean + column);
  for (int64_t row = first + thread_index() / kAcross; row < end; row += block_threads() / kAcross)
    write_part(rows.out, rows.out.row(row), column, part);
}

// The same with the running sum or mean. `sum` is the sum of the values before `first` in the thread's column, and
// value(i) is a row of values. A thread has one column and a run of the window's rows; the runs' sums are added up
// first, in order.
template <int W, int Threads, typename T, typename Value>
SIMMST_DEVICE void fill_with_running_sum(const OutputRows<T>& rows, unsigned char* shared, int64_t first, int64_t end,
                                         double sum, const Value& value) {
  constexpr int kRuns = Threads / W, kRun = kFillWindow / kRuns;
  bool* flags = reinterpret_cast<bool*>(shared);
  auto* run_sums = reinterpret_cast<double*>(shared + kFillWindow);  // (kRuns, W)
  const int column = thread_index() % W, run = thread_index() / W;
  const bool inside = column < rows.out.columns;
  const auto value_at = [&](int64_t i) {
    return inside && i < rows.keys ? static_cast<double>(to_float(value(i)[column])) : 0.0;
  };
  for (int64_t window = first; window < end; window += kFillWindow) {
    const int count = static_cast<int>(end - window < kFillWindow ? end - window : kFillWindow);
    mark_selected(flags, rows.top, rows.selected, window, count);
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
      const int64_t visible = row + 1 < rows.keys ? row + 1 : rows.keys;
      const double result = rows.fill == Fill::kCummean ? running / static_cast<double>(visible) : running;
      if (inside && !flags[i]) rows.out.row(row)[column] = from_float<T>(static_cast<float>(result));
    }
  }
}

}  // namespace simmst::cuda::prob_sparse
