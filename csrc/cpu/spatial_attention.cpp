// Spatial attention for one instruction set: maps are shared out among the threads, each with a workspace of its own.
#include "cpu/spatial_attention.hpp"

#include <omp.h>

#include "cpu/spatial_attention_forward.hpp"

namespace simmst::cpu::spatial {
namespace SIMMST_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// Team size: no thread without a map.
int team(const Problem& problem) {
  return static_cast<int>(problem.batch < problem.threads ? problem.batch : problem.threads);
}

template <typename T>
int64_t map_bytes(const Problem& problem) {
  Workspace workspace(nullptr);
  take_map_buffers<T>(problem, workspace);
  return workspace.used();
}

template <typename T>
int64_t forward_bytes(const Problem& problem) {
  Workspace workspace(nullptr);
  take_packed<T>(problem, workspace);
  return workspace.used() + team(problem) * map_bytes<T>(problem);
}

template <typename Storage>
void forward(const Problem& problem, const Map& x, const Weights& weights, const bool* mask, void* out, void* lse,
             void* memory) {
  using T = Compute<Storage>;
  Workspace workspace(memory);
  Packed<T> packed = take_packed<T>(problem, workspace);
  pack_weights<Storage>(problem, weights, static_cast<T>(problem.scale * kLog2E), packed);
  char* own = workspace.take<char>(0);
  const int64_t own_bytes = map_bytes<T>(problem);
#pragma omp parallel num_threads(team(problem)) if (team(problem) > 1)
  {
    Workspace mine(own + omp_get_thread_num() * own_bytes);
    const MapBuffers<T> buffers = take_map_buffers<T>(problem, mine);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < problem.batch; ++b)
      forward_map<Storage>(problem, packed, x, mask, b, out, static_cast<T*>(lse), buffers);
  }
}

// Calls f.template operator()<Storage>() for the storage type of a dtype.
template <typename F>
auto with_storage(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat64:
      return f.template operator()<double>();
    case Dtype::kBFloat16:
      return f.template operator()<bfloat16>();
    case Dtype::kFloat16:
      return f.template operator()<float16>();
    default:
      return f.template operator()<float>();
  }
}

int64_t any_forward_bytes(const Problem& problem) {
  return problem.dtype == Dtype::kFloat64 ? forward_bytes<double>(problem) : forward_bytes<float>(problem);
}

void any_forward(const Problem& problem, const Map& x, const Weights& weights, const bool* mask, void* out, void* lse,
                 void* workspace) {
  with_storage(problem.dtype,
               [&]<typename Storage>() { forward<Storage>(problem, x, weights, mask, out, lse, workspace); });
}

}  // namespace

const Kernels kernels = {any_forward_bytes, any_forward, nullptr, nullptr};

}  // namespace SIMMST_ISA
}  // namespace simmst::cpu::spatial
