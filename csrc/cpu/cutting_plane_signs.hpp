// Products of packed-sign rows with a vector by table look-up, on AVX-512. Part of cutting_plane.cpp.
//
// Four neighbouring columns have sixteen signed sums +-x0 +-x1 +-x2 +-x3. They fill one register, and four bits of a row
// pick one of them: a lane for each of sixteen rows, one look-up and one addition for 64 entries, where flipping signs
// one register of entries at a time takes twelve operations.
#pragma once

#include <cstdint>

#include "cpu/cutting_plane_rows.hpp"
#include "cpu/simd.hpp"

#if defined(__AVX512F__)

namespace simmst::cpu::SIMMST_ISA {

constexpr int kLookupRows = 16;
constexpr std::int64_t kLookupColumns = 512;  // a line of every row

using Words16 = Vec<std::uint32_t>;

// tables[16 j + t] = sum of x[4 j .. 4 j + 3], with a minus where t has a bit set; for kLookupColumns columns.
inline void build_sign_tables(const float* x, float* tables) {
  const Words16 lanes = bit_cast<Words16>(lane_numbers<float>());
  Words16 flips[4];
  for (int bit = 0; bit < 4; ++bit) flips[bit] = (lanes >> bit & 1u) << 31;
  for (std::int64_t column = 0; column < kLookupColumns; column += 4) {
    Vec<float> terms[4];
    for (int bit = 0; bit < 4; ++bit) {
      terms[bit] = bit_cast<Vec<float>>(bit_cast<Words16>(broadcast_from(x + column + bit)) ^ flips[bit]);
    }
    store(tables + 4 * column, (terms[0] + terms[1]) + (terms[2] + terms[3]));
  }
}

template <int kDistance, int... kLane>
SIMMST_INLINE void exchange(Words16* words, std::integer_sequence<int, kLane...>) {
#pragma GCC unroll 16
  for (int first = 0; first < 16; ++first) {
    if ((first & kDistance) != 0) continue;
    const Words16 a = words[first], b = words[first + kDistance];
    words[first] = __builtin_shufflevector(a, b, ((kLane & kDistance) == 0 ? kLane : 16 + kLane - kDistance)...);
    words[first + kDistance] =
        __builtin_shufflevector(a, b, ((kLane & kDistance) == 0 ? kLane + kDistance : 16 + kLane)...);
  }
}

// words[i] lane j <-> words[j] lane i
SIMMST_INLINE void transpose(Words16* words) {
  constexpr auto kAll = std::make_integer_sequence<int, 16>{};
  exchange<1>(words, kAll);
  exchange<2>(words, kAll);
  exchange<4>(words, kAll);
  exchange<8>(words, kAll);
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
      // The look-up uses the lowest four bits of each lane.
      const __m512i index = bit_cast<__m512i>(words[word] >> (4 * nibble));
      const __m512 table = bit_cast<__m512>(load(tables + 16 * (8 * word + nibble)));
      partial[nibble % 4] += bit_cast<Vec<float>>(_mm512_maskz_permutexvar_ps(0xffff, index, table));
    }
  }
  const Vec<float> total = (partial[0] + partial[1]) + (partial[2] + partial[3]);
  for (int row = 0; row < kLookupRows; ++row) sums[row] += total[row];
}

}  // namespace simmst::cpu::SIMMST_ISA

#endif
