// The gradients of attend in closed form. Weights are recomputed from lse, a block of keys at a time; a block owns its
// rows of dK and dV, and the parts of dQ are added up chunk by chunk in a fixed order.
#include <omp.h>

#include "cpu/prob_sparse_attention_queries.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {
namespace {

constexpr int64_t kChunkKeys = 4 * kBlockKeys;  // what one thread works on when there are fewer entries than threads

// What the chunks of one batch entry share.
template <typename T>
struct Shared {
  Queries<T> queries, grads;  // the selected rows of Q, scaled, and of dO
  int64_t chunks;
  T* lse;              // (pitch), infinite in the padding: no weight there
  T* delta;            // (pitch): rowsum(dO * O)
  bool* selected;      // (L_Q)
  double* fill;        // (chunks, D_V padded): gradient that the fill passes to every key from the rows after the chunk
  T* grad_query;       // (slots, pitch, D padded): of the selected rows, per chunk when chunks run side by side
  T* grad_query_sum;   // (pitch, D padded)

  Shared(const BackwardCall& call, bool split, Arena& arena)
      : queries(call.forward.selected, call.forward.query.columns, static_cast<T>(call.forward.scale), arena),
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
  T* weights;       // (kBlockKeys, pitch)
  T* grad_weights;  // (kBlockKeys, pitch)
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
    weights = arena.take<T>(kBlockKeys * pitch);
    grad_weights = arena.take<T>(kBlockKeys * pitch);
    words = arena.take<uint32_t>(forward.dropout_p > 0.0 ? kBlockKeys * pitch : 0);
    grad_key = arena.take<T>(kBlockKeys * width);
    grad_value = arena.take<T>(kBlockKeys * value_width);
    row = arena.take<T>(value_width);
    running = arena.take<double>(value_width);
  }
};

// One batch entry and the steps on it.
template <typename Storage>
class Entry {
  using T = Compute<Storage>;

 public:
  Entry(const BackwardCall& call, int64_t index, bool split, char* shared_memory)
      : call_(call), forward_(call.forward), index_(index), split_(split), arena_(shared_memory),
        shared_(call, split, arena_), has_fill_(forward_.selected < forward_.query.rows) {}

  // Before the chunks.
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

  // The keys of a chunk, last block first, as the reverse running sum of the fill's gradient wants it.
  void run_chunk(int64_t chunk, char* memory) {
    Arena arena(memory);
    Buffers<T> w(call_, arena);
    const int64_t padded = shared_.grads.padded;
    for (int64_t c = 0; c < padded; ++c) w.running[c] = has_fill_ ? shared_.fill[chunk * padded + c] : 0.0;
    const int64_t size = shared_.queries.pitch * shared_.queries.padded;
    T* grad_query = shared_.grad_query + (split_ ? chunk * size : 0);
    for (int64_t i = 0; i < size; ++i) grad_query[i] = T(0);
    const int64_t first = chunk * kChunkKeys, last = smaller(first + kChunkKeys, forward_.key.rows);
    for (int64_t begin = first + (last - first - 1) / kBlockKeys * kBlockKeys; begin >= first; begin -= kBlockKeys)
      run_block(begin, smaller<int64_t>(kBlockKeys, last - begin), grad_query, w);
    if (!split_) add_grad_query(grad_query);
  }

  // After the chunks.
  void finish() {
    const int64_t padded = shared_.queries.padded, size = shared_.queries.pitch * padded;
    if (split_)
      for (int64_t chunk = 0; chunk < shared_.chunks; ++chunk) add_grad_query(shared_.grad_query + chunk * size);
    Storage* grad_query = at<Storage>(call_.grad_query);
    for (int64_t i = 0; i < forward_.selected; ++i)
      store_row(shared_.grad_query_sum + i * padded, forward_.query.columns, static_cast<T>(forward_.scale),
                grad_query + static_cast<int64_t>(shared_.queries.row[i]) * call_.grad_query.row_stride);
  }

 private:
  template <typename Element>
  Element* at(const Matrices& matrices) const {
    return entry<Element>(matrices, forward_.batch, index_);
  }

