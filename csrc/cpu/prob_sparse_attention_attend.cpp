// Softmax attention of the selected queries, and the fill of the other rows, in one pass over blocks of keys and
// values, with the running maximum and sum of an online softmax. Scores contain the factor log2(e), so weights are
// powers of two.
#include <omp.h>

#include "cpu/prob_sparse_attention_queries.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {
namespace {

constexpr int kFillRows = 4;  // values added up before they join the sum, which keeps the rounding error small

// One thread's arrays.
template <typename Storage, typename T = Compute<Storage>>
struct Buffers {
  int64_t value_padded;
  Queries<T> queries;
  T* keys;          // (kBlockKeys, D padded), where keys cannot be read in place
  T* values;        // (kBlockKeys, D_V padded)
  T* weights;       // (kScoreRows, pitch): scores, then weights
  uint32_t* words;  // (kBlockKeys, pitch), with dropout
  T* largest;       // (pitch): largest score so far
  T* total;         // (pitch): total of 2^(score - largest)
  T* factor;        // (pitch): factor of the results so far
  T* sums;          // (pitch, D_V padded)
  T* fill;          // (D_V padded)
  double* running;  // (D_V padded)
  Storage* fill_row;

  Buffers(const AttendCall& call, Arena& arena)
      : value_padded(round_up(call.value.columns, kLanes<T>)),
        queries(call.selected, call.query.columns, static_cast<T>(call.scale) * kLog2E<T>, arena) {
    const int64_t pitch = queries.pitch;
    keys = arena.take<T>(kBlockKeys * queries.padded);
    values = arena.take<T>(kBlockKeys * value_padded);
    weights = arena.take<T>(kScoreRows * pitch);
    words = arena.take<uint32_t>(call.dropout_p > 0.0 ? kBlockKeys * pitch : 0);
    largest = arena.take<T>(pitch);
    total = arena.take<T>(pitch);
    factor = arena.take<T>(pitch);
    sums = arena.take<T>(pitch * value_padded);
    fill = arena.take<T>(value_padded);
    running = arena.take<double>(value_padded);
    fill_row = arena.take<Storage>(value_padded);
  }
};

// The fill.

// Adds the rows of a block to w.fill, in the same order for every shape: groups of four, then the block, then the
// blocks.
template <typename Storage, typename T = Compute<Storage>>
void add_values(Rows<T> values, int64_t count, Buffers<Storage>& w) {
  for (int64_t c = 0; c < w.value_padded; c += kLanes<T>) {
    Vec<T> sum{};
    const T* v = values.data + c;
    int64_t j = 0;
    for (; j + kFillRows <= count; j += kFillRows, v += kFillRows * values.stride)
      sum += (load(v) + load(v + values.stride)) + (load(v + 2 * values.stride) + load(v + 3 * values.stride));
    for (; j < count; ++j, v += values.stride) sum += load(v);
    store(w.fill + c, load(w.fill + c) + sum);
  }
}

// Continues the running sum over a block, in double as torch.cumsum does, and writes rows [first, last) of the result.
template <typename Storage, typename T = Compute<Storage>>
void running_rows(const AttendCall& call, Storage* out, Rows<T> values, int64_t first, int64_t last,
                  Buffers<Storage>& w) {
  const int64_t padded = w.value_padded;
  double* running = w.running;
  for (int64_t i = first; i < last; ++i) {
    const T* v = values.data + (i - first) * values.stride;
    const double factor = call.fill == Fill::kCummean ? 1.0 / static_cast<double>(i + 1) : 1.0;
    for (int64_t c = 0; c < padded; ++c) {
      running[c] += static_cast<double>(v[c]);
      w.fill[c] = static_cast<T>(running[c] * factor);
    }
    store_row(w.fill, call.value.columns, T(1), out + i * call.out.row_stride);
  }
}

template <typename Storage>
void repeat_row(const AttendCall& call, const Storage* row, Storage* out, int64_t first, int64_t last) {
  const int64_t width = call.out.columns;
  if constexpr (std::is_same_v<Storage, Compute<Storage>>) {
    if (width % kLanes<Storage> == 0) {
      for (int64_t i = first; i < last; ++i)
        for (int64_t c = 0; c < width; c += kLanes<Storage>) store(out + i * call.out.row_stride + c, load(row + c));
      return;
    }
  }
  const size_t bytes = static_cast<size_t>(width) * sizeof(Storage);
  for (int64_t i = first; i < last; ++i) __builtin_memcpy(out + i * call.out.row_stride, row, bytes);
}

template <typename Storage, typename T = Compute<Storage>>
void fill_block(const AttendCall& call, Storage* out, Rows<T> values, int64_t first, int64_t count,
                Buffers<Storage>& w) {
  if (call.fill == Fill::kMean) {
    add_values(values, count, w);
  } else {
    const int64_t last = smaller(first + count, call.query.rows);
    if (first < last) running_rows(call, out, values, first, last, w);
  }
}

// Writes the rows that the blocks have not written: all rows for the mean, the rows beyond the keys otherwise.
template <typename Storage, typename T = Compute<Storage>>
void finish_fill(const AttendCall& call, Storage* out, Buffers<Storage>& w) {
  const int64_t rows = call.query.rows, keys = call.key.rows;
  if (call.fill == Fill::kMean) {
    for (int64_t c = 0; c < w.value_padded; ++c) w.fill[c] /= static_cast<T>(keys);
    store_row(w.fill, call.value.columns, T(1), w.fill_row);
    repeat_row(call, w.fill_row, out, 0, rows);
  } else if (rows > keys) {
    repeat_row(call, out + (keys - 1) * call.out.row_stride, out, keys, rows);
  }
}

// The selected rows.

// Turns the scores of panels [first, last) into 2^(score - largest), and updates largest, total and factor. `fresh`: no
// block came before.
template <typename Storage, typename T = Compute<Storage>>
void online_softmax(int64_t count, int64_t first, int64_t last, bool fresh, Buffers<Storage>& w) {
  constexpr int kChains = 4;
  const int64_t pitch = w.queries.pitch;
  const Vec<T> lowest = broadcast<T>(static_cast<T>(-__builtin_inf()));
  for (int64_t at = first * kLanes<T>; at < last * kLanes<T>; at += kLanes<T>) {
    T* scores = w.weights + at;
    const Vec<T> before = fresh ? lowest : load(w.largest + at);
    Vec<T> most[kChains] = {before, before, before, before};
    int64_t j = 0;
    for (; j + kChains <= count; j += kChains) {
      SIMMST_UNROLL
      for (int t = 0; t < kChains; ++t) most[t] = max(load(scores + (j + t) * pitch), most[t]);
    }
    for (; j < count; ++j) most[0] = max(load(scores + j * pitch), most[0]);
    const Vec<T> largest = max(max(most[0], most[1]), max(most[2], most[3]));
    const Vec<T> base = select<T>(largest == lowest, Vec<T>{}, largest);  // avoids -inf minus -inf
    Vec<T> sum[kChains] = {};
    for (j = 0; j + kChains <= count; j += kChains) {
      SIMMST_UNROLL
      for (int t = 0; t < kChains; ++t) {
        const Vec<T> x = exp2_below<T>(load(scores + (j + t) * pitch) - base);
        store(scores + (j + t) * pitch, x);
        sum[t] += x;
      }
    }
    for (; j < count; ++j) {
      const Vec<T> x = exp2_below<T>(load(scores + j * pitch) - base);
      store(scores + j * pitch, x);
      sum[0] += x;
    }
    Vec<T> total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    if (!fresh) {
      const Vec<T> factor = exp2_below<T>(before - base);
      store(w.factor + at, factor);
      total += load(w.total + at) * factor;
    }
    store(w.largest + at, largest);
    store(w.total + at, total);
  }
}

template <typename Storage, typename T = Compute<Storage>>
void add_weighted_values(const AttendCall& call, Rows<T> values, int64_t count, int64_t first, int64_t last, bool fresh,
                         Buffers<Storage>& w) {
  const int64_t pitch = w.queries.pitch;
  Update<T> update{w.weights, 1, pitch, values, count, w.sums, w.value_padded, w.factor, fresh};
  // When causal, panels are processed one by one, so that the queries that share a tile, and with them the masked keys
  // that are left out, do not depend on how the panels are divided among the threads.
  const int64_t step = call.is_causal ? kLanes<T> : (last - first) * kLanes<T>;
  const int64_t end = smaller(last * kLanes<T>, call.selected);
  for (int64_t at = first * kLanes<T>; at < end; at += step) {
    update.left = w.weights + at;
    update.sums = w.sums + at * w.value_padded;
    update.factor = w.factor + at;
    update_block(update, smaller(step, end - at), call.value.columns);
  }
}

// Processes keys [begin, begin + count) for the panels [first, last).
template <typename Storage, typename T = Compute<Storage>>
void attend_block(const AttendCall& call, const Dropout& dropout, int64_t b, const Storage* key, Rows<T> values,
                  int64_t begin, int64_t count, int64_t first, int64_t last, Buffers<Storage>& w) {
  const int64_t pitch = w.queries.pitch;
  if (call.is_causal) {
    while (first < last && w.queries.panel_limit[first] <= begin) ++first;
    while (first < last && w.queries.panel_limit[last - 1] <= begin) --last;
    if (first == last) return;
  }
  const int64_t stride = call.key.row_stride;
  const bool fresh = begin == 0;  // every query sees the first key
  const Soon soon{reinterpret_cast<const char*>(values.data), values.stride * static_cast<int64_t>(sizeof(T)),
                  call.value.columns * static_cast<int64_t>(sizeof(T))};
  w.queries.score(key + begin * stride, stride, count, first, last, w.keys, w.weights, soon);
  if (call.is_causal) mask_future(w.queries, begin, count, first, last, w.weights);
  online_softmax(count, first, last, fresh, w);
  if (dropout.active) {
    dropout_words(dropout, b, begin, count, w.queries.row, pitch, w.words);
    for (int64_t j = 0; j < count; ++j)
      apply_dropout(dropout, w.words + j * pitch + first * kLanes<T>, (last - first) * kLanes<T>,
                    w.weights + j * pitch + first * kLanes<T>);
  }
  add_weighted_values(call, values, count, first, last, fresh, w);
}

template <typename Storage, typename T = Compute<Storage>>
void write_selected(const AttendCall& call, int64_t b, int64_t first, int64_t last, Storage* out, Buffers<Storage>& w) {
  T* lse = call.lse == nullptr ? nullptr : static_cast<T*>(call.lse) + b * call.selected;
  for (int64_t i = first * kLanes<T>; i < smaller(last * kLanes<T>, call.selected); ++i) {
    store_row(w.sums + i * w.value_padded, call.value.columns, T(1) / w.total[i],
              out + static_cast<int64_t>(w.queries.row[i]) * call.out.row_stride);
    if (lse == nullptr) continue;
    if constexpr (std::is_same_v<T, float>) {
      lse[i] = static_cast<float>(w.largest[i] * kLn2<double> + static_cast<double>(__builtin_logf(w.total[i])));
    } else {
      lse[i] = w.largest[i] * kLn2<double> + __builtin_log(w.total[i]);
    }
  }
}

// Processes panels [first, last) of one batch entry, with or without its fill.
template <typename Storage, typename T = Compute<Storage>>
void attend_entry(const AttendCall& call, int64_t b, int64_t first, int64_t last, bool with_fill, char* memory) {
  Arena arena(memory);
  Buffers<Storage> w(call, arena);
  const int64_t value_width = call.value.columns;
  const Storage* key = entry<Storage>(call.key, call.batch, b);
  const Storage* value = entry<Storage>(call.value, call.batch, b);
  Storage* out = entry<Storage>(call.out, call.batch, b);
  const Dropout dropout(call);
  if (first < last)
    w.queries.gather(entry<Storage>(call.query, call.batch, b), call.query.row_stride, call.top + b * call.selected,
                     call.key.rows);
  for (int64_t c = 0; c < w.value_padded; ++c) w.fill[c] = T(0), w.running[c] = 0.0;

  for (int64_t begin = 0; begin < call.key.rows; begin += kBlockKeys) {
    const int64_t count = smaller<int64_t>(kBlockKeys, call.key.rows - begin);
    const int64_t stride = call.value.row_stride;
    const Rows<T> values = rows_of(value + begin * stride, stride, count, value_width, true, w.values);
    if (first < last) attend_block(call, dropout, b, key, values, begin, count, first, last, w);
    if (with_fill) fill_block(call, out, values, begin, count, w);
  }
  if (with_fill) finish_fill(call, out, w);
  write_selected(call, b, first, last, out, w);
}

template <typename Storage, typename T = Compute<Storage>>
bool attend_all(const AttendCall& call) {
  const int64_t batch = call.batch.count;
  if (batch == 0 || call.query.rows == 0) return true;
  Arena measuring;
  const Buffers<Storage> sizes(call, measuring);
  const int64_t panels = sizes.queries.pitch / kLanes<T>;
  const int64_t parts = batch >= call.threads ? 1 : (panels + kTilePanels - 1) / kTilePanels;
  const bool split = batch < call.threads;
  const int threads = static_cast<int>(smaller<int64_t>(call.threads, batch * larger<int64_t>(parts, 1)));
  const Workspaces memory(threads, measuring.used());
  if (memory.failed()) return false;
  const bool with_fill = call.selected < call.query.rows;

  run_team(threads, [&] {
    char* mine = memory.at(omp_get_thread_num());
    if (!split) {
#pragma omp for schedule(static)
      for (int64_t b = 0; b < batch; ++b) attend_entry<Storage>(call, b, 0, panels, with_fill, mine);
    } else {
      // The fill of an entry writes all of its rows, so it comes first.
#pragma omp for schedule(static)
      for (int64_t b = 0; b < batch; ++b)
        if (with_fill) attend_entry<Storage>(call, b, 0, 0, true, mine);
#pragma omp for schedule(dynamic, 1)
      for (int64_t item = 0; item < batch * parts; ++item) {
        const int64_t b = item / parts, part = item % parts;
        attend_entry<Storage>(call, b, panels * part / parts, panels * (part + 1) / parts, false, mine);
      }
    }
  });
  return true;
}

}  // namespace

bool attend(const AttendCall& call) {
  return with_storage(call.type, [&]<typename Storage>() { return attend_all<Storage>(call); });
}

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
