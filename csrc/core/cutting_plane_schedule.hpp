// How a pass over cutting planes is divided among the blocks of a GPU, by arithmetic alone.
//
// A block has eight warps. Its tile is 32 packs of neighbouring columns, one per lane, by up to 128 rows; row l belongs
// to warp l % 8. Every thread holds its rows' packs in registers. Blocks stride through the tiles of one problem. More
// than 128 rows are divided into row blocks, each of which takes one pass over the columns.
//
// Bytes in flight (reasoned, not measured): 64 rows of 16-byte packs are 32 KB per tile, and a block requests the next
// tile before it works on this one. With two blocks that is 64 to 128 KB per multiprocessor; to reach 4.8 TB/s at a
// latency of about a microsecond, each of 132 multiprocessors needs some 36 KB. Eight rows have 4 KB per tile and three
// blocks, which falls short of that.
#pragma once

#include <cstdint>

#include "core/arithmetic.hpp"

namespace simmst {

struct PlaneSchedule {
  std::int64_t tile_columns = 0;
  std::int64_t tiles = 0;
  std::int64_t blocks = 1;      // per problem
  std::int64_t row_blocks = 1;  // one pass each
  int rows_per_warp = 1;        // 1, 2, 4, 8 or 16, in registers
};

constexpr int kPlaneWarps = 8;
constexpr std::int64_t kRowBlock = 128;  // rows that a block can hold

// The number of blocks that fit in a multiprocessor's registers.
SIMMST_HOST_DEVICE constexpr int plane_blocks_resident(int rows_per_warp) {
  return rows_per_warp == 1 ? 3 : rows_per_warp <= 8 ? 2 : 1;
}

// `pack_columns`: number of columns per lane.
SIMMST_HOST_DEVICE PlaneSchedule schedule_planes(std::int64_t problems, std::int64_t planes, std::int64_t size,
                                                 std::int64_t pack_columns, std::int64_t multiprocessors) {
  PlaneSchedule schedule;
  schedule.tile_columns = 32 * pack_columns;
  schedule.tiles = ceil_div(size, schedule.tile_columns);
  schedule.row_blocks = planes <= kRowBlock ? 1 : ceil_div(planes, kRowBlock);
  const std::int64_t rows = planes < kRowBlock ? planes : kRowBlock;
  while (kPlaneWarps * schedule.rows_per_warp < rows) schedule.rows_per_warp *= 2;
  // One block finishes two tiles sooner than two blocks and another launch to add their shares.
  const std::int64_t resident = multiprocessors * plane_blocks_resident(schedule.rows_per_warp);
  const std::int64_t share = schedule.tiles <= 2 || problems < 1 ? 1 : resident / problems;
  const std::int64_t most = schedule.tiles < 1 ? 1 : schedule.tiles;
  schedule.blocks = share < 1 ? 1 : share < most ? share : most;
  return schedule;
}

// The problem of block `index` of a grid, and the block's place among the blocks of that problem. The block takes the
// tiles place, place + blocks, ...
struct PlaneBlock {
  std::int64_t problem, place;
};
SIMMST_HOST_DEVICE PlaneBlock plane_block(std::int64_t index, std::int64_t blocks) {
  return {index / blocks, index % blocks};
}

}  // namespace simmst
