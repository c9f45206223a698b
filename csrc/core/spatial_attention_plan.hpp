// How the CUDA kernels of spatial attention lay out a map in a block's shared memory, and which maps fit.
// Names: N positions, C channels, D = C / heads; a tile has 16 rows (positions) and 16 columns (channels).
#pragma once

#include <cstdint>

#include "core/arithmetic.hpp"

namespace simmst::spatial {

constexpr int kTile = 16;
constexpr int kWarpTiles = 2;   // the most tiles of positions that a warp owns
constexpr int kSmallTiles = 8;  // in maps of at most this many tiles, a warp owns one
constexpr int kMostWarps = 16;
constexpr int kMostChannels = 128;
constexpr int kColumnTiles = kMostChannels / kTile;
constexpr int kMostTilesPerHead = 4;  // tiles of columns that one head may touch
constexpr int kWeightRows = 32;       // rows of a weight matrix in one slot of the ring
constexpr int kWeightSlots = 2;

struct Sizes {
  std::int64_t positions, channels, heads;
  std::int64_t item;  // bytes of an entry of x

  constexpr std::int64_t width() const { return channels / heads; }
};

// The most warps per block, a constant of the kernels. 32-bit entries take twice the registers.
constexpr int most_warps(std::int64_t item) { return item == 4 ? kMostWarps / 2 : kMostWarps; }

// The number of entries from one row of `columns` entries to the next: 16 bytes more than a multiple of 32, so that
// eight rows start in different banks.
SIMMST_HOST_DEVICE constexpr std::int64_t pitch_of(std::int64_t columns) { return round_up_to(columns, kTile) + 8; }

// The most tiles of columns that the D channels of one head touch.
constexpr std::int64_t tiles_per_head(const Sizes& sizes) {
  std::int64_t most = 0;
  for (std::int64_t head = 0; head < sizes.heads; ++head) {
    const std::int64_t first = head * sizes.width(), last = first + sizes.width() - 1;
    const std::int64_t tiles = last / kTile - first / kTile + 1;
    most = tiles > most ? tiles : most;
  }
  return most;
}

struct ForwardPlan {
  std::int64_t rows;   // N rounded up to whole tiles
  int warp_tiles;      // tiles per warp: with two, small maps would leave most of a multiprocessor idle
  std::int64_t pitch;  // entries from one row to the next
  std::int64_t warps;
  std::int64_t shared_bytes;  // x / query / heads, key, value, two slots of weights, and the norms
};

constexpr ForwardPlan plan_forward(const Sizes& sizes) {
  const std::int64_t rows = round_up_to(sizes.positions, kTile), pitch = pitch_of(sizes.channels);
  const std::int64_t norms = 2 * kMostWarps * kColumnTiles * static_cast<std::int64_t>(sizeof(float));
  const int warp_tiles = rows <= kSmallTiles * kTile ? 1 : kWarpTiles;
  return {rows, warp_tiles, pitch, ceil_div(sizes.positions, std::int64_t{kTile} * warp_tiles),
          (3 * rows + kWeightSlots * kWeightRows) * pitch * sizes.item + norms};
}

// The number of columns of a head in the backward pass: D rounded up to whole tiles, and then to a number that a kernel
// exists for (one fewer for float32, whose kernels take longest to compile).
constexpr std::int64_t padded_width(const Sizes& sizes) {
  const std::int64_t width = sizes.width();
  return width <= kTile && sizes.item == 2 ? kTile : width <= 2 * kTile ? 2 * kTile : 4 * kTile;
}

struct BackwardPlan {
  std::int64_t rows, pitch;  // of the matrices of a map in the workspace
  std::int64_t head_pitch;   // of the two matrices of a head in shared memory
  std::int64_t shared_bytes;
  std::int64_t matrix_bytes;  // all matrices of a block in the workspace
  std::int64_t sums;          // float32 sums of a block for the gradients of the weights
};

constexpr int kBackwardWarps = 8;
constexpr int kBackwardMatrices = 11;

// Shared memory holds, one after the other: two matrices of a head, a matrix of weights, or two pieces of matrices
// whose product is a gradient of weights; and throughout the log-sum-exp, rowsum(dO O) and the place of every position.
constexpr BackwardPlan plan_backward(const Sizes& sizes) {
  const std::int64_t rows = round_up_to(sizes.positions, kTile), pitch = pitch_of(sizes.channels);
  const std::int64_t head_pitch = pitch_of(padded_width(sizes)), c = sizes.channels;
  const std::int64_t head = 2 * rows * head_pitch, weights = round_up_to(c, kWeightRows) * pitch;
  const std::int64_t pieces = 2 * kWeightRows * pitch;
  const std::int64_t entries = head > weights ? (head > pieces ? head : pieces) : weights > pieces ? weights : pieces;
  return {rows,
          pitch,
          head_pitch,
          entries * sizes.item + (sizes.item == 4 ? 4 : 3) * rows * static_cast<std::int64_t>(sizeof(float)),
          kBackwardMatrices * rows * pitch * sizes.item + sizes.heads * rows * static_cast<std::int64_t>(sizeof(float)),
          4 * c * c + 6 * c};
}

// The reason why no fused kernel takes maps of these sizes on a device whose blocks have at most `shared_bytes`; null
// if one does.
constexpr const char* why_not_fused(const Sizes& sizes, std::int64_t shared_bytes) {
  if (sizes.channels > kMostChannels) return "more than 128 channels";
  if (tiles_per_head(sizes) > kMostTilesPerHead || sizes.width() > kMostTilesPerHead * kTile)
    return "heads of more than 64 channels";
  const std::int64_t most = most_warps(sizes.item) * kWarpTiles * kTile;
  if (sizes.positions > most) return most == 512 ? "more than 512 positions" : "more than 256 positions in float32";
  if (plan_forward(sizes).shared_bytes > shared_bytes || plan_backward(sizes).shared_bytes > shared_bytes)
    return "a map does not fit into the shared memory of a block";
  return nullptr;
}

}  // namespace simmst::spatial
