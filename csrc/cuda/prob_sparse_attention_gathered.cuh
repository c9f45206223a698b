// The measure on keys gathered for each query.
//
// For the 16-bit types a tensor core multiplies 16 gathered rows with a group of 8 queries, and the lanes keep the
// products of a row with its own query. A row is read once, as 16-byte parts; the parts determine the order of the
// columns, which is the same on both sides of the product.
#pragma once

#include "cuda/prob_sparse_attention_select.cuh"

namespace simmst::cuda::prob_sparse {

constexpr int kGroup = static_cast<int>(simmst::prob_sparse::kGroupQueries);
constexpr int kTurn = static_cast<int>(simmst::prob_sparse::kTurnRows);

// The parts of a row, of 16 bytes where it is wide enough. With g = lane / 4 and t = lane % 4, a lane reads parts
// t, t + 4, ... of the rows g and g + 8. The parts come in pairs, and lanes with odd g read the second part of a pair
// first, so that two rows of 128 bytes use all banks of shared memory.
template <typename T, int W>
struct Parts {
  static constexpr int kFull = 16 / static_cast<int>(sizeof(T));
  static constexpr int kSize = kFull < W / 4 ? kFull : W / 4;
  static constexpr int kCount = W / 4 / kSize;
  using Part = Pack<T, kSize>;

  static SIMMST_DEVICE_MEMBER int column(int part) { return (lane_index() % 4 + 4 * part) * kSize; }
  static SIMMST_DEVICE_MEMBER bool swapped() { return kCount > 1 && lane_index() / 4 % 2 != 0; }
  // The column of the part that a lane reads as number `part`.
  static SIMMST_DEVICE_MEMBER int column_read(int part) { return column(swapped() ? part ^ 1 : part); }
};

// Rows of a tile of keys in shared memory, by the entries of a list.
template <typename T, int W>
struct StagedRows {
  using P = Parts<T, W>;
  using Row = std::uint32_t;     // bytes before the row
  const unsigned char* read[2];  // addresses in row 0 of what the lane reads as parts 0 and 1
  std::uint32_t row_bytes;

  SIMMST_DEVICE_MEMBER StagedRows(const T* tile, int row_bytes_)
      : read{reinterpret_cast<const unsigned char*>(tile + P::column_read(0)),
             reinterpret_cast<const unsigned char*>(tile + (P::kCount > 1 ? P::column_read(1) : 0))},
        row_bytes(static_cast<std::uint32_t>(row_bytes_)) {}

  SIMMST_DEVICE_MEMBER Row row(std::uint32_t entry) const { return simmst::prob_sparse::entry_bytes(entry, row_bytes); }
  SIMMST_DEVICE_MEMBER typename P::Part part(Row row, int number) const {
    constexpr int kPair = 8 * P::kSize * static_cast<int>(sizeof(T));
    return load_pack<typename P::Part>(reinterpret_cast<const T*>(read[number % 2] + row + number / 2 * kPair));
  }
};

// Rows of all keys in global memory.
template <typename T, int W>
struct GlobalRows {
  using P = Parts<T, W>;
  using Row = const T*;
  const Rows<const T>& keys;

  SIMMST_DEVICE_MEMBER typename P::Part part(Row row, int number) const {
    return read_part<P::kSize>(keys, row, P::column_read(number));
  }
};

// Products of a lane's two rows with the queries of a group; a lane holds those with the queries 2 t and 2 t + 1, as in
// a TileC.
template <typename T, int W>
struct GroupProducts {  // its rows are the queries of one block, few enough for an int
  using P = Parts<T, W>;
  static constexpr int kSteps = W / 16, kStepsPerPart = P::kSize / 4;
  TileB query[kSteps];

  SIMMST_DEVICE_MEMBER GroupProducts(const Rows<const T>& rows, int first) {
    const int last = static_cast<int>(rows.count) - 1, wanted = first + lane_index() / 4;
    const int row = wanted < last ? wanted : last;
    SIMMST_UNROLL
    for (int part = 0; part < P::kCount; ++part) {
      const auto x = read_part<P::kSize>(rows, rows.row(row), P::column(part));
      memcpy(&query[part * kStepsPerPart], &x, sizeof(x));
    }
  }

