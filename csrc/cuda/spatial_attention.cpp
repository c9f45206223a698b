// The host side of spatial attention: the maps that fit, the number of blocks, and the calls by type.
#include "cuda/spatial_attention.hpp"

#include <algorithm>

#include "core/spatial_attention_plan.hpp"

namespace simmst::cuda::spatial {
namespace {

// Calls f.template operator()<T>() for the type of a problem's entries.
template <typename F>
void with_type(DataType type, const F& f) {
  switch (type) {
    case DataType::kBfloat16:
      return f.template operator()<bfloat16>();
    case DataType::kFloat16:
      return f.template operator()<float16>();
    default:
      return f.template operator()<float>();
  }
}

}  // namespace

// The number of blocks, which take the maps in turn: two per multiprocessor.
std::int64_t block_count(const Problem& problem) {
  return std::min<std::int64_t>(problem.batch, 2 * device_limits(problem.queue.device).multiprocessors);
}

std::string why_not(const Problem& problem) {
  const auto limit = static_cast<std::int64_t>(device_limits(problem.queue.device).shared_bytes);
  const char* reason = simmst::spatial::why_not_fused(problem.sizes(), limit);
  return reason == nullptr ? "" : reason;
}

void forward(const Problem& problem, const Map& x, const Weights& weights, const std::uint8_t* mask, void* out,
             float* lse) {
  const DeviceGuard guard(problem.queue.device);
  with_type(problem.type, [&]<typename T>() { forward_of<T>(problem, x, weights, mask, out, lse); });
}

std::int64_t backward_bytes(const Problem& problem) {
  const auto plan = simmst::spatial::plan_backward(problem.sizes());
  return block_count(problem) * (plan.matrix_bytes + plan.sums * static_cast<std::int64_t>(sizeof(float)));
}

void backward(const Problem& problem, const Map& grad, const Map& x, const Weights& weights, const std::uint8_t* mask,
              const float* lse, const Gradients& wanted, void* workspace) {
  const DeviceGuard guard(problem.queue.device);
  with_type(problem.type,
            [&]<typename T>() { backward_of<T>(problem, grad, x, weights, mask, lse, wanted, workspace); });
}

}  // namespace simmst::cuda::spatial
