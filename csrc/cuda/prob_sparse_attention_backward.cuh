// The state of a block in the backward pass: its shared memory, and the gradient of the fill for its keys.
#pragma once

#include "cuda/prob_sparse_attention_tiles.cuh"

namespace simmst::cuda::prob_sparse {

constexpr int kBackwardThreads = 128;

struct BackwardParameters {
  Batch batch;
  Operand query, key, value, out, grad_out, grad_query, grad_key, grad_value;
  const int64_t* top;
  int64_t selected;
  simmst::prob_sparse::Spans spans;
  float scale;
  bool is_causal, has_fill;
  Fill fill;
  Dropout dropout;
  const float* lse;   // (batch, u)
  double* rest;       // (batch, spans of rows, W): sums of dO over the rows with the fill
  float* grad_parts;  // (batch, spans of keys, u, W): parts of dQ
  float* delta;       // (batch, u): rowsum(dO O)
};

// The factor with which a filled row passes its gradient to each key that it sees.
SIMMST_DEVICE double fill_share(const BackwardParameters& p, int64_t row) {
  const int64_t keys = p.key.matrices.rows;
  return p.fill == Fill::kCummean ? 1.0 / static_cast<double>(row < keys ? row + 1 : keys) : 1.0;
}

// The number of selected queries in shared memory: fewer where the rest of a tile would not leave room for 64 on
// compute capability 8.0.
template <typename T, int W>
constexpr int kQueries = sizeof(T) * W > 256 ? kTile / 2 : kTile;

// The shared memory of a block.
template <typename T, int W>
struct Shared {
  static constexpr int kPitch = Products<T, W>::kPitch;
  static constexpr int kTerms = Products<T, W>::kTerms;
  static constexpr int kTurnedPitch = Products<T, kQueries<T, W>>::kPitch;
  T* keys;         // (kTile, W); dK at the end
  T* values;       // (kTile, W); dV at the end
  T* queries;      // (kQueries, W), selected ones
  T* grads;        // (kQueries, W), their dO
  T* turned;       // (terms, kTile keys, kQueries): dS
  double* runs;    // (kBackwardThreads)
  float* rest;     // (kTile, W) for a running fill, else (W): the fill's gradient
  float* lse;      // (kQueries), in base 2
  float* delta;    // (kQueries)
  int* position;   // (kQueries): index of the query
  float* scratch;  // scratch of the warp
  bool* flags;     // (kTile)

  static constexpr std::size_t bytes(bool running) {
    return (2 * (kTile + kQueries<T, W>)*kPitch + kTerms * kTile * kTurnedPitch) * sizeof(T) +
           kBackwardThreads * sizeof(double) +
           ((running ? kTile : 1) * W + 3 * kQueries<T, W> + kBackwardThreads / kWarp * Products<T, W>::kScratch) *
               sizeof(float) +
           kTile * sizeof(bool);
  }
  SIMMST_DEVICE_MEMBER explicit Shared(bool running) {
    keys = reinterpret_cast<T*>(shared_memory());
    values = keys + kTile * kPitch;
    queries = values + kTile * kPitch;
    grads = queries + kQueries<T, W> * kPitch;
    turned = grads + kQueries<T, W> * kPitch;
    runs = reinterpret_cast<double*>(turned + kTerms * kTile * kTurnedPitch);
    rest = reinterpret_cast<float*>(runs + kBackwardThreads);
    lse = rest + (running ? kTile : 1) * W;
    delta = lse + kQueries<T, W>;
    position = reinterpret_cast<int*>(delta + kQueries<T, W>);
    float* all_scratch = reinterpret_cast<float*>(position + kQueries<T, W>);
    scratch = all_scratch + warp_index() * Products<T, W>::kScratch;
    flags = reinterpret_cast<bool*>(all_scratch + kBackwardThreads / kWarp * Products<T, W>::kScratch);
  }
};

// The sum of dO from a row on, for the rows of a tile, last row first; a thread has one column and a run of rows.
template <typename T, int W>
class RunningRest {
 public:
  SIMMST_DEVICE_MEMBER RunningRest(const BackwardParameters& p, int64_t entry, int64_t span)
      : p_(p), grad_(rows_of<const T>(p.grad_out, p.batch, entry)), top_(p.top + entry * p.selected) {
    const double* rest = p.rest + entry * p.spans.rows * W + thread_index() % W;
    for (int64_t chunk = p.spans.rows - 1; chunk > span; --chunk) carry_ += rest[chunk * W];
  }

  // Begins with a barrier.
  SIMMST_DEVICE_MEMBER void add_tile(const Shared<T, W>& shared, int64_t first) {
    constexpr int kRuns = kBackwardThreads / W, kRun = kTile / kRuns;
    const int column = thread_index() % W, run = thread_index() / W;
    mark_selected(shared.flags, top_, p_.selected, first, kTile);
    const auto share_of = [&](int i) {
      const int64_t row = first + i;
      if (row >= grad_.count || column >= grad_.columns || shared.flags[i]) return 0.0;
      return fill_share(p_, row) * static_cast<double>(to_float(grad_.row(row)[column]));
    };
    double mine = 0.0;
    for (int i = (run + 1) * kRun - 1; i >= run * kRun; --i) mine += share_of(i);
    shared.runs[run * W + column] = mine;
    sync_block();
    double running = carry_;
    for (int after = kRuns - 1; after >= 0; --after) {
      const double one = shared.runs[after * W + column];
      if (after > run) running += one;
      carry_ += one;
    }
    for (int i = (run + 1) * kRun - 1; i >= run * kRun; --i) {
      running += share_of(i);
      shared.rest[i * W + column] = static_cast<float>(running);
    }
  }

 private:
  const BackwardParameters& p_;
  const Rows<const T> grad_;
  const int64_t* top_;
  double carry_ = 0.0;
};

// A fill gradient that is the same for every key: that of the mean, or zero where all rows are selected.
template <int W>
SIMMST_DEVICE void constant_rest(const BackwardParameters& p, int64_t entry, float* rest) {
  for (int c = thread_index(); c < W; c += kBackwardThreads) {
    double sum = 0.0;
    if (p.has_fill)
      for (int64_t chunk = 0; chunk < p.spans.rows; ++chunk) sum += p.rest[(entry * p.spans.rows + chunk) * W + c];
    rest[c] = static_cast<float>(sum / static_cast<double>(p.key.matrices.rows));
  }
}

}  // namespace simmst::cuda::prob_sparse
