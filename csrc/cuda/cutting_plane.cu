#include "cuda/cutting_plane.hpp"

#include "cuda/cutting_plane_pass.cuh"

namespace simmst::cuda {

namespace {

constexpr int kFinishThreads = 512;

// One block per problem.
SIMMST_KERNEL(kFinishThreads) finish_planes(const PlanePass pass, const std::int64_t blocks) {
  finish_problem(pass, blocks, block_index().x, kWarp, reinterpret_cast<double*>(shared_memory()));
}

template <typename Format, int kRows>
void launch_pass(const PlanePass& pass, const PlaneSchedule& schedule, const RowBlock& rows, const Queue& queue) {
  launch(
      {"cutting_plane_pass",
       {pass.problems * schedule.blocks},
       kPlaneThreads,
       kPassSharedBytes<Format>,
       queue.stream,
       {{"P", pass.problems}, {"L", pass.planes}, {"N", pass.size}, {"rows from", rows.first}, {"rows", rows.count}}},
      pass_over_planes<Format, kRows>, pass, schedule, rows);
}

template <typename Format>
void launch_rows(const PlanePass& pass, const PlaneSchedule& schedule, const RowBlock& rows, const Queue& queue) {
  switch (schedule.rows_per_warp) {
    case 1:
      return launch_pass<Format, 1>(pass, schedule, rows, queue);
    case 2:
      return launch_pass<Format, 2>(pass, schedule, rows, queue);
    case 4:
      return launch_pass<Format, 4>(pass, schedule, rows, queue);
    case 8:
      return launch_pass<Format, 8>(pass, schedule, rows, queue);
    default:
      return launch_pass<Format, 16>(pass, schedule, rows, queue);
  }
}

bool is_plain(const PlanePass& pass) {
  for (const Strided* array :
       {&pass.gradient, &pass.combined, &pass.point, &pass.anchor, &pass.exp_avg, &pass.exp_avg_sq}) {
    const bool plain = array->type == DataType::kFloat32 && (array->stride == 1 || pass.size == 1);
    if (array->data != nullptr && !plain) return false;
  }
  return true;
}

void launch_format(const PlanePass& given, const PlaneSchedule& schedule, const RowBlock& rows, const Queue& queue) {
  PlanePass pass = given;
  pass.plain = is_plain(given);
  switch (pass.format) {
    case PlaneFormat::kFloat32:
      return launch_rows<Dense<float>>(pass, schedule, rows, queue);
    case PlaneFormat::kBfloat16:
      return launch_rows<Dense<bfloat16>>(pass, schedule, rows, queue);
    case PlaneFormat::kFloat16:
      return launch_rows<Dense<float16>>(pass, schedule, rows, queue);
    case PlaneFormat::kSigns:
      return launch_rows<Signs>(pass, schedule, rows, queue);
  }
}

RowBlock row_block(const PlanePass& pass, std::int64_t index) {
  const std::int64_t first = index * kRowBlock, left = pass.planes - first;
  return {first, static_cast<int>(left < kRowBlock ? left : kRowBlock)};
}

// For more rows than a block can hold. The first product runs row block by row block, with the sum carried in float32.
// The last row block continues with the update and its own values; the values of the other row blocks follow, from the
// updated point.
void run_row_blocks(const PlanePass& pass, const PlaneSchedule& schedule, const Queue& queue) {
  const std::int64_t last = schedule.row_blocks - 1;
  const bool combining = pass.coefficients.data != nullptr;
  const Strided carried{pass.carried, DataType::kFloat32, pass.size, 1};
  for (std::int64_t index = 0; combining && index <= last; ++index) {
    PlanePass part = pass;
    if (index > 0) part.gradient = carried;
    if (index < last) {
      part.combined = carried;
      part.point = {};
      part.update = Update::kNone;
      part.evaluating = false;
    }
    launch_format(part, schedule, row_block(pass, index), queue);
  }
  PlanePass part = pass;
  part.coefficients = part.gradient = part.combined = {};
  part.update = Update::kNone;
  for (std::int64_t index = 0; pass.evaluating && index < (combining ? last : last + 1); ++index) {
    launch_format(part, schedule, row_block(pass, index), queue);
  }
}

}  // namespace

PlaneSchedule plane_schedule(const PlanePass& pass, int device) {
  return schedule_planes(pass.problems, pass.planes, pass.size, pack_columns(pass.format),
                         device_limits(device).multiprocessors);
}

void run(const PlanePass& pass, const Queue& queue) {
  if (pass.problems == 0) return;
  const PlaneSchedule schedule = plane_schedule(pass, queue.device);
  if (schedule.row_blocks == 1) {
    launch_format(pass, schedule, row_block(pass, 0), queue);
  } else {
    run_row_blocks(pass, schedule, queue);
  }
  if (pass.evaluating && (schedule.blocks > 1 || schedule.row_blocks > 1)) {
    launch({"cutting_plane_finish",
            {pass.problems},
            kFinishThreads,
            kFinishThreads / kWarp * sizeof(double),
            queue.stream,
            {{"P", pass.problems}, {"L", pass.planes}, {"blocks", schedule.blocks}}},
           finish_planes, pass, schedule.blocks);
  }
}

}  // namespace simmst::cuda
