// Cutting planes v = A x + c on a GPU: both products with A, and the optimiser's step between them, in one pass over A.
//
// A is (P, L, N): P independent problems of L planes. One pass reads A once and does those of these steps that are
// wanted, in this order:
//   g = gradient + A^T s,   combined <- g,   x <- step(x, g),   v = A (x - anchor), scaled and offset
// core/cutting_plane_schedule.hpp divides the work. Results depend only on the sizes and the device.
#pragma once

#include <cstdint>

#include "core/cutting_plane_schedule.hpp"
#include "core/dtype.hpp"
#include "cuda/launch.hpp"

namespace simmst::cuda {

enum class PlaneFormat : std::uint8_t { kFloat32, kBfloat16, kFloat16, kSigns };

// The format of planes with this type: packed signs unless the type is a float.
constexpr PlaneFormat format_of(DataType type) {
  return type == DataType::kFloat32    ? PlaneFormat::kFloat32
         : type == DataType::kBfloat16 ? PlaneFormat::kBfloat16
         : type == DataType::kFloat16  ? PlaneFormat::kFloat16
                                       : PlaneFormat::kSigns;
}

// The columns of one lane: 16 bytes of them, or 4 bytes of signs.
constexpr std::int64_t pack_columns(PlaneFormat format) {
  return format == PlaneFormat::kFloat32 ? 4 : format == PlaneFormat::kSigns ? 32 : 8;
}

// An array (P, L), (P, N) or (P,) with any strides, in entries; missing when data is null.
struct Strided {
  void* data = nullptr;
  DataType type = DataType::kFloat32;
  std::int64_t problem_stride = 0, stride = 0;
};

enum class Update : std::uint8_t { kNone, kSgd, kAdam };
// The total made from the values: sum_l mu_l max(0, v_l)^2, sum_l mu_l v_l, or nothing.
enum class Total : std::uint8_t { kNone, kPenalty, kLagrangian };

struct PlanePass {
  std::int64_t problems = 0, planes = 0, size = 0;  // P, L, N
  const char* rows = nullptr;                       // unit stride along N
  std::int64_t problem_bytes = 0, row_bytes = 0;
  PlaneFormat format = PlaneFormat::kFloat32;
  bool aligned = false;  // every row begins at a multiple of a pack's bytes
  Strided scale;         // (P, L), scale of packed signs

  Strided coefficients;        // (P, L); if given, the first product is wanted
  Strided gradient, combined;  // (P, N)

  // Whether every vector along N that is given is float32 with stride 1.
  bool plain = false;
  Update update = Update::kNone;
  Strided point, exp_avg, exp_avg_sq;  // (P, N)
  float step_size = 0.0f;              // Adam: lr / (1 - beta1^t) and sqrt(1 - beta2^t) when `step` is null
  float second_root = 1.0f;
  Strided step;  // t on the device, one entry; step_size is then lr

  bool evaluating = false;       // whether the second product and its results are wanted
  Strided anchor;                // (P, N)
  Strided offsets, multipliers;  // (P, L)
  Total total_of = Total::kNone;
  Strided values, total;    // (P, L), (P,)
  float* slopes = nullptr;  // (P, L), contiguous: d total / d v

  float* partial = nullptr;  // (P, L, blocks) workspace
  float* carried = nullptr;  // (P, N) workspace for more than one row block
};

PlaneSchedule plane_schedule(const PlanePass& pass, int device);
void run(const PlanePass& pass, const Queue& queue);

}  // namespace simmst::cuda
