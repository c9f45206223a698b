// Launches the forward pass of spatial attention for one type of entries, or for all types.
#include "cuda/spatial_attention_forward.cuh"

#include <algorithm>

#include "cuda/spatial_attention_arguments.cuh"

namespace simmst::cuda::spatial {
namespace {

constexpr double kLog2E = 1.4426950408889634;

template <typename T>
ForwardArguments<T> arguments_of(const Problem& problem, const Map& x, const Weights& weights, const std::uint8_t* mask,
                                 void* out, float* lse) {
  return {as_maps<T>(problem, x),
          result_maps<T>(problem, out),
          as<T>(weights.in),
          as<T>(weights.in_bias),
          as<T>(weights.out),
          as<T>(weights.out_bias),
          as<T>(weights.norm),
          as<T>(weights.norm_bias),
          mask,
          lse,
          problem.batch,
          static_cast<int>(problem.rows * problem.columns),
          static_cast<int>(problem.channels),
          static_cast<int>(problem.heads),
          problem.residual,
          rows_align<T>(problem) && is_multiple_of_16(weights.in) && is_multiple_of_16(weights.out),
          static_cast<float>(problem.eps),
          static_cast<float>(problem.scale * kLog2E)};
}

}  // namespace

template <typename T>
void forward_of(const Problem& problem, const Map& x, const Weights& weights, const std::uint8_t* mask, void* out,
                float* lse) {
  const ForwardArguments<T> arguments = arguments_of<T>(problem, x, weights, mask, out, lse);
  const auto sizes = problem.sizes();
  const auto plan = simmst::spatial::plan_forward(sizes);
  const Launch how{"spatial_attention_forward",
                   {std::min<std::int64_t>(problem.batch, 0x7fffffff)},
                   static_cast<int>(plan.warps) * kWarp,
                   static_cast<std::size_t>(plan.shared_bytes),
                   problem.queue.stream,
                   {{"B", problem.batch}, {"N", sizes.positions}, {"C", sizes.channels}, {"heads", sizes.heads}}};
  const auto tiles = simmst::spatial::tiles_per_head(sizes);
  const bool is_small = plan.warp_tiles == 1;
  if (tiles <= 2 && is_small) launch(how, spatial_attention_forward<T, 2, 1>, arguments);
  else if (tiles <= 2) launch(how, spatial_attention_forward<T, 2, 2>, arguments);
  else if (is_small) launch(how, spatial_attention_forward<T, 4, 1>, arguments);
  else launch(how, spatial_attention_forward<T, 4, 2>, arguments);
}

#define SIMMST_INSTANTIATE(T) \
  template void forward_of<T>(const Problem&, const Map&, const Weights&, const std::uint8_t*, void*, float*);
SIMMST_FOR_EACH_ENTRY(SIMMST_INSTANTIATE)

}  // namespace simmst::cuda::spatial
