// Attention of slots over days for one instruction set. Lanes hold days: a series' days are transposed once, and then
// all of its scores, weights and gradients stay in the first-level cache.
#include "cpu/day_attention.hpp"

#include <omp.h>

#include "cpu/matrices.hpp"

namespace simmst::cpu::SIMMST_ISA::day_attention {
namespace {

using namespace simmst::cpu::day_attention;  // names shared by all instruction sets
using namespace matrices;

// chunks of series; fixed, so that sums of gradients do not depend on the number of threads
constexpr int64_t kChunks = 16;
constexpr double kWorthThread = 5e5;  // scores per thread

// A thread's buffers for one series. Rows of days are whole vectors, zero after the last day.
struct Buffers {
  int64_t ld;       // length of a row of days
  float* query;     // (slots, heads * width + a vector): scaled
  float* key;       // (heads * width, ld)
  float* key_rows;  // (days, heads * width + a vector)
  float* values;    // (slots, ld)
  float* known;     // (slots, ld): one or zero
  float* alike;     // (2, slots, ld)
  float* apart;     // (ld,)
  float* weights;   // (slots, ld) of one head
};

// Gradients of the weights over a chunk of series.
struct Totals {
  float* bias;   // (heads, ld)
  float* alike;  // (heads, 2, a vector)
};

int64_t row_of_heads(const Problem& problem) { return problem.heads * problem.width + kWide; }

Buffers take_buffers(const Problem& problem, Parts& parts) {
  Buffers buffers;
  buffers.ld = padded(problem.days);
  buffers.query = parts.take(problem.slots * row_of_heads(problem));
  buffers.key = parts.take(problem.heads * problem.width * buffers.ld);
  buffers.key_rows = parts.take(problem.days * row_of_heads(problem));
  buffers.values = parts.take(problem.slots * buffers.ld);
  buffers.known = parts.take(problem.slots * buffers.ld);
  buffers.alike = parts.take(2 * problem.slots * buffers.ld);
  buffers.apart = parts.take(buffers.ld);
  buffers.weights = parts.take(problem.slots * buffers.ld);
  return buffers;
}

Totals take_totals(const Problem& problem, Parts& parts) {
  Totals totals;
  totals.bias = parts.take(problem.heads * padded(problem.days));
  totals.alike = parts.take(problem.heads * 2 * kWide);
  return totals;
}

// Copies `count` entries that are `step` apart to a row, with zeros up to ld.
template <typename T>
SIMMST_INLINE void gather(const T* from, int64_t step, int64_t count, float* to, int64_t ld) {
  for (int64_t l = 0; l < count; ++l) to[l] = static_cast<float>(from[l * step]);
  for (int64_t l = count; l < ld; ++l) to[l] = 0.0f;
}

void turn_over(const Problem& problem, const Inputs& in, int64_t n, const Buffers& to) {
  const int64_t slots = problem.slots, days = problem.days, features = problem.heads * problem.width;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(problem.width));
  const float* query = in.query + n * slots * features;
  for (int64_t t = 0; t < slots; ++t)
    for (int64_t c = 0; c < features; ++c) to.query[t * row_of_heads(problem) + c] = query[t * features + c] * scale;
  const float* key = in.key + n * days * features;
  for (int64_t l = 0; l < days; ++l) {
    float* row = to.key_rows + l * row_of_heads(problem);
    for (int64_t c = 0; c < features; ++c) row[c] = key[l * features + c];
    for (int64_t c = 0; c < features; ++c) to.key[c * to.ld + l] = row[c];
  }
  for (int64_t c = 0; c < features; ++c)
    for (int64_t l = days; l < to.ld; ++l) to.key[c * to.ld + l] = 0.0f;
  for (int64_t t = 0; t < slots; ++t) {
    const int64_t at = n * days * slots + t;
    gather(in.values + at, slots, days, to.values + t * to.ld, to.ld);
    gather(in.known + at, slots, days, to.known + t * to.ld, to.ld);
    for (int64_t i = 0; i < 2; ++i)
      gather(in.alike + 2 * at + i, 2 * slots, days, to.alike + (i * slots + t) * to.ld, to.ld);
  }
  gather(in.apart + n * days, 1, days, to.apart, to.ld);
}

// Computes the weights of all slots of a head into buffers.weights: zero where `known` is false.
void weigh(const Problem& problem, const Inputs& in, int64_t head, const float* bias, const Buffers& buffers) {
  const int64_t ld = buffers.ld, slots = problem.slots;
  const float alike = in.alike_weight[2 * head], weekday = in.alike_weight[2 * head + 1];
  for_steps<kVectors>(0, ld / kWide, [&]<int V>(int64_t first) SIMMST_LAMBDA {
    const int64_t l = first * kWide;
    for_steps<kFeatures>(0, slots, [&]<int R>(int64_t t) SIMMST_LAMBDA {
      Sums<R, V> sums;
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
          const float* same = buffers.alike + (t + r) * ld + l + v * kWide;
          sums.at[r][v] = load(bias + l + v * kWide) + load(same) * alike + load(same + slots * ld) * weekday;
        }
      sums.multiply(buffers.query + t * row_of_heads(problem) + head * problem.width, 1, row_of_heads(problem),
                    buffers.key + head * problem.width * ld + l, ld, problem.width);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store(buffers.weights + (t + r) * ld + l + v * kWide, sums.at[r][v]);
    });
  });
  const Vector lowest = broadcast<float>(-__builtin_inff());
  for (int64_t t = 0; t < slots; ++t) {
    float* row = buffers.weights + t * ld;
    const float* known = buffers.known + t * ld;
    Vector largest = lowest, sum{};
    for (int64_t l = 0; l < ld; l += kWide)
      largest = max(largest, select<float>(load(known + l) > 0.0f, load(row + l), lowest));
    const float top = reduce_max<float>(largest);
    for (int64_t l = 0; l < ld; l += kWide) {
      const Vector at = select<float>(load(known + l) > 0.0f, exp(load(row + l) - top), Vector{});
      store(row + l, at);
      sum += at;
    }
    const float total = reduce_add<float>(sum), share = total == 0.0f ? 0.0f : 1.0f / total;
    for (int64_t l = 0; l < ld; l += kWide) store(row + l, load(row + l) * share);
  }
}

