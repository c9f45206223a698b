// The gradients of attend in closed form. Weights are recomputed from lse, one block of keys at a time. A block owns
// its rows of dK and dV, and the parts of dQ are added up chunk by chunk in a fixed order.
#include <omp.h>

#include "cpu/prob_sparse_attention_queries.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {
namespace {

constexpr int64_t kChunkKeys = 4 * kBlockKeys;  // work of one thread when there are fewer entries than threads

// The arrays that the chunks of one batch entry share.
template <typename T>
struct Shared {
  Queries<T> queries, grads;  // the selected rows of Q, times scale log2(e), and of dO
  int64_t chunks;
  T* lse;             // (pitch), times log2(e); infinite in the padding, so that its weight is zero
  T* delta;           // (pitch): rowsum(dO * O)
  bool* selected;     // (L_Q)
  double* fill;       // (chunks, D_V padded): gradient that the fill passes to every key from the rows after the chunk
  T* grad_query;      // (slots, pitch, D padded): of the selected rows, one per chunk when chunks run in parallel
  T* grad_query_sum;  // (pitch, D padded)

  Shared(const BackwardCall& call, bool split, Arena& arena)
      : queries(call.forward.selected, call.forward.query.columns, static_cast<T>(call.forward.scale) * kLog2E<T>,
                arena),
        grads(call.forward.selected, call.forward.value.columns, T(1), arena),
        chunks((call.forward.key.rows + kChunkKeys - 1) / kChunkKeys) {
    lse = arena.take<T>(queries.pitch);
    delta = arena.take<T>(queries.pitch);
    selected = arena.take<bool>(call.forward.query.rows);
    fill = arena.take<double>(chunks * grads.padded);
    grad_query = arena.take<T>((split ? chunks : 1) * queries.pitch * queries.padded);
    grad_query_sum = arena.take<T>(queries.pitch * queries.padded);
  }
};

// One thread's arrays.
template <typename T>
struct Buffers {
  T* keys;          // (kBlockKeys, D padded)
  T* values;        // (kBlockKeys, D_V padded)
  T* weights;       // (kScoreRows, pitch)
  T* grad_weights;  // (kScoreRows, pitch)
  uint32_t* words;  // (kBlockKeys, pitch), with dropout
  T* grad_key;      // (kBlockKeys, D padded)
  T* grad_value;    // (kBlockKeys, D_V padded)
  T* row;           // (D_V padded)
  double* running;  // (D_V padded)

  Buffers(const BackwardCall& call, Arena& arena) {
    const AttendCall& forward = call.forward;
    const int64_t pitch = round_up(forward.selected, kLanes<T>), width = round_up(forward.query.columns, kLanes<T>);
    const int64_t value_width = round_up(forward.value.columns, kLanes<T>);
    keys = arena.take<T>(kBlockKeys * width);
    values = arena.take<T>(kBlockKeys * value_width);
    weights = arena.take<T>(kScoreRows * pitch);
    grad_weights = arena.take<T>(kScoreRows * pitch);
    words = arena.take<uint32_t>(forward.dropout_p > 0.0 ? kBlockKeys * pitch : 0);
    grad_key = arena.take<T>(kBlockKeys * width);
    grad_value = arena.take<T>(kBlockKeys * value_width);
    row = arena.take<T>(value_width);
    running = arena.take<double>(value_width);
  }
};

// Where the sums of a block are formed: in the result itself where possible, else in the buffer.
template <typename Storage, typename T = Compute<Storage>>
Rows<T> place(Storage* result, int64_t stride, int64_t width, T* buffer) {
  if constexpr (std::is_same_v<Storage, T>) {
    if (width % kLanes<T> == 0) return {result, stride};
  }
  return {buffer, round_up(width, kLanes<T>)};
}

// One batch entry and the steps of its backward pass.
template <typename Storage>
class Entry {
  using T = Compute<Storage>;

 public:
  Entry(const BackwardCall& call, int64_t index, bool split, char* shared_memory)
      : call_(call),
        forward_(call.forward),
        index_(index),
        split_(split),
        arena_(shared_memory),
        shared_(call, split, arena_),
        has_fill_(forward_.selected < forward_.query.rows) {}

