// Spatial attention for one instruction set. Maps are divided among the threads, each of which has its own workspace.
#include "cpu/spatial_attention.hpp"

#include <omp.h>

#include "cpu/spatial_attention_backward.hpp"

namespace simmst::cpu::SIMMST_ISA::spatial {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// The team size: every thread gets at least one group.
int team(const Problem& problem) {
  const int64_t groups = group_count(problem);
  return static_cast<int>(groups < problem.threads ? groups : problem.threads);
}

// The maps of group `index`.
Group group_of(const Problem& problem, int64_t index) {
  const int64_t maps = maps_in_group(problem), first = index * maps, left = problem.batch - first;
  return {first, left < maps ? left : maps};
}

template <typename T>
GroupBuffers<T> in_place(const Problem& problem, const GroupBuffers<T>& buffers, T* kept, int64_t index) {
  return kept == nullptr ? buffers : place_kept(problem, buffers, kept + index * kept_rows(problem) * buffers.ld);
}

template <typename T>
int64_t group_bytes(const Problem& problem) {
  Workspace workspace(nullptr);
  take_group_buffers<T>(problem, !problem.keeps, workspace);
  return workspace.used();
}

template <typename T>
int64_t forward_bytes(const Problem& problem) {
  Workspace workspace(nullptr);
  take_packed<T>(problem, workspace);
  return workspace.used() + team(problem) * group_bytes<T>(problem);
}

template <typename Storage>
void forward(const Problem& problem, const Map& x, const Weights& weights, const bool* mask, void* out, void* lse,
             void* kept, void* memory) {
  using T = Compute<Storage>;
  Workspace workspace(memory);
  Packed<T> packed = take_packed<T>(problem, workspace);
  pack_weights<Storage>(problem, weights, static_cast<T>(problem.scale * kLog2E), packed);
  char* own = workspace.take<char>(0);
  const int64_t own_bytes = group_bytes<T>(problem);
#pragma omp parallel num_threads(team(problem)) if (team(problem) > 1)
  {
    Workspace mine(own + omp_get_thread_num() * own_bytes);
    const GroupBuffers<T> buffers = take_group_buffers<T>(problem, !problem.keeps, mine);
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < group_count(problem); ++index)
      forward_group<Storage>(problem, packed, x, mask, group_of(problem, index), kept != nullptr, out,
                             static_cast<T*>(lse), in_place(problem, buffers, static_cast<T*>(kept), index));
  }
}

// Weight gradients are summed over fixed chunks of groups, and the chunks are added in order, whatever the number of
// threads. There are at most 64 chunks. Their sums have to be written and read as well, so there are fewer chunks, down
// to 16, where the sums would take more than 2 MiB, and fewer still, down to one, where they would take more than 64
// MiB.
template <typename T>
int64_t chunk_count(const Problem& problem) {
  Workspace workspace(nullptr);
  take_sums<T>(problem, workspace);
  const int64_t cheap = (int64_t{2} << 20) / workspace.used(), affordable = (int64_t{64} << 20) / workspace.used();
  const int64_t limit = cheap > 64 ? 64 : cheap > 16 ? cheap : affordable < 16 ? affordable : 16;
  return group_count(problem) < limit ? group_count(problem) : limit < 1 ? 1 : limit;
}

struct BackwardSizes {
  int64_t sums, own;  // bytes of a chunk's sums, and of a thread's buffers
};

template <typename T>
BackwardSizes backward_sizes(const Problem& problem) {
  Workspace sums(nullptr), own(nullptr);
  take_sums<T>(problem, sums);
  take_backward_buffers<T>(problem, own);
  return {sums.used(), own.used()};
}

template <typename T>
int64_t backward_bytes(const Problem& problem) {
  Workspace workspace(nullptr);
  take_packed<T>(problem, workspace);
  take_packed_backward<T>(problem, workspace);
  const auto sizes = backward_sizes<T>(problem);
  return workspace.used() + chunk_count<T>(problem) * sizes.sums + team(problem) * sizes.own;
}

