// The innermost loops over the entries of one lane's pack, for every storage format of the planes.
#pragma once

#include "cuda/cutting_plane.hpp"
#include "cuda/device.hpp"

namespace simmst::cuda {

// A format has kColumns columns per pack; zero(); load(); load_part() for a pack that is not aligned or has only
// `count` columns, with zeros for the others; add_to() for the first product and dot() for the second.
template <typename T>
struct Dense {
  static constexpr int kColumns = 16 / static_cast<int>(sizeof(T));
  using Packed = Pack<std::uint32_t>;  // words, so that two 16-bit entries share a register

  static SIMMST_DEVICE Packed zero() { return {{0, 0, 0, 0}}; }
  static SIMMST_DEVICE Packed load(const char* row, std::int64_t column) {
    return load_pack_constant<Packed>(reinterpret_cast<const std::uint32_t*>(row + column * sizeof(T)));
  }
  static SIMMST_DEVICE Packed load_part(const char* row, std::int64_t column, std::int64_t count) {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>;
    constexpr int kPerWord = kColumns / 4;
    const Bits* source = reinterpret_cast<const Bits*>(row) + column;
    Packed pack = zero();
    SIMMST_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      if (i < count) pack.at[i / kPerWord] |= static_cast<std::uint32_t>(source[i]) << i % kPerWord * 16;
    }
    return pack;
  }
  static SIMMST_DEVICE void unpack(const Packed& pack, float (&entries)[kColumns]) {
    SIMMST_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        memcpy(&entries[i], &pack.at[i], sizeof(float));
      } else {
        const FloatPair pair = unpack_pair<T>(pack.at[i]);
        entries[2 * i] = pair.low;
        entries[2 * i + 1] = pair.high;
      }
    }
  }

  // The start of the sums in the first product, given the sum of the coefficients.
  static SIMMST_DEVICE float start(float) { return 0.0f; }
  // sums[i] += coefficient * entry i, less the part that start() has already added.
  static SIMMST_DEVICE void add_to(float (&sums)[kColumns], const Packed& pack, float coefficient) {
    float entries[kColumns];
    unpack(pack, entries);
    SIMMST_UNROLL
    for (int i = 0; i < kColumns; ++i) sums[i] = fmaf(coefficient, entries[i], sums[i]);
  }

  // What dot() needs in addition to x.
  struct Prepared {};
  static SIMMST_DEVICE Prepared prepare(const float (&)[kColumns]) { return {}; }
  static SIMMST_DEVICE float dot(const Packed& pack, const float (&x)[kColumns], const Prepared&) {
    float entries[kColumns], sum = 0.0f;
    unpack(pack, entries);
    SIMMST_UNROLL
    for (int i = 0; i < kColumns; ++i) sum = fmaf(entries[i], x[i], sum);
    return sum;
  }
};

// Bit b of byte i is set where entry 8 i + b is -1. Only set bits cost an addition: a sum with signs is the plain sum
// less twice the entries with set bits, and nvcc turns eight bits at a time into predicates.
struct Signs {
  static constexpr int kColumns = 32;
  using Packed = std::uint32_t;

  static SIMMST_DEVICE Packed zero() { return 0; }
  static SIMMST_DEVICE Packed load(const char* row, std::int64_t column) {
    return load_pack_constant<Pack<std::uint32_t, 1>>(reinterpret_cast<const std::uint32_t*>(row + column / 8)).at[0];
  }
  static SIMMST_DEVICE Packed load_part(const char* row, std::int64_t column, std::int64_t count) {
    const auto* source = reinterpret_cast<const unsigned char*>(row) + column / 8;
    Packed word = 0;
    SIMMST_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (8 * i < count) word |= static_cast<std::uint32_t>(source[i]) << 8 * i;
    }
    return word;
  }

  static SIMMST_DEVICE float start(float coefficients) { return coefficients; }
  static SIMMST_DEVICE void add_to(float (&sums)[kColumns], Packed word, float coefficient) {
    const float twice = -2.0f * coefficient;
    SIMMST_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      if (word & (1u << i)) sums[i] += twice;
    }
  }

  struct Prepared {
    float sum;
  };
  // Here and below, entries are first summed in fours, because short sums are exact enough for the subtraction.
  static SIMMST_DEVICE float sum_of(const float (&fours)[8]) {
    return ((fours[0] + fours[1]) + (fours[2] + fours[3])) + ((fours[4] + fours[5]) + (fours[6] + fours[7]));
  }
  static SIMMST_DEVICE Prepared prepare(const float (&x)[kColumns]) {
    float sums[8] = {};
    SIMMST_UNROLL
    for (int i = 0; i < kColumns; ++i) sums[i / 4] += x[i];
    return {sum_of(sums)};
  }
  static SIMMST_DEVICE float dot(Packed word, const float (&x)[kColumns], const Prepared& prepared) {
    float set[8] = {};
    SIMMST_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      if (word & (1u << i)) set[i / 4] += x[i];
    }
    return fmaf(-2.0f, sum_of(set), prepared.sum);
  }
};

}  // namespace simmst::cuda
