// The backward pass of spatial attention. A fixed number of blocks take the maps in turn. Projections and heads are
// recomputed from x and lse. Matrices of a map (N rows of C) are in the block's part of a workspace that the
// second-level cache holds; the operands of the warps' products are in shared memory.
//
//   P = exp2(q k - lse) / its sum, O = P V, delta = rowsum(dO O), dS = P (dO V^T - delta)
//   dV = P^T dO, dK = dS^T q, dQ = dS K: a warp owns 16 keys for the first two and 16 queries for the last, so that no
//   two warps add to the same entry, and P and dS stay in registers (computed twice: 8 products of N x N x D per head).
//
// Gradients of the weights are sums over the block's maps, in order; a second kernel adds up the blocks' sums, in
// order. The workspace has 11 N C entries, N sums of P per head, and 4 C^2 + 6 C float32 sums per block.
#pragma once

#include "cuda/spatial_attention_backward_head.cuh"

namespace simmst::cuda::spatial {

template <typename T, int kHeadTiles>
struct BackwardBlock {
  using A = typename Operand<T>::A;
  using B = typename Operand<T>::B;
  static constexpr int kWarps = simmst::spatial::kBackwardWarps;
  static constexpr int kUnits = 2;     // tiles of a weight gradient that a warp sums at once
  static constexpr int kProducts = 2;  // tiles of columns that a warp computes at once
  static constexpr int kOwn = simmst::spatial::kMostChannels / kWarp;  // entries of a row per lane
  enum Matrix { kX, kQuery, kKey, kValue, kHeads, kGrad, kBranch, kGradHeads, kGradQuery, kGradKey, kGradValue };

  const BackwardArguments<T>& given;
  HeadBuffers<T> shared;
  int rows, pitch, padded;  // padded: C rounded up to whole tiles
  T* matrices;
  float* sums;
  float* weight_sums;  // (heads, rows): log2 of the sums of recomputed softmax weights
  SumPlaces places;

  SIMMST_DEVICE_MEMBER BackwardBlock(const BackwardArguments<T>& arguments, unsigned char* memory)
      : given(arguments),
        rows(static_cast<int>(round_up_to(arguments.positions, kTile))),
        pitch(static_cast<int>(simmst::spatial::pitch_of(arguments.channels))),
        padded(pitch - 8),
        places{arguments.channels} {
    const auto block = static_cast<std::int64_t>(block_index().x);
    constexpr int kSumEntries = sizeof(float) / sizeof(T);
    const std::int64_t size = static_cast<std::int64_t>(simmst::spatial::kBackwardMatrices) * rows * pitch;
    matrices = given.matrices + block * (size + static_cast<std::int64_t>(kSumEntries) * given.heads * rows);
    weight_sums = reinterpret_cast<float*>(matrices + size);
    sums = given.sums + block * places.count();
    shared.lse = reinterpret_cast<float*>(memory);
    shared.delta = shared.lse + rows;
    shared.place = reinterpret_cast<int*>(shared.delta + rows);
    shared.rest = reinterpret_cast<float*>(shared.place + rows);
    shared.first = reinterpret_cast<T*>(shared.rest + (sizeof(T) == 4 ? rows : 0));
    shared.second = shared.first + rows * HeadBuffers<T>::template pitch_for<kHeadTiles>();
    shared.positions = given.positions;
    shared.rows = rows;
    shared.pitch = pitch;
    shared.width = given.channels / given.heads;
  }

  SIMMST_DEVICE_MEMBER T* matrix(Matrix m) const { return matrices + static_cast<std::int64_t>(m) * rows * pitch; }

  // A float32 matrix in the place of a matrix and, for 16-bit entries, of the next one.
  SIMMST_DEVICE_MEMBER float* wide(Matrix m) const { return reinterpret_cast<float*>(matrix(m)); }

  // Clears everything once: later steps write only zeros, or values that are never read, to the rows and columns of
  // padding.
  SIMMST_DEVICE_MEMBER void begin() const {
    for (int i = thread_index(); i < simmst::spatial::kBackwardMatrices * rows * pitch; i += block_threads())
      matrices[i] = T{};
    for (std::int64_t i = thread_index(); i < places.count(); i += block_threads()) sums[i] = 0.0f;
    sync_block();
  }

