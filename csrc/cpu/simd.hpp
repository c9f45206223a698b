// Vectors of float and double as wide as the instruction set that a file is compiled for (SIMMST_ISA), built on the
// vector extensions of GCC and Clang: arithmetic uses plain operators, and a * b + c is fused where the processor can
// do so. Everything is in the namespace of the instruction set, so two instruction sets share nothing here.
//
// (The AVX-512 intrinsics are the zero-masking ones with a full mask, because the plain ones warn under GCC 12, bug
// 105593.)
//
// Storage is float, double, bfloat16 or float16. Computation is in Compute<Storage>: float for the half types.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/dtype.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define SIMMST_INLINE inline __attribute__((always_inline))

// For a loop over registers whose number of turns is known at compile time. By default GCC unrolls such a loop late,
// after it has decided that an array indexed by the loop is in memory; then every sum is stored at every step.
#define SIMMST_UNROLL _Pragma("GCC unroll 32")

#ifndef SIMMST_ALWAYS_INLINE
#define SIMMST_ALWAYS_INLINE __attribute__((always_inline))  // goes after a lambda's parameters
#endif

namespace simmst::cpu::SIMMST_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vec = typename VectorOf<T>::type;

// Integers as wide as T, and vectors of them with as many lanes as Vec<T>.
template <typename T>
using IntOf = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
template <typename T>
using IntVec = Vec<IntOf<T>>;

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename Storage>
using Compute = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

// Calls f.template operator()<Storage>() for a floating type.
template <typename F>
SIMMST_INLINE decltype(auto) with_storage(DataType type, const F& f) {
  switch (type) {
    case DataType::kFloat64:
      return f.template operator()<double>();
    case DataType::kBfloat16:
      return f.template operator()<bfloat16>();
    case DataType::kFloat16:
      return f.template operator()<float16>();
    default:
      return f.template operator()<float>();
  }
}

constexpr int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

template <typename To, typename From>
SIMMST_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename T>
SIMMST_INLINE Vec<T> broadcast(T value) {
  return Vec<T>{} + value;  // -0.0 becomes 0.0
}
// The same through a plain load, which keeps -0.0; compiles to one broadcast from memory.
SIMMST_INLINE Vec<float> broadcast_from(const float* p) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_set1_ps(*p));
#elif defined(__AVX2__)
  return bit_cast<Vec<float>>(_mm256_broadcast_ss(p));
#else
  const float x = *p;
  return Vec<float>{x, x, x, x};
#endif
}
SIMMST_INLINE Vec<double> broadcast_from(const double* p) {
#if defined(__AVX512F__)
  return bit_cast<Vec<double>>(_mm512_set1_pd(*p));
#elif defined(__AVX2__)
  return bit_cast<Vec<double>>(_mm256_broadcast_sd(p));
#else
  const double x = *p;
  return Vec<double>{x, x};
#endif
}

// Lane numbers 0, 1, 2, ...
template <typename T>
SIMMST_INLINE IntVec<T> lane_numbers() {
  IntVec<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = i;
  return v;
}

// a where the mask is set (all bits of a lane set or clear), else b.
template <typename T>
SIMMST_INLINE Vec<T> select(IntVec<T> mask, Vec<T> a, Vec<T> b) {
  return mask ? a : b;
}

// a > b ? a : b in every lane: b where either is NaN.
SIMMST_INLINE Vec<float> max(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_maskz_max_ps(0xffff, bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(__AVX2__)
  return bit_cast<Vec<float>>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}
SIMMST_INLINE Vec<double> max(Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
  return bit_cast<Vec<double>>(_mm512_maskz_max_pd(0xff, bit_cast<__m512d>(a), bit_cast<__m512d>(b)));
#elif defined(__AVX2__)
  return bit_cast<Vec<double>>(_mm256_max_pd(bit_cast<__m256d>(a), bit_cast<__m256d>(b)));
#else
  return a > b ? a : b;
#endif
}

// f(0), f(1), ... f(kCount - 1), written out: SIMMST_UNROLL for a number of turns that depends on a template.
template <int kCount, typename F>
SIMMST_INLINE void unrolled(const F& f) {
  if constexpr (kCount > 0) {
    unrolled<kCount - 1>(f);
    f(kCount - 1);
  }
}

// Scalar conversions.

SIMMST_INLINE float to_compute(float x) { return x; }
SIMMST_INLINE double to_compute(double x) { return x; }
SIMMST_INLINE float to_compute(bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
SIMMST_INLINE float to_compute(float16 x) {
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Multiplying by 2^112 moves the exponent's bias from 15 to 127, subnormals included.
  uint32_t bits = bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f);
  if (magnitude >= 0x7c00u) bits |= 0x7f800000u;  // infinity, NaN
  return bit_cast<float>(bits | static_cast<uint32_t>(x.bits & 0x8000u) << 16);
}

template <typename Storage>
SIMMST_INLINE Storage to_storage(Compute<Storage> x) {
  if constexpr (std::is_same_v<Storage, bfloat16>) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
  } else if constexpr (std::is_same_v<Storage, float16>) {
    const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;
    } else if (magnitude >= 0x47800000u) {  // 65536 and above; 65520 and above rounds up to it below
      half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded mantissa in the low bits
      half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    }
    return {static_cast<uint16_t>(half | sign)};
  } else {
    return x;
  }
}

