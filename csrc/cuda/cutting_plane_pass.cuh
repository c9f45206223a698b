// The kernel that streams over the planes, and the final sums over its blocks' shares.
#pragma once

#include "cuda/cutting_plane_formats.cuh"
#include "cuda/cutting_plane_vectors.cuh"
#include "cuda/reductions.hpp"

namespace simmst::cuda {

constexpr int kPlaneThreads = kPlaneWarps * kWarp;

// The rows that one pass keeps in registers.
struct RowBlock {
  std::int64_t first = 0;
  int count = 0;
};

// A column's place in shared memory. Four floats of padding after every 32 keep lanes with neighbouring packs in
// different banks.
SIMMST_HOST_DEVICE constexpr int padded_column(int column) { return column + column / 32 * 4; }

template <typename Format>
constexpr int kTileColumns = kWarp * Format::kColumns;

// A row of sums per warp, the tile's point - anchor, the coefficients, and the step sizes.
template <typename Format>
constexpr std::size_t kPassSharedBytes =
    ((kPlaneWarps + 1) * padded_column(kTileColumns<Format>) + kRowBlock) * sizeof(float) + sizeof(StepSizes);

// One thread's packs of a tile, one per row.
template <typename Format, int kRows>
struct Packs {
  typename Format::Packed row[kRows];
};

// The number of a tile's columns for which one thread runs the optimiser.
template <typename Format>
constexpr int kThreadColumns = (kTileColumns<Format> + kPlaneThreads - 1) / kPlaneThreads;

template <typename Format>
struct States {
  ColumnState column[kThreadColumns<Format>];
};

// Computes values, total and slopes of one problem, by a whole block. The shares of the problem's blocks are added in
// order, by one thread per row or (lanes = 32) one warp per row. `scratch` is shared memory for one double per warp.
SIMMST_DEVICE void finish_problem(const PlanePass& pass, std::int64_t blocks, std::int64_t problem, int lanes,
                                  double* scratch) {
  const int groups = block_threads() / lanes, group = thread_index() / lanes, lane = thread_index() % lanes;
  double total = 0.0;
  for (std::int64_t first = 0; first < pass.planes; first += groups) {
    const std::int64_t plane = first + group;
    const float* shares = pass.partial + (problem * pass.planes + plane) * blocks;
    double sum = 0.0;
    for (std::int64_t b = lane; plane < pass.planes && b < blocks; b += lanes) sum += static_cast<double>(shares[b]);
    if (lanes == kWarp) sum = reduce_warp(sum, Sum{});
    if (plane >= pass.planes || lane != 0) continue;
    const double scale = pass.scale.data == nullptr ? 1.0 : load_number(pass.scale, problem, plane);
    const double value = scale * sum + load_number(pass.offsets, problem, plane);
    store_number(pass.values, problem, plane, value);
    if (pass.total_of == Total::kNone) continue;
    const double multiplier = load_number(pass.multipliers, problem, plane);
    const double excess = value <= 0.0 ? 0.0 : value;  // NaN stays NaN
    const bool penalty = pass.total_of == Total::kPenalty;
    total += multiplier * (penalty ? excess * excess : value);
    if (pass.slopes != nullptr) {
      pass.slopes[problem * pass.planes + plane] = static_cast<float>(penalty ? 2.0 * multiplier * excess : multiplier);
    }
  }
  if (pass.total_of == Total::kNone) return;
  total = reduce_block(total, scratch, Sum{});
  if (thread_index() == 0) store_number(pass.total, problem, 0, total);
}

// One block's part in a pass: its tiles, one after another. The next tile is loaded while one is worked on.
template <typename Format, int kRows>
class PlaneBlockPass {
 public:
  SIMMST_DEVICE_MEMBER PlaneBlockPass(const PlanePass& pass, const RowBlock& rows, std::int64_t problem)
      : pass_(pass), problem_(problem) {
    sums_ = reinterpret_cast<float*>(shared_memory());
    moved_ = sums_ + kPlaneWarps * kPitch;
    coefficients_ = moved_ + kPitch;
    auto* sizes = reinterpret_cast<StepSizes*>(coefficients_ + kRowBlock);
    combining_ = pass.coefficients.data != nullptr;
    if (thread_index() == 0) *sizes = step_sizes(pass);
    for (int row = thread_index(); row < kRowBlock; row += kPlaneThreads) {
      coefficients_[row] = combining_ && row < rows.count ? coefficient(rows.first + row) : 0.0f;
    }
    sync_block();
    sizes_ = *sizes;
    start_ = pass.rows + problem * pass.problem_bytes + (rows.first + warp_index()) * pass.row_bytes;
    // Rows that no product needs are not read.
    SIMMST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int row = warp_index() + kPlaneWarps * r;
      const bool wanted = row < rows.count && (pass.evaluating || coefficients_[row] != 0.0f);
      wanted_ |= (wanted ? 1u : 0u) << r;
      values_[r] = 0.0f;
    }
  }