  // Called before the chunks.
  void prepare(char* memory) {
    const int64_t* top = forward_.top + index_ * forward_.selected;
    const Storage* grad = at<Storage>(call_.grad_out);
    shared_.queries.gather(at<Storage>(forward_.query), forward_.query.row_stride, top, forward_.key.rows);
    shared_.grads.gather(grad, call_.grad_out.row_stride, top, forward_.key.rows);
    prepare_rows(memory);
    Storage* grad_query = at<Storage>(call_.grad_query);
    const size_t bytes = static_cast<size_t>(forward_.query.columns) * sizeof(Storage);
    for (int64_t i = 0; i < forward_.query.rows; ++i)
      __builtin_memset(grad_query + i * call_.grad_query.row_stride, 0, bytes);
    const int64_t size = shared_.queries.pitch * shared_.queries.padded;
    for (int64_t i = 0; i < size; ++i) shared_.grad_query_sum[i] = T(0);
    if (has_fill_) prepare_fill(memory);
  }

  // Processes the keys of a chunk, last block first, because the gradient of the fill is a running sum from the end.
  void run_chunk(int64_t chunk, char* memory) {
    Arena arena(memory);
    Buffers<T> w(call_, arena);
    const int64_t padded = shared_.grads.padded;
    for (int64_t c = 0; c < padded; ++c) {
      w.running[c] = has_fill_ ? shared_.fill[chunk * padded + c] : 0.0;
      w.row[c] = static_cast<T>(w.running[c]);  // the share of every key when the fill is the mean
    }
    const int64_t size = shared_.queries.pitch * shared_.queries.padded;
    T* grad_query = shared_.grad_query + (split_ ? chunk * size : 0);
    for (int64_t i = 0; i < size; ++i) grad_query[i] = T(0);
    const int64_t first = chunk * kChunkKeys, last = smaller(first + kChunkKeys, forward_.key.rows);
    for (int64_t begin = first + (last - first - 1) / kBlockKeys * kBlockKeys; begin >= first; begin -= kBlockKeys)
      run_block(begin, smaller<int64_t>(kBlockKeys, last - begin), grad_query, w);
    if (!split_) add_grad_query(grad_query);
  }

  // Called after the chunks.
  void finish() {
    const int64_t padded = shared_.queries.padded, size = shared_.queries.pitch * padded;
    if (split_)
      for (int64_t chunk = 0; chunk < shared_.chunks; ++chunk) add_grad_query(shared_.grad_query + chunk * size);
    Storage* grad_query = at<Storage>(call_.grad_query);
    for (int64_t i = 0; i < forward_.selected; ++i)
      store_row(shared_.grad_query_sum + i * padded, forward_.query.columns, static_cast<T>(forward_.scale) * kLog2E<T>,
                grad_query + static_cast<int64_t>(shared_.queries.row[i]) * call_.grad_query.row_stride);
  }

 private:
  template <typename Element>
  Element* at(const Matrices& matrices) const {
    return entry<Element>(matrices, forward_.batch, index_);
  }

  // Computes lse and delta of the selected rows.
  void prepare_rows(char* memory) {
    Arena arena(memory);
    Buffers<T> w(call_, arena);
    const Storage* out = at<Storage>(forward_.out);
    const T* lse = static_cast<const T*>(forward_.lse) + index_ * forward_.selected;
    const int64_t padded = shared_.grads.padded, width = forward_.value.columns;
    for (int64_t i = 0; i < shared_.queries.pitch; ++i) {
      shared_.lse[i] = i < forward_.selected ? lse[i] * kLog2E<T> : static_cast<T>(__builtin_inf());
      shared_.delta[i] = T(0);
      if (i >= forward_.selected) continue;
      const int64_t row = shared_.queries.row[i];
      copy_row(out + row * forward_.out.row_stride, width, padded, T(1), w.row);
      const T* grad = shared_.grads.rows + i * padded;
      Vec<T> sum{};
      for (int64_t c = 0; c < padded; c += kLanes<T>) sum += load(w.row + c) * load(grad + c);
      shared_.delta[i] = reduce_add<T>(sum);
    }
  }

