// The two products of ProbSparse attention, in register tiles, and the preparation of their operands.
//
// Scores are kept transposed, one row per key with the queries in the lanes ("panels" of kLanes queries). The keys are
// then read in place, one broadcast at a time, the softmax over the keys runs down the rows without a horizontal
// reduction, and a width that is no multiple of the lanes costs nothing.
#pragma once

#include "cpu/lanes.hpp"
#include "cpu/powers_of_two.hpp"
#include "cpu/prob_sparse_attention.hpp"
#include "cpu/simd.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {

using namespace simmst::cpu::prob_sparse;

constexpr int kBlockKeys = 64;  // keys in a block, whose rows of K and V stay in the L1 cache

// Register tiles. A score tile has one sum per key and panel, an update tile one per row and vector of columns. The
// other registers hold the vectors of one side and one broadcast of the other.
constexpr int kTilePanels = 3;
constexpr int tile_keys(int panels) { return kRegisters == 32 || panels == 1 ? 8 : panels == 2 ? 6 : 4; }
constexpr int kMostTileKeys = 8;
constexpr int kTileVectors = kRegisters == 32 ? 4 : 2;
constexpr int tile_rows(int vectors) { return vectors * 2 > kTileVectors ? 6 : 10; }

// Rows of a block of scores, with room for a whole tile at the end.
constexpr int kScoreRows = kBlockKeys + kMostTileKeys;

template <typename T>
SIMMST_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
SIMMST_INLINE T larger(T a, T b) {
  return a > b ? a : b;
}

template <typename Storage>
SIMMST_INLINE Storage* entry(const Matrices& matrices, const Batch& batch, int64_t index) {
  return static_cast<Storage*>(matrices.data) + entry_offset(matrices, batch, index);
}

// Hands out consecutive cache-aligned arrays from one allocation; without memory it only counts the bytes.
class Arena {
 public:
  explicit Arena(char* memory = nullptr) : memory_(memory) {}

