// The primitives of device.hpp in the emulator. device_nvcc.hpp explains their meaning.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda/emulation/machine.hpp"
#include "cuda/emulation/numbers.hpp"

#define SIMMST_KERNEL(...) void
#define SIMMST_DEVICE inline
#define SIMMST_DEVICE_MEMBER
#define SIMMST_UNROLL
#define SIMMST_ROLLED

namespace simmst::cuda {

using emulation::Place;

inline int thread_index() { return emulation::where().thread; }
inline int block_threads() { return emulation::where().threads; }
inline BlockIndex block_index() {
  const auto& block = emulation::where().block;
  return {block[0], block[1], block[2]};
}
inline BlockIndex grid_size() {
  const auto& grid = emulation::where().grid;
  return {grid[0], grid[1], grid[2]};
}
inline int lane_index() { return thread_index() % kWarp; }
inline int warp_index() { return thread_index() / kWarp; }

inline unsigned char* shared_memory() { return emulation::where().shared; }
inline void sync_block(Place place = Place::current()) { emulation::wait_for_block(place); }
inline void sync_warp(Place place = Place::current()) { emulation::exchange(nullptr, 0, "sync_warp()", place); }
inline void fence_device() {}

// The value of lane source(lane), or the thread's own value if source(lane) is not between 0 and 31.
template <typename T>
T shuffle_from(T value, int source, const char* operation, const Place& place) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  const unsigned char* all = emulation::exchange(&value, sizeof(T), operation, place);
  if (source >= 0 && source < kWarp) std::memcpy(&value, all + 64 * source, sizeof(T));
  return value;
}
template <typename T>
T shuffle(T value, int lane, Place place = Place::current()) {
  return shuffle_from(value, lane & (kWarp - 1), "shuffle()", place);
}
template <typename T>
T shuffle_xor(T value, int mask, Place place = Place::current()) {
  return shuffle_from(value, lane_index() ^ mask, "shuffle_xor()", place);
}
template <typename T>
T shuffle_up(T value, int distance, Place place = Place::current()) {
  return shuffle_from(value, lane_index() - distance, "shuffle_up()", place);
}
template <typename T>
T shuffle_down(T value, int distance, Place place = Place::current()) {
  return shuffle_from(value, lane_index() + distance, "shuffle_down()", place);
}
inline std::uint32_t ballot(bool vote, Place place = Place::current()) {
  const unsigned char mine = vote ? 1 : 0;
  const unsigned char* all = emulation::exchange(&mine, 1, "ballot()", place);
  std::uint32_t bits = 0;
  for (int lane = 0; lane < kWarp; ++lane) bits |= static_cast<std::uint32_t>(all[64 * lane]) << lane;
  return bits;
}
inline int count_bits(std::uint32_t bits) { return __builtin_popcount(bits); }
inline int leading_zeros(std::uint32_t bits) { return bits == 0 ? 32 : __builtin_clz(bits); }

template <typename T>
T atomic_add(T* target, T value) {
  static_assert(!std::is_floating_point_v<T>, "floats are added in a fixed order, without atomics");
  const T before = *target;
  *target = before + value;
  return before;
}

template <typename P, typename T>
P load_pack(const T* source, Place place = Place::current()) {
  if (reinterpret_cast<std::uintptr_t>(source) % sizeof(P) != 0) {
    emulation::fail("a load of " + std::to_string(sizeof(P)) + " bytes from an address that is no multiple of it",
                    place);
  }
  P pack;
  std::memcpy(static_cast<void*>(&pack), source, sizeof(P));
  return pack;
}
template <typename P, typename T>
void store_pack(T* target, const P& pack, Place place = Place::current()) {
  if (reinterpret_cast<std::uintptr_t>(target) % sizeof(P) != 0) {
    emulation::fail("a store of " + std::to_string(sizeof(P)) + " bytes to an address that is no multiple of it",
                    place);
  }
  std::memcpy(static_cast<void*>(target), &pack, sizeof(P));
}
template <typename P, typename T>
P load_pack_constant(const T* source, Place place = Place::current()) {
  return load_pack<P>(source, place);
}
template <typename P, typename T>
P load_pack_streaming(const T* source, Place place = Place::current()) {
  return load_pack<P>(source, place);
}
template <typename P, typename T>
void store_pack_streaming(T* target, const P& pack, Place place = Place::current()) {
  store_pack(target, pack, place);
}