// Loads and stores, unaligned, with conversion.

SIMMST_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
SIMMST_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
SIMMST_INLINE void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof(v)); }
SIMMST_INLINE void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof(v)); }

typedef uint16_t HalfVec __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t WordVec __attribute__((vector_size(kVectorBytes)));

SIMMST_INLINE HalfVec load_half_bits(const void* p) {
  HalfVec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

SIMMST_INLINE Vec<float> from_bits(HalfVec v, bfloat16) {
  return bit_cast<Vec<float>>(__builtin_convertvector(v, WordVec) << 16);
}
SIMMST_INLINE Vec<float> from_bits(HalfVec v, float16) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_maskz_cvtph_ps(0xffff, bit_cast<__m256i>(v)));
#elif defined(__F16C__)
  return bit_cast<Vec<float>>(_mm256_cvtph_ps(bit_cast<__m128i>(v)));
#else
  Vec<float> r;
  for (int i = 0; i < kLanes<float>; ++i) r[i] = to_compute(float16{v[i]});
  return r;
#endif
}
SIMMST_INLINE HalfVec to_bits(Vec<float> v, bfloat16) {
  const WordVec bits = bit_cast<WordVec>(v);
  const WordVec rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const WordVec quiet = bits >> 16 | 0x40u;
  return __builtin_convertvector(v != v ? quiet : rounded, HalfVec);
}
SIMMST_INLINE HalfVec to_bits(Vec<float> v, float16) {
#if defined(__AVX512F__)
  return bit_cast<HalfVec>(_mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return bit_cast<HalfVec>(_mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  HalfVec r;
  for (int i = 0; i < kLanes<float>; ++i) r[i] = to_storage<float16>(v[i]).bits;
  return r;
#endif
}

SIMMST_INLINE Vec<float> load(const bfloat16* p) { return from_bits(load_half_bits(p), bfloat16{}); }
SIMMST_INLINE Vec<float> load(const float16* p) { return from_bits(load_half_bits(p), float16{}); }
SIMMST_INLINE void store(bfloat16* p, Vec<float> v) {
  const HalfVec bits = to_bits(v, bfloat16{});
  __builtin_memcpy(p, &bits, sizeof(bits));
}
SIMMST_INLINE void store(float16* p, Vec<float> v) {
  const HalfVec bits = to_bits(v, float16{});
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// Reads the first `count` lanes (0 to kLanes) from memory and nothing beyond them; the other lanes are zero.
template <typename Storage>
SIMMST_INLINE Vec<Compute<Storage>> load_partial(const Storage* p, int count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Storage, float>) {
    return bit_cast<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p));
  } else if constexpr (std::is_same_v<Storage, double>) {
    return bit_cast<Vec<double>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), p));
  } else {
    const auto mask = static_cast<__mmask16>((1u << count) - 1u);
    return from_bits(bit_cast<HalfVec>(_mm256_maskz_loadu_epi16(mask, p)), Storage{});
  }
#else
  Storage buffer[kLanes<Compute<Storage>>] = {};
  for (int i = 0; i < count; ++i) buffer[i] = p[i];
  return load(buffer);
#endif
}

// Writes the first `count` lanes (0 to kLanes) and nothing else.
template <typename Storage>
SIMMST_INLINE void store_partial(Storage* p, Vec<Compute<Storage>> v, int count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Storage, float>) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), bit_cast<__m512>(v));
  } else if constexpr (std::is_same_v<Storage, double>) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1u), bit_cast<__m512d>(v));
  } else {
    const auto mask = static_cast<__mmask16>((1u << count) - 1u);
    _mm256_mask_storeu_epi16(p, mask, bit_cast<__m256i>(to_bits(v, Storage{})));
  }
#else
  Storage buffer[kLanes<Compute<Storage>>];
  store(buffer, v);
  for (int i = 0; i < count; ++i) p[i] = buffer[i];
#endif
}

// Reductions, always in the same order.

template <int kDistance, typename T, int... kIndex>
SIMMST_INLINE Vec<T> swap_lanes(Vec<T> v, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(v, v, (kIndex ^ kDistance)...);
}
template <int kDistance, typename T>
SIMMST_INLINE Vec<T> swap_lanes(Vec<T> v) {
  return swap_lanes<kDistance, T>(v, std::make_integer_sequence<int, kLanes<T>>{});
}

template <typename T, int kDistance = kLanes<T> / 2>
SIMMST_INLINE T reduce_add(Vec<T> v) {
  if constexpr (kDistance == 0) {
    return v[0];
  } else {
    return reduce_add<T, kDistance / 2>(v + swap_lanes<kDistance, T>(v));
  }
}
template <typename T, int kDistance = kLanes<T> / 2>
SIMMST_INLINE T reduce_max(Vec<T> v) {
  if constexpr (kDistance == 0) {
    return v[0];
  } else {
    return reduce_max<T, kDistance / 2>(max(v, swap_lanes<kDistance, T>(v)));
  }
}