  // Adds the rows [first, last) of dO that hold the fill, times the weight that the fill gives each key.
  void add_fill_rows(int64_t first, int64_t last, T* row, double* sum) const {
    const Storage* grad = at<Storage>(call_.grad_out);
    const int64_t padded = shared_.grads.padded;
    for (int64_t i = first; i < last; ++i) {
      if (shared_.selected[i]) continue;
      copy_row(grad + i * call_.grad_out.row_stride, forward_.value.columns, padded, T(1), row);
      const double factor =
          forward_.fill == Fill::kCummean ? 1.0 / static_cast<double>(smaller(i + 1, forward_.key.rows)) : 1.0;
      for (int64_t c = 0; c < padded; ++c) sum[c] += static_cast<double>(row[c]) * factor;
    }
  }

  // The same for the mean and all rows: one vector of columns at a time, kRun rows before they join the sum in double.
  void add_all_fill_rows(double* sum) const {
    constexpr int64_t kRun = 64;
    const Storage* grad = at<Storage>(call_.grad_out);
    const int64_t rows = forward_.query.rows, width = forward_.value.columns, stride = call_.grad_out.row_stride;
    for (int64_t first = 0; first < rows; first += kRun) {
      const Storage* rest[kRun];
      int64_t count = 0;
      for (int64_t i = first; i < smaller(first + kRun, rows); ++i) {
        rest[count] = grad + i * stride;
        count += !shared_.selected[i];
      }
      for (int64_t c = 0; c < width; c += kLanes<T>) {
        const int lanes = static_cast<int>(smaller<int64_t>(kLanes<T>, width - c));
        Vec<T> run[2] = {};
        if (lanes == kLanes<T>) {
          int64_t i = 0;
          for (; i + 2 <= count; i += 2) run[0] += load(rest[i] + c), run[1] += load(rest[i + 1] + c);
          if (i < count) run[0] += load(rest[i] + c);
        } else {
          for (int64_t i = 0; i < count; ++i) run[0] += load_partial(rest[i] + c, lanes);
        }
        const Vec<T> total = run[0] + run[1];
        for (int i = 0; i < kLanes<T>; ++i) sum[c + i] += static_cast<double>(total[i]);
      }
    }
    for (int64_t c = 0; c < shared_.grads.padded; ++c) sum[c] /= static_cast<double>(forward_.key.rows);
  }

  void prepare_fill(char* memory) {
    Arena arena(memory);
    Buffers<T> w(call_, arena);
    const int64_t rows = forward_.query.rows, keys = forward_.key.rows, padded = shared_.grads.padded;
    for (int64_t i = 0; i < rows; ++i) shared_.selected[i] = false;
    for (int64_t i = 0; i < forward_.selected; ++i) shared_.selected[shared_.queries.row[i]] = true;
    for (int64_t c = 0; c < padded; ++c) w.running[c] = 0.0;
    if (forward_.fill == Fill::kMean) {
      add_all_fill_rows(w.running);
      for (int64_t chunk = 0; chunk < shared_.chunks; ++chunk) keep_fill(w.running, chunk);
      return;
    }
    // The running sum at a key contains every row at or after it; rows beyond the keys are in the sums of all keys.
    add_fill_rows(smaller(rows, keys), rows, w.row, w.running);
    for (int64_t chunk = shared_.chunks - 1; chunk >= 0; --chunk) {
      keep_fill(w.running, chunk);
      if (chunk > 0)
        add_fill_rows(smaller(rows, chunk * kChunkKeys), smaller(rows, smaller((chunk + 1) * kChunkKeys, keys)), w.row,
                      w.running);
    }
  }

  void keep_fill(const double* sum, int64_t chunk) {
    const int64_t padded = shared_.grads.padded;
    for (int64_t c = 0; c < padded; ++c) shared_.fill[chunk * padded + c] = sum[c];
  }

