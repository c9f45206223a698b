// The rows of the output: the selected ones put together from their parts over spans of keys, the others filled.
#pragma once

#include "cuda/prob_sparse_attention_softmax.cuh"

namespace simmst::cuda::prob_sparse {

// The rows of one batch entry.
template <typename T>
struct OutputRows {
  Rows<T> out;
  PartialRows parts;    // row i of a span's parts is the selected query i, row `selected` the fill
  int64_t spans, keys;
  const int64_t* top;
  int64_t selected;
  Fill fill;
  float* lse;           // (u)
};

// A selected row, by a warp: the parts weighted by their totals, in the order of the spans.
template <int W, typename T>
SIMMST_DEVICE void combine_row(const OutputRows<T>& rows, int64_t i) {
  constexpr int kColumns = (W + kWarp - 1) / kWarp;  // of a lane
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

// The selected rows among [first, end), a warp each.
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

// The mean in the rows among [first, end) that are not selected. `shared`: fill_bytes().
template <int W, typename T>
SIMMST_DEVICE void fill_with_mean(const OutputRows<T>& rows, unsigned char* shared, int64_t first, int64_t end) {
  constexpr int kPart = 16 / static_cast<int>(sizeof(T));
  bool* flags = reinterpret_cast<bool*>(shared);
  T* mean = reinterpret_cast<T*>(shared + kFillWindow);  // (W)
  for (int c = thread_index(); c < W; c += block_threads())
    mean[c] = from_float<T>(
        static_cast<float>(sum_of_values<W>(rows, rows.spans, c) / static_cast<double>(rows.keys)));
  for (int64_t window = first; window < end; window += kFillWindow) {
    const int count = static_cast<int>(end - window < kFillWindow ? end - window : kFillWindow);
    mark_selected(flags, rows.top, rows.selected, window, count);
    for (int i = thread_index(); i < count * (W / kPart); i += block_threads()) {
      const int row = i / (W / kPart), column = i % (W / kPart) * kPart;
      if (!flags[row] && column < rows.out.columns)
        write_part(rows.out, rows.out.row(window + row), column, load_pack<Pack<T, kPart>>(mean + column));
    }
  }
}

// The same with the running sum or mean, `sum` being that of the values before `first` in the thread's column, and
// value(i) a row of values. A thread has one column and a run of the window's rows; the runs' sums are added up in
// their order first.
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
