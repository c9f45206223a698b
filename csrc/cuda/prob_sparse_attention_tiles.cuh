// The shared parts of the ProbSparse kernels: the rows of an operand, their tiles in shared memory, and the two
// products of a warp, on tensor cores for the 16-bit types and in IEEE float32 otherwise.
#pragma once

#include <type_traits>

#include "cuda/device.hpp"
#include "cuda/prob_sparse_attention.hpp"

namespace simmst::cuda::prob_sparse {

constexpr int kTile = static_cast<int>(simmst::prob_sparse::kTileRows);
constexpr int kWarpRows = 16;  // rows in a product
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_huge_valf();

// The rows of one batch entry. `T` is const where they are only read.
template <typename T>
struct Rows {
  T* data;
  int64_t stride, count;
  int columns;
  bool aligned;

  SIMMST_DEVICE_MEMBER T* row(int64_t i) const { return data + i * stride; }
};

template <typename T>
SIMMST_DEVICE Rows<T> rows_of(const Operand& operand, const Batch& batch, int64_t entry) {
  const Matrices& m = operand.matrices;
  return {static_cast<T*>(m.data) + entry_offset(m, batch, entry), m.row_stride, m.rows, static_cast<int>(m.columns),
          operand.aligned};
}

SIMMST_DEVICE int64_t clamp_index(int64_t index, int64_t count) {
  return index < 0 ? 0 : index >= count ? count - 1 : index;
}

// N neighbouring entries of a row, zero beyond its columns.
template <int N, typename T>
SIMMST_DEVICE Pack<std::remove_const_t<T>, N> read_part(const Rows<T>& rows, std::type_identity_t<T>* row, int column) {
  using Entry = std::remove_const_t<T>;
  if (rows.aligned && column + N <= rows.columns) return load_pack<Pack<Entry, N>>(row + column);
  Pack<Entry, N> part;
  SIMMST_UNROLL
  for (int j = 0; j < N; ++j) part.at[j] = column + j < rows.columns ? row[column + j] : Entry{};
  return part;
}
template <int N, typename T>
SIMMST_DEVICE void write_part(const Rows<T>& rows, std::type_identity_t<T>* row, int column, const Pack<T, N>& part) {
  if (rows.aligned && column + N <= rows.columns) {
    store_pack(row + column, part);
  } else {
    SIMMST_UNROLL
    for (int j = 0; j < N; ++j)
      if (column + j < rows.columns) row[column + j] = part.at[j];
  }
}

// A thread's number among the threads that share some work.
struct Worker {
  int index, count;
};
SIMMST_DEVICE Worker of_block() { return {thread_index(), block_threads()}; }
SIMMST_DEVICE Worker of_warp() { return {lane_index(), kWarp}; }

// Starts copying `count` rows into shared memory, `pitch` entries apart. Row r is W columns of source.row(index(r)),
// with zeros beyond its columns and where index(r) is negative. commit_copies() and a wait must follow.
template <int W, typename T, typename Index>
SIMMST_DEVICE void start_rows(std::remove_const_t<T>* shared, int pitch, const Rows<T>& source, int count,
                              const Index& index, Worker worker = of_block()) {
  using Entry = std::remove_const_t<T>;
  constexpr int kPack = 16 / static_cast<int>(sizeof(T)), kPacks = W / kPack;
  for (int i = worker.index; i < count * kPacks; i += worker.count) {
    const int r = i / kPacks, column = i % kPacks * kPack;
    const int64_t row = index(r);
    Entry* to = shared + r * pitch + column;
    int columns = row < 0 ? 0 : source.columns - column;
    columns = columns < 0 ? 0 : columns > kPack ? kPack : columns;
    if (source.aligned) {
      copy_async(to, columns > 0 ? source.row(row) + column : source.data, columns * static_cast<int>(sizeof(T)));
    } else {
      Pack<Entry> pack;
      SIMMST_UNROLL
      for (int j = 0; j < kPack; ++j) pack.at[j] = j < columns ? source.row(row)[column + j] : Entry{};
      store_pack(to, pack);
    }
  }
}

// Starts copying rows [first, first + count) of a tile, with zeros from row `end` on.
template <int W, typename T>
SIMMST_DEVICE void start_tile(std::remove_const_t<T>* shared, int pitch, const Rows<T>& source, int64_t first,
                              int64_t end, int count = kTile) {
  start_rows<W>(shared, pitch, source, count, [&](int r) { return first + r < end ? first + r : int64_t{-1}; });
}

SIMMST_DEVICE void finish_copies() {
  commit_copies();
  wait_for_copies<0>();
  sync_block();
}

// The products of a warp: 16 rows on the left, in tiles TileC of the result. Rows in shared memory are W wide and
// kPitch entries apart.
template <typename T, int W>
struct Products {
  static constexpr int kPitch = W + 8;
  static constexpr int kScratch = 0;  // floats of shared memory that update() needs for each warp
  // A weight enters its product as the sum of this many numbers of type T. Rounding it to one number would cause an
  // error that is visible next to the rounding of the result.
  static constexpr int kTerms = 2;

