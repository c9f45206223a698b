// Between tensors of any dtype and strides and the rows the kernels work on: one row per channel, positions along it.
#pragma once

#include "cpu/spatial_attention.hpp"
#include "cpu/spatial_attention_tile.hpp"

namespace simmst::cpu::SIMMST_ISA::spatial {

using namespace simmst::cpu::spatial;  // what all instruction sets share

// Hands out parts of a buffer, each aligned to a cache line. With a null buffer it only counts bytes.
class Workspace {
 public:
  explicit Workspace(void* buffer) : base_(static_cast<char*>(buffer)) {}
  template <typename T>
  T* take(int64_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return part;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

SIMMST_INLINE int64_t position_offset(const Problem& problem, const Map& map, int64_t n) {
  if (map.row == map.column * problem.columns) return n * map.column;
  return n / problem.columns * map.row + n % problem.columns * map.column;
}

// A row whose positions lie one after another; zeros up to a whole vector.
template <typename Storage, typename T>
void load_contiguous(const Storage* in, int64_t count, T* out) {
  int64_t n = 0;
  for (; n + kLanes<T> <= count; n += kLanes<T>) store(out + n, load(in + n));
  if (n < count) store(out + n, load_partial(in + n, static_cast<int>(count - n)));
}

// Positions whose channels lie one after another: squares are transposed in registers.
template <typename Storage, typename T>
void load_channels_last(const Problem& problem, const Map& map, const Storage* in, T* out, int64_t ld) {
  const int64_t positions = problem.positions(), channels = problem.channels;
  for (int64_t n = 0; n < positions; n += kLanes<T>) {
    const Storage* rows[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i)
      rows[i] = n + i < positions ? in + position_offset(problem, map, n + i) : nullptr;
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      const int count = static_cast<int>(channels - c < kLanes<T> ? channels - c : kLanes<T>);
      Vec<T> square[kLanes<T>];
      if (count == kLanes<T> && rows[kLanes<T> - 1] != nullptr) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) square[i] = load(rows[i] + c);
      } else {
        for (int i = 0; i < kLanes<T>; ++i)
          square[i] = rows[i] == nullptr ? Vec<T>{} : load_partial(rows[i] + c, count);
      }
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i)
        if (i < count) store(out + (c + i) * ld + n, square[i]);
    }
  }
}

// Map `b` as (C, N) rows of ld, zeros from N to a whole vector.
template <typename Storage, typename T>
void load_map(const Problem& problem, const Map& map, int64_t b, T* out, int64_t ld) {
  const int64_t positions = problem.positions();
  const Storage* in = static_cast<const Storage*>(map.data) + b * map.batch;
  if (map.channel == 1 && problem.channels > 1) return load_channels_last(problem, map, in, out, ld);
  const bool contiguous = map.column == 1 && (problem.rows == 1 || map.row == problem.columns);
  for (int64_t c = 0; c < problem.channels; ++c, out += ld) {
    if (contiguous) {
      load_contiguous(in + c * map.channel, positions, out);
      continue;
    }
    for (int64_t n = 0; n < positions; ++n) out[n] = to_compute(in[c * map.channel + position_offset(problem, map, n)]);
    for (int64_t n = positions; n < vectors_for<T>(positions) * kLanes<T>; ++n) out[n] = T(0);
  }
}

template <typename Storage, typename T>
SIMMST_INLINE void store_some(Storage* out, Vec<T> value, int64_t count) {
  if (count >= kLanes<T>) store(out, value);
  else store_partial(out, value, static_cast<int>(count));
}

// Positions n .. n + count of map `b` in a contiguous result, from (C, count) rows of ld.
template <typename Storage, typename T>
void store_positions(const Problem& problem, int64_t b, int64_t n, int64_t count, const T* in, int64_t ld,
                     void* result) {
  const int64_t channels = problem.channels, positions = problem.positions();
  Storage* out = static_cast<Storage*>(result) + b * channels * positions;
  if (!problem.channels_last) {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < count; i += kLanes<T>)
        store_some<Storage, T>(out + c * positions + n + i, load(in + c * ld + i), count - i);
    return;
  }
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const int64_t width = channels - c;
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k) square[k] = k < width ? load(in + (c + k) * ld + i) : Vec<T>{};
      transpose<T>(square);
      Storage* token = out + (n + i) * channels + c;
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k)
        if (k < count - i) store_some<Storage, T>(token + k * channels, square[k], width);
    }
  }
}

