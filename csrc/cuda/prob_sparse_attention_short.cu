// The whole forward pass of short sequences in one launch: one block per batch entry holds the entry's keys and values
// in shared memory, measures the queries, selects, attends and fills.
//
// Counts for bfloat16, D = 64: the rows of Q, K and V take 144 bytes each, and there are some 40 KB more, so that about
// L = 440 is the longest where a block has 227 KB. Global memory is read only at the start, 3 L rows of 128 bytes, and
// L rows are written: 11 MB for L = 336 with 64 heads. The rest is one block's latency, on half of a large GPU's
// multiprocessors; measured times are in docs/results/speed.md. Per query, L S rows of 128 bytes come from shared
// memory, 10 thousand clocks for L = 336 (S = 30). There, several launches that share a head among blocks are faster;
// they are used above kMostGathered.
#include "cuda/prob_sparse_attention_attend.cuh"
#include "cuda/prob_sparse_attention_gathered.cuh"

namespace simmst::cuda::prob_sparse {
namespace {

using namespace simmst::prob_sparse;

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int64_t kMostRows = kWarps * kWarpRows;  // selected queries and the fill: 16 per warp
constexpr int64_t kMostGathered = 256;             // queries, when each has its own samples

struct ForwardParameters {
  Batch batch;
  Operand query, key, value, out;
  const int64_t* sample;
  int64_t samples;
  bool shared;
  float divisor;
  int64_t selected;
  Softmax softmax;
  Fill fill;
  int64_t* top;
  float* measure;
  float* lse;
};

constexpr int kListed = 32;  // eighths of a group's samples that a warp lists at a time

// The shared memory of a block, in bytes from its start. Everything from global memory is read at the start.
struct Layout {
  int64_t keys;      // (L_K, W); after the scores, the warps' partial sums
  int64_t values;    // (L_K, W)
  int64_t queries;   // (L_Q, W)
  int64_t chosen;    // (rows, W): the selected queries, in whole tiles
  int64_t sampled;   // (kTile, W): the keys that all queries share; or each warp's list of samples
  int64_t indices;   // (kThreads): the first of the samples that all queries share
  int64_t top;       // (rows)
  int64_t measure;   // (L_Q)
  int64_t extremes;  // for each row that a warp works on: extremes of the measure, later of the softmax
  int64_t words;     // for the selection
  int64_t fill;
  int64_t scratch;  // one per warp
  int64_t bytes;
};

template <typename T, int W>
SIMMST_HOST_DEVICE constexpr Layout layout_of(int64_t queries, int64_t keys, int64_t selected) {
  using Product = Products<T, W>;
  constexpr int64_t kRow = Product::kPitch * static_cast<int64_t>(sizeof(T)), kLists = kWarps * kListed * 8 * 4;
  const int64_t key_rows = round_up_to(keys, kTile), partial = kWarps * kWarpRows * W * 4;
  const int64_t query_rows = round_up_to(queries, kWarpRows);
  Layout at{};
  at.values = key_rows * kRow < partial ? partial : key_rows * kRow;
  at.queries = at.values + key_rows * kRow;
  at.chosen = at.queries + query_rows * kRow;
  at.sampled = at.chosen + round_up_to(attend_rows(selected, queries), kWarpRows) * kRow;
  at.indices = at.sampled + (kTile * kRow < kLists ? kLists : kTile * kRow);
  at.top = at.indices + kThreads * 4;
  at.measure = at.top + round_up_to(selected * 8, 16);
  at.extremes = at.measure + round_up_to(queries * 4, 16);
  at.words = at.extremes + (query_rows < kMostRows ? kMostRows : query_rows) * 8;
  at.fill = at.words + round_up_to(kRankedWords * 4, 16);
  at.scratch = at.fill + static_cast<int64_t>(fill_bytes<kThreads>());
  at.bytes = at.scratch + kWarps * Product::kScratch * 4;
  return at;
}

// The measure on samples that all queries share, 64 samples at a time.
template <typename T, int W>
SIMMST_DEVICE void measure_shared(const ForwardParameters& p, const Layout& at, int queries, int64_t keys) {
  constexpr int kPitch = Products<T, W>::kPitch, kPart = 16 / static_cast<int>(sizeof(T));
  unsigned char* memory = shared_memory();
  const T* rows = reinterpret_cast<const T*>(memory + at.keys);
  const T* all_queries = reinterpret_cast<const T*>(memory + at.queries);
  const int* indices = reinterpret_cast<const int*>(memory + at.indices);
  T* sampled = reinterpret_cast<T*>(memory + at.sampled);
  auto* found = reinterpret_cast<Extremes*>(memory + at.extremes);
  auto* measure = reinterpret_cast<float*>(memory + at.measure);
  for (int i = thread_index(); i < round_up_to(queries, kWarpRows); i += kThreads) found[i] = Extremes();
  for (int64_t sample = 0; sample < p.samples; sample += kTile) {
    const int count = static_cast<int>(p.samples - sample < kTile ? p.samples - sample : kTile);
    sync_block();
    for (int i = thread_index(); i < kTile * (W / kPart); i += kThreads) {
      const int r = i / (W / kPart), column = i % (W / kPart) * kPart;
      int64_t index = 0;
      if (r < count) index = sample < kThreads ? indices[sample + r] : clamp_index(p.sample[sample + r], keys);
      store_pack(sampled + r * kPitch + column, load_pack<Pack<T>>(rows + index * kPitch + column));
    }
    sync_block();
    for (int row = warp_index() * kWarpRows; row < queries; row += kWarps * kWarpRows)
      measure_tile<T, W>(all_queries + row * kPitch, sampled, count, found + row);
  }
  sync_block();
  for (int i = thread_index(); i < queries; i += kThreads) measure[i] = found[i].measure(p.divisor);
}

// The measure on each query's own samples, gathered from shared memory.
template <typename T, int W>
SIMMST_DEVICE void measure_gathered(const ForwardParameters& p, const Layout& at, int queries, int64_t keys) {
  constexpr int kPitch = Products<T, W>::kPitch;
  unsigned char* memory = shared_memory();
  const T* rows = reinterpret_cast<const T*>(memory + at.keys);
  const Rows<const T> all_queries{reinterpret_cast<const T*>(memory + at.queries), kPitch, queries, W, true};
  auto* measure = reinterpret_cast<float*>(memory + at.measure);
  auto* list = reinterpret_cast<std::uint32_t*>(memory + at.sampled) + warp_index() * kListed * 8;
  for (int first = warp_index() * kGroup; first < queries; first += kWarps * kGroup) {
    const GroupProducts<T, W> products(all_queries, first);
    const GroupSamples samples(p.sample, p.samples, first / kGroup, queries, keys);
    GroupMeasure<StagedRows<T, W>, T, W> group{
        products, StagedRows<T, W>(rows, kPitch * static_cast<int>(sizeof(T))), {}};
    for (int64_t eighth = 0; eighth < samples.all_eighths(); eighth += kListed) {
      const int turns = list_in_order(samples, eighth, eighth + kListed, list);
      sync_warp();
      group.add_list(list, turns);
      sync_warp();
    }
    const Extremes found = group.reduced();
    const int i = first + group.reduced_query();
    if (lane_index() < kGroup && i < queries) measure[i] = found.measure(p.divisor);
  }
}

// The warps divide the selected rows among them, 16 each; warps with the same rows divide the tiles of keys.
template <typename T, int W>
SIMMST_DEVICE void attend_rows_of(const ForwardParameters& p, const Layout& at, int64_t entry, int64_t rows,
                                  int64_t spans) {
  constexpr int kPitch = Products<T, W>::kPitch, kPart = 16 / static_cast<int>(sizeof(T));
  unsigned char* memory = shared_memory();
  T* keys = reinterpret_cast<T*>(memory + at.keys);
  const T* values = reinterpret_cast<const T*>(memory + at.values);
  const T* queries = reinterpret_cast<const T*>(memory + at.queries);
  T* chosen = reinterpret_cast<T*>(memory + at.chosen);
  float* scratch = reinterpret_cast<float*>(memory + at.scratch) + warp_index() * Products<T, W>::kScratch;
  const auto* top = reinterpret_cast<const int64_t*>(memory + at.top);
  const int64_t first = warp_index() / spans * kWarpRows, span = warp_index() % spans;
  const auto selected_query = [&](int64_t i) { return i < p.selected ? top[i] : int64_t{-1}; };
  for (int i = thread_index(); i < static_cast<int>(round_up_to(rows, kWarpRows)) * (W / kPart); i += kThreads) {
    const int r = i / (W / kPart), column = i % (W / kPart) * kPart;
    const int64_t row = selected_query(r);
    store_pack(chosen + r * kPitch + column, row < 0 ? Pack<T>{} : load_pack<Pack<T>>(queries + row * kPitch + column));
  }
  sync_block();
  LaneRows lane_rows;
  TileC sum[W / 8];
  if (first < rows) {
    SIMMST_UNROLL
    for (int r = 0; r < 2; ++r) lane_rows.query[r] = selected_query(first + tile_row() + 8 * r);
    for (int64_t key = span * kTile; key < p.softmax.keys; key += spans * kTile)
      attend_tile<T, W>(p.softmax, chosen + first * kPitch, keys + key * kPitch, values + key * kPitch, lane_rows, sum,
                        entry, key, scratch);
  }
  sync_block();
  if (first < rows)
    store_partial<W>({reinterpret_cast<float*>(keys), reinterpret_cast<float*>(memory + at.extremes), rows}, sum,
                     lane_rows, span, first, rows);
  sync_block();
}

template <typename T, int W>
SIMMST_KERNEL(kThreads)
forward_entry(const ForwardParameters p) {
  constexpr int kPitch = Products<T, W>::kPitch;
  const int64_t entry = block_index().x;
  const Rows<const T> query = rows_of<const T>(p.query, p.batch, entry), key = rows_of<const T>(p.key, p.batch, entry),
                      value = rows_of<const T>(p.value, p.batch, entry);
  const Layout at = layout_of<T, W>(query.count, key.count, p.selected);
  unsigned char* memory = shared_memory();
  const int queries = static_cast<int>(query.count), key_rows = static_cast<int>(round_up_to(key.count, kTile));
  T* values = reinterpret_cast<T*>(memory + at.values);
  start_tile<W>(reinterpret_cast<T*>(memory + at.keys), kPitch, key, 0, key.count, key_rows);
  start_tile<W>(reinterpret_cast<T*>(memory + at.queries), kPitch, query, 0, query.count,
                static_cast<int>(round_up_to(queries, kWarpRows)));
  commit_copies();
  start_tile<W>(values, kPitch, value, 0, key.count, key_rows);
  commit_copies();
  if (p.shared && thread_index() < p.samples)
    reinterpret_cast<int*>(memory + at.indices)[thread_index()] =
        static_cast<int>(clamp_index(p.sample[thread_index()], key.count));
  wait_for_copies<1>();
  sync_block();
  if (p.shared) {
    measure_shared<T, W>(p, at, queries, key.count);
  } else {
    measure_gathered<T, W>(p, at, queries, key.count);
  }
  wait_for_copies<0>();
  sync_block();
  // Writes the measures out, and replaces them by their ordered bits.
  auto* measure = reinterpret_cast<float*>(memory + at.measure);
  for (int i = thread_index(); i < round_up_to(queries, 4); i += kThreads) {
    const float found = i < queries ? measure[i] : 0.0f;
    if (i < queries) p.measure[entry * query.count + i] = found;
    const std::uint32_t bits = i < queries ? ordered_bits(found) : 0;
    memcpy(measure + i, &bits, sizeof(bits));
  }
  auto* top = reinterpret_cast<int64_t*>(memory + at.top);
  select_ranked(reinterpret_cast<const std::uint32_t*>(measure), queries, p.selected, top,
                reinterpret_cast<std::uint32_t*>(memory + at.words));
  sync_block();
  for (int i = thread_index(); i < p.selected; i += kThreads) p.top[entry * p.selected + i] = top[i];

  const int64_t rows = attend_rows(p.selected, query.count), spans = kWarps / ceil_div(rows, kWarpRows);
  attend_rows_of<T, W>(p, at, entry, rows, spans);
  const OutputRows<T> output{
      rows_of<T>(p.out, p.batch, entry),
      {reinterpret_cast<float*>(memory + at.keys), reinterpret_cast<float*>(memory + at.extremes), rows},
      spans,
      key.count,
      top,
      p.selected,
      p.fill,
      p.lse + entry * p.selected};
  if (p.selected == query.count) {
    // All rows are selected.
  } else if (p.fill == Fill::kMean) {
    fill_with_mean<W>(output, memory + at.fill, 0, query.count);
  } else {
    fill_with_running_sum<W, kThreads>(output, memory + at.fill, 0, query.count, 0.0,
                                       [&](int64_t i) { return values + i * kPitch; });
  }
  sync_block();
  combine_rows<W>(output, 0, query.count);
}

}  // namespace

bool fits_one_launch(const SelectCall& select, const Queue& queue) {
  const Problem& problem = select.problem;
  const int64_t queries = problem.query.matrices.rows, keys = problem.key.matrices.rows;
  if (select.selected < 1 || attend_rows(select.selected, queries) > kMostRows) return false;
  if (queries > (select.shared ? int64_t{kMostRanked} : kMostGathered)) return false;
  int64_t bytes = 0;
  for_type_and_width(problem.type, problem.width, [&](auto type, auto width) {
    bytes = layout_of<decltype(type), decltype(width)::value>(queries, keys, select.selected).bytes;
  });
  return bytes <= static_cast<int64_t>(device_limits(queue.device).shared_bytes);
}

void forward_in_one_launch(const SelectCall& select, const AttendCall& attend, const Queue& queue) {
  const Problem& problem = attend.problem;
  const int64_t queries = problem.query.matrices.rows, keys = problem.key.matrices.rows, batch = problem.batch.count;
  if (batch == 0 || queries == 0) return;
  const ForwardParameters p{problem.batch,
                            problem.query,
                            problem.key,
                            attend.value,
                            attend.out,
                            select.sample,
                            select.samples,
                            select.shared,
                            select.divisor,
                            select.selected,
                            {keys, attend.scale * kLog2E, attend.is_causal, attend.dropout},
                            attend.fill,
                            select.top,
                            select.measure,
                            attend.lse};
  for_type_and_width(problem.type, problem.width, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kWidth = decltype(width)::value;
    launch({"prob_sparse forward_entry",
            {batch},
            kThreads,
            static_cast<std::size_t>(layout_of<T, kWidth>(queries, keys, select.selected).bytes),
            queue.stream,
            {{"batch", batch}, {"L_Q", queries}, {"L_K", keys}, {"u", select.selected}, {"width", kWidth}}},
           forward_entry<T, kWidth>, p);
  });
}

}  // namespace simmst::cuda::prob_sparse
