// The primitives of device.hpp under nvcc.
#pragma once

#include <cuda_runtime.h>

#include <tuple>
#include <utility>

// SIMMST_KERNEL(threads) or SIMMST_KERNEL(threads, blocks of it per multiprocessor) name(parameters) { }
#define SIMMST_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define SIMMST_DEVICE __device__ __forceinline__
#define SIMMST_DEVICE_MEMBER __device__ __forceinline__
#define SIMMST_UNROLL _Pragma("unroll")
#define SIMMST_ROLLED _Pragma("unroll 1")

namespace simmst::cuda {

// Throws LaunchError, with an explanation, if a call of the runtime has failed.
void check(cudaError_t status, const Launch& launch);

// Allows a kernel the shared memory of a launch, and lets multiprocessors hold as many of its blocks as that memory
// allows. By default, if one block fits, the driver keeps the split between cache and shared memory that the previous
// kernel asked for. The runtime is asked once per kernel and device.
void allow_shared_memory(const void* kernel, const Launch& launch);

// ---- the place of a thread

SIMMST_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SIMMST_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SIMMST_DEVICE BlockIndex block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
SIMMST_DEVICE BlockIndex grid_size() { return {gridDim.x, gridDim.y, gridDim.z}; }
SIMMST_DEVICE int lane_index() { return thread_index() % kWarp; }
SIMMST_DEVICE int warp_index() { return thread_index() / kWarp; }

// ---- shared memory and barriers

extern __shared__ __align__(128) unsigned char dynamic_shared[];
SIMMST_DEVICE unsigned char* shared_memory() { return dynamic_shared; }
SIMMST_DEVICE std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

SIMMST_DEVICE void sync_block() { __syncthreads(); }
SIMMST_DEVICE void sync_warp() { __syncwarp(); }
SIMMST_DEVICE void fence_device() { __threadfence(); }

// ---- between the lanes of a warp; all 32 take part

constexpr unsigned kAllLanes = 0xffffffffu;
template <typename T>
SIMMST_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <typename T>
SIMMST_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
template <typename T>
SIMMST_DEVICE T shuffle_up(T value, int distance) {
  return __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(distance));
}
template <typename T>
SIMMST_DEVICE T shuffle_down(T value, int distance) {
  return __shfl_down_sync(kAllLanes, value, static_cast<unsigned>(distance));
}
SIMMST_DEVICE std::uint32_t ballot(bool vote) { return __ballot_sync(kAllLanes, vote); }
SIMMST_DEVICE int count_bits(std::uint32_t bits) { return __popc(bits); }
SIMMST_DEVICE int leading_zeros(std::uint32_t bits) { return __clz(static_cast<int>(bits)); }

// ---- integer atomics, whose result does not depend on the order
template <typename T>
SIMMST_DEVICE T atomic_add(T* target, T value) {
  static_assert(!std::is_floating_point_v<T>, "floats are added in a fixed order, without atomics");
  return atomicAdd(target, value);
}

// ---- memory

template <typename P, typename T>
SIMMST_DEVICE P load_pack(const T* source) {
  return *reinterpret_cast<const P*>(source);
}
template <typename P, typename T>
SIMMST_DEVICE void store_pack(T* target, const P& pack) {
  *reinterpret_cast<P*>(target) = pack;
}

// The same from global memory that no thread writes to while the kernel runs.
template <typename P, typename T>
SIMMST_DEVICE P load_pack_constant(const T* source) {
  P pack;
  if constexpr (sizeof(P) == 16) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(source));
    memcpy(&pack, &words, 16);
  } else if constexpr (sizeof(P) == 8) {
    const uint2 words = __ldg(reinterpret_cast<const uint2*>(source));
    memcpy(&pack, &words, 8);
  } else {
    static_assert(sizeof(P) == 4);
    const unsigned word = __ldg(reinterpret_cast<const unsigned*>(source));
    memcpy(&pack, &word, 4);
  }
  return pack;
}