// --- weights -------------------------------------------------------------------------------------------------------

// Weights in the dtype of the computation, laid out for product(): the operand broadcast along positions.
template <typename T>
struct Packed {
  T* in;         // (heads, C, in_ld): column of a head's query rows, key rows, value rows
  T* in_bias;    // (heads, 3D)
  T* out;        // (C, out_ld): out[i][o] = weight[o][i]
  T* out_bias;   // (C,) or null
  T* norm;       // (C,) or null
  T* norm_bias;  // (C,)
  int64_t in_ld, out_ld;
};

template <typename T>
Packed<T> take_packed(const Problem& problem, Workspace& workspace) {
  Packed<T> packed;
  const int64_t channels = problem.channels;
  packed.in_ld = row_length<T>(3 * problem.width());
  packed.out_ld = row_length<T>(channels);
  packed.in = workspace.take<T>(problem.heads * channels * packed.in_ld);
  packed.in_bias = workspace.take<T>(3 * channels);
  packed.out = workspace.take<T>(channels * packed.out_ld);
  packed.out_bias = workspace.take<T>(channels);
  packed.norm = workspace.take<T>(channels);
  packed.norm_bias = workspace.take<T>(channels);
  return packed;
}

template <typename Storage, typename T>
T* pack_vector(const void* from, int64_t count, T* to) {
  if (from == nullptr) return nullptr;
  for (int64_t i = 0; i < count; ++i) to[i] = to_compute(static_cast<const Storage*>(from)[i]);
  return to;
}

// Row of the packed projection (3C rows) that row r (of 3D) of a head comes from.
SIMMST_INLINE int64_t projection_row(const Problem& problem, int64_t head, int64_t r) {
  const int64_t width = problem.width();
  return r / width * problem.channels + head * width + r % width;
}

// out[c * ld + r] = factor * in[r * columns + c] for r < rows: a call with few maps is mostly this.
template <typename Storage, typename T>
void pack_transposed(const Storage* in, int64_t rows, int64_t columns, T factor, T* out, int64_t ld) {
  for (int64_t r = 0; r < rows; r += kLanes<T>)
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const int width = static_cast<int>(columns - c < kLanes<T> ? columns - c : kLanes<T>);
      Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) {
        const Storage* at = in + (r + i) * columns + c;
        if (r + i >= rows) square[i] = Vec<T>{};
        else square[i] = width == kLanes<T> ? load(at) : load_partial(at, width);
      }
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i)
        if (i < width) store_some<T, T>(out + (c + i) * ld + r, square[i] * factor, rows - r);
    }
}

// `query_factor` goes into the query's weights, which saves a multiplication per score.
template <typename Storage, typename T>
void pack_weights(const Problem& problem, const Weights& weights, T query_factor, Packed<T>& packed) {
  const int64_t channels = problem.channels, width = problem.width();
  const Storage* in = static_cast<const Storage*>(weights.in);
  const Storage* in_bias = static_cast<const Storage*>(weights.in_bias);
  for (int64_t head = 0; head < problem.heads; ++head)
    for (int64_t part = 0; part < 3; ++part) {
      const int64_t row = part * channels + head * width;
      const T factor = part == 0 ? query_factor : T(1);
      pack_transposed(in + row * channels, width, channels, factor,
                      packed.in + head * channels * packed.in_ld + part * width, packed.in_ld);
      T* bias = packed.in_bias + (head * 3 + part) * width;
      for (int64_t d = 0; d < width; ++d) bias[d] = in_bias == nullptr ? T(0) : factor * to_compute(in_bias[row + d]);
    }
  pack_transposed(static_cast<const Storage*>(weights.out), channels, channels, T(1), packed.out, packed.out_ld);
  packed.out_bias = pack_vector<Storage>(weights.out_bias, channels, packed.out_bias);
  packed.norm = pack_vector<Storage>(weights.norm, channels, packed.norm);
  packed.norm_bias = pack_vector<Storage>(weights.norm_bias, channels, packed.norm_bias);
}

}  // namespace simmst::cpu::SIMMST_ISA::spatial