void forward_series(const Problem& problem, const Inputs& in, int64_t n, const float* bias, const Buffers& buffers,
                    float* out) {
  const int64_t ld = buffers.ld, heads = problem.heads;
  turn_over(problem, in, n, buffers);
  for (int64_t head = 0; head < heads; ++head) {
    weigh(problem, in, head, bias + head * ld, buffers);
    for (int64_t t = 0; t < problem.slots; ++t) {
      Vector value{}, apart{};
      for (int64_t l = 0; l < ld; l += kWide) {
        const Vector weight = load(buffers.weights + t * ld + l);
        value += weight * load(buffers.values + t * ld + l);
        apart += weight * load(buffers.apart + l);
      }
      float* to = out + (n * problem.slots + t) * 2 * heads + head;
      to[0] = reduce_add<float>(value);
      to[heads] = reduce_add<float>(apart);
    }
  }
}

// Turns buffers.weights into the gradients of a head's scores.
void score_gradients(const Problem& problem, const float* grad, int64_t head, const Buffers& buffers,
                     const Totals& totals) {
  const int64_t ld = buffers.ld, slots = problem.slots;
  for (int64_t t = 0; t < slots; ++t) {
    float* row = buffers.weights + t * ld;
    const float of_value = grad[t * 2 * problem.heads + head], of_apart = grad[(t * 2 + 1) * problem.heads + head];
    Vector along{};
    for (int64_t l = 0; l < ld; l += kWide)
      along += load(row + l) * (load(buffers.values + t * ld + l) * of_value + load(buffers.apart + l) * of_apart);
    const float mean = reduce_add<float>(along);
    Vector same{}, weekday{};
    for (int64_t l = 0; l < ld; l += kWide) {
      const Vector towards = load(buffers.values + t * ld + l) * of_value + load(buffers.apart + l) * of_apart;
      const Vector at = load(row + l) * (towards - mean);
      store(row + l, at);
      float* bias = totals.bias + head * ld + l;
      store(bias, load(bias) + at);
      same += at * load(buffers.alike + t * ld + l);
      weekday += at * load(buffers.alike + (slots + t) * ld + l);
    }
    float* to = totals.alike + head * 2 * kWide;
    store(to, load(to) + same);
    store(to + kWide, load(to + kWide) + weekday);
  }
}

// to[r][i] = factor * sum over k < depth of a[k * a_step + r * a_row] * b[k * ld_b + i], r < rows, i < width; b must be
// readable up to whole vectors.
void narrow_product(const float* a, int64_t a_step, int64_t a_row, int64_t rows, int64_t depth, const float* b,
                    int64_t ld_b, int64_t width, float factor, float* to, int64_t ld) {
  for (int64_t i = 0; i < width; i += kWide)
    for_steps<kFeatures>(0, rows, [&]<int R>(int64_t row) SIMMST_LAMBDA {
      Sums<R, 1> sums{};
      sums.multiply(a + row * a_row, a_step, a_row, b + i, ld_b, depth);
      for (int r = 0; r < R; ++r) store_some(to + (row + r) * ld + i, sums.at[r][0] * factor, width - i);
    });
}