  template <typename Source>
  SIMMST_DEVICE_MEMBER void scores(TileC& c, const Source& source, typename Source::Row upper,
                                   typename Source::Row lower, int, int) const {
    std::uint32_t words[2][W / 8];
    read_row(words[0], source, upper);
    read_row(words[1], source, lower);
    SIMMST_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      const TileA a{{words[0][2 * k], words[1][2 * k], words[0][2 * k + 1], words[1][2 * k + 1]}};
      multiply_add<T>(c, a, query[k]);
    }
  }

 private:
  template <typename Source>
  static SIMMST_DEVICE_MEMBER void read_row(std::uint32_t (&words)[W / 8], const Source& source,
                                            typename Source::Row row) {
    if constexpr (P::kCount == 1) {
      const auto x = source.part(row, 0);
      memcpy(words, &x, sizeof(x));
    } else {
      const bool swapped = P::swapped();
      SIMMST_UNROLL
      for (int part = 0; part < P::kCount; part += 2) {
        const auto x = source.part(row, part), y = source.part(row, part + 1);
        std::uint32_t first[4], second[4];
        memcpy(first, &x, 16);
        memcpy(second, &y, 16);
        SIMMST_UNROLL
        for (int i = 0; i < 4; ++i) {
          words[4 * part + i] = swapped ? second[i] : first[i];
          words[4 * part + 4 + i] = swapped ? first[i] : second[i];
        }
      }
    }
  }
};

template <int W>
struct GroupProducts<float, W> {
  using P = Parts<float, W>;
  const Rows<const float>& rows;  // the queries of one block, few enough for an int
  int first;

  SIMMST_DEVICE_MEMBER GroupProducts(const Rows<const float>& rows_, int first_) : rows(rows_), first(first_) {}

  template <typename Source>
  SIMMST_DEVICE_MEMBER void scores(TileC& c, const Source& source, typename Source::Row upper,
                                   typename Source::Row lower, int upper_query, int lower_query) const {
    const float x = product(source, upper, upper_query), y = product(source, lower, lower_query);
    c.part[0] = c.part[1] = x;
    c.part[2] = c.part[3] = y;
  }

 private:
  template <typename Source>
  SIMMST_DEVICE_MEMBER float product(const Source& source, typename Source::Row row, int query) const {
    const float* other = rows.row(clamp_index(first + query, rows.count));
    float sum = 0.0f;
    SIMMST_UNROLL
    for (int part = 0; part < P::kCount; ++part) {
      const auto x = source.part(row, part);
      const auto y = read_part<P::kSize>(rows, other, P::column_read(part));
      SIMMST_UNROLL
      for (int i = 0; i < P::kSize; ++i) sum += x.at[i] * y.at[i];
    }
    return reduce_warp<4>(sum, Sum{});
  }
};

// The measure of a lane's two queries of a group, over the rows that it gathers.
template <typename Source, typename T, int W>
struct GroupMeasure {
  const GroupProducts<T, W>& products;
  Source source;
  Extremes found[2];

  // Adds two rows, each for a query of the group or for no query.
  SIMMST_DEVICE_MEMBER void add(typename Source::Row upper, int upper_query, typename Source::Row lower,
                                int lower_query) {
    TileC c;
    products.scores(c, source, upper, lower, upper_query, lower_query);
    SIMMST_UNROLL
    for (int j = 0; j < 2; ++j) {
      found[j].add(c.part[j], upper_query == tile_column() + j);
      found[j].add(c.part[2 + j], lower_query == tile_column() + j);
    }
  }

