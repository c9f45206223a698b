// The primitives of every CUDA kernel. Under nvcc they are the device's own instructions; with SIMMST_EMULATED any
// C++20 compiler makes them functions of the emulator (emulation/), which runs a kernel thread by thread on the CPU.
// README.md lists the primitives and the rules that keep both meanings the same.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/arithmetic.hpp"
#include "core/philox.hpp"
#include "core/dtype.hpp"
#include "cuda/launch.hpp"

namespace simmst::cuda {

constexpr int kWarp = 32;

struct BlockIndex {
  unsigned x, y, z;
};

// N entries read or written at once: 16 bytes unless N is given.
template <typename T, int N = 16 / static_cast<int>(sizeof(T))>
struct alignas(sizeof(T) * N) Pack {
  static constexpr int kSize = N;
  T at[N];
};

}  // namespace simmst::cuda

#if defined(SIMMST_EMULATED)
#include "cuda/emulation/device.hpp"
#else
#include "cuda/device_nvcc.hpp"
#endif

#include "cuda/matrix.hpp"
#include "cuda/reductions.hpp"
