// A block's shared memory in the emulator: it begins as NaN and has guards at both ends.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simmst::cuda::emulation {

class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes) : bytes_(bytes) {
    const std::size_t rounded = (bytes + 127) / 128 * 128;
    memory_ = static_cast<unsigned char*>(std::aligned_alloc(128, rounded + 2 * kGuard));
    if (memory_ == nullptr) throw std::bad_alloc();
    tail_ = rounded - bytes + kGuard;
    std::memset(memory_, kCanary, kGuard);
    std::memset(begin() + bytes_, kCanary, tail_);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(memory_, kGuard);
    __asan_poison_memory_region(begin() + bytes_, tail_);
#endif
  }
  ~SharedMemory() {
    unpoison();
    std::free(memory_);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Makes every float and half NaN, and every integer -1.
  unsigned char* poison() {
    std::memset(begin(), 0xff, bytes_);
    return begin();
  }
  // Whether a guard was overwritten. (With AddressSanitizer the access itself is reported.)
  bool overrun() const {
#if defined(__SANITIZE_ADDRESS__)
    return false;
#else
    const auto touched = [](unsigned char byte) { return byte != kCanary; };
    return std::any_of(memory_, memory_ + kGuard, touched) ||
           std::any_of(begin() + bytes_, begin() + bytes_ + tail_, touched);
#endif
  }
  bool holds(const void* address, std::size_t bytes) const {
    const auto first = reinterpret_cast<std::uintptr_t>(address), low = reinterpret_cast<std::uintptr_t>(begin());
    return first >= low && first + bytes <= low + bytes_;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kGuard = 1024;
  static constexpr unsigned char kCanary = 0xa5;

  unsigned char* begin() const { return memory_ + kGuard; }
  void unpoison() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory_, kGuard);
    __asan_unpoison_memory_region(begin() + bytes_, tail_);
#endif
  }

  unsigned char* memory_ = nullptr;
  std::size_t bytes_, tail_ = 0;
};

}  // namespace simmst::cuda::emulation
