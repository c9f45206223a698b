// Tiles of a matrix in the registers of a warp, in the layout of mma.sync m16n8k16 (PTX ISA, "Matrix Fragments for
// mma.m16n8k16"). With g = lane / 4 and t = lane % 4, a lane holds
//   A (16 x 16), part i: entries (row g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next)
//   B (16 x 8),  part i: entries (rows 2 t + 8 i and the next, column g)
//   C (16 x 8),  part j: entry  (row g + 8 (j / 2), column 2 t + j % 2)
// Loads are from shared memory. `tile` and every row are 16-byte aligned; rows are `pitch` entries (a multiple of 8)
// apart. A pitch of 8 times an odd number has no bank conflicts.
#pragma once

#include "cuda/device.hpp"

namespace simmst::cuda {

struct TileA {
  std::uint32_t part[4];
};
struct TileB {
  std::uint32_t part[2];
};
struct TileC {
  float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
};

SIMMST_DEVICE int tile_row() { return lane_index() / 4; }           // g
SIMMST_DEVICE int tile_column() { return 2 * (lane_index() % 4); }  // 2 t

// Loads A from 16 rows of 16.
template <typename T>
SIMMST_DEVICE TileA load_a(const T* tile, int pitch) {
  TileA a;
  load_matrices(a.part, tile + lane_index() % 16 * pitch + lane_index() / 16 * 8);
  return a;
}

// Loads A from its transpose: 16 rows, each a column of A.
template <typename T>
SIMMST_DEVICE TileA load_a_transposed(const T* tile, int pitch) {
  TileA a;
  const int lane = lane_index();
  load_matrices_transposed(a.part, tile + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
  return a;
}

// Loads two neighbouring B from 16 rows of 16, each a column of [B B']: keys, when the product is queries times keys.
template <typename T>
SIMMST_DEVICE void load_b_columns(TileB (&b)[2], const T* tile, int pitch) {
  std::uint32_t parts[4];
  const int lane = lane_index();
  load_matrices(parts, tile + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
  b[0] = {{parts[0], parts[1]}};
  b[1] = {{parts[2], parts[3]}};
}

// Loads two neighbouring B from 16 rows of 16, each a row of [B B']: values, when the product is weights times values.
template <typename T>
SIMMST_DEVICE void load_b_rows(TileB (&b)[2], const T* tile, int pitch) {
  std::uint32_t parts[4];
  load_matrices_transposed(parts, tile + lane_index() % 16 * pitch + lane_index() / 16 * 8);
  b[0] = {{parts[0], parts[1]}};
  b[1] = {{parts[2], parts[3]}};
}

// Turns two neighbouring C, rounded to T, into an A.
template <typename T>
SIMMST_DEVICE TileA as_a(const TileC& left, const TileC& right) {
  return {{pack_pair<T>(left.part[0], left.part[1]), pack_pair<T>(left.part[2], left.part[3]),
           pack_pair<T>(right.part[0], right.part[1]), pack_pair<T>(right.part[2], right.part[3])}};
}

// c += a b; T is bfloat16 or float16, sums are float32.
template <typename T>
SIMMST_DEVICE void multiply_add(TileC& c, const TileA& a, const TileB& b) {
  multiply_add<T>(c.part, a.part, b.part);
}

}  // namespace simmst::cuda
