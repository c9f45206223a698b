// What selection is made of.
//
// The arithmetic of the measure: scores on samples that all queries share, or on keys gathered for each query.
//
// For the 16-bit types a tensor core takes 16 gathered rows against a group of 8 queries, and the lanes keep the
// products of a row with its own query. A row is read once, as 16-byte parts: the order of the columns is that of the
// parts, on both sides of the product alike.
#pragma once

#include "cuda/prob_sparse_attention_tiles.cuh"

namespace simmst::cuda::prob_sparse {

constexpr int kGroup = static_cast<int>(simmst::prob_sparse::kGroupQueries);

// Largest and sum of some scores. The largest loses NaN, which the sum keeps.
struct Extremes {
  float largest = -kInfinity, sum = 0.0f;

  SIMMST_DEVICE_MEMBER void add(float score, bool valid) {
    largest = valid && score > largest ? score : largest;
    sum += valid ? score : 0.0f;
  }
  SIMMST_DEVICE_MEMBER void add(const Extremes& other) {
    largest = other.largest > largest ? other.largest : largest;
    sum += other.sum;
  }
  template <int Distance>
  SIMMST_DEVICE_MEMBER void add_lane() {
    add({shuffle_xor(largest, Distance), shuffle_xor(sum, Distance)});
  }
  SIMMST_DEVICE_MEMBER float measure(float divisor) const { return largest - sum / divisor; }
};

// Scores of a warp's 16 queries on a tile of sampled keys, added to what the queries have so far.
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

// Products of gathered rows with the queries of a group: with g = lane / 4 and t = lane % 4, a lane reads parts t,
// t + 4, ... of the rows g and g + 8, and holds their products with the queries 2 t and 2 t + 1, as in a TileC.
template <typename T, int W>
struct Parts {
  static constexpr int kFull = 16 / static_cast<int>(sizeof(T));
  static constexpr int kSize = kFull < W / 4 ? kFull : W / 4;
  static constexpr int kCount = W / 4 / kSize;
  static SIMMST_DEVICE_MEMBER int column(int part) { return (lane_index() % 4 + 4 * part) * kSize; }
};

// A part of a row of keys, in shared memory or in global memory.
template <bool kStaged, typename T, int W>
SIMMST_DEVICE Pack<T, Parts<T, W>::kSize> key_part(const Rows<const T>& key, const T* row, int column) {
  if constexpr (kStaged) return load_pack<Pack<T, Parts<T, W>::kSize>>(row + column);
  return read_part<Parts<T, W>::kSize>(key, row, column);
}

template <typename T, int W>
struct GroupProducts {
  using P = Parts<T, W>;
  static constexpr int kSteps = W / 16, kStepsPerPart = P::kSize / 4;
  TileB query[kSteps];

  SIMMST_DEVICE_MEMBER GroupProducts(const Rows<const T>& rows, int64_t first) {
    const int64_t row = clamp_index(first + lane_index() / 4, rows.count);
    SIMMST_UNROLL
    for (int part = 0; part < P::kCount; ++part) {
      const auto x = read_part<P::kSize>(rows, rows.row(row), P::column(part));
      memcpy(&query[part * kStepsPerPart], &x, sizeof(x));
    }
  }

  template <bool kStaged>
  SIMMST_DEVICE_MEMBER void scores(TileC& c, const Rows<const T>& key, const T* upper, const T* lower, int, int) const {
    std::uint32_t words[2][W / 8];
    read_row<kStaged>(words[0], key, upper);
    read_row<kStaged>(words[1], key, lower);
    SIMMST_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      const TileA a{{words[0][2 * k], words[1][2 * k], words[0][2 * k + 1], words[1][2 * k + 1]}};
      multiply_add<T>(c, a, query[k]);
    }
  }

 private:
  // Lanes of even and odd g read their parts in different orders: two rows of 128 bytes then use all the banks.
  template <bool kStaged>
  static SIMMST_DEVICE_MEMBER void read_row(std::uint32_t (&words)[W / 8], const Rows<const T>& key, const T* row) {
    if constexpr (P::kCount == 1) {
      const auto x = key_part<kStaged, T, W>(key, row, P::column(0));
      memcpy(words, &x, sizeof(x));
    } else {
      const int odd = lane_index() / 4 % 2;
      SIMMST_UNROLL
      for (int part = 0; part < P::kCount; part += 2) {
        const auto x = key_part<kStaged, T, W>(key, row, P::column(part + odd));
        const auto y = key_part<kStaged, T, W>(key, row, P::column(part + 1 - odd));
        std::uint32_t first[4], second[4];
        memcpy(first, &x, 16);
        memcpy(second, &y, 16);
        SIMMST_UNROLL
        for (int i = 0; i < 4; ++i) {
          words[4 * part + i] = odd != 0 ? second[i] : first[i];
          words[4 * part + 4 + i] = odd != 0 ? first[i] : second[i];
        }
      }
    }
  }
};

template <int W>
struct GroupProducts<float, W> {
  using P = Parts<float, W>;
  const Rows<const float>& rows;
  int64_t first;