// One step of adding up lanes: the pieces of kPiece lanes in a and in b are added in pairs, and the sums of a and b
// interleaved so that each step is two unpack or shuffle instructions and an addition.
template <typename T, int kPiece>
constexpr int piece_of_pair(int lane, bool second) {
  constexpr int kBlock = 16 / static_cast<int>(sizeof(T));  // lanes in the 16 bytes that an unpack instruction works on
  if (kPiece < kBlock) {
    const int block = lane / kBlock * kBlock, piece = lane % kBlock / kPiece;
    const int source = block + piece / 2 * kPiece + lane % kPiece + (second ? kBlock / 2 : 0);
    return piece % 2 == 0 ? source : source + kLanes<T>;
  }
  return lane / kPiece * 2 * kPiece + lane % kPiece + (second ? kPiece : 0);
}
template <typename T, int kPiece, int... kIndex>
SIMMST_INLINE Vec<T> add_pieces(Vec<T> a, Vec<T> b, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(a, b, piece_of_pair<T, kPiece>(kIndex, false)...) +
         __builtin_shufflevector(a, b, piece_of_pair<T, kPiece>(kIndex, true)...);
}

// Lane i of the result is the sum of the lanes of v[i % kCount]; v is overwritten. kDone lanes are already added up.
template <typename T, int kCount = kLanes<T>, int kDone = 1>
SIMMST_INLINE Vec<T> reduce_each(Vec<T>* v) {
  if constexpr (kDone == kLanes<T>) {
    return v[0];
  } else {
    constexpr int kBlock = 16 / static_cast<int>(sizeof(T)), kPiece = kDone < kBlock ? kDone : kBlock;
    constexpr int kLeft = kCount == 1 ? 1 : kCount / 2;
    for (int i = 0; i < kLeft; ++i)
      v[i] =
          add_pieces<T, kPiece>(v[2 * i], v[kCount == 1 ? 0 : 2 * i + 1], std::make_integer_sequence<int, kLanes<T>>{});
    return reduce_each<T, kLeft, 2 * kDone>(v);
  }
}

// Exponential.

// 2^n for every lane's integer n in the range of normal exponents.
SIMMST_INLINE Vec<float> power_of_two(IntVec<float> n) { return bit_cast<Vec<float>>((n + 127) << 23); }
SIMMST_INLINE Vec<double> power_of_two(IntVec<double> n) { return bit_cast<Vec<double>>((n + 1023) << 52); }

template <typename T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float low = -104.0f, high = 89.0f, rounding = 0x1.8p23f;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
};
template <>
struct ExpConstants<double> {
  static constexpr double low = -746.0, high = 710.0, rounding = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42fefa0000p-1, ln2_low = 0x1.cf79abc9e3b3ap-40;
};

// e^r for |r| <= ln(2)/2.
SIMMST_INLINE Vec<float> exp_reduced(Vec<float> r) {
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}
SIMMST_INLINE Vec<double> exp_reduced(Vec<double> r) {
  Vec<double> p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  return p * (r * r) + r + 1.0;
}

// e^x to about 1 ulp; 0 below the smallest subnormal, infinity above the range, NaN for NaN.
template <typename T>
SIMMST_INLINE Vec<T> exp_of(Vec<T> x) {
  using C = ExpConstants<T>;
  x = x < C::low ? broadcast<T>(C::low) : x;  // comparisons are false for NaN, which keeps it
  x = x > C::high ? broadcast<T>(C::high) : x;
  // Adding 1.5 * 2^(mantissa bits) rounds to an integer, which is in the low bits of the sum.
  const Vec<T> shifted = x * static_cast<T>(1.4426950408889634) + C::rounding;
  const Vec<T> n = shifted - C::rounding;
  const Vec<T> r = (x - n * C::ln2_high) - n * C::ln2_low;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    return bit_cast<Vec<T>>(_mm512_maskz_scalef_ps(0xffff, bit_cast<__m512>(exp_reduced(r)), bit_cast<__m512>(n)));
  } else {
    return bit_cast<Vec<T>>(_mm512_maskz_scalef_pd(0xff, bit_cast<__m512d>(exp_reduced(r)), bit_cast<__m512d>(n)));
  }
#else
  const IntVec<T> integer = bit_cast<IntVec<T>>(shifted) - bit_cast<IntVec<T>>(broadcast<T>(C::rounding));
  const IntVec<T> half = integer >> 1;  // two steps, because 2^n itself may be subnormal or infinite
  return exp_reduced(r) * power_of_two(half) * power_of_two(integer - half);
#endif
}
SIMMST_INLINE Vec<float> exp(Vec<float> x) { return exp_of<float>(x); }
SIMMST_INLINE Vec<double> exp(Vec<double> x) { return exp_of<double>(x); }

}  // namespace simmst::cpu::SIMMST_ISA
