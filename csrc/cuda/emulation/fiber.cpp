#include "cuda/emulation/fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves the registers that a call preserves and the stack pointer, and loads those of the other fiber. (swapcontext
// would do, but it makes a system call each time for the signal mask.)
extern "C" __attribute__((naked, noipa, used)) void simmst_switch_stack(void** /*leave, rdi*/, void* /*enter, rsi*/) {
  asm(R"(
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
  )");
}
#endif

namespace simmst::cuda::emulation {

namespace {

#if defined(__SANITIZE_ADDRESS__)
Fiber* left = nullptr;
#endif

}  // namespace

Fiber::Fiber(std::size_t stack_bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  bytes_ = (stack_bytes + page - 1) / page * page;
  mapping_ = mmap(nullptr, bytes_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, page, PROT_NONE);  // a stack that overflows stops here
  stack_ = static_cast<char*>(mapping_) + page;
}

Fiber::~Fiber() {
  if (mapping_ != nullptr) munmap(mapping_, bytes_ + static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
}

void Fiber::prepare(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, bytes_);
  sanitizer_stack_ = nullptr;
#endif
#if defined(__x86_64__)
  // The stack looks as if a function that was about to call `entry` had called simmst_switch_stack.
  auto** top = reinterpret_cast<void**>(static_cast<char*>(stack_) + bytes_);
  *--top = nullptr;  // return address of `entry`; leaves the stack as a call would
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  top_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool forever) {
#if defined(__SANITIZE_ADDRESS__)
  left = &from;
  __sanitizer_start_switch_fiber(forever ? nullptr : &from.sanitizer_stack_, to.stack_, to.bytes_);
#endif
#if defined(__x86_64__)
  simmst_switch_stack(&from.top_, to.top_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
  arrived(from);
}

void Fiber::arrived([[maybe_unused]] Fiber& here) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(here.sanitizer_stack_, &stack, &bytes);
  left->stack_ = const_cast<void*>(stack);  // also for the caller's own stack, whose place is not known otherwise
  left->bytes_ = bytes;
#endif
}

}  // namespace simmst::cuda::emulation
