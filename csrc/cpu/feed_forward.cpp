// The feed-forward part for one instruction set. Blocks of rows go through both layers while they are in the cache. The
// hidden layer is never written to memory; the backward pass computes it again.
#include "cpu/feed_forward.hpp"

#include <omp.h>

#include "cpu/gelu.hpp"
#include "cpu/token_rows.hpp"

namespace simmst::cpu::SIMMST_ISA::feed_forward {
namespace {

using namespace simmst::cpu::feed_forward;  // names shared by all instruction sets
using namespace matrices;

constexpr int64_t kBlock = 48;        // rows, a multiple of kRows
constexpr double kWorthThread = 2e6;  // operations per thread

// Weights in panels, and the vectors that are added to rows or multiplied with them, padded to whole vectors.
struct Packed {
  float *in, *out;            // read by the forward pass: (inputs, hidden), (hidden, outputs)
  float *in_back, *out_back;  // read by the backward pass: (hidden, inputs), (outputs, hidden)
  float *in_bias, *out_bias, *norm, *norm_bias;
};

Packed take_packed(const Problem& problem, bool backward, Parts& parts) {
  const int64_t inputs = problem.inputs, hidden = problem.hidden, outputs = problem.outputs;
  Packed packed{};
  packed.in = parts.take(inputs * padded(hidden));
  packed.out = parts.take(hidden * padded(outputs));
  if (backward) {
    packed.in_back = parts.take(hidden * padded(inputs));
    packed.out_back = parts.take(outputs * padded(hidden));
  }
  packed.in_bias = parts.take(padded(hidden));
  packed.out_bias = parts.take(padded(outputs));
  packed.norm = parts.take(padded(problem.normed()));
  packed.norm_bias = parts.take(padded(problem.normed()));
  return packed;
}

void fill(const float* from, float otherwise, int64_t count, float* to) {
  for (int64_t n = 0; n < padded(count); ++n) to[n] = n >= count ? 0.0f : from == nullptr ? otherwise : from[n];
}

void pack_all(const Problem& problem, const Weights& weights, bool backward, const Packed& packed) {
  const int64_t inputs = problem.inputs, hidden = problem.hidden, outputs = problem.outputs;
  pack(weights.in, 1, inputs, inputs, hidden, packed.in);
  if (!backward || problem.norm == Norm::kAfter) pack(weights.out, 1, hidden, hidden, outputs, packed.out);
  if (backward) {
    pack(weights.in, inputs, 1, hidden, inputs, packed.in_back);
    pack(weights.out, hidden, 1, outputs, hidden, packed.out_back);
  }
  fill(weights.in_bias, 0.0f, hidden, packed.in_bias);
  fill(weights.out_bias, 0.0f, outputs, packed.out_bias);
  fill(weights.norm, 1.0f, problem.normed(), packed.norm);
  fill(weights.norm_bias, 0.0f, problem.normed(), packed.norm_bias);
}

// A thread's buffers for a block of rows. Rows of *_ld entries are whole vectors.
struct Block {
  int64_t inputs_ld, hidden_ld, outputs_ld;
  float* x;              // (kBlock, inputs): input of the first layer
  float* hidden;         // (kBlock, hidden): before and after the GELU
  float* branch;         // (kBlock, outputs)
  float* start;          // (kBlock, hidden): bias and addend of each series
  const float** starts;  // (kBlock,): the start of each row
  // For the backward pass only:
  float* normal;       // (kBlock, normed): before the LayerNorm's scale and shift
  float* reciprocal;   // (kBlock,): 1 / deviation
  float* slope;        // (kBlock, hidden): slope of the GELU, then the gradient before it
  float* grad;         // (kBlock, outputs): gradient of the sum of residual and branch
  float* grad_branch;  // (kBlock, outputs): the same, times the scale
  float* grad_x;       // (kBlock, inputs)
};

Block take_block(const Problem& problem, bool backward, bool addend, Parts& parts) {
  Block block{};
  block.inputs_ld = padded(problem.inputs);
  block.hidden_ld = padded(problem.hidden);
  block.outputs_ld = padded(problem.outputs);
  block.x = parts.take(kBlock * block.inputs_ld);
  block.hidden = parts.take(kBlock * block.hidden_ld);
  block.branch = parts.take(kBlock * block.outputs_ld);
  block.start = parts.take(addend ? kBlock * block.hidden_ld : 0);
  block.starts = parts.take<const float*>(kBlock);
  if (backward) {
    block.normal = parts.take(kBlock * padded(problem.normed()));
    block.reciprocal = parts.take(kBlock);
    block.slope = parts.take(kBlock * block.hidden_ld);
    block.grad = parts.take(kBlock * block.outputs_ld);
    block.grad_branch = parts.take(kBlock * block.outputs_ld);
    block.grad_x = parts.take(kBlock * block.inputs_ld);
  }
  return block;
}

// What a thread needs to process blocks of rows.
struct Call {
  const Problem& problem;
  const Packed& packed;
  const Weights& weights;
  const float* x;
  const Block& block;
};

void enter(const Call& call, int64_t first, int64_t count, bool backward) {
  const Problem& problem = call.problem;
  const Block& block = call.block;
  const int64_t inputs = problem.inputs;
  for (int64_t r = 0; r < count; ++r) {
    const float* row = call.x + (first + r) * inputs;
    float* to = block.x + r * block.inputs_ld;
    if (problem.norm != Norm::kBefore) {
      copy_row(row, inputs, to);
      continue;
    }
    float* normal = backward ? block.normal + r * block.inputs_ld : to;
    const float reciprocal = normalise(row, inputs, problem.eps, normal);
    if (backward) block.reciprocal[r] = reciprocal;
    for (int64_t n = 0; n < inputs; n += kWide)
      store(to + n, load(normal + n) * load(call.packed.norm + n) + load(call.packed.norm_bias + n));
  }
  const float* start = call.packed.in_bias;
  for (int64_t r = 0; r < count; ++r) {
    if (call.weights.addend != nullptr && (r == 0 || (first + r) % problem.steps == 0)) {
      float* own = block.start + r * block.hidden_ld;
      const float* addend = call.weights.addend + (first + r) / problem.steps * problem.hidden;
      for (int64_t n = 0; n < problem.hidden; n += kWide)
        store(own + n, load(call.packed.in_bias + n) + load_some(addend + n, problem.hidden - n));
      start = own;
    }
    block.starts[r] = start;
  }
  product(
      block.x, block.inputs_ld, count, inputs, call.packed.in, vectors_for(problem.hidden),
      [&](int64_t r, int64_t n) SIMMST_LAMBDA { return load(block.starts[r] + n); },
      [&](int64_t r, int64_t n, Vector sum) SIMMST_LAMBDA { store(block.hidden + r * block.hidden_ld + n, sum); });
}

// Applies the second layer, scales it and adds it to the residual: (count, outputs) in block.branch.
void leave(const Call& call, int64_t first, int64_t count) {
  const Problem& problem = call.problem;
  const Block& block = call.block;
  const int64_t outputs = problem.outputs;
  product(
      block.hidden, block.hidden_ld, count, problem.hidden, call.packed.out, vectors_for(outputs),
      [&](int64_t, int64_t n) SIMMST_LAMBDA { return load(call.packed.out_bias + n); },
      [&](int64_t r, int64_t n, Vector sum) SIMMST_LAMBDA { store(block.branch + r * block.outputs_ld + n, sum); });
  if (call.weights.scale == nullptr && !problem.residual) return;
  for (int64_t r = 0; r < count; ++r) {
    float* row = block.branch + r * block.outputs_ld;
    const float* residual = call.x + (first + r) * outputs;
    const float* scale = call.weights.scale;
    if (scale != nullptr) scale += (first + r) / problem.steps * outputs;
    for (int64_t n = 0; n < outputs; n += kWide) {
      Vector at = load(row + n);
      if (scale != nullptr) at *= load_some(scale + n, outputs - n);
      if (problem.residual) at += load_some(residual + n, outputs - n);
      store(row + n, at);
    }
  }
}

void forward_block(const Call& call, int64_t first, int64_t count, float* out) {
  const Problem& problem = call.problem;
  const Block& block = call.block;
  enter(call, first, count, false);
  apply_gelu(block.hidden, count * block.hidden_ld);
  leave(call, first, count);
  for (int64_t r = 0; r < count; ++r) {
    float* row = block.branch + r * block.outputs_ld;
    float* to = out + (first + r) * problem.outputs;
    if (problem.norm == Norm::kAfter) normalise(row, problem.outputs, problem.eps, row);
    for (int64_t n = 0; n < problem.outputs; n += kWide) {
      Vector at = load(row + n);
      if (problem.norm == Norm::kAfter) at = at * load(call.packed.norm + n) + load(call.packed.norm_bias + n);
      store_some(to + n, at, problem.outputs - n);
    }
  }
}

// Sums of the gradients of all weights over a chunk of rows.
struct Totals {
  float *in, *out;  // (hidden, inputs), (outputs, hidden), rows of whole vectors
  float *in_bias, *out_bias, *norm, *norm_bias;
};

Totals take_totals(const Problem& problem, Parts& parts) {
  Totals totals;
  totals.in = parts.take(problem.hidden * padded(problem.inputs));
  totals.out = parts.take(problem.outputs * padded(problem.hidden));
  totals.in_bias = parts.take(padded(problem.hidden));
  totals.out_bias = parts.take(padded(problem.outputs));
  totals.norm = parts.take(padded(problem.normed()));
  totals.norm_bias = parts.take(padded(problem.normed()));
  return totals;
}

// Computes the gradient of the sum of residual and branch in block.grad, and returns the gradient of the branch; both
// are (count, outputs).
const float* enter_backward(const Call& call, const float* grad, int64_t first, int64_t count, const Totals& totals) {
  const Problem& problem = call.problem;
  const Block& block = call.block;
  const int64_t outputs = problem.outputs;
  if (problem.norm == Norm::kAfter) leave(call, first, count);
  for (int64_t r = 0; r < count; ++r) {
    float* to = block.grad + r * block.outputs_ld;
    copy_row(grad + (first + r) * outputs, outputs, to);
    if (problem.norm == Norm::kAfter) {
      float* normal = block.normal + r * block.outputs_ld;
      const float reciprocal = normalise(block.branch + r * block.outputs_ld, outputs, problem.eps, normal);
      normalise_backward(to, normal, reciprocal, outputs, call.packed.norm, totals.norm, totals.norm_bias);
    }
    if (call.weights.scale == nullptr) continue;
    const float* scale = call.weights.scale + (first + r) / problem.steps * outputs;
    for (int64_t n = 0; n < outputs; n += kWide)
      store(block.grad_branch + r * block.outputs_ld + n, load(to + n) * load_some(scale + n, outputs - n));
  }
  return call.weights.scale == nullptr ? block.grad : block.grad_branch;
}

void backward_block(const Call& call, const float* grad, int64_t first, int64_t count, const Gradients& wanted,
                    const Totals& totals) {
  const Problem& problem = call.problem;
  const Block& block = call.block;
  const int64_t inputs = problem.inputs, hidden = problem.hidden, outputs = problem.outputs;
  enter(call, first, count, true);
  apply_gelu_with_slope(block.hidden, block.slope, count * block.hidden_ld);
  const float* branch = enter_backward(call, grad, first, count, totals);
  product(
      branch, block.outputs_ld, count, outputs, call.packed.out_back, vectors_for(hidden),
      [](int64_t, int64_t) SIMMST_LAMBDA { return Vector{}; },
      [&](int64_t r, int64_t n, Vector sum) SIMMST_LAMBDA {
        float* at = block.slope + r * block.hidden_ld + n;
        store(at, load(at) * sum);
      });
  if (wanted.out != nullptr)
    outer_product(branch, block.outputs_ld, outputs, block.hidden, block.hidden_ld, vectors_for(hidden), count,
                  totals.out, block.hidden_ld);
  if (wanted.out_bias != nullptr) add_rows(branch, block.outputs_ld, count, outputs, totals.out_bias);
  if (wanted.in != nullptr)
    outer_product(block.slope, block.hidden_ld, hidden, block.x, block.inputs_ld, vectors_for(inputs), count, totals.in,
                  block.inputs_ld);
  if (wanted.in_bias != nullptr) add_rows(block.slope, block.hidden_ld, count, hidden, totals.in_bias);
  if (wanted.addend != nullptr) {
    for (int64_t r = 0; r < count;) {
      const int64_t series = (first + r) / problem.steps, left = (series + 1) * problem.steps - first - r;
      const int64_t run = left < count - r ? left : count - r;
      add_rows(block.slope + r * block.hidden_ld, block.hidden_ld, run, hidden, wanted.addend + series * hidden);
      r += run;
    }
  }
  if (wanted.x == nullptr && problem.norm != Norm::kBefore) return;
  product(
      block.slope, block.hidden_ld, count, hidden, call.packed.in_back, vectors_for(inputs),
      [](int64_t, int64_t) SIMMST_LAMBDA { return Vector{}; },
      [&](int64_t r, int64_t n, Vector sum) SIMMST_LAMBDA { store(block.grad_x + r * block.inputs_ld + n, sum); });
  for (int64_t r = 0; r < count; ++r) {
    float* row = block.grad_x + r * block.inputs_ld;
    if (problem.norm == Norm::kBefore)
      normalise_backward(row, block.normal + r * block.inputs_ld, block.reciprocal[r], inputs, call.packed.norm,
                         totals.norm, totals.norm_bias);
    if (wanted.x == nullptr) continue;
    float* to = wanted.x + (first + r) * inputs;
    for (int64_t n = 0; n < inputs; n += kWide) {
      Vector at = load(row + n);
      if (problem.residual) at += load(block.grad + r * block.outputs_ld + n);
      store_some(to + n, at, inputs - n);
    }
  }
}

// The number of threads for this much work: for little work a team costs more than it saves.
int team(const Problem& problem, int64_t parts) {
  const double layer = 2.0 * static_cast<double>(problem.hidden) * static_cast<double>(problem.rows());
  const double work = layer * static_cast<double>(problem.inputs + problem.outputs) / kWorthThread;
  const int64_t most = parts < problem.threads ? parts : problem.threads;
  return work >= static_cast<double>(most) ? static_cast<int>(most) : work < 1.0 ? 1 : static_cast<int>(work);
}

int64_t block_count(const Problem& problem) { return (problem.rows() + kBlock - 1) / kBlock; }

int64_t block_bytes(const Problem& problem, bool backward) {
  Parts parts(nullptr);
  take_block(problem, backward, true, parts);
  return parts.used();
}

int64_t forward_bytes(const Problem& problem) {
  Parts parts(nullptr);
  take_packed(problem, false, parts);
  return parts.used() + team(problem, block_count(problem)) * block_bytes(problem, false);
}

void forward(const Problem& problem, const float* x, const Weights& weights, float* out, void* workspace) {
  Parts parts(workspace);
  const Packed packed = take_packed(problem, false, parts);
  pack_all(problem, weights, false, packed);
  char* own = parts.take<char>(0);
  const int64_t blocks = block_count(problem), bytes = block_bytes(problem, false), rows = problem.rows();
  const int threads = team(problem, blocks);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Parts mine(own + omp_get_thread_num() * bytes);
    const Block block = take_block(problem, false, true, mine);
    const Call call{problem, packed, weights, x, block};
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * kBlock, left = rows - first;
      forward_block(call, first, left < kBlock ? left : kBlock, out);
    }
  }
}

