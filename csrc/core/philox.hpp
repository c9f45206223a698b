// Philox4x32-10, one counter at a time: the same numbers as simmst/reference/philox.py.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
#pragma once

#include <cstdint>

#include "core/arithmetic.hpp"

namespace simmst {

struct PhiloxWords {
  std::uint32_t word[4];
};

// The counter of dropout is (key index / 4, query index, batch entry, 0); word j belongs to key 4 c + j.
SIMMST_HOST_DEVICE PhiloxWords philox4x32(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d,
                                          std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53u} * a, second = std::uint64_t{0xCD9E8D57u} * c;
    a = static_cast<std::uint32_t>(second >> 32) ^ b ^ key0;
    b = static_cast<std::uint32_t>(second);
    c = static_cast<std::uint32_t>(first >> 32) ^ d ^ key1;
    d = static_cast<std::uint32_t>(first);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

// The smallest word that survives dropout: word / 2^32 >= p, exactly.
SIMMST_HOST_DEVICE std::uint32_t keep_threshold(double dropout_p) {
  const double words = dropout_p * 0x1p32;
  if (words >= 0x1p32 - 1) return 0xffffffffu;
  const auto whole = static_cast<std::uint32_t>(words);
  return static_cast<double>(whole) < words ? whole + 1 : whole;
}

}  // namespace simmst
