// Launches the backward pass of spatial attention for one type of entries, or for all types.
#include "cuda/spatial_attention_backward.cuh"

#include <algorithm>

#include "cuda/spatial_attention_arguments.cuh"

namespace simmst::cuda::spatial {
namespace {

// Gradients of weights, in the order of SumPlaces.
constexpr int kSums = 6;
template <typename T>
struct SumArguments {
  const float* sums;  // (blocks, count)
  std::int64_t blocks, count;
  T* to[kSums];  // null for a gradient that is not wanted
  std::int64_t ends[kSums];
};

constexpr int kSumThreads = 256;

// Adds the blocks' sums in order, one thread per entry.
template <typename T>
SIMMST_KERNEL(kSumThreads)
spatial_attention_sums(SumArguments<T> given) {
  const std::int64_t i = static_cast<std::int64_t>(block_index().x) * kSumThreads + thread_index();
  std::int64_t begin = 0;
  SIMMST_UNROLL
  for (int part = 0; part < kSums; ++part) {
    if (i >= begin && i < given.ends[part] && given.to[part] != nullptr) {
      float sum = 0.0f;
      for (std::int64_t block = 0; block < given.blocks; ++block) sum += given.sums[block * given.count + i];
      given.to[part][i - begin] = from_float<T>(sum);
    }
    begin = given.ends[part];
  }
}

template <typename T>
void add_sums(const Problem& problem, const float* sums, std::int64_t count, const Gradients& wanted) {
  const std::int64_t c = problem.channels;
  SumArguments<T> arguments{sums, block_count(problem), count, {}, {}};
  void* const to[kSums] = {wanted.in, wanted.out, wanted.in_bias, wanted.out_bias, wanted.norm, wanted.norm_bias};
  const std::int64_t sizes[kSums] = {3 * c * c, c * c, 3 * c, c, c, c};
  std::int64_t end = 0;
  for (int part = 0; part < kSums; ++part) {
    end += sizes[part];
    arguments.to[part] = static_cast<T*>(to[part]);
    arguments.ends[part] = end;
  }
  const Launch how{"spatial_attention_sums", {ceil_div(count, kSumThreads)},          kSumThreads, 0,
                   problem.queue.stream,     {{"C", c}, {"blocks", arguments.blocks}}};
  launch(how, spatial_attention_sums<T>, arguments);
}

template <typename T>
void launch_backward(const Problem& problem, const BackwardArguments<T>& arguments) {
  const auto sizes = problem.sizes();
  const auto plan = simmst::spatial::plan_backward(sizes);
  const Launch how{"spatial_attention_backward",
                   {block_count(problem)},
                   kBackwardThreads,
                   static_cast<std::size_t>(plan.shared_bytes),
                   problem.queue.stream,
                   {{"B", problem.batch}, {"N", sizes.positions}, {"C", sizes.channels}, {"heads", sizes.heads}}};
  const auto width = simmst::spatial::padded_width(sizes);
  if (width == 16) launch(how, spatial_attention_backward < T, sizeof(T) == 2 ? 1 : 2 >, arguments);
  else if (width <= 32) launch(how, spatial_attention_backward<T, 2>, arguments);
  else launch(how, spatial_attention_backward<T, 4>, arguments);
}

}  // namespace

template <typename T>
void backward_of(const Problem& problem, const Map& grad, const Map& x, const Weights& weights,
                 const std::uint8_t* mask, const float* lse, const Gradients& wanted, void* workspace) {
  const auto plan = simmst::spatial::plan_backward(problem.sizes());
  char* const memory = static_cast<char*>(workspace);
  float* const sums = reinterpret_cast<float*>(memory + block_count(problem) * plan.matrix_bytes);
  const bool through_scores = wanted.x != nullptr || wanted.in != nullptr || wanted.in_bias != nullptr;
  launch_backward<T>(
      problem,
      {as_maps<T>(problem, grad),
       as_maps<T>(problem, x),
       result_maps<T>(problem, wanted.x),
       as<T>(weights.in),
       as<T>(weights.in_bias),
       as<T>(weights.out),
       as<T>(weights.out_bias),
       as<T>(weights.norm),
       mask,
       lse,
       reinterpret_cast<T*>(memory),
       sums,
       problem.batch,
       static_cast<int>(problem.rows * problem.columns),
       static_cast<int>(problem.channels),
       static_cast<int>(problem.heads),
       problem.residual,
       rows_align<T>(problem) && is_multiple_of_16(weights.in) && is_multiple_of_16(weights.out),
       through_scores,
       wanted.in != nullptr || wanted.in_bias != nullptr || wanted.out != nullptr || wanted.out_bias != nullptr,
       static_cast<float>(problem.eps),
       static_cast<float>(problem.scale)});
  add_sums<T>(problem, sums, plan.sums, wanted);
}

#define SIMMST_INSTANTIATE(T)                                                                               \
  template void backward_of<T>(const Problem&, const Map&, const Map&, const Weights&, const std::uint8_t*, \
                               const float*, const Gradients&, void*);
SIMMST_FOR_EACH_ENTRY(SIMMST_INSTANTIATE)

}  // namespace simmst::cuda::spatial
