#include "cuda/emulation/machine.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "cuda/emulation/fiber.hpp"
#include "cuda/emulation/shared_memory.hpp"

namespace simmst::cuda::emulation {

Where running;

namespace {

constexpr int kLanes = 32;
constexpr std::size_t kSlotBytes = 64;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 512 * 1024;
#else
constexpr std::size_t kStackBytes = 128 * 1024;
#endif

struct Copy {
  unsigned char* shared;
  const void* global;
  int bytes;
};

enum class State : std::uint8_t { kReady, kAtBlockBarrier, kInExchange, kReturned };

struct Thread {
  State state = State::kReady;
  const char* operation = "";  // the operation in which it waits, and the place
  Place place;
  std::vector<std::vector<Copy>> committed;  // oldest first
  std::vector<Copy> uncommitted;
};

// The data that the lanes of a warp exchange. Two sets take turns, because a lane can be one exchange ahead of another.
struct Warp {
  alignas(16) unsigned char slots[2][kLanes * kSlotBytes];
  int turn = 0;
  int arrived = 0;
};

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du) {}
  std::uint64_t below(std::uint64_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545F4914F6CDD1Du >> 11) % bound;
  }

 private:
  std::uint64_t state_;
};

std::int64_t from_environment(const char* name, std::int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::atoll(text);
}

std::string at(const Place& place) {
  const std::string file = place.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(place.line());
}

