// Transfer between tensors of any dtype and strides and the kernels' rows: one row per channel, positions along it.
#pragma once

#include "cpu/spatial_attention.hpp"
#include "cpu/spatial_attention_tile.hpp"

namespace simmst::cpu::SIMMST_ISA::spatial {

using namespace simmst::cpu::spatial;  // names shared by all instruction sets

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

// Maps next to each other: `count` maps from map `first` on, with position n of map g in column g * N + n. Several
// small maps are processed together, so that products that do not depend on the position have long rows.
struct Group {
  int64_t first, count;
};

// Whether neighbouring positions of one map, and of all maps, are the same distance apart.
SIMMST_INLINE bool has_even_positions(const Problem& problem, const Map& map) {
  return problem.rows == 1 || map.row == map.column * problem.columns;
}
SIMMST_INLINE bool has_even_maps(const Problem& problem, const Map& map) {
  return has_even_positions(problem, map) && map.batch == map.column * problem.positions();
}

SIMMST_INLINE int64_t position_offset(const Problem& problem, const Map& map, int64_t n) {
  if (has_even_positions(problem, map)) return n * map.column;
  return n / problem.columns * map.row + n % problem.columns * map.column;
}

// A row whose positions are consecutive in memory; lanes of the last vector beyond `count` may hold anything.
template <typename Storage, typename T>
void load_contiguous(const Storage* in, int64_t count, T* out) {
  int64_t n = 0;
  for (; n + kLanes<T> <= count; n += kLanes<T>) store(out + n, load(in + n));
  if (n == count) return;
  if (count >= kLanes<T>) store(out + count - kLanes<T>, load(in + count - kLanes<T>));
  else store(out, load_partial(in, static_cast<int>(count)));
}

// `positions` positions whose channels are consecutive in memory: squares are transposed in registers.
template <typename Storage, typename T>
void load_channels_last(const Problem& problem, const Map& map, const Storage* in, int64_t positions, T* out,
                        int64_t ld) {
  const int64_t channels = problem.channels;
  const bool even = has_even_positions(problem, map);
  for (int64_t n = 0; n < positions; n += kLanes<T>) {
    const Storage* rows[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i)
      rows[i] =
          n + i >= positions ? nullptr : in + (even ? (n + i) * map.column : position_offset(problem, map, n + i));
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

template <typename Storage, typename T>
void load_map(const Problem& problem, const Map& map, int64_t b, T* out, int64_t ld) {
  const int64_t positions = problem.positions();
  const Storage* in = static_cast<const Storage*>(map.data) + b * map.batch;
  if (map.channel == 1 && problem.channels > 1) return load_channels_last(problem, map, in, positions, out, ld);
  const bool contiguous = map.column == 1 && has_even_positions(problem, map);
  for (int64_t c = 0; c < problem.channels; ++c, out += ld) {
    if (contiguous) {
      load_contiguous(in + c * map.channel, positions, out);
      continue;
    }
    for (int64_t n = 0; n < positions; ++n) out[n] = to_compute(in[c * map.channel + position_offset(problem, map, n)]);
  }
}

// Reads a group as (C, columns) rows of ld, with zeros from the last column to a whole vector.
template <typename Storage, typename T>
void load_group(const Problem& problem, const Map& map, const Group& group, T* out, int64_t ld) {
  const int64_t positions = problem.positions(), columns = group.count * positions;
  if (map.channel == 1 && problem.channels > 1 && has_even_maps(problem, map)) {
    const Storage* in = static_cast<const Storage*>(map.data) + group.first * map.batch;
    load_channels_last(problem, map, in, columns, out, ld);
  } else {  // in this order, because a map may write a few columns of the next
    for (int64_t g = 0; g < group.count; ++g) load_map<Storage>(problem, map, group.first + g, out + g * positions, ld);
  }
  for (int64_t c = 0; c < problem.channels; ++c)
    for (int64_t n = columns; n < vectors_for<T>(columns) * kLanes<T>; ++n) out[c * ld + n] = T(0);
}

template <typename Storage, typename T>
SIMMST_INLINE void store_some(Storage* out, Vec<T> value, int64_t count) {
  if (count >= kLanes<T>) store(out, value);
  else store_partial(out, value, static_cast<int>(count));
}

// Writes a group, (C, columns) rows of ld, to a contiguous result.
template <typename Storage, typename T>
void store_group(const Problem& problem, const Group& group, const T* in, int64_t ld, void* result) {
  const int64_t channels = problem.channels, positions = problem.positions(), columns = group.count * positions;
  Storage* out = static_cast<Storage*>(result) + group.first * channels * positions;
  if (!problem.channels_last) {
    for (int64_t g = 0; g < group.count; ++g)
      for (int64_t c = 0; c < channels; ++c, out += positions)
        for (int64_t n = 0; n < positions; n += kLanes<T>)
          store_some<Storage, T>(out + n, load(in + c * ld + g * positions + n), positions - n);
    return;
  }
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const int64_t width = channels - c;
    for (int64_t n = 0; n < columns; n += kLanes<T>) {
      Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k) square[k] = k < width ? load(in + (c + k) * ld + n) : Vec<T>{};
      transpose<T>(square);
      Storage* token = out + n * channels + c;
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k)
        if (k < columns - n) store_some<Storage, T>(token + k * channels, square[k], width);
    }
  }
}

// --- weights -------------------------------------------------------------------------------------------------------

// Weights in the compute type, laid out for product() as the operand that is broadcast along positions.
template <typename T>
struct Packed {
  T* in;         // (C, in_ld): in[c][r] = weight[r][c], r < 3C
  T* in_bias;    // (3C,)
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
  packed.in_ld = row_length<T>(3 * channels);
  packed.out_ld = row_length<T>(channels);
  packed.in = workspace.take<T>(channels * packed.in_ld);
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

// out[c * ld + r] = factor * in[r * columns + c] for r < rows; this is most of the work of a call with few maps.
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

// `query_factor` is multiplied into the query's weights, which saves a multiplication per score.
template <typename Storage, typename T>
void pack_weights(const Problem& problem, const Weights& weights, T query_factor, Packed<T>& packed) {
  const int64_t channels = problem.channels;
  const Storage* in = static_cast<const Storage*>(weights.in);
  const Storage* in_bias = static_cast<const Storage*>(weights.in_bias);
  pack_transposed(in, channels, channels, query_factor, packed.in, packed.in_ld);
  pack_transposed(in + channels * channels, 2 * channels, channels, T(1), packed.in + channels, packed.in_ld);
  for (int64_t r = 0; r < 3 * channels; ++r)
    packed.in_bias[r] = in_bias == nullptr ? T(0) : (r < channels ? query_factor : T(1)) * to_compute(in_bias[r]);
  pack_transposed(static_cast<const Storage*>(weights.out), channels, channels, T(1), packed.out, packed.out_ld);
  packed.out_bias = pack_vector<Storage>(weights.out_bias, channels, packed.out_bias);
  packed.norm = pack_vector<Storage>(weights.norm, channels, packed.norm);
  packed.norm_bias = pack_vector<Storage>(weights.norm_bias, channels, packed.norm_bias);
}

}  // namespace simmst::cpu::SIMMST_ISA::spatial