  // Sets place[i] to the position of the i-th key; returns the number of keys.
  SIMMST_DEVICE_MEMBER int find_keys(std::int64_t map) const {
    const std::uint8_t* mask = given.mask == nullptr ? nullptr : given.mask + map * given.positions;
    int count = 0;
    for (int n = 0; n < given.positions; n += kWarp) {
      const int position = n + lane_index();
      const bool is_key = position < given.positions && (mask == nullptr || mask[position] == 0);
      const std::uint32_t bits = ballot(is_key);
      if (is_key && warp_index() == 0) shared.place[count + count_bits(bits & ((1u << lane_index()) - 1))] = position;
      count += count_bits(bits);
    }
    return count;
  }

  // ---- products with a matrix of weights (C, C), which is in shared memory as a whole

  SIMMST_DEVICE_MEMBER void stage_weights(const T* weights) const {
    sync_block();
    for (int r = 0; r < given.channels; r += kWeightRows)
      copy_weights(weights, r, given.channels, given.channels, given.aligned, shared.first + r * pitch, pitch);
    wait_for_copies<0>();
    sync_block();
  }
  SIMMST_DEVICE_MEMBER const T* in_weights(int part) const {
    return given.in + static_cast<std::int64_t>(part) * given.channels * given.channels;
  }
  // Reads 16 rows in global memory, for multiply_rows().
  SIMMST_DEVICE_MEMBER auto reader(const T* tile) const {
    return [tile, pitch = pitch](A& a, int k) { fetch_a(a, tile + k, pitch); };
  }
  SIMMST_DEVICE_MEMBER void store_tiles(T* to, int r, int n, const TileC (&c)[kProducts][1][2]) const {
    SIMMST_UNROLL
    for (int i = 0; i < 4 * kProducts; ++i) {
      const int column = n + 8 * (i / 2) + tile_column();
      const float* pair = c[i / 4][0][i / 2 % 2].part + 2 * (i % 2);
      if (column < padded) store_pair(to + (r + 8 * (i % 2) + tile_row()) * pitch + column, pair[0], pair[1]);
    }
  }

  // Calls f(row, column) for the start of each piece of 16 rows and kProducts tiles of columns; warps share the pieces.
  template <typename F>
  SIMMST_DEVICE_MEMBER void for_tiles(const F& f) const {
    for (int r = warp_index() * kTile; r < rows; r += kWarps * kTile)
      for (int n = 0; n < padded; n += kProducts * kTile) f(r, n);
  }
  // Calls f(row, column, entry) for the entries of a piece that begins at (r, n).
  template <typename F>
  SIMMST_DEVICE_MEMBER void for_entries(TileC (&c)[kProducts][1][2], int r, int n, const F& f) const {
    SIMMST_UNROLL
    for (int i = 0; i < 8 * kProducts; ++i) {
      const int column = n + 8 * (i / 4) + tile_column() + i % 2;
      if (column < padded) f(r + 8 * (i / 2 % 2) + tile_row(), column, c[i / 8][0][i / 4 % 2].part[i % 4]);
    }
  }

  // Computes queries (times scale * log2(e)), keys and values.
  SIMMST_DEVICE_MEMBER void project_in() const {
    SIMMST_ROLLED
    for (int part = 0; part < 3; ++part) {
      stage_weights(in_weights(part));
      const T* bias = given.in_bias == nullptr ? nullptr : given.in_bias + part * given.channels;
      const float factor = part == 0 ? given.scale * kLog2E : 1.0f;
      T* to = matrix(static_cast<Matrix>(kQuery + part));
      for_tiles([&](int r, int n) {
        TileC c[kProducts][1][2];
        multiply_rows<T, true>(c, reader(matrix(kX) + r * pitch), shared.first + n * pitch, pitch, padded - n);
        for_entries(c, r, n, [&](int, int column, float& entry) {
          entry = (entry + (bias == nullptr || column >= given.channels ? 0.0f : to_float(bias[column]))) * factor;
        });
        store_tiles(to, r, n, c);
      });
    }
  }

