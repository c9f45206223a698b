// A thread of control with its own stack. It runs only when the emulator switches to it.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simmst::cuda::emulation {

class Fiber {
 public:
  Fiber() = default;  // for the caller's own stack, to return to
  explicit Fiber(std::size_t stack_bytes);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber begins at `entry`, which must never return. Whatever the fiber ran before is
  // forgotten.
  void prepare(void (*entry)());

  // Switches from `from`, which is running, to `to`; returns when something switches back. `forever`: nothing will.
  static void switch_to(Fiber& from, Fiber& to, bool forever = false);

  // Every entry function must call this first.
  static void arrived(Fiber& here);

 private:
  void* mapping_ = nullptr;
  void* stack_ = nullptr;
  std::size_t bytes_ = 0;
#if defined(__x86_64__)
  void* top_ = nullptr;
#else
  ucontext_t context_{};
#endif
  void* sanitizer_stack_ = nullptr;
};

}  // namespace simmst::cuda::emulation