  // Sets grad_value of a block to the gradient of a fill that differs from row to row.
  void start_grad_value(int64_t begin, int64_t count, T* grad_value, int64_t pitch, Buffers<T>& w) {
    const int64_t padded = shared_.grads.padded;
    for (int64_t j = count - 1; j >= 0; --j) {
      const int64_t i = begin + j;
      if (i < forward_.query.rows) add_fill_rows(i, i + 1, w.row, w.running);
      for (int64_t c = 0; c < padded; ++c) grad_value[j * pitch + c] = static_cast<T>(w.running[c]);
    }
  }

  // weights = 2^(scores - lse) and grad_weights = ln(2) weights * (Z dO V^T - delta); the weights then become Z
  // weights.
  void weigh(const Dropout& dropout, int64_t begin, int64_t count, int64_t first, int64_t last, Buffers<T>& w) {
    const int64_t pitch = shared_.queries.pitch, at = first * kLanes<T>, size = (last - first) * kLanes<T>;
    if (dropout.active) {
      dropout_words(dropout, index_, begin, count, shared_.queries.row, pitch, w.words);
      for (int64_t j = 0; j < count; ++j)
        apply_dropout(dropout, w.words + j * pitch + at, size, w.grad_weights + j * pitch + at);
    }
    for (int64_t i = at; i < at + size; i += kLanes<T>) {
      const Vec<T> lse = load(shared_.lse + i), delta = load(shared_.delta + i) * kLn2<T>;
#pragma GCC unroll 4
      for (int64_t j = 0; j < count; ++j) {
        T* weight = w.weights + j * pitch + i;
        T* grad = w.grad_weights + j * pitch + i;
        const Vec<T> p = exp2_below<T>(load(weight) - lse);
        store(weight, p);
        store(grad, p * (load(grad) * kLn2<T> - delta));
      }
    }
    if (dropout.active) {
      for (int64_t j = 0; j < count; ++j)
        apply_dropout(dropout, w.words + j * pitch + at, size, w.weights + j * pitch + at);
    }
  }

  void run_block(int64_t begin, int64_t count, T* grad_query, Buffers<T>& w) {
    const Queries<T>& queries = shared_.queries;
    const int64_t width = forward_.query.columns, value_width = forward_.value.columns, pitch = queries.pitch;
    int64_t first = 0, last = pitch / kLanes<T>;
    if (forward_.is_causal) {
      while (first < last && queries.panel_limit[first] <= begin) ++first;
      while (first < last && queries.panel_limit[last - 1] <= begin) --last;
    }
    const bool masked = first == last, fill_varies = has_fill_ && forward_.fill != Fill::kMean;
    // Where rows are whole vectors of the compute type, the sums are formed in the results themselves.
    Storage* grad_key = at<Storage>(call_.grad_key) + begin * call_.grad_key.row_stride;
    Storage* grad_value = at<Storage>(call_.grad_value) + begin * call_.grad_value.row_stride;
    const Rows<T> key_sums = place<Storage>(grad_key, call_.grad_key.row_stride, width, w.grad_key);
    const Rows<T> value_sums = place<Storage>(grad_value, call_.grad_value.row_stride, value_width, w.grad_value);
    const int64_t stride = forward_.key.row_stride, value_stride = forward_.value.row_stride;
    const Storage* key = at<Storage>(forward_.key) + begin * stride;
    const Storage* value = at<Storage>(forward_.value) + begin * value_stride;
    const Rows<T> keys = rows_of(key, stride, count, width, true, w.keys);
    if (!masked) {
      const Soon soon{reinterpret_cast<const char*>(value), value_stride * static_cast<int64_t>(sizeof(Storage)),
                      value_width * static_cast<int64_t>(sizeof(Storage))};
      if (std::is_same_v<Storage, T> || scores_in_pairs<Storage>(width)) {
        queries.score(key, stride, count, first, last, w.keys, w.weights, soon);
      } else {  // converted already
        queries.score(keys.data, keys.stride, count, first, last, w.keys, w.weights, soon);
      }
      if (forward_.is_causal) mask_future(queries, begin, count, first, last, w.weights);
      shared_.grads.score(value, value_stride, count, first, last, w.values, w.grad_weights);
      weigh(Dropout(forward_), begin, count, first, last, w);
    }
    const int64_t from = first * kLanes<T>, steps = masked ? 0 : smaller(last * kLanes<T>, queries.count) - from;
    const Rows<T> grads{shared_.grads.rows + from * shared_.grads.padded, shared_.grads.padded};
    const Rows<T> rows{queries.rows + from * queries.padded, queries.padded};
    Update<T> to_value{w.weights + from,  pitch,  1, grads, steps, const_cast<T*>(value_sums.data),
                       value_sums.stride, nullptr};
    if (fill_varies) {
      start_grad_value(begin, count, to_value.sums, to_value.pitch, w);
    } else if (has_fill_) {
      to_value.start = w.row;
    } else {
      to_value.fresh = true;
    }
    update_block(to_value, count, value_width);
    update_block<T>(
        {w.grad_weights + from, pitch, 1, rows, steps, const_cast<T*>(key_sums.data), key_sums.stride, nullptr, true},
        count, width);
    update_block<T>(
        {w.grad_weights + from, 1, pitch, keys, count, grad_query + from * queries.padded, queries.padded, nullptr},
        steps, width);
    if (key_sums.data == w.grad_key)
      for (int64_t j = 0; j < count; ++j)
        store_row(w.grad_key + j * queries.padded, width, T(1), grad_key + j * call_.grad_key.row_stride);
    if (value_sums.data == w.grad_value)
      for (int64_t j = 0; j < count; ++j)
        store_row(w.grad_value + j * shared_.grads.padded, value_width, T(1),
                  grad_value + j * call_.grad_value.row_stride);
  }