  // Adds the turns of a list, two at a time. The next entries are read while these rows are, even after the last turn.
  SIMMST_DEVICE_MEMBER void add_list(const std::uint32_t* list, int turns) {
    using simmst::prob_sparse::entry_query;
    using Two = Pack<std::uint32_t, 2>;
    list += lane_index() / 4 * 2;
    const auto take = [&](const Two& two) {
      add(source.row(two.at[0]), entry_query(two.at[0]), source.row(two.at[1]), entry_query(two.at[1]));
    };
    Two first = load_pack<Two>(list);
    SIMMST_ROLLED
    for (; turns > 1; turns -= 2) {
      const Two second = load_pack<Two>(list + kTurn);
      list += 2 * kTurn;
      take(first);
      first = load_pack<Two>(list);
      take(second);
    }
    if (turns > 0) take(first);
  }

  // Combines the rows of all lanes; each of the first eight lanes then has one query.
  SIMMST_DEVICE_MEMBER Extremes reduced() const {
    const bool odd = lane_index() / 4 % 2 != 0;
    Extremes mine = odd ? found[1] : found[0];
    const Extremes given = odd ? found[0] : found[1];
    mine.add({shuffle_xor(given.largest, 4), shuffle_xor(given.sum, 4)});
    mine.template add_lane<8>();
    mine.template add_lane<16>();
    return mine;
  }
  static SIMMST_DEVICE_MEMBER int reduced_query() { return tile_column() + lane_index() / 4 % 2; }
};

// A group's samples (sample s of query q is at q * samples + s) and its number of queries.
struct GroupSamples {
  const int64_t* first;
  int64_t samples, keys;
  int queries;

  SIMMST_DEVICE_MEMBER GroupSamples(const int64_t* all, int64_t samples_, int64_t group, int64_t all_queries,
                                    int64_t keys_)
      : first(all + group * kGroup * samples_),
        samples(samples_),
        keys(keys_),
        queries(static_cast<int>(all_queries - group * kGroup < kGroup ? all_queries - group * kGroup : kGroup)) {}

  SIMMST_DEVICE_MEMBER int64_t key(int64_t i) const { return clamp_index(first[i], keys); }
  // The number of eighths in the list where eight rows at a time belong to one query.
  SIMMST_DEVICE_MEMBER int64_t all_eighths() const { return queries * simmst::prob_sparse::eighths(samples); }
};

// Writes eighths [begin, end) of a group's list to `list`, by a warp, and fills up the last turn. Returns the number of
// turns.
SIMMST_DEVICE int list_in_order(const GroupSamples& group, int64_t begin, int64_t end, std::uint32_t* list) {
  using namespace simmst::prob_sparse;
  const int64_t each = eighths(group.samples), all = group.all_eighths();
  const int64_t last = begin + round_up_to((end < all ? end : all) - begin, 2);
  int64_t eighth = begin + lane_index() / 8, query = eighth / each, part = eighth - query * each;
  for (; eighth < last; eighth += kWarp / 8) {
    const int64_t sample = part * 8 + lane_index() % 8;
    const bool inside = query < group.queries && sample < group.samples;
    list[list_place((eighth - begin) * 8 + lane_index() % 8)] =
        inside ? list_entry(group.key(query * group.samples + sample), query) : kNoEntry;
    for (part += kWarp / 8; part >= each; part -= each) ++query;
  }
  return static_cast<int>((last - begin) / 2);
}

// Adds a group's rows directly from global memory, in the same order.
template <typename T, int W>
SIMMST_DEVICE void add_in_order(GroupMeasure<GlobalRows<T, W>, T, W>& measure, const GroupSamples& group) {
  const int64_t each = simmst::prob_sparse::eighths(group.samples), all = group.all_eighths();
  const auto row = [&](int64_t eighth, int& query) {
    query = static_cast<int>(eighth / each);
    const int64_t sample = (eighth - query * each) * 8 + lane_index() / 4;
    if (eighth >= all || sample >= group.samples) {
      query = kGroup;
      return measure.source.keys.row(0);
    }
    return measure.source.keys.row(group.key(query * group.samples + sample));
  };
  SIMMST_ROLLED
  for (int64_t eighth = 0; eighth < all; eighth += 2) {
    int upper_query, lower_query;
    const T *upper = row(eighth, upper_query), *lower = row(eighth + 1, lower_query);
    measure.add(upper, upper_query, lower, lower_query);
  }
}

}  // namespace simmst::cuda::prob_sparse
