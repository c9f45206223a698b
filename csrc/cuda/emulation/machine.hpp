// The emulated device. It runs a kernel block by block and, within a block, thread by thread, in a random order that
// changes at every barrier. Where a real device is free to choose an order, the emulator chooses one that is likely to
// show mistakes: shared memory begins as NaN, asynchronous copies arrive only at the wait for them, and if some thread
// of a block or warp never reaches a barrier, that is an error that names the place.
//
// Environment: SIMMST_CUDA_EMULATION_SEED (seed of the order; 0), SIMMST_CUDA_EMULATION_SHARED_BYTES (the most shared
// memory that a block can have; 232448, as on compute capability 9.0) and SIMMST_CUDA_EMULATION_MULTIPROCESSORS (4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "cuda/launch.hpp"

namespace simmst::cuda::emulation {

using Place = std::source_location;

// Runs `thread(context)` once for every thread of the launch. Throws LaunchError for every mistake that it detects.
void run(const Launch& launch, void (*thread)(void* context), void* context);

// For tests of the host side: while this is on, launches are checked and noted, but nothing runs.
void only_note(bool on);
// The kernels noted since the last call, in order.
std::vector<std::string> take_noted();

// For the running thread:
struct Where {
  int thread = 0, threads = 0;
  std::uint32_t block[3] = {}, grid[3] = {};
  unsigned char* shared = nullptr;
};
extern Where running;
inline const Where& where() { return running; }

// Ends the launch with an error.
[[noreturn]] void fail(const std::string& what, const Place& place);

void wait_for_block(const Place& place);

// Gives `bytes` (at most 64) to the other lanes and waits for theirs. The bytes of lane l are at the result + 64 l
// until this thread exchanges again.
const unsigned char* exchange(const void* mine, std::size_t bytes, const char* operation, const Place& place);

void start_copy(void* shared, const void* global, int bytes, const Place& place);
void commit_copies();
void wait_for_copies(int groups_left);

}  // namespace simmst::cuda::emulation