// to[r][c] = sum over the chunks, in order, of the rows (height, ld) that start at `first` in each chunk's sums.
template <typename Storage, typename T>
void add_chunks(const T* first, int64_t stride, int64_t chunks, int64_t height, int64_t width, int64_t ld, void* to) {
  if (to == nullptr) return;
  Storage* out = static_cast<Storage*>(to);
  for (int64_t r = 0; r < height; ++r)
    for (int64_t c = 0; c < width; c += kLanes<T>) {
      const int count = static_cast<int>(width - c < kLanes<T> ? width - c : kLanes<T>);
      Vec<T> sum{};
      for (int64_t k = 0; k < chunks; ++k) sum += load_partial(first + k * stride + r * ld + c, count);
      store_some<Storage, T>(out + r * width + c, sum, count);
    }
}

template <typename Storage, typename T>
void add_all_chunks(const Problem& problem, const Sums<T>& sums, int64_t bytes, int64_t chunks, const Gradients& to) {
  const int64_t channels = problem.channels, stride = bytes / static_cast<int64_t>(sizeof(T));
  add_chunks<Storage>(sums.in, stride, chunks, 3 * channels, channels, sums.ld, to.in);
  add_chunks<Storage>(sums.out, stride, chunks, channels, channels, sums.ld, to.out);
  add_chunks<Storage>(sums.in_bias, stride, chunks, 1, 3 * channels, 0, to.in_bias);
  add_chunks<Storage>(sums.out_bias, stride, chunks, 1, channels, 0, to.out_bias);
  add_chunks<Storage>(sums.norm, stride, chunks, 1, channels, 0, to.norm);
  add_chunks<Storage>(sums.norm_bias, stride, chunks, 1, channels, 0, to.norm_bias);
}

template <typename Storage>
void backward(const Problem& problem, const Map& grad, const Map& x, const Weights& weights, const bool* mask,
              const void* kept, const Gradients& wanted, void* memory) {
  using T = Compute<Storage>;
  Workspace workspace(memory);
  Packed<T> packed = take_packed<T>(problem, workspace);
  const PackedBackward<T> plain = take_packed_backward<T>(problem, workspace);
  pack_weights<Storage>(problem, weights, static_cast<T>(problem.scale * kLog2E), packed);
  pack_backward<Storage>(problem, weights, plain);
  const auto sizes = backward_sizes<T>(problem);
  const int64_t chunks = chunk_count<T>(problem), groups = group_count(problem);
  char* all_sums = workspace.take<char>(chunks * sizes.sums);
  char* own = workspace.take<char>(0);
  T* from = const_cast<T*>(static_cast<const T*>(kept));  // is not written to
#pragma omp parallel num_threads(team(problem)) if (team(problem) > 1)
  {
    Workspace mine(own + omp_get_thread_num() * sizes.own);
    const BackwardBuffers<T> buffers = take_backward_buffers<T>(problem, mine);
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      clear(all_sums + chunk * sizes.sums, sizes.sums);
      Workspace part(all_sums + chunk * sizes.sums);
      const Sums<T> sums = take_sums<T>(problem, part);
      for (int64_t index = chunk * groups / chunks; index < (chunk + 1) * groups / chunks; ++index) {
        BackwardBuffers<T> of_group = buffers;
        of_group.group = in_place(problem, buffers.group, from, index);
        backward_group<Storage>(problem, packed, plain, grad, x, mask, group_of(problem, index), wanted, of_group,
                                sums);
      }
    }
  }
  Workspace part(all_sums);
  add_all_chunks<Storage>(problem, take_sums<T>(problem, part), sizes.sums, chunks, wanted);
}

int64_t any_forward_bytes(const Problem& problem) {
  return problem.type == DataType::kFloat64 ? forward_bytes<double>(problem) : forward_bytes<float>(problem);
}

void any_forward(const Problem& problem, const Map& x, const Weights& weights, const bool* mask, void* out, void* lse,
                 void* kept, void* workspace) {
  with_storage(problem.type,
               [&]<typename Storage>() { forward<Storage>(problem, x, weights, mask, out, lse, kept, workspace); });
}

int64_t any_backward_bytes(const Problem& problem) {
  return problem.type == DataType::kFloat64 ? backward_bytes<double>(problem) : backward_bytes<float>(problem);
}

void any_backward(const Problem& problem, const Map& grad, const Map& x, const Weights& weights, const bool* mask,
                  const void* kept, const Gradients& wanted, void* workspace) {
  with_storage(problem.type, [&]<typename Storage>() {
    backward<Storage>(problem, grad, x, weights, mask, kept, wanted, workspace);
  });
}

}  // namespace

const Kernels kernels = {any_forward_bytes, any_forward, any_backward_bytes, any_backward};

}  // namespace simmst::cpu::SIMMST_ISA::spatial
