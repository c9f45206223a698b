// Selection: the sparsity measure, max_s(q . k_s) - sum_s(q . k_s) / n, of every query, then the u largest of every
// batch entry, one block per entry.
//
// Samples shared by all queries: a product of Q with the sampled keys, which stay in shared memory while Q streams by.
//
// Each query's own samples: keys are gathered from shared memory, all of them or one tile at a time with the samples
// sorted by tile, or directly from global memory where tiles would be nearly empty. All batch entries have the same
// samples, so they are sorted once, into a list that the warps read as they need it.
//
// Counts for bfloat16, D = 64, 64 heads. Shared: Q is read once (L rows of 128 bytes): 34 MB and
// 8 us at L = 4096, 134 MB and 31 us at 16384, at 4.3 TB/s. Per query: 64 L S rows of 128 bytes from shared memory at
// 128 bytes per clock and multiprocessor, about 29 TB/s: L = 720 (S = 35) 7 us, L = 4096 (S = 45) 53 us,
// L = 16384 (S = 50) 235 us. That hides the 50 instructions for 16 rows, of which there are 0.1, 0.74 and 3.3 million.
// The measures of an entry (4 L bytes) stay in the L1 cache over the five passes of the radix search: for
// L = 16384 that is sixteen loads per thread and pass.
#include "cuda/prob_sparse_attention_gathered.cuh"

