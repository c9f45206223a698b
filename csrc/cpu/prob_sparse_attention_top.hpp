// The u largest of the measures, ascending by index; ties go to the lower index.
#pragma once

#include "cpu/prob_sparse_attention_tiles.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {

// Integers in the same order as the floats; -0 equals 0, and every NaN is the largest.
template <typename T>
void order_keys(const T* measure, int64_t count, IntOf<T>* keys) {
  using Int = IntOf<T>;
  constexpr Int kLargest = static_cast<Int>(~std::make_unsigned_t<Int>{0} >> 1);
  for (int64_t i = 0; i < count; ++i) {
    const Int bits = bit_cast<Int>(measure[i] + T(0));
    const Int key = bits < 0 ? static_cast<Int>(bits ^ kLargest) : bits;
    keys[i] = measure[i] != measure[i] ? kLargest : key;
  }
}

template <typename Int>
int64_t count_at_least(const Int* keys, int64_t count, Int limit) {
  Int found = 0;
  for (int64_t i = 0; i < count; ++i) found += keys[i] >= limit;
  return found;
}

// The u-th largest key, found bit by bit from the top: each bit takes one vectorised count of the keys.
template <typename Int>
Int nth_largest(const Int* keys, int64_t count, int64_t u) {
  using Unsigned = std::make_unsigned_t<Int>;
  constexpr Unsigned kTop = ~(~Unsigned{0} >> 1);
  Unsigned answer = 0;  // with the sign bit flipped, so that the order is that of unsigned integers
  for (Unsigned bit = kTop; bit != 0; bit >>= 1) {
    if (count_at_least(keys, count, static_cast<Int>((answer | bit) ^ kTop)) >= u) answer |= bit;
  }
  return static_cast<Int>(answer ^ kTop);
}

// Up to this many keys are ranked instead: each is compared with every other. `ranks` has room for whole vectors.
constexpr int64_t kFewKeys = 64;

template <typename T>
void rank_keys(const IntOf<T>* keys, int64_t count, IntOf<T>* ranks) {
  using Int = IntOf<T>;
  const auto ahead = [&](int64_t first, int64_t last, IntVec<T> than) SIMMST_ALWAYS_INLINE {
    IntVec<T> found{};
    for (int64_t j = first; j < last; ++j) found -= IntVec<T>{} + keys[j] > than;
    return found;
  };
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const int64_t end = smaller<int64_t>(i + kLanes<T>, count);
    IntVec<T> mine{};
    __builtin_memcpy(&mine, keys + i, static_cast<size_t>(end - i) * sizeof(Int));
    // Among equal keys, the lower index is ahead.
    IntVec<T> rank = ahead(0, i, mine - 1) + ahead(end, count, mine);
    for (int64_t j = i; j < end; ++j) {
      const IntVec<T> later = lane_numbers<T>() > static_cast<Int>(j - i);
      rank -= IntVec<T>{} + keys[j] > mine + later;
    }
    __builtin_memcpy(ranks + i, &rank, sizeof(rank));
  }
}

template <typename T>
void select_top(const T* measure, int64_t count, int64_t u, IntOf<T>* keys, int64_t* top) {
  if (u == 0) return;
  order_keys(measure, count, keys);
  int64_t found = 0;
  if (count <= kFewKeys) {
    IntOf<T> ranks[kFewKeys + kLanes<T>];
    rank_keys<T>(keys, count, ranks);
    for (int64_t i = 0; i < count && found < u; ++i) {
      top[found] = i;
      found += ranks[i] < u;
    }
    return;
  }
  const IntOf<T> limit = nth_largest(keys, count, u);
  int64_t above = 0;
  for (int64_t i = 0; i < count; ++i) above += keys[i] > limit;
  int64_t ties = u - above;  // among the keys equal to the limit, those with the lowest indices are taken
  for (int64_t i = 0; i < count && found < u; ++i) {
    const bool equal = keys[i] == limit;
    top[found] = i;
    found += (keys[i] > limit) | (equal & (ties > 0));
    ties -= equal;
  }
}

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
