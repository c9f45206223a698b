// The parts of selection: the measure of queries on samples that all of them share (for each query's own samples, see
// prob_sparse_attention_gathered.cuh), and the largest of some values, few or many.
#pragma once

#include "cuda/prob_sparse_attention_tiles.cuh"

namespace simmst::cuda::prob_sparse {

// Largest and sum of some scores. The largest drops NaN, which the sum keeps.
struct Extremes {
  float largest = -kInfinity, sum = 0.0f;

  SIMMST_DEVICE_MEMBER void add(float score, bool valid) {
    if (!valid) return;
    largest = fmaxf(largest, score);
    sum += score;
  }
  SIMMST_DEVICE_MEMBER void add(const Extremes& other) {
    largest = fmaxf(largest, other.largest);
    sum += other.sum;
  }
  template <int Distance>
  SIMMST_DEVICE_MEMBER void add_lane() {
    add({shuffle_xor(largest, Distance), shuffle_xor(sum, Distance)});
  }
  SIMMST_DEVICE_MEMBER float measure(float divisor) const { return largest - sum / divisor; }
};

// Adds the scores of a warp's 16 queries on a tile of sampled keys to the queries' results so far.
template <typename T, int W>
SIMMST_DEVICE void measure_tile(const T* queries, const T* keys, int samples, Extremes* found) {
  using Product = Products<T, W>;
  TileC c[kTile / 8];
  Product::scores(c, Product::left(queries), keys);
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    Extremes mine;
    SIMMST_UNROLL
    for (int n = 0; n < kTile / 8; ++n) {
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) mine.add(c[n].part[2 * r + j], 8 * n + tile_column() + j < samples);
    }
    mine.add_lane<1>();
    mine.add_lane<2>();
    if (tile_column() == 0) found[tile_row() + 8 * r].add(mine);
  }
}

// The u largest of a few values, by a block. Each value's rank is counted, which takes two barriers; a radix search
// takes a dozen.

constexpr int kMostRanked = 640;
constexpr int kRankedWords = kMostRanked / kWarp;  // one bit per value

// How many of `count` ordered values come before value i: the larger ones, and the equal ones with a lower index. The
// lanes of a warp ask for neighbouring values, of which `run` is the first; the values that fill up the last four are
// zero.
SIMMST_DEVICE int rank_of(const std::uint32_t* ordered, int count, int run, int i) {
  const std::uint32_t mine = ordered[i];
  int rank = 0;
  const auto add = [&](int begin, int end, auto before) {
    for (int j = begin; j < end; j += 4) {
      const auto four = load_pack<Pack<std::uint32_t>>(ordered + j);
      SIMMST_UNROLL
      for (int k = 0; k < 4; ++k) rank += before(four.at[k], j + k) ? 1 : 0;
    }
  };
  const int past = run + kWarp < count ? run + kWarp : count;
  add(0, run, [&](std::uint32_t other, int) { return other >= mine; });
  add(run, past, [&](std::uint32_t other, int j) { return other > mine || (other == mine && j < i); });
  add(past, count, [&](std::uint32_t other, int) { return other > mine; });
  return rank;
}

// Writes to `top` the indices of the `selected` largest of at most kMostRanked values, ascending; among equal values
// the lower index wins. The values are ordered bits in shared memory, zero up to the next multiple of four; `words` is
// shared memory for kRankedWords words. Begins with a barrier.
SIMMST_DEVICE void select_ranked(const std::uint32_t* ordered, int count, int64_t selected, int64_t* top,
                                 std::uint32_t* words) {
  sync_block();
  for (int run = warp_index() * kWarp; run < count; run += block_threads()) {
    const int i = run + lane_index() < count ? run + lane_index() : count - 1;
    const bool is_mine = run + lane_index() < count;
    const int rank = rank_of(ordered, count, run, i);
    const std::uint32_t word = ballot(is_mine && rank < selected);
    if (lane_index() == 0) words[run / kWarp] = word;
  }
  sync_block();
  for (int i = thread_index(); i < count; i += block_threads()) {
    const std::uint32_t word = words[i / kWarp], bit = 1u << i % kWarp;
    if ((word & bit) == 0) continue;
    int before = count_bits(word & (bit - 1));
    for (int w = 0; w < i / kWarp; ++w) before += count_bits(words[w]);
    top[before] = i;
  }
}

// The u largest of some values, by a block: a radix search finds the u-th largest, 8 bits per pass from the top, and a
// last pass writes the indices in order. Only integer counts decide, so the result does not depend on the order in
// which threads count.