  struct Left {
    TileA a[W / 16];
  };
  static SIMMST_DEVICE_MEMBER Left left(const T* rows) {
    Left result;
    SIMMST_UNROLL
    for (int k = 0; k < W / 16; ++k) result.a[k] = load_a(rows + 16 * k, kPitch);
    return result;
  }

  // c += left rows^T for 8 N rows.
  template <int N>
  static SIMMST_DEVICE_MEMBER void scores(TileC (&c)[N], const Left& left, const T* rows) {
    SIMMST_UNROLL
    for (int n = 0; n < N; n += 2) {
      SIMMST_UNROLL
      for (int k = 0; k < W / 16; ++k) {
        TileB b[2];
        load_b_columns(b, rows + 8 * n * kPitch + 16 * k, kPitch);
        multiply_add<T>(c[n], left.a[k], b[0]);
        multiply_add<T>(c[n + 1], left.a[k], b[1]);
      }
    }
  }

  // sum += weights rows for 8 N rows.
  template <int N>
  static SIMMST_DEVICE_MEMBER void update(TileC (&sum)[W / 8], const TileC (&weights)[N], const T* rows, float*) {
    SIMMST_UNROLL
    for (int n = 0; n < N; n += 2) {
      TileC rest[2] = {weights[n], weights[n + 1]};
      TileA terms[kTerms];
      SIMMST_UNROLL
      for (int term = 0; term < kTerms; ++term) {
        terms[term] = as_a<T>(rest[0], rest[1]);
        SIMMST_UNROLL
        for (int part = 0; part < 4; ++part) {
          rest[0].part[part] -= to_float(from_float<T>(rest[0].part[part]));
          rest[1].part[part] -= to_float(from_float<T>(rest[1].part[part]));
        }
      }
      add_product(sum, terms, rows + 8 * n * kPitch);
    }
  }

  // sum += weights^T rows for kTile rows. The terms of the weights (kTile, 16) are in shared memory: rows are `pitch`
  // apart, and terms kTile * pitch apart.
  static SIMMST_DEVICE_MEMBER void update_transposed(TileC (&sum)[W / 8], const T* weights, int pitch, const T* rows) {
    SIMMST_UNROLL
    for (int n = 0; n < kTile; n += 16) {
      TileA terms[kTerms];
      SIMMST_UNROLL
      for (int term = 0; term < kTerms; ++term)
        terms[term] = load_a_transposed(weights + (term * kTile + n) * pitch, pitch);
      add_product(sum, terms, rows + n * kPitch);
    }
  }

 private:
  static SIMMST_DEVICE_MEMBER void add_product(TileC (&sum)[W / 8], const TileA (&terms)[kTerms], const T* rows) {
    SIMMST_UNROLL
    for (int c = 0; c < W / 8; c += 2) {
      TileB b[2];
      load_b_rows(b, rows + 8 * c, kPitch);
      SIMMST_UNROLL
      for (int term = 0; term < kTerms; ++term) {
        multiply_add<T>(sum[c], terms[term], b[0]);
        multiply_add<T>(sum[c + 1], terms[term], b[1]);
      }
    }
  }
};

// The same tiles of the result, where each lane computes its own entries.
template <int W>
struct Products<float, W> {
  static constexpr int kPitch = W + 4;
  static constexpr int kTerms = 1;
  static constexpr int kScratchPitch = kTile + 4;
  static constexpr int kScratch = kWarpRows * kScratchPitch;

  struct Left {
    const float* rows;
  };
  static SIMMST_DEVICE_MEMBER Left left(const float* rows) { return {rows}; }