  template <typename T>
  T* take(int64_t count) {
    char* start = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += round_up(larger<int64_t>(count, 1) * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(start);
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// `count` workspaces of `bytes` each, freed at the end of the scope.
class Workspaces {
 public:
  Workspaces(int64_t count, int64_t bytes)
      : bytes_(bytes), memory_(static_cast<char*>(__builtin_malloc(static_cast<size_t>(count * bytes + 64)))) {}
  ~Workspaces() { __builtin_free(memory_); }
  Workspaces(const Workspaces&) = delete;
  Workspaces& operator=(const Workspaces&) = delete;

  bool failed() const { return memory_ == nullptr; }
  char* at(int64_t index) const {
    char* aligned = memory_ + (64 - reinterpret_cast<uintptr_t>(memory_) % 64) % 64;
    return aligned + index * bytes_;
  }

 private:
  int64_t bytes_;
  char* memory_;
};

// Runs `body` on a team of threads. One thread runs it directly, because starting a team costs more than a small call.
template <typename Body>
void run_team(int threads, const Body& body) {
  if (threads == 1) {
    body();
  } else {
#pragma omp parallel num_threads(threads)
    body();
  }
}

// Copies a row into the compute type, times a factor, with zeros from `width` to `padded`.
template <typename Storage, typename T = Compute<Storage>>
SIMMST_INLINE void copy_row(const Storage* from, int64_t width, int64_t padded, T factor, T* to) {
  int64_t c = 0;
  for (; c + kLanes<T> <= width; c += kLanes<T>) store(to + c, load(from + c) * factor);
  if (c < width) {
    store(to + c, load_partial(from + c, static_cast<int>(width - c)) * factor);
    c += kLanes<T>;
  }
  for (; c < padded; c += kLanes<T>) store(to + c, Vec<T>{});
}

template <typename Storage, typename T = Compute<Storage>>
void store_row(const T* from, int64_t width, T factor, Storage* to) {
  int64_t c = 0;
  for (; c + kLanes<T> <= width; c += kLanes<T>) store(to + c, load(from + c) * factor);
  if (c < width) store_partial(to + c, load(from + c) * factor, static_cast<int>(width - c));
}

// Rows of K or V in the compute type.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
};

// The rows themselves where they can be used in place, else a copy padded with zeros. `whole_vectors`: the rows will be
// read one whole vector at a time.
template <typename Storage, typename T = Compute<Storage>>
Rows<T> rows_of(const Storage* from, int64_t stride, int64_t count, int64_t width, bool whole_vectors, T* buffer) {
  if constexpr (std::is_same_v<Storage, T>) {
    if (!whole_vectors || width % kLanes<T> == 0) return {from, stride};
  }
  const int64_t padded = round_up(width, kLanes<T>);
  for (int64_t j = 0; j < count; ++j) copy_row(from + j * stride, width, padded, T(1), buffer + j * padded);
  return {buffer, padded};
}

// packed[c][i] = rows[i][c] for a whole number of panels; the rows are padded to whole vectors.
template <typename T>
void transpose(const T* rows, int64_t stride, int64_t count, int64_t width, T* packed) {
  constexpr int kSize = kLanes<T>;
  for (int64_t i = 0; i < count; i += kSize) {
    for (int64_t c = 0; c < width; c += kSize) {
      Vec<T> square[kSize];
      SIMMST_UNROLL
      for (int t = 0; t < kSize; ++t) square[t] = load(rows + (i + t) * stride + c);
      transpose_square<T>(square);
      T* to = packed + c * count + i;
      if (c + kSize <= width) {
        SIMMST_UNROLL
        for (int t = 0; t < kSize; ++t) store(to + t * count, square[t]);
      } else {
        SIMMST_UNROLL
        for (int t = 0; t < kSize; ++t)
          if (c + t < width) store(to + t * count, square[t]);
      }
    }
  }
}

// Scores[j][i] = sum_c rows[j][c] * packed[c][i].

template <typename T, int kPanels, int kKeys = tile_keys(kPanels)>
void score_tile(const T* const* row, const T* packed, int64_t pitch, int64_t width, T* scores) {
  Vec<T> sum[kKeys][kPanels];
  SIMMST_UNROLL
  for (int j = 0; j < kKeys; ++j) SIMMST_UNROLL
  for (int i = 0; i < kPanels; ++i) sum[j][i] = Vec<T>{};
  for (int64_t c = 0; c < width; ++c) {
    Vec<T> column[kPanels];
    SIMMST_UNROLL
    for (int i = 0; i < kPanels; ++i) column[i] = load(packed + c * pitch + i * kLanes<T>);
    SIMMST_UNROLL
    for (int j = 0; j < kKeys; ++j) {
      const Vec<T> x = broadcast_from(row[j] + c);
      SIMMST_UNROLL
      for (int i = 0; i < kPanels; ++i) sum[j][i] += x * column[i];
    }
  }
  SIMMST_UNROLL
  for (int j = 0; j < kKeys; ++j) SIMMST_UNROLL
  for (int i = 0; i < kPanels; ++i) store(scores + j * pitch + i * kLanes<T>, sum[j][i]);
}

// Rows that will be read soon.
struct Soon {
  const char* data = nullptr;
  int64_t stride = 0, bytes = 0;  // from row to row, and in a row
};

SIMMST_INLINE void prefetch_rows(const char* rows, int64_t stride, int64_t bytes, int64_t count) {
  for (int64_t j = 0; j < count; ++j, rows += stride)
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(rows + at);
}

// Calls `tile(panels, row, panel, scores)` for each tile of a block of scores: `count` rows of `width` entries against
// the panels [first, last). Tiles are written whole: `scores` has kScoreRows rows of `pitch`. A tile reads several rows
// in step, which no hardware prefetcher predicts, so the rows of the next tile, and as many of `soon`, are prefetched.
template <typename Row, typename T, typename Tile>
void for_score_tiles(const Row* rows, int64_t stride, int64_t width, int64_t count, int64_t pitch, int64_t first,
                     int64_t last, T* scores, Soon soon, const Tile& tile) {
  constexpr int64_t kSize = static_cast<int64_t>(sizeof(Row));
  const auto panel_group = [&](auto panels, int64_t p, bool fetch) {
    constexpr int kKeys = tile_keys(panels());
    for (int64_t j = 0; j < count; j += kKeys) {
      const Row* row[kKeys];  // past the end, the last row again
      for (int t = 0; t < kKeys; ++t) row[t] = rows + smaller(j + t, count - 1) * stride;
      if (fetch) {
        prefetch_rows(reinterpret_cast<const char*>(rows + (j + kKeys) * stride), stride * kSize, width * kSize, kKeys);
        if (soon.data != nullptr)
          prefetch_rows(soon.data + j * soon.stride, soon.stride, soon.bytes, smaller<int64_t>(kKeys, count - j));
      }
      tile(panels, row, p, scores + j * pitch + p * kLanes<T>);
    }
  };
  for (int64_t p = first; p < last;) {
    const int64_t left = last - p;
    if (left == 1) {
      panel_group(std::integral_constant<int, 1>{}, p, p == first);
      p += 1;
    } else if (left == 2 || left == 4) {  // two and two rather than three and one
      panel_group(std::integral_constant<int, 2>{}, p, p == first);
      p += 2;
    } else {
      panel_group(std::integral_constant<int, 3>{}, p, p == first);
      p += 3;
    }
  }
}

// `packed` has rows of `pitch` entries.
template <typename T>
void score_block(Rows<T> rows, int64_t count, const T* packed, int64_t pitch, int64_t first, int64_t last,
                 int64_t width, T* scores, Soon soon = {}) {
  for_score_tiles(rows.data, rows.stride, width, count, pitch, first, last, scores, soon,
                  [&](auto panels, const T* const* row, int64_t panel, T* to) {
                    score_tile<T, panels()>(row, packed + panel * kLanes<T>, pitch, width, to);
                  });
}

// Where the processor multiplies pairs of bfloat16, scores need no conversion and half the instructions.
template <typename Storage>
SIMMST_INLINE bool scores_in_pairs([[maybe_unused]] int64_t width) {
#if defined(__AVX512BF16__)
  return std::is_same_v<Storage, bfloat16> && width % 2 == 0;
#else
  return false;
#endif
}

#if defined(__AVX512BF16__)

// packed[c][i] holds the entries 2c and 2c + 1 of query i; the scores are multiplied by `scale`.
template <int kPanels, int kKeys = tile_keys(kPanels)>
void pair_tile(const bfloat16* const* row, const uint32_t* packed, int64_t pitch, int64_t pairs, float scale,
               float* scores) {
  __m512 sum[kKeys][kPanels];
  SIMMST_UNROLL
  for (int j = 0; j < kKeys; ++j) SIMMST_UNROLL
  for (int i = 0; i < kPanels; ++i) sum[j][i] = _mm512_setzero_ps();
  for (int64_t c = 0; c < pairs; ++c) {
    __m512bh column[kPanels];
    SIMMST_UNROLL
    for (int i = 0; i < kPanels; ++i)
      column[i] = bit_cast<__m512bh>(_mm512_loadu_si512(packed + c * pitch + i * kLanes<float>));
    SIMMST_UNROLL
    for (int j = 0; j < kKeys; ++j) {
      int32_t pair;
      __builtin_memcpy(&pair, row[j] + 2 * c, sizeof(pair));
      const __m512bh x = bit_cast<__m512bh>(_mm512_set1_epi32(pair));
      SIMMST_UNROLL
      for (int i = 0; i < kPanels; ++i) sum[j][i] = _mm512_dpbf16_ps(sum[j][i], x, column[i]);
    }
  }
  SIMMST_UNROLL
  for (int j = 0; j < kKeys; ++j) SIMMST_UNROLL
  for (int i = 0; i < kPanels; ++i)
    store(scores + j * pitch + i * kLanes<float>, bit_cast<Vec<float>>(sum[j][i]) * scale);
}

inline void pair_block(const bfloat16* rows, int64_t stride, int64_t count, const uint32_t* packed, int64_t pitch,
                       int64_t first, int64_t last, int64_t width, float scale, float* scores, Soon soon) {
  for_score_tiles(rows, stride, width, count, pitch, first, last, scores, soon,
                  [&](auto panels, const bfloat16* const* row, int64_t panel, float* to) {
                    pair_tile<panels()>(row, packed + panel * kLanes<float>, pitch, width / 2, scale, to);
                  });
}

#endif

// Sums[i][c] = start[c], or 0 if fresh, or factor[i] * sums[i][c]; plus sum over s of
// left[i * left_row + s * left_step] * right[s][c].

template <typename T>
struct Update {
  const T* left;
  int64_t left_row, left_step;
  Rows<T> right;
  int64_t steps;
  T* sums;
  int64_t pitch;
  const T* factor;     // one per row; null: 1
  bool fresh = false;  // the old sums are not read
  const T* start = nullptr;
};

template <typename T, int kRows, int kVectors>
void update_tile(const Update<T>& u) {
  constexpr int kSums = kRows * kVectors;
  Vec<T> sum[kSums];
  const auto place = [&](int n)
                         SIMMST_ALWAYS_INLINE { return u.sums + n / kVectors * u.pitch + n % kVectors * kLanes<T>; };
  if (u.start != nullptr) {
    unrolled<kSums>([&](int n) SIMMST_ALWAYS_INLINE { sum[n] = load(u.start + n % kVectors * kLanes<T>); });
  } else if (u.fresh) {
    unrolled<kSums>([&](int n) SIMMST_ALWAYS_INLINE { sum[n] = Vec<T>{}; });
  } else if (u.factor == nullptr) {
    unrolled<kSums>([&](int n) SIMMST_ALWAYS_INLINE { sum[n] = load(place(n)); });
  } else {
    unrolled<kSums>([&](int n)
                        SIMMST_ALWAYS_INLINE { sum[n] = load(place(n)) * broadcast_from(u.factor + n / kVectors); });
  }
  const T* left = u.left;
  const T* right = u.right.data;
  const int64_t left_row = u.left_row, left_step = u.left_step, right_step = u.right.stride;
  for (int64_t s = u.steps; s > 0; --s, left += left_step, right += right_step) {
    Vec<T> row[kVectors];
    unrolled<kVectors>([&](int c) SIMMST_ALWAYS_INLINE { row[c] = load(right + c * kLanes<T>); });
    unrolled<kRows>([&](int i) SIMMST_ALWAYS_INLINE {
      const Vec<T> x = broadcast_from(left + i * left_row);
      unrolled<kVectors>([&](int c) SIMMST_ALWAYS_INLINE { sum[i * kVectors + c] += x * row[c]; });
    });
  }
  unrolled<kSums>([&](int n) SIMMST_ALWAYS_INLINE { store(place(n), sum[n]); });
}

// For `rows` rows, kRows or fewer.
template <typename T, int kVectors, int kRows = tile_rows(kVectors)>
void update_rows(const Update<T>& u, int64_t rows) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return update_tile<T, kRows, kVectors>(u);
    update_rows<T, kVectors, kRows - 1>(u, rows);
  }
}

