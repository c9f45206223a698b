// How ProbSparse attention is divided among the blocks of a GPU: widths, spans of keys, chunks of queries, tiles of
// keys with their samples. Plain 64-bit arithmetic, tested without a device.
#pragma once

#include <cstdint>

#include "core/arithmetic.hpp"

namespace simmst::prob_sparse {

using std::int64_t;

constexpr int64_t kTileRows = 64;       // queries or keys of one shared memory tile
constexpr int64_t kLargestWidth = 128;  // columns of a head
constexpr int64_t kGroupQueries = 8;    // measured together on gathered keys

// The kernels' width for heads of this many columns: 16, 32, 64 or 128; 0 if they are too wide.
SIMMST_HOST_DEVICE constexpr int64_t padded_width(int64_t columns) {
  for (int64_t width = 16; width <= kLargestWidth; width *= 2)
    if (columns <= width) return width;
  return 0;
}

// ---- spans: runs of keys, and of the query rows beside them, that one block processes

struct Spans {
  int64_t size;  // rows of a span, a multiple of kTileRows
  int64_t keys;  // spans that hold keys
  int64_t rows;  // spans that hold queries
};

// Divides the rows into spans for at most `blocks` blocks in all, the number that run at the same time, when `entries`
// share every span. No span is shorter than two tiles, because each span writes and reads partial results once.
SIMMST_HOST_DEVICE constexpr Spans spans_of(int64_t keys, int64_t queries, int64_t entries, int64_t blocks) {
  const int64_t shortest = 2 * kTileRows;
  const int64_t most = ceil_div(keys > queries ? keys : queries, shortest);
  int64_t wanted = blocks / (entries > 0 ? entries : 1);
  if (wanted > most) wanted = most;
  if (wanted < 1) wanted = 1;
  const int64_t longest = keys > queries ? keys : queries;
  const int64_t size = round_up_to(ceil_div(longest > 0 ? longest : 1, wanted), kTileRows);
  return {size, ceil_div(keys, size), ceil_div(queries, size)};
}

// ---- chunks of queries for the measure

// The number of queries per block, a multiple of `multiple`. It leaves at most `blocks` blocks, the number that run at
// the same time, because one more block would start only when another has finished, and the device would wait for it.
SIMMST_HOST_DEVICE constexpr int64_t chunk_queries(int64_t queries, int64_t batch, int64_t blocks, int64_t multiple,
                                                   int64_t most) {
  const int64_t parts = batch > 0 && batch < blocks ? blocks / batch : 1;
  const int64_t size = round_up_to(ceil_div(queries > 0 ? queries : 1, parts), multiple);
  return size < most ? size : most;
}

// ---- tiles of keys for the measure on each query's own samples

enum class Gather : int {
  kWhole,     // all keys fit in shared memory
  kTiles,     // one tile at a time, with the samples sorted by tile
  kStraight,  // rows are read from global memory, because a tile has too few samples to be worth staging
};

struct KeyTiles {
  Gather gather;
  int64_t size;  // keys of a tile
  int64_t count;
};

// `block_bytes` is the most shared memory that a block can have; with tiles, `running_bytes` of it are taken. A tile
// takes the rest, because each group has a fixed cost per tile.
SIMMST_HOST_DEVICE constexpr KeyTiles key_tiles(int64_t keys, int64_t samples, int64_t row_bytes, int64_t block_bytes,
                                                int64_t running_bytes) {
  if (keys * row_bytes <= block_bytes) return {Gather::kWhole, keys, 1};
  int64_t size = (block_bytes - running_bytes) / row_bytes / 8 * 8;
  if (size < 8) return {Gather::kStraight, keys, 1};
  size = round_up_to(ceil_div(keys, ceil_div(keys, size)), 8);  // tiles of about equal size
  const int64_t count = ceil_div(keys, size);
  // A tile needs at least four samples of a group, and the counters of all tiles must fit in shared memory.
  if (kGroupQueries * samples < 4 * count || count > 1024) return {Gather::kStraight, keys, 1};
  return {Gather::kTiles, size, count};
}

// ---- the list of a group's samples, sorted by tile: the same for every batch entry, so it is made once
//
// A warp takes 16 rows per turn, and a lane takes two of them: entry 2 g + h of a turn is its row g + 8 h.

constexpr int64_t kTurnRows = 16;

// A row of a tile, and the query of the group that it belongs to; query 8 means no query. A tile has fewer than 2^28
// rows. Multiplied by the bytes of a row, a multiple of 16, the query is shifted out of the 32-bit word.
SIMMST_HOST_DEVICE constexpr std::uint32_t list_entry(int64_t row, int64_t query) {
  return static_cast<std::uint32_t>(row) | static_cast<std::uint32_t>(query) << 28;
}
constexpr std::uint32_t kNoEntry = list_entry(0, kGroupQueries);
SIMMST_HOST_DEVICE constexpr int entry_query(std::uint32_t entry) { return static_cast<int>(entry >> 28); }
SIMMST_HOST_DEVICE constexpr std::uint32_t entry_bytes(std::uint32_t entry, std::uint32_t row_bytes) {
  return entry * row_bytes;
}
// The place of row `row` in the list, where rows are counted over all turns.
SIMMST_HOST_DEVICE constexpr int64_t list_place(int64_t row) {
  return row / kTurnRows * kTurnRows + row % 8 * 2 + row % kTurnRows / 8;
}

// Where one tile holds all keys, eight rows at a time (an eighth) belong to one query, and sample s is row s % 8 of its
// eighth, so that a query's measure does not depend on its place.
SIMMST_HOST_DEVICE constexpr int64_t eighths(int64_t samples) { return ceil_div(samples, int64_t{8}); }

// The most turns that a group takes over all tiles; each tile ends with a whole turn.
SIMMST_HOST_DEVICE constexpr int64_t group_turns(int64_t samples, int64_t tiles) {
  if (tiles == 1) return ceil_div(kGroupQueries * eighths(samples), int64_t{2});
  return (kGroupQueries * samples + tiles * (kTurnRows - 1)) / kTurnRows;
}

// The number of entries, and of offsets (in turns), before those of a group.
SIMMST_HOST_DEVICE constexpr int64_t first_entry(int64_t group, int64_t samples, int64_t tiles) {
  return group * group_turns(samples, tiles) * kTurnRows;
}
SIMMST_HOST_DEVICE constexpr int64_t first_offset(int64_t group, int64_t tiles) { return group * (tiles + 1); }

// ---- the radix selection: digits of the ordered measure, from the top

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kPasses = 32 / kDigitBits;

struct RadixState {
  std::uint32_t prefix = 0;  // the digits known so far of the u-th largest
  int64_t wanted = 0;        // how many are still to be found among those that share the prefix
};

// Whether a value takes part in a pass, and with which digit.
SIMMST_HOST_DEVICE constexpr bool shares_prefix(std::uint32_t ordered, std::uint32_t prefix, int pass) {
  return pass == 0 || (ordered ^ prefix) >> (32 - kDigitBits * pass) == 0;
}
SIMMST_HOST_DEVICE constexpr int digit(std::uint32_t ordered, int pass) {
  return static_cast<int>(ordered >> (32 - kDigitBits * (pass + 1))) & (kDigits - 1);
}
// The next state, once the u-th largest is known to have digit `found` and `above` of the counted digits are larger.
SIMMST_HOST_DEVICE constexpr RadixState narrowed(RadixState state, int pass, int found, int64_t above) {
  return {state.prefix | static_cast<std::uint32_t>(found) << (32 - kDigitBits * (pass + 1)), state.wanted - above};
}

// ---- workspaces, in bytes

// For attend: a row of sums per selected query (and one for the fill), its largest score and its total.
SIMMST_HOST_DEVICE constexpr int64_t attend_rows(int64_t selected, int64_t queries) {
  return selected + (selected < queries ? 1 : 0);
}
SIMMST_HOST_DEVICE constexpr int64_t attend_workspace(int64_t batch, int64_t spans, int64_t rows, int64_t width) {
  return batch * spans * rows * (width + 2) * 4;
}
// For the measure: the lists of samples, with one turn more that is read ahead, and the offsets in them.
SIMMST_HOST_DEVICE constexpr int64_t list_bytes(int64_t queries, int64_t samples, int64_t tiles) {
  return (first_entry(ceil_div(queries, kGroupQueries), samples, tiles) + kTurnRows) * 4;
}
SIMMST_HOST_DEVICE constexpr int64_t measure_workspace(int64_t queries, int64_t samples, const KeyTiles& tiles) {
  if (tiles.gather == Gather::kStraight) return 0;
  return list_bytes(queries, samples, tiles.count) + first_offset(ceil_div(queries, kGroupQueries), tiles.count) * 4;
}
// For the backward pass: sums of dO per span of rows (float64), delta, and each span's part of dQ.
SIMMST_HOST_DEVICE constexpr int64_t backward_workspace(int64_t batch, const Spans& spans, int64_t selected,
                                                        int64_t width) {
  return batch * (spans.rows * width * 8 + round_up_to(selected * 4, 8) + spans.keys * selected * width * 4);
}

}  // namespace simmst::prob_sparse
