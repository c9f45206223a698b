// Slices of vectors along N: their transfer between memory and a tile, in any type, and their order in a tile. Part of
// cutting_plane.cpp.
#pragma once

#include <cstdint>

#include "cpu/cutting_plane_rows.hpp"
#include "cpu/simd.hpp"

namespace simmst::cpu::SIMMST_ISA {
namespace {

template <typename Stored, typename C>
void read_as(C* target, const Columns& source, std::int64_t first, std::int64_t count) {
  const Stored* entries = static_cast<const Stored*>(source.data) + first;
  for (std::int64_t i = 0; i < count; ++i) target[i] = static_cast<C>(to_compute(entries[i]));
}

template <typename C>
void read(C* target, const Columns& source, std::int64_t problem, std::int64_t column, std::int64_t count) {
  const std::int64_t first = problem * source.problem_stride + column;
  with_storage(source.type, [&]<typename Stored>() { read_as<Stored>(target, source, first, count); });
}

template <typename Stored, typename C>
void write_as(const C* source, const Columns& target, std::int64_t first, std::int64_t count) {
  Stored* entries = static_cast<Stored*>(target.data) + first;
  for (std::int64_t i = 0; i < count; ++i) entries[i] = to_storage<Stored>(static_cast<Compute<Stored>>(source[i]));
}

template <typename C>
void write(const C* source, const Columns& target, std::int64_t problem, std::int64_t column, std::int64_t count) {
  const std::int64_t first = problem * target.problem_stride + column;
  with_storage(target.type, [&]<typename Stored>() { write_as<Stored>(source, target, first, count); });
}

template <typename C>
constexpr std::int64_t padded(std::int64_t count) {
  return round_up(count, kStep<C>);
}

template <typename C>
void clear(C* values, std::int64_t from, std::int64_t to) {
  for (std::int64_t i = from; i < to; ++i) values[i] = 0;
}

template <typename C, int... kIndex>
void interleave_steps(C* values, std::int64_t count, bool apart, std::integer_sequence<int, kIndex...>) {
  constexpr int kHalf = kLanes<C>;
  for (std::int64_t i = 0; i < count; i += kStep<C>) {
    const Two<C> step = load_two(values + i);
    if (apart) {
      store_two(values + i, Two<C>{__builtin_shufflevector(step.low, step.high, (2 * kIndex)...),
                                   __builtin_shufflevector(step.low, step.high, (2 * kIndex + 1)...)});
    } else {
      store_two(values + i,
                Two<C>{__builtin_shufflevector(step.low, step.high, (kIndex / 2 + kIndex % 2 * kHalf)...),
                       __builtin_shufflevector(step.low, step.high, (kHalf / 2 + kIndex / 2 + kIndex % 2 * kHalf)...)});
    }
  }
}
// In each step of columns, first the even ones, then the odd ones.
template <typename C>
void split_even_odd(C* values, std::int64_t count) {
  interleave_steps<C>(values, count, true, std::make_integer_sequence<int, kLanes<C>>{});
}
template <typename C>
void merge_even_odd(C* values, std::int64_t count) {
  interleave_steps<C>(values, count, false, std::make_integer_sequence<int, kLanes<C>>{});
}

}  // namespace
}  // namespace simmst::cpu::SIMMST_ISA
