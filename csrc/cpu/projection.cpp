// Linear layers before and after attention for one instruction set. Blocks of tokens are normalised and go through all
// layers of a call while they are in the cache; they are read and written in the heads' layout.
#include "cpu/projection.hpp"

#include <omp.h>

#include "cpu/token_rows.hpp"

namespace simmst::cpu::SIMMST_ISA::projection {
namespace {

using namespace simmst::cpu::projection;  // names shared by all instruction sets
using namespace matrices;

constexpr int64_t kBlock = 48;  // rows, a multiple of kRows
// chunks of rows; fixed, so that sums of gradients do not depend on the number of threads
constexpr int64_t kChunks = 16;
constexpr double kWorthThread = 2e6;  // operations per thread

// The tokens of a tensor, with or without a layout by heads.
template <typename T>
struct Tokens {
  T* data;
  int64_t steps, features, heads;

  // Calls f(pointer, first feature, count) for each piece of a row.
  template <typename F>
  SIMMST_INLINE void pieces(int64_t row, const F& f) const {
    if (heads == 0) return f(data + row * features, 0, features);
    const int64_t width = features / heads, n = row / steps, t = row % steps;
    for (int64_t head = 0; head < heads; ++head)
      f(data + ((n * heads + head) * steps + t) * width, head * width, width);
  }
};

// Copies the row in whole vectors. Entries after the last feature must already be zero.
SIMMST_INLINE void gather(const Tokens<const float>& tokens, int64_t row, float* to) {
  tokens.pieces(row, [&](const float* from, int64_t first, int64_t count) SIMMST_LAMBDA {
    for (int64_t i = 0; i < count; i += kWide) store_some(to + first + i, load_some(from + i, count - i), count - i);
  });
}
SIMMST_INLINE void scatter(const Tokens<float>& tokens, int64_t row, const float* from) {
  tokens.pieces(row, [&](float* to, int64_t first, int64_t count) SIMMST_LAMBDA {
    for (int64_t i = 0; i < count; i += kWide) store_some(to + i, load_some(from + first + i, count - i), count - i);
  });
}

struct Packed {
  float* panels[kMostParts];  // (inputs, outputs); for backward (outputs, inputs)
  float* bias[kMostParts];
  float *norm, *norm_bias;
};

Packed take_packed(const Problem& problem, bool backward, Parts& parts) {
  Packed packed{};
  for (int64_t p = 0; p < problem.parts; ++p) {
    packed.panels[p] =
        parts.take(backward ? problem.outputs * padded(problem.inputs) : problem.inputs * padded(problem.outputs));
    packed.bias[p] = parts.take(padded(problem.outputs));
  }
  packed.norm = parts.take(padded(problem.inputs));
  packed.norm_bias = parts.take(padded(problem.inputs));
  return packed;
}

void fill(const float* from, float otherwise, int64_t count, float* to) {
  for (int64_t n = 0; n < padded(count); ++n) to[n] = n >= count ? 0.0f : from == nullptr ? otherwise : from[n];
}

void pack_all(const Problem& problem, const Weights& weights, bool backward, const Packed& packed) {
  for (int64_t p = 0; p < problem.parts; ++p) {
    const float* weight = weights.weight[p];
    if (backward) pack(weight, problem.inputs, 1, problem.outputs, problem.inputs, packed.panels[p]);
    else pack(weight, 1, problem.inputs, problem.inputs, problem.outputs, packed.panels[p]);
    fill(weights.bias[p], 0.0f, problem.outputs, packed.bias[p]);
  }
  fill(weights.norm, 1.0f, problem.inputs, packed.norm);
  fill(weights.norm_bias, 0.0f, problem.inputs, packed.norm_bias);
}

// A thread's buffers for a block of rows, in whole vectors, zero after the last feature.
struct Block {
  float* x;           // (kBlock, inputs): input of the layers
  float* normal;      // (kBlock, inputs): before the LayerNorm's scale and shift
  float* reciprocal;  // (kBlock,)
  float* out;         // (kBlock, outputs), or its gradient
  float* grad_x;      // (kBlock, inputs)
};

Block take_block(const Problem& problem, Parts& parts) {
  Block block;
  block.x = parts.take(kBlock * padded(problem.inputs));
  block.normal = parts.take(kBlock * padded(problem.inputs));
  block.reciprocal = parts.take(kBlock);
  block.out = parts.take(kBlock * padded(problem.outputs));
  block.grad_x = parts.take(kBlock * padded(problem.inputs));
  return block;
}

struct Totals {
  float* weight[kMostParts];  // (outputs, inputs), rows of whole vectors
  float* bias[kMostParts];
  float *norm, *norm_bias;
};

Totals take_totals(const Problem& problem, Parts& parts) {
  Totals totals{};
  for (int64_t p = 0; p < problem.parts; ++p) {
    totals.weight[p] = parts.take(problem.outputs * padded(problem.inputs));
    totals.bias[p] = parts.take(padded(problem.outputs));
  }
  totals.norm = parts.take(padded(problem.inputs));
  totals.norm_bias = parts.take(padded(problem.inputs));
  return totals;
}

// Puts rows first .. first + count, the input of the layers, into block.x.
void enter(const Problem& problem, const Packed& packed, bool normed, const float* x, int64_t first, int64_t count,
           const Block& block) {
  const int64_t ld = padded(problem.inputs);
  const Tokens<const float> tokens{x, problem.steps, problem.inputs, problem.input_heads};
  for (int64_t r = 0; r < count; ++r) {
    float *to = block.x + r * ld, *normal = block.normal + r * ld;
    gather(tokens, first + r, to);
    if (!normed) continue;
    block.reciprocal[r] = normalise(to, problem.inputs, problem.eps, normal);
    for (int64_t n = 0; n < ld; n += kWide)
      store(to + n, load(normal + n) * load(packed.norm + n) + load(packed.norm_bias + n));
  }
}

void forward_block(const Problem& problem, const Packed& packed, const Weights& weights, const float* x,
                   const Outputs& to, int64_t first, int64_t count, const Block& block) {
  const int64_t outputs = problem.outputs, ld = padded(outputs);
  enter(problem, packed, weights.norm != nullptr, x, first, count, block);
  for (int64_t p = 0; p < problem.parts; ++p) {
    product(
        block.x, padded(problem.inputs), count, problem.inputs, packed.panels[p], vectors_for(outputs),
        [&](int64_t, int64_t n) SIMMST_LAMBDA { return load(packed.bias[p] + n); },
        [&](int64_t r, int64_t n, Vector sum) SIMMST_LAMBDA { store(block.out + r * ld + n, sum); });
    const Tokens<float> tokens{to.part[p], problem.steps, outputs, problem.output_heads};
    for (int64_t r = 0; r < count; ++r) {
      float* row = block.out + r * ld;
      if (p == 0 && weights.scale != nullptr)
        for (int64_t n = 0; n < outputs; n += kWide)
          store(row + n,
                load(row + n) * load_some(weights.scale + (first + r) / problem.steps * outputs + n, outputs - n));
      if (p == 0 && weights.residual != nullptr)
        for (int64_t n = 0; n < outputs; n += kWide)
          store(row + n, load(row + n) + load_some(weights.residual + (first + r) * outputs + n, outputs - n));
      scatter(tokens, first + r, row);
    }
  }
}

void backward_block(const Problem& problem, const Packed& packed, const Weights& weights, const float* const* grads,
                    const float* x, int64_t first, int64_t count, const Gradients& wanted, const Block& block,
                    const Totals& totals) {
  const int64_t inputs = problem.inputs, outputs = problem.outputs, ld_x = padded(inputs), ld = padded(outputs);
  const bool normed = weights.norm != nullptr, through = wanted.x != nullptr || normed;
  enter(problem, packed, normed, x, first, count, block);
  for (int64_t p = 0; p < problem.parts; ++p) {
    const Tokens<const float> tokens{grads[p], problem.steps, outputs, problem.output_heads};
    for (int64_t r = 0; r < count; ++r) {
      float* row = block.out + r * ld;
      gather(tokens, first + r, row);
      if (p == 0 && weights.scale != nullptr)
        for (int64_t n = 0; n < outputs; n += kWide)
          store(row + n,
                load(row + n) * load_some(weights.scale + (first + r) / problem.steps * outputs + n, outputs - n));
    }
    if (wanted.bias[p] != nullptr) add_rows(block.out, ld, count, outputs, totals.bias[p]);
    if (wanted.weight[p] != nullptr)
      outer_product(block.out, ld, outputs, block.x, ld_x, vectors_for(inputs), count, totals.weight[p], ld_x);
    if (!through) continue;
    product(
        block.out, ld, count, outputs, packed.panels[p], vectors_for(inputs),
        [&](int64_t r, int64_t n) SIMMST_LAMBDA { return p == 0 ? Vector{} : load(block.grad_x + r * ld_x + n); },
        [&](int64_t r, int64_t n, Vector sum) SIMMST_LAMBDA { store(block.grad_x + r * ld_x + n, sum); });
  }
  if (!through) return;
  const Tokens<float> to{wanted.x, problem.steps, inputs, problem.input_heads};
  for (int64_t r = 0; r < count; ++r) {
    float* row = block.grad_x + r * ld_x;
    if (normed)
      normalise_backward(row, block.normal + r * ld_x, block.reciprocal[r], inputs, packed.norm, totals.norm,
                         totals.norm_bias);
    if (wanted.x != nullptr) scatter(to, first + r, row);
  }
}

int team(const Problem& problem) {
  const double layers = 2.0 * static_cast<double>(problem.rows() * problem.parts);
  const double work = layers * static_cast<double>(problem.inputs * problem.outputs) / kWorthThread;
  const int64_t most = problem.threads;
  return work >= static_cast<double>(most) ? static_cast<int>(most) : work < 1.0 ? 1 : static_cast<int>(work);
}

template <typename Take>
int64_t bytes_of(const Take& take) {
  Parts parts(nullptr);
  take(parts);
  return parts.used();
}

int64_t block_bytes(const Problem& problem) {
  return bytes_of([&](Parts& parts) { take_block(problem, parts); });
}
int64_t totals_bytes(const Problem& problem) {
  return bytes_of([&](Parts& parts) { take_totals(problem, parts); });
}

int64_t bytes(const Problem& problem, bool backward) {
  const int64_t packed = bytes_of([&](Parts& parts) { take_packed(problem, backward, parts); });
  return packed + team(problem) * block_bytes(problem) + (backward ? kChunks * totals_bytes(problem) : 0);
}

Block own_block(const Problem& problem, char* memory) {
  const int64_t size = block_bytes(problem);
  char* own = memory + omp_get_thread_num() * size;
  __builtin_memset(own, 0, static_cast<size_t>(size));
  Parts parts(own);
  return take_block(problem, parts);
}

void forward(const Problem& problem, const float* x, const Weights& weights, const Outputs& out, void* workspace) {
  Parts parts(workspace);
  const Packed packed = take_packed(problem, false, parts);
  pack_all(problem, weights, false, packed);
  char* own = parts.take<char>(0);
  const int64_t rows = problem.rows(), blocks = (rows + kBlock - 1) / kBlock;
  const int threads = team(problem);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Block block = own_block(problem, own);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * kBlock, left = rows - first;
      forward_block(problem, packed, weights, x, out, first, left < kBlock ? left : kBlock, block);
    }
  }
}