// Gradients of weights are summed over fixed chunks of rows, and the chunks are added in order, whatever the number of
// threads. Where each series has a gradient of its own, a chunk begins with a series.
struct Chunks {
  int64_t count, unit, units, rows;

  int64_t first(int64_t chunk) const {
    const int64_t row = chunk * units / count * unit;
    return row < rows ? row : rows;
  }
};

int64_t totals_bytes(const Problem& problem) {
  Parts parts(nullptr);
  take_totals(problem, parts);
  return parts.used();
}

Chunks chunks_of(const Problem& problem, bool by_series) {
  const int64_t rows = problem.rows(), unit = by_series ? problem.steps : kBlock, units = (rows + unit - 1) / unit;
  int64_t count = (int64_t{64} << 20) / totals_bytes(problem);
  count = count < 32 ? count : 32;
  count = count < rows / 768 ? count : rows / 768;
  count = count < units ? count : units;
  return {count < 1 ? 1 : count, unit, units, rows};
}

int64_t backward_bytes(const Problem& problem) {
  Parts parts(nullptr);
  take_packed(problem, true, parts);
  const int64_t most = chunks_of(problem, false).count + chunks_of(problem, true).count;
  return parts.used() + most * totals_bytes(problem) + problem.threads * block_bytes(problem, true);
}