constexpr int kMostWarps = 32;
// Integers in shared memory: a counter per digit, the result of a pass, and two counts per warp.
constexpr int kTopCounters = simmst::prob_sparse::kDigits + 2 + 2 * kMostWarps;

// Finds the digit of the u-th largest, and how many counted values have a larger one: two words at `found`. Run by one
// warp; lane l has the digits from 8 l on.
SIMMST_DEVICE void find_digit(const int* bins, int64_t wanted, int* found) {
  constexpr int kMine = simmst::prob_sparse::kDigits / kWarp;
  const int lane = lane_index();
  int mine = 0;
  for (int i = 0; i < kMine; ++i) mine += bins[lane * kMine + i];
  int through = mine;  // this lane's count and those of higher digits
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = shuffle_down(through, distance);
    if (lane + distance < kWarp) through += other;
  }
  int above = through - mine;
  if (above < wanted && wanted <= through) {
    for (int i = kMine - 1; i >= 0; --i) {
      const int count = bins[lane * kMine + i];
      if (above + count >= wanted) {
        found[0] = lane * kMine + i;
        found[1] = above;
        break;
      }
      above += count;
    }
  }
}

// Writes the indices of a run of values. `larger` and `equal` count the values before it that are above and at the
// limit.
SIMMST_DEVICE void write_run(const float* measure, int64_t begin, int64_t end, std::uint32_t limit, int64_t ties,
                             int64_t larger, int64_t equal, int64_t* top) {
  const std::uint32_t below = (1u << lane_index()) - 1;
  for (int64_t i0 = begin; i0 < end; i0 += kWarp) {
    const int64_t i = i0 + lane_index();
    const std::uint32_t ordered = i < end ? ordered_bits(measure[i]) : 0;
    const bool is_larger = i < end && ordered > limit, is_equal = i < end && ordered == limit;
    const std::uint32_t larger_lanes = ballot(is_larger), equal_lanes = ballot(is_equal);
    const int64_t larger_before = larger + count_bits(larger_lanes & below);
    const int64_t equal_before = equal + count_bits(equal_lanes & below);
    if (is_larger || (is_equal && equal_before < ties))
      top[larger_before + (equal_before < ties ? equal_before : ties)] = i;
    larger += count_bits(larger_lanes);
    equal += count_bits(equal_lanes);
  }
}

// Writes to `top` the indices of the `selected` largest of `count` values, ascending; among equal values the lower
// index wins. Begins with a barrier.
SIMMST_DEVICE void select_top(const float* measure, int64_t count, int64_t selected, int64_t* top, int* counters) {
  using namespace simmst::prob_sparse;
  int* bins = counters;
  int* found = bins + kDigits;
  int* counts = found + 2;  // larger and equal values, per warp
  sync_block();
  RadixState state{0, selected};
  for (int pass = 0; pass < kPasses; ++pass) {
    for (int i = thread_index(); i < kDigits; i += block_threads()) bins[i] = 0;
    sync_block();
    for (int64_t i = thread_index(); i < count; i += block_threads()) {
      const std::uint32_t ordered = ordered_bits(measure[i]);
      if (shares_prefix(ordered, state.prefix, pass)) atomic_add(bins + digit(ordered, pass), 1);
    }
    sync_block();
    if (warp_index() == 0) find_digit(bins, state.wanted, found);
    sync_block();
    state = narrowed(state, pass, found[0], found[1]);
  }

  const int warps = block_threads() / kWarp;
  const int64_t run = round_up_to(ceil_div(count, warps), kWarp);
  const int64_t begin = warp_index() * run, end = begin + run < count ? begin + run : count;
  int larger = 0, equal = 0;
  for (int64_t i = begin + lane_index(); i < end; i += kWarp) {
    const std::uint32_t ordered = ordered_bits(measure[i]);
    larger += ordered > state.prefix;
    equal += ordered == state.prefix;
  }
  larger = reduce_warp(larger, Sum{});
  equal = reduce_warp(equal, Sum{});
  if (lane_index() == 0) {
    counts[warp_index()] = larger;
    counts[kMostWarps + warp_index()] = equal;
  }
  sync_block();
  int64_t larger_before = 0, equal_before = 0;
  for (int warp = 0; warp < warp_index(); ++warp) {
    larger_before += counts[warp];
    equal_before += counts[kMostWarps + warp];
  }
  write_run(measure, begin, end, state.prefix, state.wanted, larger_before, equal_before, top);
}

}  // namespace simmst::cuda::prob_sparse