  SIMMST_DEVICE_MEMBER void run(const PlaneSchedule& schedule, std::int64_t first) {
    // As much as the registers hold is loaded one tile ahead: packs of up to eight rows, and the vectors where a thread
    // has one column. For signs a thread has four columns; they are loaded at the start of their tile, since the first
    // product takes longer.
    constexpr bool kPacksAhead = kRows <= 8, kStatesAhead = kThreadColumns<Format> == 1;
    Packs<Format, kRows> packs{}, coming{};
    States<Format> states{}, coming_states{};
    if constexpr (kPacksAhead) packs = load(first);
    if constexpr (kStatesAhead) states = load_states(first);
    for (std::int64_t tile = first; tile < schedule.tiles; tile += schedule.blocks) {
      const std::int64_t next = tile + schedule.blocks;
      if constexpr (kStatesAhead) {
        coming_states = load_states(next);
      } else {
        states = load_states(tile);
      }
      if constexpr (kPacksAhead) {
        coming = load(next);
      } else {
        packs = load(tile);
      }
      work_on(tile, packs, states);
      if constexpr (kPacksAhead) packs = coming;
      if constexpr (kStatesAhead) states = coming_states;
    }
  }

  // Writes the block's share of the second product, (P, L, blocks).
  SIMMST_DEVICE_MEMBER void write_shares(const RowBlock& rows, const PlaneSchedule& schedule, std::int64_t place) {
    SIMMST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float sum = reduce_warp(values_[r], Sum{});
      const int row = warp_index() + kPlaneWarps * r;
      if (lane_index() == 0 && row < rows.count) {
        pass_.partial[(problem_ * pass_.planes + rows.first + row) * schedule.blocks + place] = sum;
      }
    }
  }

 private:
  static constexpr int kColumns = Format::kColumns;
  static constexpr int kPitch = padded_column(kTileColumns<Format>);

  SIMMST_DEVICE_MEMBER float coefficient(std::int64_t plane) const {
    const double given = load_number(pass_.coefficients, problem_, plane);
    // Zero stays zero, whatever the scale is.
    if (given == 0.0 || pass_.scale.data == nullptr) return static_cast<float>(given);
    return static_cast<float>(given * load_number(pass_.scale, problem_, plane));
  }

  SIMMST_DEVICE_MEMBER Packs<Format, kRows> load(std::int64_t tile) const {
    const std::int64_t column = tile * kTileColumns<Format> + lane_index() * kColumns, left = pass_.size - column;
    const std::int64_t step = kPlaneWarps * pass_.row_bytes;
    Packs<Format, kRows> packs;
    SIMMST_UNROLL
    for (int r = 0; r < kRows; ++r) packs.row[r] = Format::zero();
    if (pass_.aligned && left >= kColumns) {
      SIMMST_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (wanted_ & (1u << r)) packs.row[r] = Format::load(start_ + r * step, column);
      }
    } else if (left > 0) {
      SIMMST_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (wanted_ & (1u << r)) packs.row[r] = Format::load_part(start_ + r * step, column, left);
      }
    }
    return packs;
  }

  // Whether all of a tile's columns exist and their vectors are plain.
  SIMMST_DEVICE_MEMBER bool is_plain(std::int64_t tile) const {
    return pass_.plain && (tile + 1) * kTileColumns<Format> <= pass_.size;
  }

  SIMMST_DEVICE_MEMBER States<Format> load_states(std::int64_t tile) const {
    return is_plain(tile) ? load_states_as<true>(tile) : load_states_as<false>(tile);
  }
  template <bool kPlain>
  SIMMST_DEVICE_MEMBER States<Format> load_states_as(std::int64_t tile) const {
    States<Format> states;
    SIMMST_UNROLL
    for (int j = 0; j < kThreadColumns<Format>; ++j) {
      const int place = thread_index() + j * kPlaneThreads;
      const std::int64_t column = tile * kTileColumns<Format> + place;
      const bool exists = place < kTileColumns<Format> && (kPlain || column < pass_.size);
      states.column[j] = exists ? load_column<kPlain>(pass_, problem_, column) : ColumnState{};
    }
    return states;
  }

  SIMMST_DEVICE_MEMBER void work_on(std::int64_t tile, const Packs<Format, kRows>& packs,
                                    const States<Format>& states) {
    if (combining_) combine(packs);
    sync_block();
    if (is_plain(tile)) {
      finish_columns<true>(tile, states);
    } else {
      finish_columns<false>(tile, states);
    }
    sync_block();
    if (pass_.evaluating) evaluate(packs);
  }

  template <bool kPlain>
  SIMMST_DEVICE_MEMBER void finish_columns(std::int64_t tile, const States<Format>& states) {
    SIMMST_UNROLL
    for (int j = 0; j < kThreadColumns<Format>; ++j) {
      const int place = thread_index() + j * kPlaneThreads;
      if (place >= kTileColumns<Format>) continue;
      const std::int64_t column = tile * kTileColumns<Format> + place;
      float product = 0.0f;
      if (combining_) {
        SIMMST_UNROLL
        for (int warp = 0; warp < kPlaneWarps; ++warp) product += sums_[warp * kPitch + padded_column(place)];
      }
      float moved = 0.0f;
      if (kPlain || column < pass_.size) {
        moved = finish_column<kPlain>(pass_, sizes_, states.column[j], problem_, column, product);
      }
      moved_[padded_column(place)] = moved;
    }
  }

  SIMMST_DEVICE_MEMBER void combine(const Packs<Format, kRows>& packs) {
    const float* coefficients = coefficients_ + warp_index();
    float total = 0.0f;
    SIMMST_UNROLL
    for (int r = 0; r < kRows; ++r) total += coefficients[kPlaneWarps * r];
    float sums[kColumns];
    SIMMST_UNROLL
    for (int i = 0; i < kColumns; ++i) sums[i] = Format::start(total);
    SIMMST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float coefficient = coefficients[kPlaneWarps * r];
      if (coefficient != 0.0f) Format::add_to(sums, packs.row[r], coefficient);
    }
    float* mine = sums_ + warp_index() * kPitch + padded_column(lane_index() * kColumns);
    SIMMST_UNROLL
    for (int i = 0; i < kColumns; i += 4) {
      store_pack(mine + i, Pack<float>{{sums[i], sums[i + 1], sums[i + 2], sums[i + 3]}});
    }
  }

  SIMMST_DEVICE_MEMBER void evaluate(const Packs<Format, kRows>& packs) {
    const float* mine = moved_ + padded_column(lane_index() * kColumns);
    float x[kColumns];
    SIMMST_UNROLL
    for (int i = 0; i < kColumns; i += 4) {
      const auto four = load_pack<Pack<float>>(mine + i);
      SIMMST_UNROLL
      for (int j = 0; j < 4; ++j) x[i + j] = four.at[j];
    }
    const auto prepared = Format::prepare(x);
    SIMMST_UNROLL
    for (int r = 0; r < kRows; ++r) values_[r] += Format::dot(packs.row[r], x, prepared);
  }

  const PlanePass& pass_;
  std::int64_t problem_;
  float* sums_;
  float* moved_;
  float* coefficients_;
  StepSizes sizes_{};
  const char* start_;
  bool combining_;
  std::uint32_t wanted_ = 0;
  float values_[kRows];
};

// No sync_block() is needed between two tiles. A warp writes its sums only after the second barrier, when all have read
// the last ones, and moved_ is written after the first barrier, when all have read it.
template <typename Format, int kRows>
SIMMST_KERNEL(kPlaneThreads, plane_blocks_resident(kRows))
pass_over_planes(const PlanePass pass, const PlaneSchedule schedule, const RowBlock rows) {
  const PlaneBlock block = plane_block(block_index().x, schedule.blocks);
  PlaneBlockPass<Format, kRows> work(pass, rows, block.problem);
  work.run(schedule, block.place);
  if (!pass.evaluating) return;
  work.write_shares(rows, schedule, block.place);
  if (schedule.blocks > 1 || schedule.row_blocks > 1) return;
  sync_block();
  finish_problem(pass, 1, block.problem, 1, reinterpret_cast<double*>(shared_memory()));
}

}  // namespace simmst::cuda