template <typename T, int kVectors>
void update_part(Update<T> u, int64_t rows) {
  const int64_t tiles = (rows + tile_rows(kVectors) - 1) / tile_rows(kVectors);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
    Update<T> t = u;
    t.left += first * u.left_row;
    t.sums += first * u.pitch;
    if (u.factor != nullptr) t.factor += first;
    update_rows<T, kVectors>(t, last - first);
  }
}

// For `rows` rows of `width` columns (the sums' rows are padded to whole vectors), in tiles of nearly equal size.
template <typename T>
void update_block(Update<T> u, int64_t rows, int64_t width) {
  const int64_t vectors = round_up(width, kLanes<T>) / kLanes<T>;
  const int64_t parts = (vectors + kTileVectors - 1) / kTileVectors;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = vectors * part / parts, last = vectors * (part + 1) / parts;
    Update<T> t = u;
    t.right.data += first * kLanes<T>;
    t.sums += first * kLanes<T>;
    if (u.start != nullptr) t.start += first * kLanes<T>;
    if constexpr (kTileVectors == 4) {
      if (last - first == 4) update_part<T, 4>(t, rows);
      if (last - first == 3) update_part<T, 3>(t, rows);
    }
    if (last - first == 2) update_part<T, 2>(t, rows);
    if (last - first == 1) update_part<T, 1>(t, rows);
  }
}

// Compiled once, in prob_sparse_attention_tiles.cpp.
#define SIMMST_TILES(prefix, T)                                                                                  \
  prefix template void transpose<T>(const T*, int64_t, int64_t, int64_t, T*);                                    \
  prefix template void score_block<T>(Rows<T>, int64_t, const T*, int64_t, int64_t, int64_t, int64_t, T*, Soon); \
  prefix template void update_block<T>(Update<T>, int64_t, int64_t);
SIMMST_TILES(extern, float)
SIMMST_TILES(extern, double)

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
