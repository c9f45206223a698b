#include "cuda/checks/device_check.hpp"

#include <stdexcept>

#include "cuda/device.hpp"

namespace simmst::cuda {

namespace {

constexpr int kThreads = 128;

SIMMST_DEVICE std::uint32_t word_of(float x) {
  std::uint32_t word;
  memcpy(&word, &x, sizeof(word));
  return word;
}

// A block's sum and maximum, and every thread's sum over its eight neighbouring lanes.
SIMMST_KERNEL(kThreads) reductions(const float* in, std::uint32_t* out, std::int64_t) {
  float* scratch = reinterpret_cast<float*>(shared_memory());
  const int thread = thread_index();
  const float x = in[block_index().x * kThreads + thread];
  const float sum = reduce_block(x, scratch, Sum{}), maximum = reduce_block(x, scratch, Maximum{});
  std::uint32_t* mine = out + block_index().x * (kThreads + 2);
  if (thread == 0) {
    mine[0] = word_of(sum);
    mine[1] = word_of(maximum);
  }
  mine[2 + thread] = word_of(reduce_warp<8>(x, Sum{}));
}

SIMMST_KERNEL(kThreads) shuffles(const float* in, std::uint32_t* out, std::int64_t) {
  const int thread = thread_index();
  const float x = in[thread];
  out[thread] = word_of(shuffle(x, (7 * thread) % kWarp));
  out[kThreads + thread] = word_of(shuffle_up(x, 3));
  out[2 * kThreads + thread] = word_of(shuffle_down(x, 5));
  out[3 * kThreads + thread] = word_of(shuffle_xor(x, 17));
  out[4 * kThreads + thread] = ballot(x > 0.0f);
}

template <typename T>
SIMMST_KERNEL(kThreads)
conversions(const float* in, std::uint32_t* out, std::int64_t count) {
  const std::int64_t i = std::int64_t{block_index().x} * kThreads + thread_index();
  if (i >= count) return;
  const T half = from_float<T>(in[i]);
  out[i] = half.bits;
  out[count + i] = word_of(to_float(half));
  out[2 * count + i] = pack_pair<T>(in[i], in[count - 1 - i]);
}

SIMMST_KERNEL(kThreads) numbers(const float* in, std::uint32_t* out, std::int64_t count) {
  const std::int64_t i = std::int64_t{block_index().x} * kThreads + thread_index();
  if (i >= count) return;
  out[i] = ordered_bits(in[i]);
  out[count + i] = word_of(exp2_approx(in[i]));
  const auto low = static_cast<std::uint32_t>(i);
  const PhiloxWords words = philox4x32(low, 1, 2, 3, word_of(in[0]), 5);
  for (int j = 0; j < 4; ++j) out[(2 + j) * count + i] = words.word[j];
}

// In three stages: in[i] goes to its mirrored place through shared memory; entries past `count` are zero.
SIMMST_KERNEL(kThreads) copies(const float* in, std::uint32_t* out, std::int64_t count) {
  constexpr int kStages = 3, kStage = 4 * kThreads;
  float* shared = reinterpret_cast<float*>(shared_memory());
  const int thread = thread_index();
  const int stages = static_cast<int>(ceil_div(count, kStage));
  const auto start = [&](int stage) {
    const std::int64_t first = std::int64_t{stage} * kStage + 4 * thread, left = count - first;
    if (stage < stages) {
      copy_async(shared + stage % kStages * kStage + 4 * thread, in + (left > 0 ? first : 0),
                 left >= 4  ? 16
                 : left > 0 ? static_cast<int>(4 * left)
                            : 0);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) start(stage);
  for (int stage = 0; stage < stages; ++stage) {
    wait_for_copies<kStages - 2>();
    sync_block();
    start(stage + kStages - 1);
    const float* arrived = shared + stage % kStages * kStage;
    for (int i = thread; i < kStage; i += kThreads) out[stage * kStage + i] = word_of(arrived[kStage - 1 - i]);
  }
  wait_for_copies<0>();
}

// in: A (16 x 16) and B (16 x 16), row-major. out: A B four times, with the operands loaded in each of the four ways.
template <typename T>
SIMMST_KERNEL(32)
products(const float* in, std::uint32_t* out, std::int64_t) {
  constexpr int kPitch = 24;
  T* a = reinterpret_cast<T*>(shared_memory());
  T *a_transposed = a + 16 * kPitch, *b = a + 32 * kPitch, *b_transposed = a + 48 * kPitch;
  for (int i = lane_index(); i < 256; i += kWarp) {
    const int row = i / 16, column = i % 16;
    a[row * kPitch + column] = a_transposed[column * kPitch + row] = from_float<T>(in[i]);
    b[row * kPitch + column] = b_transposed[column * kPitch + row] = from_float<T>(in[256 + i]);
  }
  sync_warp();
  const TileA tiles_a[2] = {load_a(a, kPitch), load_a_transposed(a_transposed, kPitch)};
  TileB tiles_b[2][2];
  load_b_rows(tiles_b[0], b, kPitch);
  load_b_columns(tiles_b[1], b_transposed, kPitch);
  for (int way = 0; way < 4; ++way) {
    for (int half = 0; half < 2; ++half) {
      TileC c;
      multiply_add<T>(c, tiles_a[way / 2], tiles_b[way % 2][half]);
      for (int j = 0; j < 4; ++j) {
        const int row = tile_row() + 8 * (j / 2), column = 8 * half + tile_column() + j % 2;
        out[way * 256 + row * 16 + column] = word_of(c.part[j]);
      }
    }
  }
}

struct Check {
  const char* name;
  void (*kernel)(const float*, std::uint32_t*, std::int64_t);
  int threads;
  std::size_t shared_bytes;
  std::int64_t inputs;      // exact number; 0 for any number
  std::int64_t per_block;   // inputs per block; 0: one block
  std::int64_t outputs[2];  // words in all, and words per input (rounded up to the last number of inputs)
  std::int64_t rounded;
};

const Check& find(const std::string& name, std::int64_t count) {
  static const Check checks[] = {
      {"reductions", reductions, kThreads, 128, kThreads, kThreads, {kThreads + 2, 0}, 1},
      {"shuffles", shuffles, kThreads, 0, kThreads, 0, {5 * kThreads, 0}, 1},
      {"bfloat16", conversions<bfloat16>, kThreads, 0, 0, kThreads, {0, 3}, 1},
      {"float16", conversions<float16>, kThreads, 0, 0, kThreads, {0, 3}, 1},
      {"numbers", numbers, kThreads, 0, 0, kThreads, {0, 6}, 1},
      {"copies", copies, kThreads, 3 * 16 * kThreads, 0, 0, {0, 1}, 4 * kThreads},
      {"products bfloat16", products<bfloat16>, 32, 64 * 24 * 2, 512, 0, {1024, 0}, 1},
      {"products float16", products<float16>, 32, 64 * 24 * 2, 512, 0, {1024, 0}, 1},
  };
  for (const Check& check : checks) {
    if (name != check.name) continue;
    if (count < 1 || (check.inputs != 0 && count != check.inputs)) {
      throw std::invalid_argument(name + " takes " + std::to_string(check.inputs) + " inputs, got " +
                                  std::to_string(count));
    }
    return check;
  }
  throw std::invalid_argument("there is no check '" + name + "'");
}

}  // namespace

std::int64_t device_check_outputs(const std::string& name, std::int64_t count) {
  const Check& check = find(name, count);
  return check.outputs[0] + check.outputs[1] * round_up_to(count, check.rounded);
}

void device_check(const std::string& name, const float* in, std::uint32_t* out, std::int64_t count,
                  const Queue& queue) {
  const Check& check = find(name, count);
  const std::int64_t blocks = check.per_block == 0 ? 1 : ceil_div(count, check.per_block);
  launch({check.name, {blocks}, check.threads, check.shared_bytes, queue.stream, {{"count", count}}}, check.kernel, in,
         out, count);
}

#if defined(SIMMST_EMULATED)
namespace {

void no_barrier(std::uint32_t* out) {
  auto* shared = reinterpret_cast<std::uint32_t*>(shared_memory());
  shared[thread_index()] = static_cast<std::uint32_t>(thread_index());
  out[thread_index()] = shared[63 - thread_index()];
}
void no_wait(std::uint32_t* out) {
  static const Pack<float> source{{1.0f, 2.0f, 3.0f, 4.0f}};
  auto* shared = reinterpret_cast<std::uint32_t*>(shared_memory());
  if (thread_index() == 0) copy_async(shared, &source);
  commit_copies();
  sync_block();
  if (thread_index() < 4) out[thread_index()] = shared[thread_index()];
  sync_block();
  wait_for_copies<0>();
}
void copies_left(std::uint32_t*) {
  static const Pack<float> source{};
  copy_async(shared_memory(), &source);
}
void early_return(std::uint32_t*) {
  if (thread_index() == 5) return;
  sync_block();
}
void two_barriers(std::uint32_t*) {
  if (thread_index() < 32) {
    sync_block();
  } else {
    sync_block();
  }
}
void half_a_warp(std::uint32_t* out) {
  if (lane_index() < 16) out[thread_index()] = ballot(true);
}
void past_the_end(std::uint32_t*) {
  if (thread_index() == 0) shared_memory()[256 + 3] = 1;
}
void not_aligned(std::uint32_t* out) { out[0] = load_pack<Pack<std::uint32_t>>(out + 1).at[0]; }

}  // namespace

void device_misuse(const std::string& name, std::uint32_t* out) {
  const std::pair<const char*, void (*)(std::uint32_t*)> kernels[] = {
      {"no barrier", no_barrier},     {"no wait", no_wait},           {"copies left", copies_left},
      {"early return", early_return}, {"two barriers", two_barriers}, {"half a warp", half_a_warp},
      {"past the end", past_the_end}, {"not aligned", not_aligned}};
  for (const auto& [known, kernel] : kernels) {
    if (name == known) return launch({known, {1}, 64, 256, 0, {{"words", 64}}}, kernel, out);
  }
  throw std::invalid_argument("there is no mistake '" + name + "'");
}
#endif

}  // namespace simmst::cuda
