// The whole forward pass of short sequences in one launch: a block for each batch entry holds its keys and values in
// shared memory, measures the queries, selects, attends and fills.
//
// Not run on a GPU yet. Counts for bfloat16, D = 64: the rows of K and V of 144 bytes, 31 KB more, and 4 L, so that
// L = 640 is the longest where a block has 227 KB, 448 where it has 163 KB. Global memory is touched once, 4 L rows of
// 128 bytes: 3.1 MB for L = 96 and 11 MB for L = 336 with 64 heads, 3 us at 4.3 TB/s or less from the L2 cache. The
// rest is one block's latency. Shared samples: L / 16 * 32 tensor-core instructions for 8 warps. Per query: L S rows of
// 128 bytes from shared memory, 2.4 thousand clocks for L = 96 (S = 25), 10 thousand for L = 336 (S = 30), which at one
// block on each multiprocessor is slower than several launches that share a head among blocks: those take over from
// kMostGathered on.
#include "cuda/prob_sparse_attention_attend.cuh"
#include "cuda/prob_sparse_attention_gathered.cuh"

namespace simmst::cuda::prob_sparse {
namespace {

using namespace simmst::prob_sparse;

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int64_t kMostRows = kWarps * kWarpRows;   // selected queries and the fill: 16 for each warp
constexpr int64_t kMostGathered = 256;              // queries, when each has samples of its own

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

// The shared memory of a block, in bytes from its beginning.
struct Layout {
  int64_t keys;      // (L_K, W): when the scores are done, the warps' partial sums
  int64_t values;    // (L_K, W)
  int64_t queries;   // (kWarpRows, W) for each warp
  int64_t sampled;   // (kTile, W): keys that all queries share
  int64_t measure;   // (L_Q)
  int64_t extremes;  // of each row that a warp works on: those of the measure, later those of the softmax
  int64_t words;     // of the selection
  int64_t fill;
  int64_t scratch;   // of each warp
  int64_t bytes;
};

template <typename T, int W>
SIMMST_HOST_DEVICE constexpr Layout layout_of(int64_t queries, int64_t keys) {
  using Product = Products<T, W>;
  constexpr int64_t kRow = Product::kPitch * static_cast<int64_t>(sizeof(T));
  const int64_t key_rows = round_up_to(keys, kTile), partial = kWarps * kWarpRows * W * 4;
  Layout at{};
  at.values = key_rows * kRow < partial ? partial : key_rows * kRow;
  at.queries = at.values + key_rows * kRow;
  at.sampled = at.queries + kWarps * kWarpRows * kRow;
  at.measure = at.sampled + kTile * kRow;
  at.extremes = at.measure + round_up_to(queries * 4, 16);
  at.words = at.extremes + kMostRows * 8;
  at.fill = at.words + round_up_to(kRankedWords * 4, 16);
  at.scratch = at.fill + static_cast<int64_t>(fill_bytes<kThreads>());
  at.bytes = at.scratch + kWarps * Product::kScratch * 4;
  return at;
}

// Copies 16 rows of Q for a warp.
template <typename T, int W, typename Index>
SIMMST_DEVICE void fetch_queries(T* to, const Rows<const T>& query, const Index& index) {
  sync_warp();
  start_rows<W>(to, Products<T, W>::kPitch, query, kWarpRows, index, of_warp());
  commit_copies();
  wait_for_copies<0>();
  sync_warp();
}

// The measure on samples that all queries share, 64 samples at a time.
template <typename T, int W>
SIMMST_DEVICE
void measure_shared(const ForwardParameters& p, const Layout& at, const Rows<const T>& query, int64_t keys) {
  constexpr int kPitch = Products<T, W>::kPitch, kPart = 16 / static_cast<int>(sizeof(T));
  unsigned char* memory = shared_memory();
  const T* rows = reinterpret_cast<const T*>(memory + at.keys);
  T* sampled = reinterpret_cast<T*>(memory + at.sampled);
  T* mine = reinterpret_cast<T*>(memory + at.queries) + warp_index() * kWarpRows * kPitch;
  auto* found = reinterpret_cast<Extremes*>(memory + at.extremes) + warp_index() * kWarpRows;
  auto* measure = reinterpret_cast<float*>(memory + at.measure);
  for (int64_t first = 0; first < query.count; first += kMostRows) {
    const int64_t row = first + warp_index() * kWarpRows;
    fetch_queries<T, W>(mine, query, [&](int r) { return row + r < query.count ? row + r : int64_t{-1}; });
    if (lane_index() < kWarpRows) found[lane_index()] = Extremes();
    for (int64_t sample = 0; sample < p.samples; sample += kTile) {
      const int count = static_cast<int>(p.samples - sample < kTile ? p.samples - sample : kTile);
      sync_block();
      for (int i = thread_index(); i < kTile * (W / kPart); i += kThreads) {
        const int r = i / (W / kPart), column = i % (W / kPart) * kPart;
        const int64_t index = r < count ? clamp_index(p.sample[sample + r], keys) : 0;
        store_pack(sampled + r * kPitch + column, load_pack<Pack<T>>(rows + index * kPitch + column));
      }
      sync_block();
      measure_tile<T, W>(mine, sampled, count, found);
    }
    sync_warp();
    if (lane_index() < kWarpRows && row + lane_index() < query.count)
      measure[row + lane_index()] = found[lane_index()].measure(p.divisor);
  }
}

// Eighths that a warp lists at a time: they lie where queries and sampled keys have not come yet.
constexpr int kListed = 32;

// The measure on each query's own samples, gathered from shared memory.
template <typename T, int W>
SIMMST_DEVICE void measure_gathered(const ForwardParameters& p, const Layout& at, const Rows<const T>& query,
                                    const Rows<const T>& key) {
  constexpr int kRow = Products<T, W>::kPitch * static_cast<int>(sizeof(T));
  static_assert(kWarps * kListed * 8 * 4 <= (kWarps * kWarpRows + kTile) * kRow);
  unsigned char* memory = shared_memory();
  const T* rows = reinterpret_cast<const T*>(memory + at.keys);
  auto* measure = reinterpret_cast<float*>(memory + at.measure);
  auto* list = reinterpret_cast<std::uint32_t*>(memory + at.queries) + warp_index() * kListed * 8;
  for (int first = warp_index() * kGroup; first < query.count; first += kWarps * kGroup) {
    const GroupProducts<T, W> products(query, first);
    const GroupSamples samples(p.sample, p.samples, first / kGroup, query.count, key.count);
    GroupMeasure<StagedRows<T, W>, T, W> group{products, StagedRows<T, W>(rows, kRow), {}};
    for (int64_t eighth = 0; eighth < samples.all_eighths(); eighth += kListed) {
      const int turns = list_in_order(samples, eighth, eighth + kListed, list);
      sync_warp();
      group.add_list(list, turns);
      sync_warp();
    }
    const Extremes found = group.reduced();
    const int i = first + group.reduced_query();
    if (lane_index() < kGroup && i < query.count) measure[i] = found.measure(p.divisor);
  }
}

// The warps share the selected rows, 16 each, and among those with the same rows the tiles of keys.
template <typename T, int W>
SIMMST_DEVICE
void attend_rows_of(const ForwardParameters& p, const Layout& at, const Rows<const T>& query, int64_t entry,
                    int64_t rows, int64_t spans) {
  constexpr int kPitch = Products<T, W>::kPitch;
  unsigned char* memory = shared_memory();
  T* keys = reinterpret_cast<T*>(memory + at.keys);
  const T* values = reinterpret_cast<const T*>(memory + at.values);
  T* mine = reinterpret_cast<T*>(memory + at.queries) + warp_index() * kWarpRows * kPitch;
  float* scratch = reinterpret_cast<float*>(memory + at.scratch) + warp_index() * Products<T, W>::kScratch;
  const int64_t* top = p.top + entry * p.selected;
  const int64_t first = warp_index() / spans * kWarpRows, span = warp_index() % spans;
  const auto selected_query = [&](int64_t i) { return i < p.selected ? top[i] : int64_t{-1}; };
  LaneRows lane_rows;
  TileC sum[W / 8];
  if (first < rows) {
    fetch_queries<T, W>(mine, query, [&](int r) { return selected_query(first + r); });
    SIMMST_UNROLL
    for (int r = 0; r < 2; ++r) lane_rows.query[r] = selected_query(first + tile_row() + 8 * r);
    for (int64_t key = span * kTile; key < p.softmax.keys; key += spans * kTile)
      attend_tile<T, W>(p.softmax, mine, keys + key * kPitch, values + key * kPitch, lane_rows, sum, entry, key,
                        scratch);
  }
  sync_block();
  if (first < rows)
    store_partial<W>({reinterpret_cast<float*>(keys), reinterpret_cast<float*>(memory + at.extremes), rows}, sum,
                     lane_rows, span, first, rows);
  sync_block();
}

template <typename T, int W>
SIMMST_KERNEL(kThreads) forward_entry(const ForwardParameters p) {
  constexpr int kPitch = Products<T, W>::kPitch;
  const int64_t entry = block_index().x;
  const Rows<const T> query = rows_of<const T>(p.query, p.batch, entry), key = rows_of<const T>(p.key, p.batch, entry),
                      value = rows_of<const T>(p.value, p.batch, entry);
  const Layout at = layout_of<T, W>(query.count, key.count);
  unsigned char* memory = shared_memory();
  const int key_rows = static_cast<int>(round_up_to(key.count, kTile));
  T* values = reinterpret_cast<T*>(memory + at.values);
  start_tile<W>(reinterpret_cast<T*>(memory + at.keys), kPitch, key, 0, key.count, key_rows);
  commit_copies();
  start_tile<W>(values, kPitch, value, 0, key.count, key_rows);
  commit_copies();
  wait_for_copies<1>();
  sync_block();
  if (p.shared) {
    measure_shared<T, W>(p, at, query, key.count);
  } else {
    measure_gathered<T, W>(p, at, query, key);
  }
  wait_for_copies<0>();
  sync_block();
  // The measures leave, and their ordered bits take their place.
  auto* measure = reinterpret_cast<float*>(memory + at.measure);
  const int queries = static_cast<int>(query.count);
  for (int i = thread_index(); i < round_up_to(queries, 4); i += kThreads) {
    const float found = i < queries ? measure[i] : 0.0f;
    if (i < queries) p.measure[entry * query.count + i] = found;
    const std::uint32_t bits = i < queries ? ordered_bits(found) : 0;
    memcpy(measure + i, &bits, sizeof(bits));
  }
  select_ranked(reinterpret_cast<const std::uint32_t*>(measure), queries, p.selected, p.top + entry * p.selected,
                reinterpret_cast<std::uint32_t*>(memory + at.words));
  sync_block();

  const int64_t rows = attend_rows(p.selected, query.count), spans = kWarps / ceil_div(rows, kWarpRows);
  attend_rows_of<T, W>(p, at, query, entry, rows, spans);
  const OutputRows<T> output{
      rows_of<T>(p.out, p.batch, entry),
      {reinterpret_cast<float*>(memory + at.keys), reinterpret_cast<float*>(memory + at.extremes), rows},
      spans,
      key.count,
      p.top + entry * p.selected,
      p.selected,
      p.fill,
      p.lse + entry * p.selected};
  combine_rows<W>(output, 0, query.count);
  if (p.selected == query.count) return;
  if (p.fill == Fill::kMean) {
    fill_with_mean<W>(output, memory + at.fill, 0, query.count);
  } else {
    fill_with_running_sum<W, kThreads>(output, memory + at.fill, 0, query.count, 0.0,
                                       [&](int64_t i) { return values + i * kPitch; });
  }
}

}  // namespace

bool fits_one_launch(const SelectCall& select, const Queue& queue) {
  const Problem& problem = select.problem;
  const int64_t queries = problem.query.matrices.rows, keys = problem.key.matrices.rows;
  if (select.selected < 1 || attend_rows(select.selected, queries) > kMostRows) return false;
  if (queries > (select.shared ? int64_t{kMostRanked} : kMostGathered)) return false;
  int64_t bytes = 0;
  for_type_and_width(problem.type, problem.width, [&](auto type, auto width) {
    bytes = layout_of<decltype(type), decltype(width)::value>(queries, keys).bytes;
  });
  return bytes <= static_cast<int64_t>(device_limits(queue.device).shared_bytes);
}

void forward_in_one_launch(const SelectCall& select, const AttendCall& attend, const Queue& queue) {
  const Problem& problem = attend.problem;
  const int64_t queries = problem.query.matrices.rows, keys = problem.key.matrices.rows, batch = problem.batch.count;
  if (batch == 0 || queries == 0) return;
  const ForwardParameters p{problem.batch, problem.query, problem.key, attend.value, attend.out, select.sample,
                            select.samples, select.shared, select.divisor, select.selected,
                            {keys, attend.scale * kLog2E, attend.is_causal, attend.dropout}, attend.fill, select.top,
                            select.measure, attend.lse};
  for_type_and_width(problem.type, problem.width, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kWidth = decltype(width)::value;
    launch({"prob_sparse forward_entry", {batch}, kThreads,
            static_cast<std::size_t>(layout_of<T, kWidth>(queries, keys).bytes), queue.stream,
            {{"batch", batch}, {"L_Q", queries}, {"L_K", keys}, {"u", select.selected}, {"width", kWidth}}},
           forward_entry<T, kWidth>, p);
  });
}

}  // namespace simmst::cuda::prob_sparse
