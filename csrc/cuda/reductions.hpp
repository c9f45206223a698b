// Sums and maxima over a warp and a block, in an order that depends only on the thread.
#pragma once

#include "cuda/device.hpp"

namespace simmst::cuda {

struct Sum {
  template <typename T>
  SIMMST_DEVICE_MEMBER T operator()(T a, T b) const {
    return a + b;
  }
};
struct Maximum {
  template <typename T>
  SIMMST_DEVICE_MEMBER T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Over groups of `Lanes` neighbouring lanes (a power of two); every lane of a group gets the result.
template <int Lanes = kWarp, typename T, typename Operation>
SIMMST_DEVICE T reduce_warp(T value, Operation operation) {
  SIMMST_UNROLL
  for (int distance = Lanes / 2; distance > 0; distance /= 2) value = operation(value, shuffle_xor(value, distance));
  return value;
}

// Over a block; every thread gets the result. `scratch` is shared memory for one T per warp, free for reuse after the
// call. No thread may be reading it when another enters.
template <typename T, typename Operation>
SIMMST_DEVICE T reduce_block(T value, T* scratch, Operation operation) {
  value = reduce_warp(value, operation);
  if (lane_index() == 0) scratch[warp_index()] = value;
  sync_block();
  T total = scratch[0];
  for (int warp = 1; warp < block_threads() / kWarp; ++warp) total = operation(total, scratch[warp]);
  sync_block();
  return total;
}

}  // namespace simmst::cuda