// to[r][n] = sum over the chunks, in order, of the rows (height, ld) that start at `first` in each chunk's totals.
void add_chunks(const float* first, int64_t stride, int64_t height, int64_t width, float* to) {
  if (to == nullptr) return;
  const int64_t ld = padded(width);
  for (int64_t r = 0; r < height; ++r)
    for (int64_t n = 0; n < width; n += kWide) {
      Vector sum{};
      for (int64_t k = 0; k < kChunks; ++k) sum += load(first + k * stride + r * ld + n);
      store_some(to + r * width + n, sum, width - n);
    }
}

void backward(const Problem& problem, const float* const* grads, const float* x, const Weights& weights,
              const Gradients& wanted, void* workspace) {
  Parts parts(workspace);
  const Packed packed = take_packed(problem, true, parts);
  pack_all(problem, weights, true, packed);
  const int64_t each = totals_bytes(problem), rows = problem.rows(), blocks = (rows + kBlock - 1) / kBlock;
  char* all = parts.take<char>(kChunks * each);
  char* own = parts.take<char>(0);
  __builtin_memset(all, 0, static_cast<size_t>(kChunks * each));
  const int threads = team(problem);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Block block = own_block(problem, own);
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
      Parts part(all + chunk * each);
      const Totals totals = take_totals(problem, part);
      const int64_t last = (chunk + 1) * blocks / kChunks;
      for (int64_t b = chunk * blocks / kChunks; b < last; ++b) {
        const int64_t first = b * kBlock, left = rows - first;
        backward_block(problem, packed, weights, grads, x, first, left < kBlock ? left : kBlock, wanted, block, totals);
      }
    }
  }
  Parts part(all);
  const Totals totals = take_totals(problem, part);
  const int64_t stride = each / static_cast<int64_t>(sizeof(float));
  for (int64_t p = 0; p < problem.parts; ++p) {
    add_chunks(totals.weight[p], stride, problem.outputs, problem.inputs, wanted.weight[p]);
    add_chunks(totals.bias[p], stride, 1, problem.outputs, wanted.bias[p]);
  }
  add_chunks(totals.norm, stride, 1, problem.inputs, wanted.norm);
  add_chunks(totals.norm_bias, stride, 1, problem.inputs, wanted.norm_bias);
}

}  // namespace

const Kernels kernels = {bytes, forward, backward};

}  // namespace simmst::cpu::SIMMST_ISA::projection