  // Computes the gradient of the heads: that of the branch times the weights.
  SIMMST_DEVICE_MEMBER void project_gradient(const T* branch) const {
    stage_weights(given.out);
    for_tiles([&](int r, int n) {
      TileC c[kProducts][1][2];
      multiply_rows<T, false>(c, reader(branch + r * pitch), shared.first + n, pitch, padded - n);
      store_tiles(matrix(kGradHeads), r, n, c);
    });
  }

  // Computes the gradient of x. `branch` is added for the residual; `has_keys` says whether there is another part.
  SIMMST_DEVICE_MEMBER void finish_x(std::int64_t map, const T* branch, bool has_keys) const {
    float* sum = wide(kQuery);
    SIMMST_ROLLED
    for (int part = 0; has_keys && part < 3; ++part) {
      stage_weights(in_weights(part));
      const T* gradient = matrix(static_cast<Matrix>(kGradQuery + part));
      for_tiles([&](int r, int n) {
        TileC c[kProducts][1][2];
        multiply_rows<T, false>(c, reader(gradient + r * pitch), shared.first + n, pitch, padded - n);
        for_entries(c, r, n, [&](int row, int column, float& entry) {
          float& at = sum[row * pitch + column];
          at = part == 0 ? entry : at + entry;
        });
      });
    }
    for (int r = warp_index() * kTile; r < rows; r += kWarps * kTile) {
      T* tile = matrix(kGradHeads) + r * pitch;  // no longer needed
      sync_warp();
      for (int i = lane_index(); i < kTile * pitch; i += kWarp) {
        if (i % pitch >= padded) continue;
        float entry = has_keys ? sum[r * pitch + i] : 0.0f;
        if (given.residual) entry += to_float(branch[r * pitch + i]);
        tile[i] = from_float<T>(entry);
      }
      sync_warp();
      store_rows(given.grad_x, map, r, given.positions, given.channels, tile, pitch);
    }
  }

  // ---- LayerNorm

