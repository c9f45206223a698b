// Working memory of a kernel, in whole cache lines; freed with its owner.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace simmst {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Workspace = std::unique_ptr<void, Free>;

inline Workspace allocate(std::int64_t bytes) {
  void* memory = std::aligned_alloc(64, static_cast<std::size_t>((bytes + 63) / 64 * 64));
  if (memory == nullptr && bytes > 0) throw std::bad_alloc();
  return Workspace(memory);
}

}  // namespace simmst
