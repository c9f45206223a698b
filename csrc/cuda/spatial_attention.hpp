// Spatial attention on a GPU. All pointers are to device memory.
#pragma once

#include <cstdint>
#include <string>

#include "core/dtype.hpp"
#include "core/spatial_attention.hpp"
#include "core/spatial_attention_plan.hpp"
#include "cuda/launch.hpp"

namespace simmst::cuda::spatial {

using simmst::spatial::Gradients;
using simmst::spatial::Map;
using simmst::spatial::Weights;

// The sizes and options of a call. Positions are numbered row by row: N = rows * columns.
struct Problem {
  std::int64_t batch, channels, rows, columns, heads;
  bool channels_last;  // results are (B, N, C) tokens rather than (B, C, rows, columns) maps
  bool residual;
  double eps, scale;
  DataType type;  // kFloat32, kBfloat16 or kFloat16
  Queue queue;

  simmst::spatial::Sizes sizes() const { return {rows * columns, channels, heads, item_size(type)}; }
};

// The reason why these kernels do not take a call on its device; empty if they do.
std::string why_not(const Problem& problem);

// `mask` is (B, N), contiguous, not zero where a position is ignored, or null; `lse` is (B, heads, N). The batch must
// not be empty.
void forward(const Problem& problem, const Map& x, const Weights& weights, const std::uint8_t* mask, void* out,
             float* lse);

// `workspace` has backward_bytes() bytes, aligned to 16.
std::int64_t backward_bytes(const Problem& problem);
void backward(const Problem& problem, const Map& grad, const Map& x, const Weights& weights, const std::uint8_t* mask,
              const float* lse, const Gradients& wanted, void* workspace);

// For entries of one type. In the backward pass, block_count() blocks take the maps in turn.
std::int64_t block_count(const Problem& problem);
template <typename T>
void forward_of(const Problem& problem, const Map& x, const Weights& weights, const std::uint8_t* mask, void* out,
                float* lse);
template <typename T>
void backward_of(const Problem& problem, const Map& grad, const Map& x, const Weights& weights,
                 const std::uint8_t* mask, const float* lse, const Gradients& wanted, void* workspace);

}  // namespace simmst::cuda::spatial
