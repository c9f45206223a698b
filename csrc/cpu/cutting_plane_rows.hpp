// The innermost loops over blocks of plane rows, for every storage format. Part of cutting_plane.cpp, which is compiled
// once per instruction set.
#pragma once

#include <cstdint>

#include "cpu/cutting_plane.hpp"
#include "cpu/simd.hpp"

namespace simmst::cpu::SIMMST_ISA {

constexpr std::int64_t kLineBytes = 64;

// The columns of one step of a loop: two registers' worth, 2 * kLanes<C>.
template <typename C>
struct Two {
  Vec<C> low, high;
};
template <typename C>
constexpr std::int64_t kStep = 2 * kLanes<C>;

template <typename C>
SIMMST_INLINE Two<C> load_two(const C* source) {
  return {load(source), load(source + kLanes<C>)};
}
template <typename C>
SIMMST_INLINE void store_two(C* target, const Two<C>& value) {
  store(target, value.low);
  store(target + kLanes<C>, value.high);
}

// A format offers term(row, column, x), the entries from `column` on times x, and tail(), the same for the last `count`
// columns, which reads no byte past the row's end. If kInterleaved, the low register holds the even columns of a step
// and the high register the odd ones.
template <typename Stored, typename C>
struct Dense {
  static constexpr bool kInterleaved = false;
  static constexpr std::int64_t kLineColumns = kLineBytes / static_cast<std::int64_t>(sizeof(Stored));

  static SIMMST_INLINE Vec<C> entries(const Stored* source) {
    if constexpr (std::is_same_v<C, Compute<Stored>>) {
      return load(source);
    } else {  // float64 planes in float32, or narrower planes in float64
      Vec<C> value;
      for (int lane = 0; lane < kLanes<C>; ++lane) value[lane] = static_cast<C>(to_compute(source[lane]));
      return value;
    }
  }
  static SIMMST_INLINE Two<C> term(const char* row, std::int64_t column, const Two<C>& x) {
    const Stored* source = reinterpret_cast<const Stored*>(row) + column;
    return {entries(source) * x.low, entries(source + kLanes<C>) * x.high};
  }
  static SIMMST_INLINE Two<C> tail(const char* row, std::int64_t column, std::int64_t count, const Two<C>& x) {
    Stored padded[kStep<C>] = {};
    __builtin_memcpy(padded, row + column * sizeof(Stored), count * sizeof(Stored));
    return term(reinterpret_cast<const char*>(padded), 0, x);
  }
};

// A pair of bfloat16 is one word: the low half, shifted up, is the even entry, and the high half, left in place, is the
// odd one. That takes one operation per register of entries; widening them in order takes two.
template <>
struct Dense<bfloat16, float> {
  static constexpr bool kInterleaved = true;
  static constexpr std::int64_t kLineColumns = kLineBytes / 2;

  static SIMMST_INLINE Two<float> term(const char* row, std::int64_t column, const Two<float>& x) {
    WordVec words;
    __builtin_memcpy(&words, row + 2 * column, sizeof(words));
    return {bit_cast<Vec<float>>(words << 16) * x.low, bit_cast<Vec<float>>(words & 0xffff0000u) * x.high};
  }
  static SIMMST_INLINE Two<float> tail(const char* row, std::int64_t column, std::int64_t count, const Two<float>& x) {
    bfloat16 padded[kStep<float>] = {};
    __builtin_memcpy(padded, row + 2 * column, 2 * count);
    return term(reinterpret_cast<const char*>(padded), 0, x);
  }
};

// Bit b of byte i is set where entry 8 i + b is -1; x gets its sign flipped there.
template <typename C>
struct Signs {
  static constexpr bool kInterleaved = false;
  static constexpr std::int64_t kLineColumns = kLineBytes * 8;
  using Word = std::make_unsigned_t<IntOf<C>>;
  using Words = Vec<Word>;
  static constexpr int kTop = 8 * sizeof(C) - 1;