  void add_grad_query(const T* part) {
    const int64_t size = shared_.queries.pitch * shared_.queries.padded;
    for (int64_t i = 0; i < size; ++i) shared_.grad_query_sum[i] += part[i];
  }

  const BackwardCall& call_;
  const AttendCall& forward_;
  int64_t index_;
  bool split_;
  Arena arena_;
  Shared<T> shared_;
  bool has_fill_;
};

template <typename Storage, typename T = Compute<Storage>>
bool backward_all(const BackwardCall& call) {
  const int64_t batch = call.forward.batch.count;
  if (batch == 0) return true;
  const bool split = batch < call.forward.threads;
  Arena measuring, measuring_thread;
  const int64_t chunks = Shared<T>(call, split, measuring).chunks;
  (void)Buffers<T>(call, measuring_thread);
  const int threads = static_cast<int>(smaller<int64_t>(call.forward.threads, split ? batch * chunks : batch));
  const Workspaces shared(split ? batch : threads, measuring.used()), memory(threads, measuring_thread.used());
  if (shared.failed() || memory.failed()) return false;

  run_team(threads, [&] {
    const int thread = omp_get_thread_num();
    char* mine = memory.at(thread);
    if (!split) {
#pragma omp for schedule(static)
      for (int64_t b = 0; b < batch; ++b) {
        Entry<Storage> one(call, b, false, shared.at(thread));
        one.prepare(mine);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) one.run_chunk(chunk, mine);
        one.finish();
      }
    } else {
#pragma omp for schedule(dynamic, 1)
      for (int64_t b = 0; b < batch; ++b) Entry<Storage>(call, b, true, shared.at(b)).prepare(mine);
#pragma omp for schedule(dynamic, 1)
      for (int64_t item = 0; item < batch * chunks; ++item)
        Entry<Storage>(call, item / chunks, true, shared.at(item / chunks)).run_chunk(item % chunks, mine);
#pragma omp for schedule(dynamic, 1)
      for (int64_t b = 0; b < batch; ++b) Entry<Storage>(call, b, true, shared.at(b)).finish();
    }
  });
  return true;
}

}  // namespace

bool backward(const BackwardCall& call) {
  return with_storage(call.forward.type, [&]<typename Storage>() { return backward_all<Storage>(call); });
}

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