  // For a row y before the LayerNorm: writes its gradient to kBranch, and replaces y by the normalised row. By one
  // warp.
  SIMMST_DEVICE_MEMBER void norm_row(float* y, int row) const {
    const float count = static_cast<float>(given.channels);
    const T* upstream = matrix(kGrad) + row * pitch;
    float entry[kOwn], scaled[kOwn], sum = 0.0f, square = 0.0f, along = 0.0f, onto = 0.0f;
    SIMMST_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int c = i * kWarp + lane_index();
      entry[i] = scaled[i] = 0.0f;
      if (c < given.channels) {
        entry[i] = y[c];
        if (given.residual) entry[i] += to_float(matrix(kX)[row * pitch + c]);
        scaled[i] = to_float(upstream[c]) * to_float(given.norm[c]);
      }
      sum += entry[i];
      along += scaled[i];
    }
    const float mean = reduce_warp(sum, Sum{}) / count;
    SIMMST_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      if (i * kWarp + lane_index() < given.channels) {
        entry[i] -= mean;
        square = fmaf(entry[i], entry[i], square);
      }
    }
    const float reciprocal = 1.0f / sqrtf(reduce_warp(square, Sum{}) / count + given.eps);
    SIMMST_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      entry[i] *= reciprocal;
      onto = fmaf(scaled[i], entry[i], onto);
    }
    along = reduce_warp(along, Sum{}) / count;
    onto = reduce_warp(onto, Sum{}) / count;
    SIMMST_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int c = i * kWarp + lane_index();
      if (c < given.channels) {
        y[c] = entry[i];
        matrix(kBranch)[row * pitch + c] = from_float<T>(reciprocal * (scaled[i] - along - entry[i] * onto));
      }
    }
  }

  // Computes the LayerNorm's input again, and the gradient through the LayerNorm.
  SIMMST_DEVICE_MEMBER void norm_backward(bool has_keys) const {
    float* y = wide(kGradQuery);
    if (has_keys) {
      stage_weights(given.out);
      for_tiles([&](int r, int n) {
        TileC c[kProducts][1][2];
        multiply_rows<T, true>(c, reader(matrix(kHeads) + r * pitch), shared.first + n * pitch, pitch, padded - n);
        for_entries(c, r, n, [&](int row, int column, float& entry) {
          const bool shifts = given.out_bias != nullptr && column < given.channels;
          y[row * pitch + column] = entry + (shifts ? to_float(given.out_bias[column]) : 0.0f);
        });
      });
    } else {
      for (int i = thread_index(); i < rows * pitch; i += block_threads()) y[i] = 0.0f;
    }
    sync_block();
    for (int row = warp_index(); row < given.positions; row += kWarps) norm_row(y + row * pitch, row);
    add_column_sums(matrix(kGrad), y, sums + places.norm());
    add_column_sums<float>(matrix(kGrad), nullptr, sums + places.norm_bias());
  }

  // ---- sums over positions

  // to[c] += sum over n of a[n][c] (times b[n][c]).
  template <typename U>
  SIMMST_DEVICE_MEMBER void add_column_sums(const T* a, const U* b, float* to) const {
    float* scratch = reinterpret_cast<float*>(shared.first);
    const int groups = block_threads() / padded, column = thread_index() % padded, group = thread_index() / padded;
    sync_block();
    if (group < groups) {
      float sum = 0.0f;
      for (int n = group; n < given.positions; n += groups) {
        const float entry = to_float(a[n * pitch + column]);
        sum = b == nullptr ? sum + entry : fmaf(entry, to_float(b[n * pitch + column]), sum);
      }
      scratch[thread_index()] = sum;
    }
    sync_block();
    if (thread_index() < given.channels) {
      float sum = 0.0f;
      for (int g = 0; g < groups; ++g) sum += scratch[g * padded + column];
      to[column] += sum;
    }
    sync_block();
  }

  // Copies 32 rows of a matrix, from row r on, to shared memory.
  SIMMST_DEVICE_MEMBER void stage_piece(const T* from, int r, T* to) const {
    const int groups = padded / kPackSize<T>;
    for (int i = thread_index(); i < kWeightRows * groups; i += block_threads()) {
      const int row = i / groups, c = i % groups * kPackSize<T>;
      const auto group = r + row < rows ? load_pack<Pack<T>>(from + (r + row) * pitch + c) : Pack<T>{};
      store_pack(to + row * pitch + c, group);
    }
  }

  // to (C, C) += a^T b.
  SIMMST_DEVICE_MEMBER void add_outer(const T* a, const T* b, float* to) const {
    T *left = shared.first, *right = left + kWeightRows * pitch;
    const int side = padded / kTile;
    for (int start = 0; start < side * side; start += kUnits * kWarps) {
      TileC c[kUnits][1][2];
      for (int r = 0; r < rows; r += kWeightRows) {
        sync_block();
        stage_piece(a, r, left);
        stage_piece(b, r, right);
        sync_block();
        for (int k = 0; k < kWeightRows; k += kTile) {
          SIMMST_UNROLL
          for (int u = 0; u < kUnits; ++u) {
            const int unit = start + u * kWarps + warp_index();
            if (unit >= side * side) continue;
            A x[1];
            B y[2];
            read_a_transposed(x[0], left + k * pitch + unit / side * kTile, pitch);
            read_rows(y, right + k * pitch + unit % side * kTile, pitch);
            multiply<T>(c[u], x, y);
          }
        }
      }
      SIMMST_UNROLL
      for (int i = 0; i < 8 * kUnits; ++i) {
        const int unit = start + i / 8 * kWarps + warp_index();
        const int row = unit / side * kTile + 8 * (i / 2 % 2) + tile_row();
        const int column = unit % side * kTile + 8 * (i / 4 % 2) + tile_column() + i % 2;
        if (unit < side * side && row < given.channels && column < given.channels)
          to[row * given.channels + column] += c[i / 8][0][i / 4 % 2].part[i % 4];
      }
    }
  }

  // ---- a map

  SIMMST_DEVICE_MEMBER void attention_gradients(int head, int keys) const {
    const int column = head * shared.width;
    shared.template stage<kHeadTiles>(shared.first, matrix(kQuery), column, nullptr, given.positions);
    shared.template stage<kHeadTiles>(shared.second, matrix(kGradHeads), column, nullptr, given.positions);
    sync_block();
    for (int n = warp_index() * kTile; n < keys; n += kWarps * kTile)
      shared.template key_gradients<kHeadTiles>(matrix(kKey), matrix(kValue), column, n, keys, matrix(kGradKey),
                                                matrix(kGradValue));
    sync_block();
    shared.template stage<kHeadTiles>(shared.first, matrix(kKey), column, shared.place, keys);
    shared.template stage<kHeadTiles>(shared.second, matrix(kValue), column, shared.place, keys);
    sync_block();
    for (int n = warp_index() * kTile; n < given.positions; n += kWarps * kTile)
      shared.template query_gradients<kHeadTiles>(matrix(kQuery), matrix(kGradHeads), column, n, keys, given.scale,
                                                  matrix(kGradQuery));
  }

  SIMMST_DEVICE_MEMBER void recompute_heads(std::int64_t map, int keys) const {
    project_in();
    for (int head = 0; head < given.heads; ++head) {
      sync_block();
      shared.read_lse(given.lse + (map * given.heads + head) * given.positions);
      shared.template stage<kHeadTiles>(shared.first, matrix(kKey), head * shared.width, shared.place, keys);
      shared.template stage<kHeadTiles>(shared.second, matrix(kValue), head * shared.width, shared.place, keys);
      sync_block();
      for (int n = warp_index() * kTile; n < given.positions; n += kWarps * kTile)
        shared.template attend<kHeadTiles>(matrix(kQuery), head * shared.width, n, keys, matrix(kHeads),
                                           weight_sums + head * rows);
    }
    sync_block();
  }

  SIMMST_DEVICE_MEMBER void attention_backward(std::int64_t map, const T* branch, int keys) const {
    project_gradient(branch);
    sync_block();
    // Clears the gradients of keys and values too, because ignored positions have none.
    for (int i = thread_index(); i < 3 * rows * pitch; i += block_threads()) matrix(kGradQuery)[i] = T{};
    for (int head = 0; head < given.heads; ++head) {
      sync_block();
      shared.read_lse(given.lse + (map * given.heads + head) * given.positions, weight_sums + head * rows);
      shared.read_delta(matrix(kGradHeads), matrix(kHeads), head * shared.width);
      attention_gradients(head, keys);
    }
    sync_block();
  }

  SIMMST_DEVICE_MEMBER void weight_gradients(const T* branch) const {
    const std::int64_t square = static_cast<std::int64_t>(given.channels) * given.channels;
    add_outer(branch, matrix(kHeads), sums + places.out());
    add_column_sums<float>(branch, nullptr, sums + places.out_bias());
    for (int part = 0; given.wants_attention && part < 3; ++part) {
      const T* gradient = matrix(static_cast<Matrix>(kGradQuery + part));
      add_outer(gradient, matrix(kX), sums + places.in() + part * square);
      add_column_sums<float>(gradient, nullptr, sums + places.in_bias() + part * given.channels);
    }
  }

  SIMMST_DEVICE_MEMBER void run(std::int64_t map) const {
    for (int r = warp_index() * kTile; r < rows; r += kWarps * kTile) {
      load_rows(given.x, map, r, given.positions, given.channels, matrix(kX) + r * pitch, pitch);
      load_rows(given.grad, map, r, given.positions, given.channels, matrix(kGrad) + r * pitch, pitch);
    }
    const int keys = find_keys(map);
    sync_block();
    const bool has_keys = keys > 0;
    if (has_keys) recompute_heads(map, keys);
    if (given.norm != nullptr) norm_backward(has_keys);
    const T* branch = matrix(given.norm != nullptr ? kBranch : kGrad);
    if (has_keys && given.wants_attention) attention_backward(map, branch, keys);
    if (has_keys && given.wants_weights) weight_gradients(branch);
    if (given.grad_x.data != nullptr) finish_x(map, branch, has_keys);
    sync_block();
  }
};

constexpr int kBackwardThreads = kWarp * simmst::spatial::kBackwardWarps;

template <typename T, int kHeadTiles>
SIMMST_KERNEL(kBackwardThreads, sizeof(T) == 2 && kHeadTiles <= 2 ? 2 : 1)
spatial_attention_backward(BackwardArguments<T> given) {
  const BackwardBlock<T, kHeadTiles> block(given, shared_memory());
  block.begin();
  for (std::int64_t map = block_index().x; map < given.batch; map += grid_size().x) block.run(map);
}

}  // namespace simmst::cuda::spatial