  static SIMMST_INLINE Word step_bits(const char* row, std::int64_t column) {
    if constexpr (kStep<C> == 32) {
      std::uint32_t bits;
      __builtin_memcpy(&bits, row + column / 8, 4);
      return bits;
    } else if constexpr (kStep<C> == 16) {
      std::uint16_t bits;
      __builtin_memcpy(&bits, row + column / 8, 2);
      return bits;
    } else {  // 8 or 4 columns; 4 columns begin at either half of a byte
      return static_cast<Word>(static_cast<unsigned char>(row[column / 8]) >> (column % 8));
    }
  }
  // The bits of the lanes from `first` on, each moved to its lane's sign bit.
  static SIMMST_INLINE Words signs(Word bits, int first) {
    const Words lanes = bit_cast<Words>(lane_numbers<C>());
#if defined(__AVX2__)
    return (Words{} + bits) << (static_cast<Word>(kTop - first) - lanes) & (Word{1} << kTop);
#else  // there is no shift by lane: compare with the lane's bit
    Words chosen;
    for (int lane = 0; lane < kLanes<C>; ++lane) chosen[lane] = Word{1} << (lane + first);
    (void)lanes;
    return bit_cast<Words>(((Words{} + bits) & chosen) == chosen) & (Word{1} << kTop);
#endif
  }
  static SIMMST_INLINE Two<C> flip(Word bits, const Two<C>& x) {
    return {bit_cast<Vec<C>>(bit_cast<Words>(x.low) ^ signs(bits, 0)),
            bit_cast<Vec<C>>(bit_cast<Words>(x.high) ^ signs(bits, kLanes<C>))};
  }
  static SIMMST_INLINE Two<C> term(const char* row, std::int64_t column, const Two<C>& x) {
    return flip(step_bits(row, column), x);
  }
  static SIMMST_INLINE Two<C> tail(const char* row, std::int64_t column, std::int64_t count, const Two<C>& x) {
    char padded[8] = {};
    __builtin_memcpy(padded, row + column / 8, (column % 8 + count + 7) / 8);
    return term(padded, column % 8, x);
  }
};

// Which lines of the next tile a loop prefetches while it works on this one: all, every second group, or none.
struct Ahead {
  std::int64_t bytes = 0;  // from a column of this tile to that of the next; 0: no prefetch
  std::int64_t mask = 0;   // 0 for all lines, 1 for every second group of them
  std::int64_t phase = 0;  // which of the two groups
};

template <typename Format, typename C, int kRows>
SIMMST_INLINE void prefetch(const char* const* rows, std::int64_t column, const Ahead& ahead) {
  constexpr std::int64_t kLines = kStep<C> < Format::kLineColumns ? 1 : kStep<C> / Format::kLineColumns;
  constexpr std::int64_t kColumns = kStep<C> < Format::kLineColumns ? Format::kLineColumns : kStep<C>;
  if (column % kColumns != 0 || ((column / kColumns) & ahead.mask) != ahead.phase) return;
  for (int row = 0; row < kRows; ++row) {
    const char* address = rows[row] + column * kLineBytes / Format::kLineColumns + ahead.bytes;
    for (std::int64_t line = 0; line < kLines; ++line) __builtin_prefetch(address + line * kLineBytes, 0, 2);
  }
}

// target[i] += sum_r coefficients[r] * rows[r][i] for i < size; target is padded to a whole step.
template <typename Format, typename C, int kRows>
void add_rows(C* target, std::int64_t size, const char* const* rows, const C* coefficients, const Ahead& ahead) {
  Vec<C> factors[kRows];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) factors[row] = broadcast_from(coefficients + row);
  std::int64_t column = 0;
  for (; column + kStep<C> <= size; column += kStep<C>) {
    Two<C> sum = load_two(target + column);
    if (ahead.bytes != 0) prefetch<Format, C, kRows>(rows, column, ahead);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const Two<C> term = Format::term(rows[row], column, Two<C>{factors[row], factors[row]});
      sum.low += term.low;
      sum.high += term.high;
    }
    store_two(target + column, sum);
  }
  if (column == size) return;
  Two<C> sum = load_two(target + column);
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
    const Two<C> term = Format::tail(rows[row], column, size - column, Two<C>{factors[row], factors[row]});
    sum.low += term.low;
    sum.high += term.high;
  }
  store_two(target + column, sum);
}

// sums[r] += sum_i rows[r][i] * x[i] for i < size; x is padded with zeros to a whole step.
template <typename Format, typename C, int kRows>
void dot_rows(const C* x, std::int64_t size, const char* const* rows, double* sums, const Ahead& ahead) {
  Two<C> partial[kRows];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) partial[row] = Two<C>{};
  std::int64_t column = 0;
  for (; column + kStep<C> <= size; column += kStep<C>) {
    const Two<C> factor = load_two(x + column);
    if (ahead.bytes != 0) prefetch<Format, C, kRows>(rows, column, ahead);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const Two<C> term = Format::term(rows[row], column, factor);
      partial[row].low += term.low;
      partial[row].high += term.high;
    }
  }
  if (column < size) {
    const Two<C> factor = load_two(x + column);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const Two<C> term = Format::tail(rows[row], column, size - column, factor);
      partial[row].low += term.low;
      partial[row].high += term.high;
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) sums[row] += reduce_add<C>(partial[row].low + partial[row].high);
}

// The loops for one format, by the number of rows they take: 8, 4, 2, 1.
template <typename C>
struct RowLoops {
  static constexpr int kBlocks[] = {8, 4, 2, 1};
  void (*add[4])(C*, std::int64_t, const char* const*, const C*, const Ahead&);
  void (*dot[4])(const C*, std::int64_t, const char* const*, double*, const Ahead&);
  bool interleaved;
  std::int64_t line_columns;
};

template <typename Format, typename C>
constexpr RowLoops<C> row_loops = {
    {add_rows<Format, C, 8>, add_rows<Format, C, 4>, add_rows<Format, C, 2>, add_rows<Format, C, 1>},
    {dot_rows<Format, C, 8>, dot_rows<Format, C, 4>, dot_rows<Format, C, 2>, dot_rows<Format, C, 1>},
    Format::kInterleaved,
    Format::kLineColumns,
};

template <typename C>
const RowLoops<C>& loops_for(DataType type) {
  if (type == kSigns) return row_loops<Signs<C>, C>;
  return with_storage(type, []<typename Stored>() -> const RowLoops<C>& { return row_loops<Dense<Stored, C>, C>; });
}

}  // namespace simmst::cpu::SIMMST_ISA
