#include "cuda/launch.hpp"

namespace simmst::cuda {

std::string describe(const Launch& launch) {
  std::string text = std::string(launch.kernel) + " (";
  bool first = true;
  for (const NamedSize& size : launch.sizes) {
    text += (first ? "" : ", ") + std::string(size.name) + "=" + std::to_string(size.value);
    first = false;
  }
  const Grid& grid = launch.grid;
  return text + ") on a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
         std::to_string(grid.z) + " blocks of " + std::to_string(launch.threads) + " threads with " +
         std::to_string(launch.shared_bytes) + " bytes of shared memory";
}

void check_limits(const Launch& launch) {
  const auto refuse = [&](const char* reason) { throw LaunchError(describe(launch) + ": " + reason); };
  const Grid& grid = launch.grid;
  if (grid.x < 1 || grid.y < 1 || grid.z < 1) refuse("a grid needs at least one block");
  if (grid.x > 0x7fffffff) refuse("a grid has at most 2147483647 blocks along x");
  if (grid.y > 65535 || grid.z > 65535) refuse("a grid has at most 65535 blocks along y and z");
  if (launch.threads < 32 || launch.threads > 1024 || launch.threads % 32 != 0) {
    refuse("a block has a multiple of 32 threads, at most 1024");
  }
  if (launch.shared_bytes > 227 * 1024) refuse("a block has at most 232448 bytes of shared memory");
}

}  // namespace simmst::cuda