// to[r][n] = sum over the chunks, in order, of the rows (height, ld) that start at `first` in each chunk's totals.
void add_chunks(const float* first, int64_t stride, int64_t chunks, int64_t height, int64_t width, float* to) {
  if (to == nullptr) return;
  const int64_t ld = padded(width);
  for (int64_t r = 0; r < height; ++r)
    for (int64_t n = 0; n < width; n += kWide) {
      Vector sum{};
      for (int64_t k = 0; k < chunks; ++k) sum += load(first + k * stride + r * ld + n);
      store_some(to + r * width + n, sum, width - n);
    }
}

void backward(const Problem& problem, const float* grad, const float* x, const Weights& weights,
              const Gradients& wanted, void* workspace) {
  Parts parts(workspace);
  const Packed packed = take_packed(problem, true, parts);
  pack_all(problem, weights, true, packed);
  const Chunks chunks = chunks_of(problem, wanted.addend != nullptr);
  const int64_t each = totals_bytes(problem), bytes = block_bytes(problem, true);
  char* all = parts.take<char>(chunks.count * each);
  char* own = parts.take<char>(0);
  const int threads = team(problem, chunks.count);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Parts mine(own + omp_get_thread_num() * bytes);
    const Block block = take_block(problem, true, true, mine);
    const Call call{problem, packed, weights, x, block};
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      const int64_t first = chunks.first(chunk), last = chunks.first(chunk + 1);
      clear(reinterpret_cast<float*>(all + chunk * each), each / static_cast<int64_t>(sizeof(float)));
      if (wanted.addend != nullptr)
        clear(wanted.addend + first / problem.steps * problem.hidden, (last - first) / problem.steps * problem.hidden);
      Parts part(all + chunk * each);
      const Totals totals = take_totals(problem, part);
      for (int64_t row = first; row < last; row += kBlock)
        backward_block(call, grad, row, last - row < kBlock ? last - row : kBlock, wanted, totals);
    }
  }
  Parts part(all);
  const Totals totals = take_totals(problem, part);
  const int64_t stride = each / static_cast<int64_t>(sizeof(float)), count = chunks.count;
  add_chunks(totals.in, stride, count, problem.hidden, problem.inputs, wanted.in);
  add_chunks(totals.out, stride, count, problem.outputs, problem.hidden, wanted.out);
  add_chunks(totals.in_bias, stride, count, 1, problem.hidden, wanted.in_bias);
  add_chunks(totals.out_bias, stride, count, 1, problem.outputs, wanted.out_bias);
  add_chunks(totals.norm, stride, count, 1, problem.normed(), wanted.norm);
  add_chunks(totals.norm_bias, stride, count, 1, problem.normed(), wanted.norm_bias);
}

}  // namespace

const Kernels kernels = {forward_bytes, forward, backward_bytes, backward};

}  // namespace simmst::cpu::SIMMST_ISA::feed_forward