void backward_series(const Problem& problem, const Inputs& in, const float* grad, int64_t n, const float* bias,
                     const Buffers& buffers, const Gradients& to, const Totals& totals) {
  const int64_t ld = buffers.ld, slots = problem.slots, days = problem.days, width = problem.width;
  const int64_t features = problem.heads * width, wide = row_of_heads(problem);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
  turn_over(problem, in, n, buffers);
  for (int64_t head = 0; head < problem.heads; ++head) {
    weigh(problem, in, head, bias + head * ld, buffers);
    score_gradients(problem, grad + n * slots * 2 * problem.heads, head, buffers, totals);
    narrow_product(buffers.weights, 1, ld, slots, days, buffers.key_rows + head * width, wide, width, scale,
                   to.query + n * slots * features + head * width, features);
    narrow_product(buffers.weights, ld, 1, days, slots, buffers.query + head * width, wide, width, 1.0f,
                   to.key + n * days * features + head * width, features);
  }
}

int team(const Problem& problem) {
  const double work = static_cast<double>(problem.series * problem.slots * problem.days * problem.heads) / kWorthThread;
  const int64_t most = problem.series < problem.threads ? problem.series : problem.threads;
  return work >= static_cast<double>(most) ? static_cast<int>(most) : work < 1.0 ? 1 : static_cast<int>(work);
}

template <typename Take>
int64_t bytes_of(const Take& take) {
  Parts parts(nullptr);
  take(parts);
  return parts.used();
}

int64_t buffers_bytes(const Problem& problem) {
  return bytes_of([&](Parts& parts) { take_buffers(problem, parts); });
}
int64_t totals_bytes(const Problem& problem) {
  return bytes_of([&](Parts& parts) { take_totals(problem, parts); });
}

int64_t bytes(const Problem& problem, bool backward) {
  const int64_t bias = problem.heads * padded(problem.days) * static_cast<int64_t>(sizeof(float));
  return round_up(bias, 64) + team(problem) * buffers_bytes(problem) + (backward ? kChunks * totals_bytes(problem) : 0);
}

float* pad_bias(const Problem& problem, const float* bias, Parts& parts) {
  const int64_t ld = padded(problem.days);
  float* rows = parts.take(problem.heads * ld);
  for (int64_t head = 0; head < problem.heads; ++head)
    gather(bias + head * problem.days, 1, problem.days, rows + head * ld, ld);
  return rows;
}

// Entries after the last feature of a row are read but never used, so the buffers are cleared.
Buffers own_buffers(const Problem& problem, char* memory) {
  const int64_t size = buffers_bytes(problem);
  Parts parts(memory + omp_get_thread_num() * size);
  const Buffers buffers = take_buffers(problem, parts);
  __builtin_memset(memory + omp_get_thread_num() * size, 0, static_cast<size_t>(size));
  return buffers;
}

void forward(const Problem& problem, const Inputs& in, float* out, void* workspace) {
  Parts parts(workspace);
  const float* bias = pad_bias(problem, in.bias, parts);
  char* own = parts.take<char>(0);
  const int threads = team(problem);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Buffers buffers = own_buffers(problem, own);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < problem.series; ++n) forward_series(problem, in, n, bias, buffers, out);
  }
}

void backward(const Problem& problem, const Inputs& in, const float* grad, const Gradients& to, void* workspace) {
  Parts parts(workspace);
  const float* bias = pad_bias(problem, in.bias, parts);
  const int64_t each = totals_bytes(problem), ld = padded(problem.days);
  char* all = parts.take<char>(kChunks * each);
  char* own = parts.take<char>(0);
  __builtin_memset(all, 0, static_cast<size_t>(kChunks * each));
  const int threads = team(problem);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Buffers buffers = own_buffers(problem, own);
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
      Parts part(all + chunk * each);
      const Totals totals = take_totals(problem, part);
      const int64_t last = (chunk + 1) * problem.series / kChunks;
      for (int64_t n = chunk * problem.series / kChunks; n < last; ++n)
        backward_series(problem, in, grad, n, bias, buffers, to, totals);
    }
  }
  Parts part(all);
  const Totals first = take_totals(problem, part);
  const int64_t stride = each / static_cast<int64_t>(sizeof(float));
  for (int64_t head = 0; head < problem.heads; ++head) {
    for (int64_t l = 0; l < problem.days; ++l) {
      float sum = 0.0f;
      for (int64_t chunk = 0; chunk < kChunks; ++chunk) sum += first.bias[chunk * stride + head * ld + l];
      to.bias[head * problem.days + l] = sum;
    }
    for (int64_t i = 0; i < 2; ++i) {
      Vector sum{};
      for (int64_t chunk = 0; chunk < kChunks; ++chunk)
        sum += load(first.alike + chunk * stride + (head * 2 + i) * kWide);
      to.alike_weight[2 * head + i] = reduce_add<float>(sum);
    }
  }
}

}  // namespace

const Kernels kernels = {bytes, forward, backward};

}  // namespace simmst::cpu::SIMMST_ISA::day_attention
