// The selected queries of one batch entry, laid out for score tiles, and the dropout of their weights.
#pragma once

#include "core/philox.hpp"
#include "cpu/prob_sparse_attention_tiles.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {

template <typename T>
struct Queries {
  int64_t count, width;
  T scale;
  int64_t pitch;         // count, rounded up to whole panels
  int64_t padded;        // width, rounded up to whole vectors
  T* rows;               // (pitch, padded), scaled
  T* packed;             // (width, pitch), the transpose; or (width / 2, pitch) pairs of bfloat16, unscaled
  uint32_t* row;         // (pitch): index of the query; 0 in the padding
  IntOf<T>* last_key;    // (pitch): the last key that the query may see when causal
  int64_t* panel_limit;  // (pitch / kLanes): one past the last key that any query of the panel may see

  Queries(int64_t count_, int64_t width_, T scale_, Arena& arena)
      : count(count_),
        width(width_),
        scale(scale_),
        pitch(round_up(count_, kLanes<T>)),
        padded(round_up(width_, kLanes<T>)) {
    rows = arena.take<T>(pitch * padded);
    packed = arena.take<T>(width * pitch);
    row = arena.take<uint32_t>(pitch);
    last_key = arena.take<IntOf<T>>(pitch);
    panel_limit = arena.take<int64_t>(pitch / kLanes<T>);
  }

  template <typename Storage>
  void gather(const Storage* query, int64_t stride, const int64_t* top, int64_t keys) {
    for (int64_t i = 0; i < pitch; ++i) {
      const int64_t index = i < count ? top[i] : 0;
      row[i] = static_cast<uint32_t>(index);
      last_key[i] = static_cast<IntOf<T>>(smaller(index, keys - 1));
      if (i < count) {
        copy_row(query + index * stride, width, padded, scale, rows + i * padded);
      } else {
        for (int64_t c = 0; c < padded; ++c) rows[i * padded + c] = T(0);
      }
    }
    if (scores_in_pairs<Storage>(width)) {
      pack_pairs(query, stride);
    } else {
      transpose(rows, padded, pitch, width, packed);
    }
    for (int64_t panel = 0; panel < pitch / kLanes<T>; ++panel) {
      IntOf<T> last = 0;
      for (int i = 0; i < kLanes<T>; ++i) last = larger(last, last_key[panel * kLanes<T> + i]);
      panel_limit[panel] = static_cast<int64_t>(last) + 1;
    }
  }

  // scores[j][i] = scale * sum_c matrix[j][c] * query[i][c] for the panels [first, last). The buffer is for rows that
  // cannot be read in place.
  template <typename Storage>
  void score(const Storage* matrix, int64_t stride, int64_t keys, int64_t first, int64_t last, T* buffer, T* scores,
             Soon soon = {}) const {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<Storage, bfloat16>) {
      if (scores_in_pairs<Storage>(width)) {
        pair_block(matrix, stride, keys, reinterpret_cast<const uint32_t*>(packed), pitch, first, last, width, scale,
                   scores, soon);
        return;
      }
    }
#endif
    score_block(rows_of(matrix, stride, keys, width, false, buffer), keys, packed, pitch, first, last, width, scores,
                soon);
  }

 private:
  template <typename Storage>
  void pack_pairs(const Storage* query, int64_t stride) {
    auto* pairs = reinterpret_cast<uint32_t*>(packed);
    for (int64_t i = 0; i < pitch; ++i) {
      for (int64_t c = 0; c < width / 2; ++c) {
        uint32_t pair = 0;
        if (i < count) __builtin_memcpy(&pair, query + row[i] * stride + 2 * c, sizeof(pair));
        pairs[c * pitch + i] = pair;
      }
    }
  }
};

// Sets scores of keys [begin, begin + count) to -inf where the key comes after the query.
template <typename T>
void mask_future(const Queries<T>& queries, int64_t begin, int64_t count, int64_t first, int64_t last, T* scores) {
  const Vec<T> lowest = broadcast<T>(static_cast<T>(-__builtin_inf()));
  for (int64_t at = first * kLanes<T>; at < last * kLanes<T>; at += kLanes<T>) {
    IntVec<T> last_key;
    __builtin_memcpy(&last_key, queries.last_key + at, sizeof(last_key));
    for (int64_t j = 0; j < count; ++j) {
      T* score = scores + j * queries.pitch + at;
      const IntVec<T> key = IntVec<T>{} + static_cast<IntOf<T>>(begin + j);
      store(score, select<T>(key > last_key, lowest, load(score)));
    }
  }
}

// Philox4x32-10 with the counter (key // 4, query, batch entry, 0): the same numbers as simmst/reference/philox.py.
struct Dropout {
  bool active;
  uint32_t seed[2];
  uint32_t threshold;  // the smallest word that survives
  double factor;       // factor of the survivors, 1 / (1 - p)

  explicit Dropout(const AttendCall& call)
      : active(call.dropout_p > 0.0),
        seed{call.seed[0], call.seed[1]},
        threshold(keep_threshold(call.dropout_p)),
        factor(1.0 / (1.0 - call.dropout_p)) {}
};

// The four words of every row's counter; the compiler vectorises the loop over the rows.
inline void philox_rows(uint32_t column_block, const uint32_t* row, int64_t count, uint32_t batch, const uint32_t* seed,
                        uint32_t* words, int64_t pitch) {
  for (int64_t i = 0; i < count; ++i) {
    const PhiloxWords drawn = philox4x32(column_block, row[i], batch, 0, seed[0], seed[1]);
    for (int j = 0; j < 4; ++j) words[j * pitch + i] = drawn.word[j];
  }
}

// words[j][i] for keys [first, first + count) with `first` a multiple of 4, and the queries row[0..pitch).
inline void dropout_words(const Dropout& dropout, int64_t batch, int64_t first, int64_t count, const uint32_t* row,
                          int64_t pitch, uint32_t* words) {
  for (int64_t j = 0; j < count; j += 4)
    philox_rows(static_cast<uint32_t>((first + j) / 4), row, pitch, static_cast<uint32_t>(batch), dropout.seed,
                words + j * pitch, pitch);
}

// Drops some weights in place, and scales the others.
template <typename T>
void apply_dropout(const Dropout& dropout, const uint32_t* words, int64_t count, T* weights) {
  const T factor = static_cast<T>(dropout.factor);
  for (int64_t i = 0; i < count; ++i) weights[i] *= words[i] >= dropout.threshold ? factor : T(0);
}

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