// The same from and to global memory that is not read twice: evicted first.
template <typename P, typename T>
SIMMST_DEVICE P load_pack_streaming(const T* source) {
  P pack;
  if constexpr (sizeof(P) == 16) {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(source));
    memcpy(&pack, &words, 16);
  } else if constexpr (sizeof(P) == 8) {
    const uint2 words = __ldcs(reinterpret_cast<const uint2*>(source));
    memcpy(&pack, &words, 8);
  } else {
    static_assert(sizeof(P) == 4);
    const unsigned word = __ldcs(reinterpret_cast<const unsigned*>(source));
    memcpy(&pack, &word, 4);
  }
  return pack;
}
template <typename P, typename T>
SIMMST_DEVICE void store_pack_streaming(T* target, const P& pack) {
  if constexpr (sizeof(P) == 16) {
    uint4 words;
    memcpy(&words, &pack, 16);
    __stcs(reinterpret_cast<uint4*>(target), words);
  } else if constexpr (sizeof(P) == 8) {
    uint2 words;
    memcpy(&words, &pack, 8);
    __stcs(reinterpret_cast<uint2*>(target), words);
  } else {
    static_assert(sizeof(P) == 4);
    unsigned word;
    memcpy(&word, &pack, 4);
    __stcs(reinterpret_cast<unsigned*>(target), word);
  }
}

// Starts copying 16 bytes from global to shared memory, both aligned to 16. Only the first `bytes` (0 to 16) of the
// source are read; the rest of the target becomes zero. commit_copies() groups a thread's copies. wait_for_copies<N>()
// returns once all groups but the N latest have arrived for that thread, so sync_block() must follow.
SIMMST_DEVICE void copy_async(void* shared, const void* global, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
SIMMST_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
SIMMST_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- numbers

SIMMST_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SIMMST_DEVICE float to_float(float x) { return x; }
SIMMST_DEVICE float to_float(bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
SIMMST_DEVICE float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
template <typename T>
SIMMST_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    T y;
    if constexpr (std::is_same_v<T, bfloat16>) {
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    } else {
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    }
    return y;
  }
}
// Two 16-bit floats in a word, the first in its low half.
template <typename T>
SIMMST_DEVICE std::uint32_t pack_pair(float low, float high) {
  std::uint32_t pair;
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}
struct FloatPair {
  float low, high;
};
template <typename T>
SIMMST_DEVICE FloatPair unpack_pair(std::uint32_t pair) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  } else {
    return {to_float(float16{static_cast<std::uint16_t>(pair)}),
            to_float(float16{static_cast<std::uint16_t>(pair >> 16)})};
  }
}

// ---- tensor cores

// Register i holds entries (l / 4, 2 (l % 4)) and the next of the i-th 8 x 8 matrix of 16-bit entries, where l is the
// lane; lane 8 i + r gives the address of row r of matrix i. Transposed: entries (2 (l % 4), l / 4) and the one below.
SIMMST_DEVICE void load_matrices(std::uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}
SIMMST_DEVICE void load_matrices_transposed(std::uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b for 16 x 16 by 16 x 8, with float32 sums; for the layouts see matrix.hpp.
template <typename T>
SIMMST_DEVICE void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// ---- the host side

template <typename... Parameters, typename... Arguments>
void launch(const Launch& how, void (*kernel)(Parameters...), const Arguments&... arguments) {
  check_limits(how);
  const void* function = reinterpret_cast<const void*>(kernel);
  if (how.shared_bytes > 0) allow_shared_memory(function, how);
  std::tuple<Parameters...> values(arguments...);
  const auto start = [&]<std::size_t... I>(std::index_sequence<I...>) {
    void* addresses[] = {&std::get<I>(values)..., nullptr};
    return cudaLaunchKernel(
        function,
        dim3(static_cast<unsigned>(how.grid.x), static_cast<unsigned>(how.grid.y), static_cast<unsigned>(how.grid.z)),
        dim3(static_cast<unsigned>(how.threads)), addresses, how.shared_bytes,
        reinterpret_cast<cudaStream_t>(how.stream));
  };
  check(start(std::index_sequence_for<Parameters...>{}), how);
}

}  // namespace simmst::cuda
