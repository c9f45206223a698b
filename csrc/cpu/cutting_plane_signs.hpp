// Products of packed-sign rows with a vector by table look-up, on AVX-512 and AVX2. Part of cutting_plane.cpp.
//
// Four neighbouring columns have sixteen signed sums +-x0 +-x1 +-x2 +-x3. They fill one AVX-512 register, and four bits
// of a row pick one of them. With one lane for each of sixteen rows, 64 entries take one look-up and one addition;
// flipping signs one register of entries at a time takes twelve operations. An AVX2 register holds the eight sums of
// three columns: three operations for 24 entries instead of twelve. The sum over rows does the same with four or three
// rows in place of columns, after its bits are transposed in blocks of 4 x 4.
#pragma once

#include <cstdint>

#include "cpu/cutting_plane_rows.hpp"
#include "cpu/simd.hpp"

#if defined(__AVX2__)

namespace simmst::cpu::SIMMST_ISA {

constexpr int kWords = kLanes<float>;  // words in a register, of 32 columns each
constexpr int kLookupRows = kWords;
constexpr std::int64_t kLookupColumns = 32 * kWords;  // AVX-512: a line of every row; AVX2: half a line
constexpr int kTableBits = kWords == 16 ? 4 : 3;
constexpr int kTables = (32 + kTableBits - 1) / kTableBits;  // tables for the columns of one word
constexpr int kGroups = kWords == 16 ? 4 : 2;                // groups of rows that are summed at a time
constexpr int kCombineRows = kGroups * kTableBits;

using Words = Vec<std::uint32_t>;

// The look-up uses the lowest bits of each lane: four on AVX-512, three on AVX2.
SIMMST_INLINE Vec<float> look_up(Words index, Vec<float> table) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_maskz_permutexvar_ps(0xffff, bit_cast<__m512i>(index), bit_cast<__m512>(table)));
#else
  return bit_cast<Vec<float>>(_mm256_permutevar8x32_ps(bit_cast<__m256>(table), bit_cast<__m256i>(index)));
#endif
}

// Lane t: x[0] + x[1] + ..., `kCount` terms, with a minus where bit i of t is set.
template <int kCount>
SIMMST_INLINE Vec<float> sign_table(const float* x) {
  const Words lanes = bit_cast<Words>(lane_numbers<float>());
  Vec<float> terms[4] = {};
#pragma GCC unroll 4
  for (int bit = 0; bit < kCount; ++bit)
    terms[bit] = bit_cast<Vec<float>>(bit_cast<Words>(broadcast_from(x + bit)) ^ ((lanes >> bit & 1u) << 31));
  if constexpr (kCount == 4) return (terms[0] + terms[1]) + (terms[2] + terms[3]);
  else if constexpr (kCount == 3) return terms[0] + terms[1] + terms[2];
  else return terms[0] + terms[1];
}

// The tables of kLookupColumns columns, kTables for every 32 of them.
inline void build_sign_tables(const float* x, float* tables) {
  constexpr int kLast = 32 - kTableBits * (kTables - 1);
  for (std::int64_t word = 0; word < kWords; ++word, x += 32, tables += kWords * kTables) {
    for (int table = 0; table < kTables - 1; ++table)
      store(tables + kWords * table, sign_table<kTableBits>(x + kTableBits * table));
    store(tables + kWords * (kTables - 1), sign_table<kLast>(x + 32 - kLast));
  }
}

template <int kDistance, typename V, int... kLane>
SIMMST_INLINE void exchange(V* words, std::integer_sequence<int, kLane...>) {
#pragma GCC unroll 16
  for (int first = 0; first < kWords; ++first) {
    if ((first & kDistance) != 0) continue;
    const V a = words[first], b = words[first + kDistance];
    words[first] = __builtin_shufflevector(a, b, ((kLane & kDistance) == 0 ? kLane : kWords + kLane - kDistance)...);
    words[first + kDistance] =
        __builtin_shufflevector(a, b, ((kLane & kDistance) == 0 ? kLane + kDistance : kWords + kLane)...);
  }
}

// words[i] lane j <-> words[j] lane i
template <typename V>
SIMMST_INLINE void transpose(V* words) {
  constexpr auto kAll = std::make_integer_sequence<int, kWords>{};
  exchange<1, V>(words, kAll);
  exchange<2, V>(words, kAll);
  exchange<4, V>(words, kAll);
  if constexpr (kWords == 16) exchange<8, V>(words, kAll);
}

