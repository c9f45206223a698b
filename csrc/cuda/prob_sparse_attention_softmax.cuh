// Attention of a warp's 16 queries, a tile of keys after the other, with the running maximum and total of an online
// softmax. A row can stand for the fill instead: all its weights are one, and it collects the sum of the values.
#pragma once

#include "cuda/prob_sparse_attention_tiles.cuh"

namespace simmst::cuda::prob_sparse {

struct Softmax {
  int64_t keys;
  float scale;  // of scores in base 2
  bool is_causal;
  Dropout dropout;
};

// What a lane knows of its two rows.
struct LaneRows {
  int64_t query[2];  // -1 for the fill
  float largest[2] = {-kInfinity, -kInfinity};
  float total[2] = {0.0f, 0.0f};
};

// Scores to weights, and the factor that the sums so far take.
template <int N>
SIMMST_DEVICE void online_softmax(const Softmax& how, TileC (&c)[N], LaneRows& rows, float (&factor)[2],
                                  int64_t first_key) {
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int64_t end = how.is_causal && rows.query[r] < how.keys ? rows.query[r] + 1 : how.keys;
    const int visible = static_cast<int>(end - first_key < kTile ? end - first_key : kTile) - tile_column();
    float largest = rows.largest[r];
    SIMMST_UNROLL
    for (int n = 0; n < N; ++n) {
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        float& score = c[n].part[2 * r + j];
        score = 8 * n + j < visible ? score * how.scale : -kInfinity;
        largest = score > largest ? score : largest;
      }
    }
    largest = reduce_warp<4>(largest, Maximum{});
    const float base = largest == -kInfinity ? 0.0f : largest;  // never -inf minus -inf
    float total = 0.0f;
    const bool is_fill = rows.query[r] < 0;
    SIMMST_UNROLL
    for (int n = 0; n < N; ++n) {
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        float& weight = c[n].part[2 * r + j];
        weight = is_fill ? 1.0f : exp2_approx(weight - base);
        total += weight;
      }
    }
    factor[r] = is_fill ? 1.0f : exp2_approx(rows.largest[r] - base);
    rows.largest[r] = largest;
    rows.total[r] = rows.total[r] * factor[r] + total;
  }
}

template <int N>
SIMMST_DEVICE void drop_weights(const Dropout& dropout, TileC (&c)[N], const LaneRows& rows, int64_t entry,
                                int64_t first_key) {
  const int word = tile_column() % 4;
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    if (rows.query[r] < 0) continue;
    SIMMST_UNROLL
    for (int n = 0; n < N; ++n) {
      const PhiloxWords words = dropout_words(dropout, entry, rows.query[r], first_key + 8 * n + tile_column());
      SIMMST_UNROLL
      for (int j = 0; j < 2; ++j) {
        const std::uint32_t drawn = word == 0 ? words.word[j] : words.word[2 + j];
        c[n].part[2 * r + j] *= drawn >= dropout.threshold ? dropout.factor : 0.0f;
      }
    }
  }
}

// A tile of keys and values for a warp's 16 queries.
template <typename T, int W>
SIMMST_DEVICE void attend_tile(const Softmax& how, const T* queries, const T* keys, const T* values, LaneRows& rows,
                               TileC (&sum)[W / 8], int64_t entry, int64_t first_key, float* scratch) {
  using Product = Products<T, W>;
  TileC c[kTile / 8];
  Product::scores(c, Product::left(queries), keys);
  float factor[2];
  online_softmax(how, c, rows, factor, first_key);
  if (how.dropout.seed != nullptr) drop_weights(how.dropout, c, rows, entry, first_key);
  SIMMST_UNROLL
  for (int i = 0; i < W / 8; ++i) {
    SIMMST_UNROLL
    for (int j = 0; j < 4; ++j) sum[i].part[j] *= factor[j / 2];
  }
  Product::update(sum, c, values, scratch);
}

// What became of one row over a span of keys: W sums, and the largest score and total of its exponentials.
struct PartialRows {
  float* sums;
  float* extremes;
  int64_t per_span;  // rows
};

// The 16 rows of a warp, from row `first` on, of which those before `end` exist.
template <int W>
SIMMST_DEVICE void store_partial(const PartialRows& to, const TileC (&sum)[W / 8], const LaneRows& rows, int64_t span,
                                 int64_t first, int64_t end) {
  SIMMST_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float total = reduce_warp<4>(rows.total[r], Sum{});
    const int64_t i = first + tile_row() + 8 * r;
    if (i >= end) continue;
    const int64_t at = span * to.per_span + i;
    SIMMST_UNROLL
    for (int c = 0; c < W / 8; ++c)
      store_pack(to.sums + at * W + tile_column() + 8 * c,
                 Pack<float, 2>{{sum[c].part[2 * r], sum[c].part[2 * r + 1]}});
    if (tile_column() == 0) store_pack(to.extremes + at * 2, Pack<float, 2>{{rows.largest[r], total}});
  }
}

}  // namespace simmst::cuda::prob_sparse