  // lse and delta of the selected rows.
  void prepare_rows(char* memory) {
    Arena arena(memory);
    Buffers<T> w(call_, arena);
    const Storage* out = at<Storage>(forward_.out);
    const T* lse = static_cast<const T*>(forward_.lse) + index_ * forward_.selected;
    const int64_t padded = shared_.grads.padded, width = forward_.value.columns;
    for (int64_t i = 0; i < shared_.queries.pitch; ++i) {
      shared_.lse[i] = i < forward_.selected ? lse[i] : static_cast<T>(__builtin_inf());
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

  // Adds the rows [first, last) of dO that hold the fill, times what the fill takes of each key.
  void add_fill_rows(int64_t first, int64_t last, T* row, double* sum) const {
    const Storage* grad = at<Storage>(call_.grad_out);
    const int64_t padded = shared_.grads.padded;
    for (int64_t i = first; i < last; ++i) {
      if (shared_.selected[i]) continue;
      copy_row(grad + i * call_.grad_out.row_stride, forward_.value.columns, padded, T(1), row);
      const double factor = fill_factor(i);
      for (int64_t c = 0; c < padded; ++c) sum[c] += static_cast<double>(row[c]) * factor;
    }
  }

  double fill_factor(int64_t i) const {
    const int64_t keys = forward_.key.rows;
    if (forward_.fill == Fill::kMean) return 1.0 / static_cast<double>(keys);
    return forward_.fill == Fill::kCummean ? 1.0 / static_cast<double>(smaller(i + 1, keys)) : 1.0;
  }

  void prepare_fill(char* memory) {
    Arena arena(memory);
    Buffers<T> w(call_, arena);
    const int64_t rows = forward_.query.rows, keys = forward_.key.rows, padded = shared_.grads.padded;
    for (int64_t i = 0; i < rows; ++i) shared_.selected[i] = false;
    for (int64_t i = 0; i < forward_.selected; ++i) shared_.selected[shared_.queries.row[i]] = true;
    for (int64_t c = 0; c < padded; ++c) w.running[c] = 0.0;
    if (forward_.fill == Fill::kMean) {
      add_fill_rows(0, rows, w.row, w.running);
      for (int64_t chunk = 0; chunk < shared_.chunks; ++chunk) keep_fill(w.running, chunk);
      return;
    }
    // The running sum reaches a key from every row at or after it; rows beyond the keys reach them all.
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

  // grad_value of a block = the fill's gradient.
  void start_grad_value(int64_t begin, int64_t count, Buffers<T>& w) {
    const int64_t padded = shared_.grads.padded;
    for (int64_t j = count - 1; j >= 0; --j) {
      const int64_t i = begin + j;
      if (has_fill_ && forward_.fill != Fill::kMean && i < forward_.query.rows)
        add_fill_rows(i, i + 1, w.row, w.running);
      for (int64_t c = 0; c < padded; ++c) w.grad_value[j * padded + c] = static_cast<T>(w.running[c]);
    }
  }

  // weights = exp(scores - lse) and grad_weights = weights * (Z dO V^T - delta); the weights become Z weights.
  void weigh(const Dropout& dropout, int64_t begin, int64_t count, int64_t first, int64_t last, Buffers<T>& w) {
    const int64_t pitch = shared_.queries.pitch, at = first * kLanes<T>, size = (last - first) * kLanes<T>;
    if (dropout.active) {
      dropout_words(dropout, index_, begin, count, shared_.queries.row, pitch, w.words);
      for (int64_t j = 0; j < count; ++j)
        apply_dropout(dropout, w.words + j * pitch + at, size, w.grad_weights + j * pitch + at);
    }
    for (int64_t i = at; i < at + size; i += kLanes<T>) {
      const Vec<T> lse = load(shared_.lse + i), delta = load(shared_.delta + i);
      for (int64_t j = 0; j < count; ++j) {
        T* weight = w.weights + j * pitch + i;
        T* grad = w.grad_weights + j * pitch + i;
        const Vec<T> p = exp(load(weight) - lse);
        store(weight, p);
        store(grad, p * (load(grad) - delta));
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
    start_grad_value(begin, count, w);
    for (int64_t i = 0; i < count * queries.padded; ++i) w.grad_key[i] = T(0);
    if (first < last) {
      const int64_t stride = forward_.key.row_stride, value_stride = forward_.value.row_stride;
      const Storage* key = at<Storage>(forward_.key) + begin * stride;
      const Storage* value = at<Storage>(forward_.value) + begin * value_stride;
      const Rows<T> keys = rows_of(key, stride, count, width, true, w.keys);
      if (std::is_same_v<Storage, T> || scores_in_pairs<Storage>(width)) {
        queries.score(key, stride, count, first, last, w.keys, w.weights);
      } else {  // converted already
        queries.score(keys.data, keys.stride, count, first, last, w.keys, w.weights);
      }
      if (forward_.is_causal) mask_future(queries, begin, count, first, last, w.weights);
      shared_.grads.score(value, value_stride, count, first, last, w.values, w.grad_weights);
      weigh(Dropout(forward_), begin, count, first, last, w);

      const int64_t from = first * kLanes<T>, steps = smaller(last * kLanes<T>, queries.count) - from;
      const Rows<T> grads{shared_.grads.rows + from * shared_.grads.padded, shared_.grads.padded};
      const Rows<T> rows{queries.rows + from * queries.padded, queries.padded};
      update_block<T>({w.weights + from, pitch, 1, grads, steps, w.grad_value, shared_.grads.padded, nullptr}, count,
                      value_width);
      update_block<T>({w.grad_weights + from, pitch, 1, rows, steps, w.grad_key, queries.padded, nullptr}, count,
                      width);
      update_block<T>({w.grad_weights + from, 1, pitch, keys, count, grad_query + from * queries.padded,
                       queries.padded, nullptr}, steps, width);
    }
    Storage* grad_key = at<Storage>(call_.grad_key) + begin * call_.grad_key.row_stride;
    Storage* grad_value = at<Storage>(call_.grad_value) + begin * call_.grad_value.row_stride;
    for (int64_t j = 0; j < count; ++j) {
      store_row(w.grad_key + j * queries.padded, width, T(1), grad_key + j * call_.grad_key.row_stride);
      store_row(w.grad_value + j * shared_.grads.padded, value_width, T(1),
                grad_value + j * call_.grad_value.row_stride);
    }
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
