// The selection of queries: the sparsity measure on sampled keys, and its u largest values.
#include <omp.h>

#include "cpu/prob_sparse_attention_dense.hpp"
#include "cpu/prob_sparse_attention_gathered.hpp"
#include "cpu/prob_sparse_attention_top.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {
namespace {

constexpr int64_t kMeasureRows = 64;  // fewest queries per thread when there are several threads: whole panels

// Samples shared by all queries: the product of Q with the sampled keys.

template <typename T>
struct SharedBuffers {
  int64_t pitch, padded;
  T* rows;     // (pitch, padded): the sampled keys
  T* packed;   // (D, pitch)
  T* queries;  // (kBlockKeys, padded)
  T* scores;   // (kScoreRows, pitch)

  SharedBuffers(const SelectCall& call, Arena& arena)
      : pitch(round_up(call.samples, kLanes<T>)), padded(round_up(call.query.columns, kLanes<T>)) {
    rows = arena.take<T>(pitch * padded);
    packed = arena.take<T>(call.query.columns * pitch);
    queries = arena.take<T>(kBlockKeys * padded);
    scores = arena.take<T>(kScoreRows * pitch);
  }
};

template <typename Storage, typename T = Compute<Storage>>
void measure_shared(const SelectCall& call, int64_t b, int64_t first, int64_t last, char* memory, T* measure) {
  Arena arena(memory);
  const SharedBuffers<T> w(call, arena);
  const int64_t width = call.query.columns;
  const Storage* key = entry<Storage>(call.key, call.batch, b);
  for (int64_t s = 0; s < w.pitch; ++s)
    copy_row(key + call.sample[smaller(s, call.samples - 1)] * call.key.row_stride, width, w.padded,
             T(s < call.samples), w.rows + s * w.padded);
  transpose(w.rows, w.padded, w.pitch, width, w.packed);

  const int64_t stride = call.query.row_stride, panels = w.pitch / kLanes<T>;
  const Storage* query = entry<Storage>(call.query, call.batch, b);
  const IntVec<T> lane = lane_numbers<T>() + static_cast<IntOf<T>>((panels - 1) * kLanes<T>);
  const IntVec<T> valid = lane < static_cast<IntOf<T>>(call.samples);
  const Vec<T> lowest = broadcast<T>(static_cast<T>(-__builtin_inf()));
  const T divisor = static_cast<T>(call.divisor);
  for (int64_t i = first; i < last; i += kBlockKeys) {
    const int64_t count = smaller<int64_t>(kBlockKeys, last - i);
    score_block(rows_of(query + i * stride, stride, count, width, false, w.queries), count, w.packed, w.pitch, 0,
                panels, width, w.scores);
    for (int64_t j = 0; j < count; ++j) {
      const T* score = w.scores + j * w.pitch;
      Vec<T> x = load(score + (panels - 1) * kLanes<T>);
      Vec<T> largest = max(select<T>(valid, x, lowest), lowest), sum = select<T>(valid, x, Vec<T>{});
      for (int64_t p = 0; p < panels - 1; ++p) {
        x = load(score + p * kLanes<T>);
        largest = max(x, largest);
        sum += x;
      }
      measure[i + j] = reduce_max<T>(largest) - reduce_add<T>(sum) / divisor;
    }
  }
}

// A whole call.

enum class Way { kShared, kGathered, kDense };  // the shape alone decides between them

template <typename Storage, typename T = Compute<Storage>>
bool select_all(const SelectCall& call) {
  const int64_t rows = call.query.rows, batch = call.batch.count;
  if (rows == 0 || batch == 0) return true;
  const Way way = call.shared ? Way::kShared : is_dense<T>(call) ? Way::kDense : Way::kGathered;
  const int64_t key_bytes = round_up(rows * static_cast<int64_t>(sizeof(T)), 64);
  const int64_t wanted =
      batch >= call.threads ? 1 : smaller<int64_t>(call.threads, (rows + kMeasureRows - 1) / kMeasureRows);
  const int64_t size = wanted == 1 ? rows : round_up((rows + wanted - 1) / wanted, kMeasureRows);  // queries in a part
  const int64_t parts = (rows + size - 1) / size;
  Arena common, own;  // without memory, they count the bytes
  if (way == Way::kShared) (void)SharedBuffers<T>(call, own);
  if (way == Way::kGathered) (void)GatherBuffers<Storage>(call, size, own);
  if (way == Way::kDense) (void)Draws<T>(call, common), (void)DenseBuffers<T>(call, own);
  const int threads = static_cast<int>(smaller<int64_t>(call.threads, batch * parts));
  const Workspaces shared(1, common.used()), memory(threads, own.used() + key_bytes);
  if (shared.failed() || memory.failed()) return false;
  T* measure = static_cast<T*>(call.measure);

  Arena for_all(shared.at(0));
  Draws<T> draws(call, for_all);
  if (way == Way::kDense) draws.count(call);

  run_team(threads, [&] {
    char* mine = memory.at(omp_get_thread_num());
#pragma omp for schedule(static)
    for (int64_t item = 0; item < batch * parts; ++item) {
      const int64_t b = item / parts, part = item % parts;
      const int64_t first = part * size, last = smaller(first + size, rows);
      T* to = measure + b * rows;
      switch (way) {
        case Way::kShared:
          measure_shared<Storage>(call, b, first, last, mine + key_bytes, to);
          break;
        case Way::kGathered:
          measure_per_query<Storage>(call, b, first, last, mine + key_bytes, to);
          break;
        case Way::kDense:
          measure_dense<Storage>(call, draws, b, first, last, mine + key_bytes, to + first);
      }
      if (parts == 1)
        select_top(to, rows, call.selected, reinterpret_cast<IntOf<T>*>(mine), call.top + b * call.selected);
    }
    if (parts > 1) {
#pragma omp for schedule(static)
      for (int64_t b = 0; b < batch; ++b)
        select_top(measure + b * rows, rows, call.selected, reinterpret_cast<IntOf<T>*>(mine),
                   call.top + b * call.selected);
    }
  });
  return true;
}

}  // namespace

bool select_queries(const SelectCall& call) {
  return with_storage(call.type, [&]<typename Storage>() { return select_all<Storage>(call); });
}

bool in_range(const int64_t* indices, int64_t count, int64_t upper) {
  const auto limit = static_cast<uint64_t>(upper);
  bool outside = false;
  for (int64_t i = 0; i < count; ++i) outside |= static_cast<uint64_t>(indices[i]) >= limit;
  return !outside;
}

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
