// Selection: the measure, then the u largest of every batch entry, a block for each.
//
// Not run on a GPU yet. The measures of an entry (4 L bytes) stay in the L1 cache over the five passes of the radix
// search: for L = 16384 sixteen loads a thread and pass.
#include "cuda/prob_sparse_attention_measure.cuh"
#include "cuda/prob_sparse_attention_top.cuh"

namespace simmst::cuda::prob_sparse {
namespace {

using namespace simmst::prob_sparse;

constexpr int kThreads = kMostWarps * kWarp;

struct TopParameters {
  const float* measure;  // (batch, count)
  int64_t count, selected;
  int64_t* top;  // (batch, selected)
};

SIMMST_KERNEL(kThreads) select_largest(const TopParameters p) {
  const int64_t entry = block_index().x;
  select_top(p.measure + entry * p.count, p.count, p.selected, p.top + entry * p.selected,
             reinterpret_cast<int*>(shared_memory()));
}

}  // namespace

int64_t select_workspace(const SelectCall& call, const Queue& queue) { return measure_workspace(call, queue); }

void select_queries(const SelectCall& call, const Queue& queue) {
  const int64_t batch = call.problem.batch.count, queries = call.problem.query.matrices.rows;
  if (batch == 0 || queries == 0) return;
  measure_queries(call, queue);
  if (call.selected == 0) return;
  const int64_t threads = round_up_to(queries < kThreads ? queries : kThreads, kWarp);
  launch({"prob_sparse select_largest", {batch}, static_cast<int>(threads), kTopCounters * sizeof(int), queue.stream,
          {{"batch", batch}, {"L_Q", queries}, {"u", call.selected}}},
         select_largest, TopParameters{call.measure, queries, call.selected, call.top});
}

}  // namespace simmst::cuda::prob_sparse