bool same(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

void enter();

class Machine {
 public:
  void run(const Launch& launch, void (*thread)(void*), void* context) {
    const std::lock_guard<std::mutex> alone(mutex_);
    random_ = Random(static_cast<std::uint64_t>(from_environment("SIMMST_CUDA_EMULATION_SEED", 0)));
    body_ = thread;
    context_ = context;
    error_.clear();
    here_.threads = launch.threads;
    here_.grid[0] = static_cast<std::uint32_t>(launch.grid.x);
    here_.grid[1] = static_cast<std::uint32_t>(launch.grid.y);
    here_.grid[2] = static_cast<std::uint32_t>(launch.grid.z);
    while (fibers_.size() < static_cast<std::size_t>(launch.threads)) {
      fibers_.push_back(std::make_unique<Fiber>(kStackBytes));
    }
    SharedMemory shared(launch.shared_bytes);
    shared_ = &shared;
    // An affine map visits every block once, in an order that is unlikely to hide mistakes.
    const auto blocks = static_cast<std::uint64_t>(launch.grid.x * launch.grid.y * launch.grid.z);
    std::uint64_t factor = blocks / 2 + random_.below(blocks);
    while (std::gcd(factor, blocks) != 1) ++factor;
    std::uint64_t block = random_.below(blocks);
    for (std::uint64_t done = 0; done < blocks && error_.empty(); ++done) {
      run_block(block);
      block = (block + factor) % blocks;
    }
    if (!error_.empty()) throw LaunchError(describe(launch) + ": " + error_);
  }

  [[noreturn]] void fail(const std::string& what) {
    const std::uint32_t* block = here_.block;
    error_ = what + ", in thread " + std::to_string(here_.thread) + " of block (" + std::to_string(block[0]) + ", " +
             std::to_string(block[1]) + ", " + std::to_string(block[2]) + ")";
    Fiber::switch_to(*fibers_[here_.thread], host_, true);
    std::abort();
  }

  void wait_for_block(const Place& place) {
    if (++at_barrier_ == here_.threads) {
      at_barrier_ = 0;
      for (int i = 0; i < here_.threads; ++i) {
        if (i == here_.thread) continue;
        if (!same(threads_[i].place, place)) {
          fail("sync_block() at " + at(place) + " meets the one at " + at(threads_[i].place) + " of thread " +
               std::to_string(i));
        }
        wake(i);
      }
      // The last thread to arrive must not always be the first to leave.
      ready_.push_back(here_.thread);
      go_on(State::kReady, "", place);
    } else {
      go_on(State::kAtBlockBarrier, "sync_block()", place);
    }
  }

  const unsigned char* exchange(const void* mine, std::size_t bytes, const char* operation, const Place& place) {
    const int thread = here_.thread, lane = thread % kLanes, first = thread - lane;
    Warp& warp = warps_[thread / kLanes];
    unsigned char* slots = warp.slots[warp.turn];
    if (bytes > 0) std::memcpy(slots + lane * kSlotBytes, mine, bytes);
    if (++warp.arrived == kLanes) {
      warp.arrived = 0;
      warp.turn ^= 1;
      for (int i = first; i < first + kLanes; ++i) {
        if (i == thread) continue;
        if (std::strcmp(threads_[i].operation, operation) != 0 || !same(threads_[i].place, place)) {
          fail(std::string(operation) + " at " + at(place) + " meets " + threads_[i].operation + " at " +
               at(threads_[i].place) + " of thread " + std::to_string(i));
        }
        wake(i);
      }
      ready_.push_back(thread);
      go_on(State::kReady, "", place);
    } else {
      go_on(State::kInExchange, operation, place);
    }
    return slots;
  }

  void start_copy(const Copy& copy) {
    // Until the copy arrives, the content of the target is undefined.
    std::memset(copy.shared, 0xff, 16);
    threads_[here_.thread].uncommitted.push_back(copy);
  }
  void commit_copies() {
    Thread& thread = threads_[here_.thread];
    thread.committed.push_back(std::move(thread.uncommitted));
    thread.uncommitted.clear();
  }
  void wait_for_copies(int groups_left) {
    auto& committed = threads_[here_.thread].committed;
    for (; static_cast<int>(committed.size()) > groups_left; committed.erase(committed.begin())) {
      for (const Copy& copy : committed.front()) {
        std::memset(copy.shared, 0, 16);
        if (copy.bytes > 0) std::memcpy(copy.shared, copy.global, copy.bytes);
      }
    }
  }
  bool shared_holds(const void* address, std::size_t bytes) const { return shared_->holds(address, bytes); }

  // The body of every fiber.
  [[noreturn]] void run_thread() {
    Fiber::arrived(*fibers_[here_.thread]);
    body_(context_);
    const Thread& thread = threads_[here_.thread];
    const bool waiting = std::any_of(thread.committed.begin(), thread.committed.end(),
                                     [](const std::vector<Copy>& group) { return !group.empty(); });
    if (waiting || !thread.uncommitted.empty()) fail("the kernel returns with copies that nobody waited for");
    ++returned_;
    go_on(State::kReturned, "", Place());
    std::abort();
  }

 private:
  void run_block(std::uint64_t block) {
    here_.block[0] = static_cast<std::uint32_t>(block % here_.grid[0]);
    here_.block[1] = static_cast<std::uint32_t>(block / here_.grid[0] % here_.grid[1]);
    here_.block[2] = static_cast<std::uint32_t>(block / here_.grid[0] / here_.grid[1]);
    here_.shared = shared_->poison();
    at_barrier_ = returned_ = 0;
    threads_.assign(here_.threads, Thread());
    warps_.assign(here_.threads / kLanes, Warp());
    ready_.resize(here_.threads);
    std::iota(ready_.begin(), ready_.end(), 0);
    for (int i = 0; i < here_.threads; ++i) fibers_[i]->prepare(enter);
    here_.thread = take();
    Fiber::switch_to(host_, *fibers_[here_.thread]);
    if (error_.empty() && shared_->overrun()) {
      error_ = "the kernel wrote past its " + std::to_string(shared_->bytes()) + " bytes of shared memory";
    }
  }

  int take() {
    const std::uint64_t index = random_.below(ready_.size());
    const int thread = ready_[index];
    ready_[index] = ready_.back();
    ready_.pop_back();
    return thread;
  }
  void wake(int thread) {
    threads_[thread].state = State::kReady;
    ready_.push_back(thread);
  }

  // Switches from the running thread to one that is ready.
  void go_on(State state, const char* operation, const Place& place) {
    const int thread = here_.thread;
    threads_[thread].state = state;
    threads_[thread].operation = operation;
    threads_[thread].place = place;
    const bool over = state == State::kReturned;
    if (ready_.empty()) {
      if (returned_ < here_.threads) error_ = explain_standstill();
      Fiber::switch_to(*fibers_[thread], host_, true);
      std::abort();
    }
    const int next = take();
    if (next == thread) return;
    here_.thread = next;
    Fiber::switch_to(*fibers_[thread], *fibers_[next], over);
  }

  std::string explain_standstill() const {
    const auto waiting = std::find_if(threads_.begin(), threads_.end(),
                                      [](const Thread& thread) { return thread.state != State::kReturned; });
    const auto other = std::find_if(threads_.begin(), threads_.end(), [&](const Thread& thread) {
      return thread.state != waiting->state || !same(thread.place, waiting->place);
    });
    const auto number = [&](auto thread) { return "thread " + std::to_string(thread - threads_.begin()); };
    std::string text =
        number(waiting) + " waits in " + waiting->operation + " at " + at(waiting->place) + " for ever: ";
    if (other == threads_.end()) return text + "its warp is not complete";
    if (other->state == State::kReturned) return text + number(other) + " has returned";
    return text + number(other) + " waits in " + other->operation + " at " + at(other->place);
  }

  std::mutex mutex_;
  Random random_{0};
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  std::string error_;
  Where& here_ = running;
  Fiber host_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  SharedMemory* shared_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> ready_;
  int at_barrier_ = 0, returned_ = 0;
};

Machine machine;

void enter() { machine.run_thread(); }

bool noting = false;
std::vector<const char*> noted;

}  // namespace

