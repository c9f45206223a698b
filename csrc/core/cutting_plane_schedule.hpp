// How a pass over cutting planes is divided among the blocks of a GPU, by arithmetic alone.
//
// A block has eight warps. Its tile is 32 packs of neighbouring columns, one a lane, by up to 128 rows, row l in warp
// l % 8: every thread holds its rows' packs in registers. Blocks stride through the tiles of one problem. More than 128
// rows are divided into row blocks, one pass over the columns each.
//
// Bytes in flight (reasoned, not measured): 64 rows of 16-byte packs are 32 KB a tile, and a block asks for the next tile
// before it works on this one. With two blocks that is 64 to 128 KB a multiprocessor; 4.8 TB/s at about a microsecond
// over 132 of them take some 36 KB. Eight rows have 4 KB a tile and three blocks, so they are short of that.
#pragma once

#include <cstdint>

#include "core/arithmetic.hpp"

namespace simmst {

struct PlaneSchedule {
  std::int64_t tile_columns = 0;
  std::int64_t tiles = 0;
  std::int64_t blocks = 1;      // of one problem
  std::int64_t row_blocks = 1;  // passes
  int rows_per_warp = 1;        // 1, 2, 4, 8 or 16, in registers
};

constexpr int kPlaneWarps = 8;
constexpr std::int64_t kRowBlock = 128;  // rows a block can hold

// The blocks that a multiprocessor's registers hold.
SIMMST_HOST_DEVICE constexpr int plane_blocks_resident(int rows_per_warp) {
  return rows_per_warp == 1 ? 3 : rows_per_warp <= 8 ? 2 : 1;
}

// `pack_columns`: the columns of one lane.
SIMMST_HOST_DEVICE PlaneSchedule schedule_planes(std::int64_t problems, std::int64_t planes, std::int64_t size,
                                                 std::int64_t pack_columns, std::int64_t multiprocessors) {
  PlaneSchedule schedule;
  schedule.tile_columns = 32 * pack_columns;
  schedule.tiles = ceil_div(size, schedule.tile_columns);
  schedule.row_blocks = planes <= kRowBlock ? 1 : ceil_div(planes, kRowBlock);
  const std::int64_t rows = planes < kRowBlock ? planes : kRowBlock;
  while (kPlaneWarps * schedule.rows_per_warp < rows) schedule.rows_per_warp *= 2;
  // Two tiles are done sooner by one block than by two and a launch to add them up.
  const std::int64_t resident = multiprocessors * plane_blocks_resident(schedule.rows_per_warp);
  const std::int64_t share = schedule.tiles <= 2 || problems < 1 ? 1 : resident / problems;
  const std::int64_t most = schedule.tiles < 1 ? 1 : schedule.tiles;
  schedule.blocks = share < 1 ? 1 : share < most ? share : most;
  return schedule;
}

// Block `index` of a grid: its problem and its place among the blocks of that problem, which take the tiles
// place, place + blocks, ...
struct PlaneBlock {
  std::int64_t problem, place;
};
SIMMST_HOST_DEVICE PlaneBlock plane_block(std::int64_t index, std::int64_t blocks) {
  return {index / blocks, index % blocks};
}

}  // namespace simmst