inline void copy_async(void* shared, const void* global, int bytes = 16, Place place = Place::current()) {
  emulation::start_copy(shared, global, bytes, place);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int N>
void wait_for_copies() {
  emulation::wait_for_copies(N);
}

// Replaces every NaN by the one that a GPU's arithmetic gives for any NaN. A processor's NaN has other bits, and code
// that uses the bits would give other results. Plain + and * pass a NaN on unchanged, and so keep this one.
inline float as_on_a_gpu(float x) { return std::isnan(x) ? emulation::float_of(0x7fffffffu) : x; }
inline float fmaf(float x, float y, float z) { return as_on_a_gpu(std::fma(x, y, z)); }
inline float exp2f(float x) { return as_on_a_gpu(std::exp2(x)); }

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;  // a denormal becomes zero
}
template <typename T>
float to_float(T x) {
  return emulation::widen(x);
}
template <typename T>
T from_float(float x) {
  T y;
  emulation::narrow(x, y);
  return y;
}
template <typename T>
std::uint32_t pack_pair(float low, float high) {
  return from_float<T>(low).bits | static_cast<std::uint32_t>(from_float<T>(high).bits) << 16;
}

struct FloatPair {
  float low, high;
};
template <typename T>
FloatPair unpack_pair(std::uint32_t pair) {
  return {to_float(T{static_cast<std::uint16_t>(pair)}), to_float(T{static_cast<std::uint16_t>(pair >> 16)})};
}

inline void load_matrices_from(std::uint32_t (&registers)[4], const void* row, bool transposed, const char* operation,
                               const Place& place) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
    emulation::fail(std::string(operation) + " from an address that is no multiple of 16", place);
  }
  const unsigned char* all = emulation::exchange(&row, sizeof(row), operation, place);
  const int g = lane_index() / 4, t = 2 * (lane_index() % 4);
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto entry = [&](int i, int j) {
      const unsigned char* address;
      std::memcpy(&address, all + 64 * (8 * matrix + i), sizeof(address));
      std::uint16_t bits;
      std::memcpy(&bits, address + 2 * j, sizeof(bits));
      return static_cast<std::uint32_t>(bits);
    };
    registers[matrix] = transposed ? entry(t, g) | entry(t + 1, g) << 16 : entry(g, t) | entry(g, t + 1) << 16;
  }
  emulation::exchange(nullptr, 0, operation, place);  // no thread writes there before all have read
}
inline void load_matrices(std::uint32_t (&registers)[4], const void* row, Place place = Place::current()) {
  load_matrices_from(registers, row, false, "load_matrices()", place);
}
inline void load_matrices_transposed(std::uint32_t (&registers)[4], const void* row, Place place = Place::current()) {
  load_matrices_from(registers, row, true, "load_matrices_transposed()", place);
}

template <typename T>
void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                  Place place = Place::current()) {
  std::uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned char* all = emulation::exchange(mine, sizeof(mine), "multiply_add()", place);
  // Entry `half` of register `index` of a lane.
  const auto entry = [&](int lane, int index, int half) {
    T x;
    std::memcpy(&x, all + 64 * lane + 4 * index + 2 * half, sizeof(x));
    return to_float(x);
  };
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int j = 0; j < 4; ++j) {
    const int upper = j / 2, column = 2 * t + j % 2;
    double sum = 0.0;  // which holds the products exactly
    for (int k = 0; k < 16; ++k) {
      const int quad = k % 8 / 2, late = k / 8;
      sum += static_cast<double>(entry(4 * g + quad, upper + 2 * late, k % 2)) *
             static_cast<double>(entry(4 * column + quad, 4 + late, k % 2));
    }
    c[j] = as_on_a_gpu(static_cast<float>(static_cast<double>(c[j]) + sum));
  }
}

template <typename... Parameters, typename... Arguments>
void launch(const Launch& how, void (*kernel)(Parameters...), const Arguments&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> values;
  } call{kernel, {arguments...}};
  static_assert((sizeof(Parameters) + ... + 0) <= 4000, "a kernel takes at most 4 KB of parameters");
  emulation::run(
      how, [](void* given) { std::apply(static_cast<Call*>(given)->kernel, static_cast<Call*>(given)->values); },
      &call);
}

}  // namespace simmst::cuda