void only_note(bool on) { noting = on; }

std::vector<std::string> take_noted() {
  std::vector<std::string> names(noted.begin(), noted.end());
  noted.clear();
  return names;
}

void run(const Launch& launch, void (*thread)(void*), void* context) {
  check_limits(launch);
  const std::size_t most = device_limits(0).shared_bytes;
  if (launch.shared_bytes > most) {
    throw LaunchError(describe(launch) + ": this device has " + std::to_string(most) + " bytes for a block");
  }
  if (noting) {
    noted.push_back(launch.kernel);
    return;
  }
  machine.run(launch, thread, context);
}

void fail(const std::string& what, const Place& place) { machine.fail(what + " at " + at(place)); }

void wait_for_block(const Place& place) { machine.wait_for_block(place); }

const unsigned char* exchange(const void* mine, std::size_t bytes, const char* operation, const Place& place) {
  return machine.exchange(mine, bytes, operation, place);
}

void start_copy(void* shared, const void* global, int bytes, const Place& place) {
  if (!machine.shared_holds(shared, 16)) fail("copy_async() to outside of shared memory", place);
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0 || reinterpret_cast<std::uintptr_t>(global) % 16 != 0) {
    fail("copy_async() between addresses that are no multiples of 16", place);
  }
  if (bytes < 0 || bytes > 16) fail("copy_async() of " + std::to_string(bytes) + " bytes", place);
  machine.start_copy({static_cast<unsigned char*>(shared), global, bytes});
}
void commit_copies() { machine.commit_copies(); }
void wait_for_copies(int groups_left) { machine.wait_for_copies(groups_left); }

}  // namespace simmst::cuda::emulation

namespace simmst::cuda {

const DeviceLimits& device_limits(int) {
  using emulation::from_environment;
  static DeviceLimits limits;
  limits.multiprocessors = static_cast<int>(from_environment("SIMMST_CUDA_EMULATION_MULTIPROCESSORS", 4));
  limits.shared_bytes = static_cast<std::size_t>(from_environment("SIMMST_CUDA_EMULATION_SHARED_BYTES", 232448));
  return limits;
}

DeviceGuard::DeviceGuard(int device) {
  if (device != -1) throw LaunchError("the emulator's tensors lie on the CPU, got device " + std::to_string(device));
}
DeviceGuard::~DeviceGuard() = default;

}  // namespace simmst::cuda