template <int... kIndex>
SIMMST_INLINE void add_in_double(Vec<float> values, double* sums, std::integer_sequence<int, kIndex...>) {
  constexpr int kHalf = kWords / 2;
  store(sums, load(sums) + __builtin_convertvector(__builtin_shufflevector(values, values, kIndex...), Vec<double>));
  store(sums + kHalf,
        load(sums + kHalf) +
            __builtin_convertvector(__builtin_shufflevector(values, values, (kHalf + kIndex)...), Vec<double>));
}

// sums[r] += sum_i sign(rows[r], i) * x[i] for kLookupRows rows `row_bytes` apart and the columns of the tables.
inline void look_up_rows(const char* rows, std::int64_t row_bytes, const float* tables, double* sums) {
  Words words[kWords];
#pragma GCC unroll 16
  for (int row = 0; row < kLookupRows; ++row) __builtin_memcpy(&words[row], rows + row * row_bytes, sizeof(Words));
  transpose(words);  // words[w] lane r: columns 32 w .. 32 w + 31 of row r
  Vec<float> partial[4] = {};
#pragma GCC unroll 1  // if unrolled, GCC does all look-ups first and spills them
  for (int word = 0; word < kWords; ++word) {
#pragma GCC unroll 11
    for (int table = 0; table < kTables; ++table) {
      partial[table % 4] +=
          look_up(words[word] >> (kTableBits * table), load(tables + kWords * (kTables * word + table)));
    }
  }
  add_in_double((partial[0] + partial[1]) + (partial[2] + partial[3]), sums,
                std::make_integer_sequence<int, kWords / 2>{});
}

SIMMST_INLINE void swap_bits(Words& low, Words& high, int distance, std::uint32_t mask) {
  const Words difference = ((low >> distance) ^ high) & mask;
  high ^= difference;
  low ^= difference << distance;
}

// Turns rows into columns in every 4 x 4 block of bits: nibble m of words[q] then holds the four rows' bits of column
// 4 m + q of each lane's 32.
SIMMST_INLINE void transpose_nibbles(Words* words) {
  swap_bits(words[0], words[2], 2, 0x33333333u);
  swap_bits(words[1], words[3], 2, 0x33333333u);
  swap_bits(words[0], words[1], 1, 0x55555555u);
  swap_bits(words[2], words[3], 1, 0x55555555u);
}

// sums[kWords c + w] += sum_r coefficients[r] * sign(rows[r], 32 w + c) for c < 32, w < kWords; these are
// kLookupColumns columns, in strided order.
inline void look_up_columns(const char* const* rows, const float* coefficients, float* sums) {
  Words words[4 * kGroups];
  Vec<float> tables[kGroups];
#pragma GCC unroll 4
  for (int group = 0; group < kGroups; ++group) {
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
      if (row < kTableBits) __builtin_memcpy(&words[4 * group + row], rows[kTableBits * group + row], sizeof(Words));
      else words[4 * group + row] = Words{};
    }
    transpose_nibbles(words + 4 * group);
    tables[group] = sign_table<kTableBits>(coefficients + kTableBits * group);
  }
#pragma GCC unroll 1  // if unrolled, this needs a few more registers than there are
  for (int nibble = 0; nibble < 8; ++nibble) {
#pragma GCC unroll 4
    for (int column = 0; column < 4; ++column) {
      float* target = sums + kWords * (4 * nibble + column);
      Vec<float> total = load(target);
      Vec<float> terms[kGroups];
#pragma GCC unroll 4
      for (int group = 0; group < kGroups; ++group) {
        terms[group] = look_up(words[4 * group + column], tables[group]);
        words[4 * group + column] >>= 4;
      }
      if constexpr (kGroups == 4) total += (terms[0] + terms[1]) + (terms[2] + terms[3]);
      else total += terms[0] + terms[1];
      store(target, total);
    }
  }
}

// Puts the sums of look_up_columns into the order of the columns.
inline void restore_columns(const float* sums, float* target) {
  for (int part = 0; part < 32 / kWords; ++part) {
    Vec<float> block[kWords];
#pragma GCC unroll 16
    for (int column = 0; column < kWords; ++column) block[column] = load(sums + kWords * (kWords * part + column));
    transpose(block);
#pragma GCC unroll 16
    for (int word = 0; word < kWords; ++word) store(target + 32 * word + kWords * part, block[word]);
  }
}

}  // namespace simmst::cpu::SIMMST_ISA

#endif