namespace simmst::cuda::prob_sparse {

using namespace simmst::prob_sparse;

namespace {

constexpr int kSharedThreads = 128, kListThreads = 128;
// One block per multiprocessor when all keys take most of its shared memory, or two of half the size.
constexpr int kGatherThreads = 768;
constexpr int64_t kMostChunkQueries = 4096;  // whose running results are in shared memory

struct MeasureParameters {
  Batch batch;
  Operand query, key;
  const int64_t* sample;
  int64_t samples;
  float divisor;
  float* measure;  // (batch, L_Q)
  int64_t chunk;   // queries per block
  KeyTiles tiles;
  std::uint32_t* list;    // list of each group, by tile
  std::int32_t* offsets;  // (groups, tiles + 1), counted in turns of a group's list
};

// ---- samples shared by all queries

template <typename T, int W>
constexpr std::size_t shared_bytes(int64_t chunk) {
  return 3 * kTile * Products<T, W>::kPitch * sizeof(T) + static_cast<std::size_t>(chunk) * sizeof(Extremes);
}

template <typename T, int W>
SIMMST_KERNEL(kSharedThreads)
measure_shared(const MeasureParameters p) {
  using Product = Products<T, W>;
  constexpr int kTileEntries = kTile * Product::kPitch;
  const int64_t chunks = ceil_div(p.query.matrices.rows, p.chunk);
  const int64_t entry = block_index().x / chunks, begin = block_index().x % chunks * p.chunk;
  const Rows<const T> query = rows_of<const T>(p.query, p.batch, entry), key = rows_of<const T>(p.key, p.batch, entry);
  const int64_t end = begin + p.chunk < query.count ? begin + p.chunk : query.count;
  T* keys = reinterpret_cast<T*>(shared_memory());
  T* buffers = keys + kTileEntries;  // two tiles of queries
  auto* found = reinterpret_cast<Extremes*>(buffers + 2 * kTileEntries);
  for (int i = thread_index(); i < p.chunk; i += block_threads()) found[i] = Extremes();
  const auto buffer_of = [&](int64_t first) { return buffers + (first - begin) / kTile % 2 * kTileEntries; };

  for (int64_t sample = 0; sample < p.samples; sample += kTile) {
    const int count = static_cast<int>(p.samples - sample < kTile ? p.samples - sample : kTile);
    start_rows<W>(keys, Product::kPitch, key, kTile,
                  [&](int r) { return r < count ? clamp_index(p.sample[sample + r], key.count) : int64_t{-1}; });
    start_tile<W>(buffer_of(begin), Product::kPitch, query, begin, end);
    commit_copies();
    for (int64_t first = begin; first < end; first += kTile) {
      if (first + kTile < end) {
        start_tile<W>(buffer_of(first + kTile), Product::kPitch, query, first + kTile, end);
        commit_copies();
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
      sync_block();
      const int row = warp_index() * kWarpRows;
      measure_tile<T, W>(buffer_of(first) + row * Product::kPitch, keys, count, found + (first - begin) + row);
      sync_block();
    }
  }
  for (int64_t i = begin + thread_index(); i < end; i += block_threads())
    p.measure[entry * query.count + i] = found[i - begin].measure(p.divisor);
}

// ---- each query's own samples

template <bool kStaged, typename T, int W>
SIMMST_KERNEL(kStaged ? kGatherThreads : kGatherThreads / 2)
measure_gathered(const MeasureParameters p) {
  const int64_t chunks = ceil_div(p.query.matrices.rows, p.chunk);
  const int64_t entry = block_index().x / chunks, begin = block_index().x % chunks * p.chunk;
  const Rows<const T> query = rows_of<const T>(p.query, p.batch, entry), key = rows_of<const T>(p.key, p.batch, entry);
  const int count = static_cast<int>(p.chunk < query.count - begin ? p.chunk : query.count - begin);
  const Rows<const T> mine{query.row(begin), query.stride, count, query.columns, query.aligned};
  T* keys = reinterpret_cast<T*>(shared_memory());
  auto* running = reinterpret_cast<Extremes*>(keys + p.tiles.size * W);  // (chunk), when there are tiles
  using Source = std::conditional_t<kStaged, StagedRows<T, W>, GlobalRows<T, W>>;
  const auto source = [&]() -> Source {
    if constexpr (kStaged) return Source(keys, W * static_cast<int>(sizeof(T)));
    else return Source{key};
  };
  const int tiles = static_cast<int>(p.tiles.count), entries = static_cast<int>(group_turns(p.samples, tiles)) * kTurn;
  const std::uint32_t* lists = p.list + first_entry(begin / kGroup, p.samples, tiles);
  const std::int32_t* all_offsets = p.offsets + first_offset(begin / kGroup, tiles);

  for (int tile = 0; tile < tiles; ++tile) {
    if constexpr (kStaged) {
      const int64_t first = tile * p.tiles.size;
      sync_block();
      start_rows<W>(keys, W, key, static_cast<int>(p.tiles.size),
                    [&](int r) { return first + r < key.count ? first + r : int64_t{-1}; });
      finish_copies();
    }
    for (int first = warp_index() * kGroup; first < count; first += block_threads() / kWarp * kGroup) {
      const GroupProducts<T, W> products(mine, first);
      GroupMeasure<Source, T, W> measure{products, source(), {}};
      const int64_t group = first / kGroup;
      if constexpr (kStaged) {
        const std::int32_t* offsets = all_offsets + group * (tiles + 1) + tile;
        const int begun = offsets[0];
        measure.add_list(lists + group * entries + begun * kTurn, offsets[1] - begun);
      } else {
        add_in_order(measure, GroupSamples(p.sample, p.samples, begin / kGroup + group, query.count, key.count));
      }
      Extremes total = measure.reduced();
      const int i = first + measure.reduced_query();
      if (lane_index() >= kGroup || i >= count) continue;
      if (tile > 0) total.add(running[i]);
      if (tile + 1 < tiles) running[i] = total;
      else p.measure[entry * query.count + begin + i] = total.measure(p.divisor);
    }
  }
}

// ---- the list of samples

// Sorts the samples of a group of queries by tile, by a warp. The sort is stable: within a tile, samples keep their
// order.
SIMMST_DEVICE void list_by_tile(const MeasureParameters& p, const GroupSamples& group, std::uint32_t* list,
                                std::int32_t* offsets, int* counters) {
  // There are at most 1024 tiles, each of which fits in shared memory, and eight queries, so 32 bits are enough for
  // places.
  const int tiles = static_cast<int>(p.tiles.count), size = static_cast<int>(p.tiles.size), lane = lane_index();
  const int samples = static_cast<int>(p.samples), count = group.queries * samples;
  const auto key = [&](int e) { return static_cast<int>(group.key(e)); };
  for (int t = lane; t < tiles; t += kWarp) counters[t] = 0;
  sync_warp();
  for (int e = lane; e < count; e += kWarp) atomic_add(counters + key(e) / size, 1);
  sync_warp();
  int before = 0;  // turns
  for (int t0 = 0; t0 < tiles; t0 += kWarp) {
    const int rows = t0 + lane < tiles ? counters[t0 + lane] : 0, mine = ceil_div(rows, kTurn);
    int through = mine;  // this tile and those of the lanes before
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int other = shuffle_up(through, distance);
      if (lane >= distance) through += other;
    }
    if (t0 + lane < tiles) {
      const int begun = before + through - mine;
      counters[t0 + lane] = begun * kTurn;
      offsets[t0 + lane] = begun;
      for (int row = rows; row < mine * kTurn; ++row) list[list_place(begun * kTurn + row)] = kNoEntry;
    }
    before += shuffle(through, kWarp - 1);
  }
  if (lane == 0) offsets[tiles] = before;
  sync_warp();
  for (int e0 = 0; e0 < count; e0 += kWarp) {
    const int e = e0 + lane;
    const bool inside = e < count;
    const int index = inside ? key(e) : 0, tile = inside ? index / size : tiles;
    std::uint32_t peers = 0xffffffffu;  // the lanes with the same tile
    for (int bit = 0; tiles >> bit != 0; ++bit) {
      const std::uint32_t set = ballot(tile >> bit & 1);
      peers &= tile >> bit & 1 ? set : ~set;
    }
    const int rank = count_bits(peers & ((1u << lane) - 1));
    const int at = inside ? counters[tile] + rank : 0;
    sync_warp();
    if (inside) {
      list[list_place(at)] = list_entry(index - tile * size, e / samples);
      if (rank == count_bits(peers) - 1) counters[tile] = at + 1;
    }
    sync_warp();
  }
}

SIMMST_KERNEL(kListThreads) list_samples(const MeasureParameters p) {
  const int64_t number = int64_t{block_index().x} * (kListThreads / kWarp) + warp_index();
  const int64_t queries = p.query.matrices.rows;
  if (number >= ceil_div(queries, kGroupQueries)) return;  // returns as a whole warp
  const GroupSamples group(p.sample, p.samples, number, queries, p.key.matrices.rows);
  std::uint32_t* list = p.list + first_entry(number, p.samples, p.tiles.count);
  std::int32_t* offsets = p.offsets + first_offset(number, p.tiles.count);
  if (p.tiles.count > 1) {
    list_by_tile(p, group, list, offsets, reinterpret_cast<int*>(shared_memory()) + warp_index() * p.tiles.count);
  } else {
    const int turns = list_in_order(group, 0, group.all_eighths(), list);
    if (lane_index() < 2) offsets[lane_index()] = lane_index() * turns;
  }
}

// ---- the call

struct Plan {
  KeyTiles tiles;
  int64_t chunk;
  int threads;
  std::size_t bytes;  // bytes of shared memory
};

Plan plan_of(const SelectCall& call, const Queue& queue) {
  const Problem& problem = call.problem;
  const DeviceLimits& limits = device_limits(queue.device);
  const int64_t queries = problem.query.matrices.rows, batch = problem.batch.count;
  const int64_t row_bytes = problem.width * item_size(problem.type);
  if (call.shared) {
    const int64_t chunk =
        chunk_queries(queries, batch, 4 * int64_t{limits.multiprocessors}, kTileRows, kMostChunkQueries / 2);
    return {{Gather::kWhole, 0, 1}, chunk, kSharedThreads, 0};
  }
  const int64_t keys = problem.key.matrices.rows, most_bytes = static_cast<int64_t>(limits.shared_bytes);
  // Two blocks per multiprocessor where all keys leave room for another, else one with twice the warps.
  const bool paired = keys * row_bytes <= most_bytes / 2 - 1024;
  const int threads = paired ? kGatherThreads / 2 : kGatherThreads;
  // With tiles, the running results of a block share the memory with the keys, and leave them three quarters.
  const int64_t beside = most_bytes / 4 / static_cast<int64_t>(sizeof(Extremes)) / kGroupQueries * kGroupQueries;
  const bool tiled = keys * row_bytes > most_bytes;
  const int64_t chunk =
      chunk_queries(queries, batch, (paired ? 2 : 1) * int64_t{limits.multiprocessors}, threads / kWarp * kGroupQueries,
                    tiled && beside < kMostChunkQueries ? beside : kMostChunkQueries);
  const int64_t running = chunk * static_cast<int64_t>(sizeof(Extremes));
  const KeyTiles tiles = key_tiles(keys, call.samples, row_bytes, most_bytes, running);
  switch (tiles.gather) {
    case Gather::kStraight:
      return {tiles, chunk, kGatherThreads / 2, 0};
    case Gather::kTiles:
      return {tiles, chunk, threads, static_cast<std::size_t>(tiles.size * row_bytes + running)};
    default:
      return {tiles, chunk, threads, static_cast<std::size_t>(tiles.size * row_bytes)};
  }
}

void measure_queries(const SelectCall& call, const Queue& queue) {
  const Problem& problem = call.problem;
  const int64_t queries = problem.query.matrices.rows, keys = problem.key.matrices.rows, batch = problem.batch.count;
  const Plan plan = plan_of(call, queue);
  MeasureParameters p{problem.batch, problem.query, problem.key, call.sample, call.samples, call.divisor,
                      call.measure,  plan.chunk,    plan.tiles,  nullptr,     nullptr};
  if (!call.shared && plan.tiles.gather != Gather::kStraight) {
    p.list = static_cast<std::uint32_t*>(call.workspace);
    p.offsets = reinterpret_cast<std::int32_t*>(static_cast<char*>(call.workspace) +
                                                list_bytes(queries, call.samples, plan.tiles.count));
    const int64_t groups = ceil_div(queries, kGroupQueries), warps = kListThreads / kWarp;
    launch({"prob_sparse list_samples",
            {ceil_div(groups, warps)},
            kListThreads,
            static_cast<std::size_t>(warps * plan.tiles.count) * sizeof(int),
            queue.stream,
            {{"L_Q", queries}, {"L_K", keys}, {"samples", call.samples}, {"tiles", plan.tiles.count}}},
           list_samples, p);
  }
  const int64_t blocks = batch * ceil_div(queries, plan.chunk);
  for_type_and_width(problem.type, problem.width, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kWidth = decltype(width)::value;
    const auto start = [&](const char* name, auto kernel, int threads, std::size_t bytes) {
      launch({name,
              {blocks},
              threads,
              bytes,
              queue.stream,
              {{"batch", batch}, {"L_Q", queries}, {"L_K", keys}, {"samples", call.samples}, {"width", kWidth}}},
             kernel, p);
    };
    if (call.shared) {
      start("prob_sparse measure_shared", measure_shared<T, kWidth>, kSharedThreads,
            shared_bytes<T, kWidth>(plan.chunk));
    } else if (plan.tiles.gather == Gather::kStraight) {
      start("prob_sparse measure_gathered", measure_gathered<false, T, kWidth>, plan.threads, plan.bytes);
    } else {
      start("prob_sparse measure_gathered", measure_gathered<true, T, kWidth>, plan.threads, plan.bytes);
    }
  });
}

// ---- the largest measures

constexpr int kTopThreads = kMostWarps * kWarp;

struct TopParameters {
  const float* measure;  // (batch, count)
  int64_t count, selected;
  int64_t* top;  // (batch, selected)
};

constexpr std::size_t kTopBytes =
    sizeof(int) * (kTopCounters > kMostRanked + kRankedWords ? kTopCounters : kMostRanked + kRankedWords);

SIMMST_KERNEL(kTopThreads) select_largest(const TopParameters p) {
  const int64_t entry = block_index().x;
  const float* measure = p.measure + entry * p.count;
  int64_t* top = p.top + entry * p.selected;
  if (p.count > kMostRanked) {
    select_top(measure, p.count, p.selected, top, reinterpret_cast<int*>(shared_memory()));
    return;
  }
  auto* ordered = reinterpret_cast<std::uint32_t*>(shared_memory());
  const int count = static_cast<int>(p.count);
  for (int i = thread_index(); i < kMostRanked; i += block_threads())
    ordered[i] = i < count ? ordered_bits(measure[i]) : 0;
  select_ranked(ordered, count, p.selected, top, ordered + kMostRanked);
}

}  // namespace

int64_t select_workspace(const SelectCall& call, const Queue& queue) {
  return call.shared ? 0
                     : measure_workspace(call.problem.query.matrices.rows, call.samples, plan_of(call, queue).tiles);
}

void select_queries(const SelectCall& call, const Queue& queue) {
  const int64_t batch = call.problem.batch.count, queries = call.problem.query.matrices.rows;
  if (batch == 0 || queries == 0) return;
  measure_queries(call, queue);
  if (call.selected == 0) return;
  const int64_t threads = round_up_to(queries < kTopThreads ? queries : kTopThreads, kWarp);
  launch({"prob_sparse select_largest",
          {batch},
          static_cast<int>(threads),
          kTopBytes,
          queue.stream,
          {{"batch", batch}, {"L_Q", queries}, {"u", call.selected}}},
         select_largest, TopParameters{call.measure, queries, call.selected, call.top});
}

}  // namespace simmst::cuda::prob_sparse
