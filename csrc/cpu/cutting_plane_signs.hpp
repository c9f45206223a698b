// Products of packed-sign rows with a vector by table look-up, on AVX-512. Part of cutting_plane.cpp.
//
// Four neighbouring columns have sixteen signed sums +-x0 +-x1 +-x2 +-x3. They fill one register, and four bits of a row
// pick one of them: a lane for each of sixteen rows, one look-up and one addition for 64 entries, where flipping signs
// one register of entries at a time takes twelve operations. The sum of rows does the same with four rows in the place of
// four columns, after its bits were transposed in blocks of 4 x 4.
#pragma once

#include <cstdint>

#include "cpu/cutting_plane_rows.hpp"
#include "cpu/simd.hpp"

#if defined(__AVX512F__)

namespace simmst::cpu::SIMMST_ISA {

constexpr int kLookupRows = 16;
constexpr std::int64_t kLookupColumns = 512;  // a line of every row

using Words16 = Vec<std::uint32_t>;

// Lane t: x[0] + x[1] + x[2] + x[3], with a minus for the bits that are set in t.
SIMMST_INLINE Vec<float> sign_table(const float* x) {
  const Words16 lanes = bit_cast<Words16>(lane_numbers<float>());
  Vec<float> terms[4];
#pragma GCC unroll 4
  for (int bit = 0; bit < 4; ++bit) {
    terms[bit] = bit_cast<Vec<float>>(bit_cast<Words16>(broadcast_from(x + bit)) ^ ((lanes >> bit & 1u) << 31));
  }
  return (terms[0] + terms[1]) + (terms[2] + terms[3]);
}

// The look-up uses the lowest four bits of each lane.
SIMMST_INLINE Vec<float> look_up(Words16 index, Vec<float> table) {
  return bit_cast<Vec<float>>(
      _mm512_maskz_permutexvar_ps(0xffff, bit_cast<__m512i>(index), bit_cast<__m512>(table)));
}

// The tables of kLookupColumns columns, 16 entries for every four of them.
inline void build_sign_tables(const float* x, float* tables) {
  for (std::int64_t column = 0; column < kLookupColumns; column += 4) store(tables + 4 * column, sign_table(x + column));
}

template <int kDistance, typename V, int... kLane>
SIMMST_INLINE void exchange(V* words, std::integer_sequence<int, kLane...>) {
#pragma GCC unroll 16
  for (int first = 0; first < 16; ++first) {
    if ((first & kDistance) != 0) continue;
    const V a = words[first], b = words[first + kDistance];
    words[first] = __builtin_shufflevector(a, b, ((kLane & kDistance) == 0 ? kLane : 16 + kLane - kDistance)...);
    words[first + kDistance] =
        __builtin_shufflevector(a, b, ((kLane & kDistance) == 0 ? kLane + kDistance : 16 + kLane)...);
  }
}

// words[i] lane j <-> words[j] lane i
template <typename V>
SIMMST_INLINE void transpose(V* words) {
  constexpr auto kAll = std::make_integer_sequence<int, 16>{};
  exchange<1, V>(words, kAll);
  exchange<2, V>(words, kAll);
  exchange<4, V>(words, kAll);
  exchange<8, V>(words, kAll);
}

// sums[r] += sum_i sign(rows[r], i) * x[i] for kLookupRows rows `row_bytes` apart and the columns of the tables.
inline void look_up_rows(const char* rows, std::int64_t row_bytes, const float* tables, double* sums) {
  Words16 words[16];
#pragma GCC unroll 16
  for (int row = 0; row < kLookupRows; ++row) __builtin_memcpy(&words[row], rows + row * row_bytes, sizeof(Words16));
  transpose(words);  // words[w] lane r: columns 32 w .. 32 w + 31 of row r
  Vec<float> partial[4] = {};
#pragma GCC unroll 1  // unrolled, GCC looks everything up first and spills it
  for (int word = 0; word < 16; ++word) {
#pragma GCC unroll 8
    for (int nibble = 0; nibble < 8; ++nibble) {
      partial[nibble % 4] += look_up(words[word] >> (4 * nibble), load(tables + 16 * (8 * word + nibble)));
    }
  }
  const Vec<float> total = (partial[0] + partial[1]) + (partial[2] + partial[3]);
  store(sums, load(sums) + __builtin_convertvector(__builtin_shufflevector(total, total, 0, 1, 2, 3, 4, 5, 6, 7), Vec<double>));
  store(sums + 8, load(sums + 8) + __builtin_convertvector(
                                       __builtin_shufflevector(total, total, 8, 9, 10, 11, 12, 13, 14, 15), Vec<double>));
}

SIMMST_INLINE void swap_bits(Words16& low, Words16& high, int distance, std::uint32_t mask) {
  const Words16 difference = ((low >> distance) ^ high) & mask;
  high ^= difference;
  low ^= difference << distance;
}

// In every 4 x 4 block of bits, rows become columns: nibble m of words[q] then holds the four rows' bits of column
// 4 m + q of each lane's 32.
SIMMST_INLINE void transpose_nibbles(Words16* words) {
  swap_bits(words[0], words[2], 2, 0x33333333u);
  swap_bits(words[1], words[3], 2, 0x33333333u);
  swap_bits(words[0], words[1], 1, 0x55555555u);
  swap_bits(words[2], words[3], 1, 0x55555555u);
}

// sums[16 c + w] += sum_r coefficients[r] * sign(rows[r], 32 w + c) for c < 32, w < 16: kLookupColumns columns, strided.
inline void look_up_columns(const char* const* rows, const float* coefficients, float* sums) {
  Words16 words[kLookupRows];
  Vec<float> tables[4];
#pragma GCC unroll 4
  for (int group = 0; group < 4; ++group) {
#pragma GCC unroll 4
    for (int row = 4 * group; row < 4 * group + 4; ++row) __builtin_memcpy(&words[row], rows[row], sizeof(Words16));
    transpose_nibbles(words + 4 * group);
    tables[group] = sign_table(coefficients + 4 * group);
  }
#pragma GCC unroll 1  // a few registers more than there are, if unrolled
  for (int nibble = 0; nibble < 8; ++nibble) {
#pragma GCC unroll 4
    for (int column = 0; column < 4; ++column) {
      float* target = sums + 16 * (4 * nibble + column);
      Vec<float> terms[4];
#pragma GCC unroll 4
      for (int group = 0; group < 4; ++group) {
        terms[group] = look_up(words[4 * group + column], tables[group]);
        words[4 * group + column] >>= 4;
      }
      store(target, load(target) + ((terms[0] + terms[1]) + (terms[2] + terms[3])));
    }
  }
}

// The sums of look_up_columns into the order of the columns.
inline void restore_columns(const float* sums, float* target) {
  for (int half = 0; half < 2; ++half) {
    Vec<float> block[16];
#pragma GCC unroll 16
    for (int column = 0; column < 16; ++column) block[column] = load(sums + 16 * (16 * half + column));
    transpose(block);
#pragma GCC unroll 16
    for (int word = 0; word < 16; ++word) store(target + 32 * word + 16 * half, block[word]);
  }
}

}  // namespace simmst::cpu::SIMMST_ISA

#endif