  template <int N>
  static SIMMST_DEVICE_MEMBER void scores(TileC (&c)[N], const Left& left, const float* rows) {
    const float* upper = left.rows + tile_row() * kPitch;
    const float* column = rows + tile_column() * kPitch;
    for (int k = 0; k < W; k += 4) {
      const auto a = load_pack<Pack<float>>(upper + k), b = load_pack<Pack<float>>(upper + 8 * kPitch + k);
      SIMMST_UNROLL
      for (int n = 0; n < N; ++n) {
        SIMMST_UNROLL
        for (int j = 0; j < 2; ++j) {
          const auto y = load_pack<Pack<float>>(column + (8 * n + j) * kPitch + k);
          SIMMST_UNROLL
          for (int i = 0; i < 4; ++i) {
            c[n].part[j] += a.at[i] * y.at[i];
            c[n].part[2 + j] += b.at[i] * y.at[i];
          }
        }
      }
    }
  }

  template <int N>
  static SIMMST_DEVICE_MEMBER void update(TileC (&sum)[W / 8], const TileC (&weights)[N], const float* rows,
                                          float* scratch) {
    float* mine = scratch + tile_row() * kScratchPitch + tile_column();
    SIMMST_UNROLL
    for (int n = 0; n < N; ++n) {
      SIMMST_UNROLL
      for (int part = 0; part < 4; ++part)
        mine[part / 2 * 8 * kScratchPitch + 8 * n + part % 2] = weights[n].part[part];
    }
    sync_warp();
    const float* upper = scratch + tile_row() * kScratchPitch;
    for (int k = 0; k < 8 * N; ++k) add_product(sum, upper[k], upper[8 * kScratchPitch + k], rows + k * kPitch);
    sync_warp();
  }

  static SIMMST_DEVICE_MEMBER void update_transposed(TileC (&sum)[W / 8], const float* weights, int pitch,
                                                     const float* rows) {
    const float* column = weights + tile_row();
    for (int k = 0; k < kTile; ++k) add_product(sum, column[k * pitch], column[k * pitch + 8], rows + k * kPitch);
  }

 private:
  static SIMMST_DEVICE_MEMBER void add_product(TileC (&sum)[W / 8], float upper, float lower, const float* row) {
    SIMMST_UNROLL
    for (int c = 0; c < W / 8; ++c) {
      const auto x = load_pack<Pack<float, 2>>(row + 8 * c + tile_column());
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        sum[c].part[j] += upper * x.at[j];
        sum[c].part[2 + j] += lower * x.at[j];
      }
    }
  }
};

// The random words that decide which weights survive: Philox, counter (key / 4, query, batch entry, 0).
SIMMST_DEVICE PhiloxWords dropout_words(const Dropout& dropout, int64_t entry, int64_t query, int64_t key) {
  return philox4x32(static_cast<std::uint32_t>(key / 4), static_cast<std::uint32_t>(query),
                    static_cast<std::uint32_t>(entry), 0, static_cast<std::uint32_t>(dropout.seed[0]),
                    static_cast<std::uint32_t>(dropout.seed[1]));
}

// Marks the selected rows among [first, first + count), one flag each. Begins and ends with a barrier.
SIMMST_DEVICE void mark_selected(bool* flags, const int64_t* top, int64_t selected, int64_t first, int count) {
  sync_block();
  for (int i = thread_index(); i < count; i += block_threads()) flags[i] = false;
  sync_block();
  for (int64_t i = thread_index(); i < selected; i += block_threads()) {
    const int64_t row = top[i] - first;
    if (row >= 0 && row < count) flags[row] = true;
  }
  sync_block();
}

// Calls body(T{}, std::integral_constant<int, W>{}) for the type and width of a call.
template <typename Body>
void for_type_and_width(DataType type, int64_t width, const Body& body) {
  const auto with_width = [&](auto entry) {
    switch (width) {
      case 16:
        return body(entry, std::integral_constant<int, 16>{});
      case 32:
        return body(entry, std::integral_constant<int, 32>{});
      case 64:
        return body(entry, std::integral_constant<int, 64>{});
      default:
        return body(entry, std::integral_constant<int, 128>{});
    }
  };
  switch (type) {
    case DataType::kFloat32:
      return with_width(float{});
    case DataType::kBfloat16:
      return with_width(bfloat16{});
    default:
      return with_width(float16{});
  }
}

}  // namespace simmst::cuda::prob_sparse
