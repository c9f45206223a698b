// The emulated device: runs a kernel block by block and, within a block, thread by thread in a random order that changes
// at every barrier. What a real device may do in any order, the emulator does in one that is unlikely to be kind:
// shared memory begins as NaN, asynchronous copies arrive at the wait for them and not before, and a barrier that some
// thread of its block or warp never reaches is an error that says where.
//
// Environment: SIMMST_CUDA_EMULATION_SEED (the order; 0), SIMMST_CUDA_EMULATION_SHARED_BYTES (the most a block can have;
// 232448, as on compute capability 9.0) and SIMMST_CUDA_EMULATION_MULTIPROCESSORS (4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "cuda/launch.hpp"

namespace simmst::cuda::emulation {

using Place = std::source_location;

// Runs `thread(context)` once for every thread of the launch. Throws LaunchError for whatever was done wrong.
void run(const Launch& launch, void (*thread)(void* context), void* context);

// For tests of the host side: while this is on, launches are checked and noted, and nothing runs.
void only_note(bool on);
// The kernels noted since the last call, in their order.
std::vector<std::string> take_noted();

// For the thread that is running:
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

// Gives `bytes` (at most 64) to the other lanes and waits for theirs. Lane l's lie at the result + 64 l, until this
// thread exchanges again.
const unsigned char* exchange(const void* mine, std::size_t bytes, const char* operation, const Place& place);

void start_copy(void* shared, const void* global, int bytes, const Place& place);
void commit_copies();
void wait_for_copies(int groups_left);

}  // namespace simmst::cuda::emulation