  SIMMST_DEVICE_MEMBER GroupProducts(const Rows<const float>& rows_, int64_t first_) : rows(rows_), first(first_) {}

  template <bool kStaged>
  SIMMST_DEVICE_MEMBER void scores(TileC& c, const Rows<const float>& key, const float* upper, const float* lower,
                                   int upper_query, int lower_query) const {
    const float x = product<kStaged>(key, upper, upper_query), y = product<kStaged>(key, lower, lower_query);
    c.part[0] = c.part[1] = x;
    c.part[2] = c.part[3] = y;
  }

 private:
  template <bool kStaged>
  SIMMST_DEVICE_MEMBER float product(const Rows<const float>& key, const float* row, int query) const {
    const float* other = rows.row(clamp_index(first + query, rows.count));
    float sum = 0.0f;
    SIMMST_UNROLL
    for (int part = 0; part < P::kCount; ++part) {
      const auto x = key_part<kStaged, float, W>(key, row, P::column(part));
      const auto y = read_part<P::kSize>(rows, other, P::column(part));
      SIMMST_UNROLL
      for (int i = 0; i < P::kSize; ++i) sum += x.at[i] * y.at[i];
    }
    return reduce_warp<4>(sum, Sum{});
  }
};

// A gathered row: which key, negative for none, and for which query of the group.
struct Gathered {
  int64_t key;
  int query;
};

// A lane's two queries of a group, over the rows it gathers.
template <bool kStaged, typename T, int W>
struct GroupMeasure {
  const GroupProducts<T, W>& products;
  const Rows<const T>& key;
  const T* keys;  // staged: the tile, its rows `pitch` entries apart
  int pitch;
  Extremes found[2];

  SIMMST_DEVICE_MEMBER const T* row(const Gathered& from) const {
    const int64_t index = from.key < 0 ? 0 : from.key;
    if constexpr (kStaged) return keys + index * pitch;
    return key.row(index);
  }

  SIMMST_DEVICE_MEMBER void add(const Gathered& upper, const Gathered& lower) {
    TileC c;
    products.template scores<kStaged>(c, key, row(upper), row(lower), upper.query, lower.query);
    SIMMST_UNROLL
    for (int j = 0; j < 2; ++j) {
      found[j].add(c.part[j], upper.key >= 0 && upper.query == tile_column() + j);
      found[j].add(c.part[2 + j], lower.key >= 0 && lower.query == tile_column() + j);
    }
  }

  // Over the rows of all lanes: lanes 0 to 3 then hold the queries 2 t and 2 t + 1.
  SIMMST_DEVICE_MEMBER void reduce() {
    SIMMST_UNROLL
    for (int j = 0; j < 2; ++j) {
      found[j].template add_lane<4>();
      found[j].template add_lane<8>();
      found[j].template add_lane<16>();
    }
  }
};

// The samples of a group as they come. Eight rows always belong to one query and sample s always goes to row s % 8, so
// that a query's measure does not depend on its place.
template <typename Measure>
SIMMST_DEVICE void add_in_order(Measure& measure, const int64_t* all_samples, int64_t samples, int64_t first,
                                int64_t all_queries, int64_t keys) {
  const int64_t queries = all_queries - first < kGroup ? all_queries - first : kGroup;
  int query = 0;
  int64_t sample = lane_index() / 4;
  const auto next = [&]() {
    Gathered result{-1, query};
    if (query < queries && sample < samples)
      result.key = clamp_index(all_samples[(first + query) * samples + sample], keys);
    sample += 8;
    if (sample - lane_index() / 4 >= samples) {
      sample = lane_index() / 4;
      ++query;
    }
    return result;
  };
  while (query < queries) {
    const Gathered upper = next(), lower = next();
    measure.add(upper, lower);
  }
}

// The u largest of some values, by a block: a radix search finds the u-th largest, 8 bits a pass from the top, and a
// last pass writes the indices in their order. Integer counts alone decide, so the result does not depend on the order
// in which threads count.

constexpr int kMostWarps = 32;
// Of shared memory, as integers: a counter for each digit, what a pass found, and two counts of each warp.
constexpr int kTopCounters = simmst::prob_sparse::kDigits + 2 + 2 * kMostWarps;

// The digit of the u-th largest, and how many counted values have a larger one: two words at `found`. One warp, lane l
// has the digits from 8 l on.
SIMMST_DEVICE void find_digit(const int* bins, int64_t wanted, int* found) {
  constexpr int kMine = simmst::prob_sparse::kDigits / kWarp;
  const int lane = lane_index();
  int mine = 0;
  for (int i = 0; i < kMine; ++i) mine += bins[lane * kMine + i];
  int through = mine;  // this lane's and those of higher digits
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

// Writes the indices of a run of values, given how many before it are larger than the limit and how many equal it.
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

// top: the indices of the `selected` largest of `count` values, ascending; of equal ones the lower. Begins with a
// barrier.
SIMMST_DEVICE void select_top(const float* measure, int64_t count, int64_t selected, int64_t* top, int* counters) {
  using namespace simmst::prob_sparse;
  int* bins = counters;
  int* found = bins + kDigits;
  int* counts = found + 2;  // of larger and of equal values, per warp
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
