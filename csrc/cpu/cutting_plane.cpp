// One pass over the planes of every problem; see cutting_plane.hpp.
#include "cpu/cutting_plane.hpp"

#include <cstdint>

#include "cpu/cutting_plane_rows.hpp"
#include "cpu/cutting_plane_signs.hpp"
#include "cpu/cutting_plane_vectors.hpp"
#include "cpu/simd.hpp"

namespace simmst::cpu::SIMMST_ISA {
namespace {

// The same as torch.optim.Adam's default settings.
constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;

constexpr std::int64_t min(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// A tile's slices of the vectors along N, padded to a whole step of the widest instruction set.
template <typename C>
struct alignas(64) Tile {
  C gradient[kMaxTileColumns];
  C point[kMaxTileColumns];
  C moved[kMaxTileColumns];  // point - anchor
  C first[kMaxTileColumns];  // Adam's averages
  C second[kMaxTileColumns];
};

// What is needed to process one chunk of columns of one problem.
template <typename C>
struct Chunk {
  const PlanePass& pass;
  const RowLoops<C>& loops;
  std::int64_t problem;
  std::int64_t begin, end;  // columns
  double* sums;             // (L,)
};

// The address of a row's part in a tile.
template <typename C>
const char* row_at(const Chunk<C>& chunk, std::int64_t row, std::int64_t column) {
  const PlanePass& pass = chunk.pass;
  return pass.rows + chunk.problem * pass.problem_bytes + row * pass.row_bytes +
         column * kLineBytes / chunk.loops.line_columns;
}

// Whether packed signs are looked up several at a time rather than applied one by one: worth it from about half a block
// of rows.
template <typename C>
bool looks_up(const PlanePass& pass, std::int64_t rows) {
#if defined(__AVX2__)
  return sizeof(C) == 4 && pass.rows_type == kSigns && rows >= kCombineRows / 2;
#else
  (void)pass, (void)rows;
  return false;
#endif
}

#if defined(__AVX2__)
// Whether to prefetch the line of every row that begins at this column.
bool asks_for_line(const Ahead& ahead, std::int64_t column) {
  constexpr std::int64_t kLineColumns = Signs<float>::kLineColumns;
  return ahead.bytes != 0 && column % kLineColumns == 0 && ((column / kLineColumns) & ahead.mask) == ahead.phase;
}

// tile.gradient = A^T s for the whole blocks of columns in a tile of packed signs; returns how many columns those are.
std::int64_t combine_by_look_up(const Chunk<float>& chunk, Tile<float>& tile, std::int64_t column, std::int64_t count,
                                const Ahead& ahead) {
  const PlanePass& pass = chunk.pass;
  const std::int64_t* active = pass.active_rows + chunk.problem * pass.planes;
  const double* factors = pass.coefficients + chunk.problem * pass.planes;
  const std::int64_t active_count = pass.active_count[chunk.problem];
  std::int64_t done = 0;
  for (; done + kLookupColumns <= count; done += kLookupColumns) {
    alignas(64) float sums[kLookupColumns];
    clear(sums, 0, kLookupColumns);
    const bool asking = asks_for_line(ahead, done);
    for (std::int64_t row = 0; row < active_count; row += kCombineRows) {
      const char* starts[kCombineRows];
      float coefficients[kCombineRows];
      for (int r = 0; r < kCombineRows; ++r) {
        const bool there = row + r < active_count;  // the last block is filled up with zero times its first row
        starts[r] = row_at(chunk, active[there ? row + r : row], column + done);
        coefficients[r] = there ? static_cast<float>(factors[row + r]) : 0.0f;
        if (asking && there) __builtin_prefetch(starts[r] + ahead.bytes, 0, 2);
      }
      look_up_columns(starts, coefficients, sums);
    }
    restore_columns(sums, tile.gradient + done);
  }
  return done;
}
#endif

// tile.gradient = A^T s + gradient; rows whose coefficient is zero are left out.
template <typename C>
void combine(const Chunk<C>& chunk, Tile<C>& tile, std::int64_t column, std::int64_t count, const Ahead& ahead) {
  const PlanePass& pass = chunk.pass;
  const std::int64_t* active = pass.active_rows + chunk.problem * pass.planes;
  const double* factors = pass.coefficients + chunk.problem * pass.planes;
  const std::int64_t active_count = pass.active_count[chunk.problem];
  std::int64_t done = 0;
#if defined(__AVX2__)
  if constexpr (sizeof(C) == 4) {
    if (looks_up<C>(pass, active_count)) done = combine_by_look_up(chunk, tile, column, count, ahead);
  }
#endif
  clear(tile.gradient, done, padded<C>(count));
  std::int64_t row = 0;
  for (int block = 0; block < 4 && done < count; ++block) {
    const int rows = RowLoops<C>::kBlocks[block];
    for (; row + rows <= active_count; row += rows) {
      const char* starts[8];
      C coefficients[8];
      for (int r = 0; r < rows; ++r) {
        starts[r] = row_at(chunk, active[row + r], column + done);
        coefficients[r] = static_cast<C>(factors[row + r]);
      }
      chunk.loops.add[block](tile.gradient + done, count - done, starts, coefficients, ahead);
    }
  }
  if (chunk.loops.interleaved) merge_even_odd(tile.gradient, padded<C>(count));
  if (pass.gradient.data != nullptr) {
    read(tile.point, pass.gradient, chunk.problem, column, count);
    for (std::int64_t i = 0; i < count; ++i) tile.gradient[i] += tile.point[i];
  }
  if (pass.combined.data != nullptr) write(tile.gradient, pass.combined, chunk.problem, column, count);
}

template <typename C>
void adam(const PlanePass& pass, Tile<C>& tile, std::int64_t count) {
  const C step_size = static_cast<C>(-pass.lr), root = static_cast<C>(pass.second_root);
  const C weight1 = static_cast<C>(1 - kBeta1), beta2 = static_cast<C>(kBeta2), weight2 = static_cast<C>(1 - kBeta2);
  for (std::int64_t i = 0; i < count; ++i) {
    const C gradient = tile.gradient[i];
    tile.first[i] += weight1 * (gradient - tile.first[i]);
    tile.second[i] = tile.second[i] * beta2 + weight2 * gradient * gradient;
    C deviation;
    if constexpr (sizeof(C) == 4) {
      deviation = __builtin_sqrtf(tile.second[i]);
    } else {
      deviation = __builtin_sqrt(tile.second[i]);
    }
    tile.point[i] += step_size * tile.first[i] / (deviation / root + static_cast<C>(kEpsilon));
  }
}

// Takes the optimiser's step on the tile and stores the result; tile.point becomes the values as stored.
template <typename C>
void update(const Chunk<C>& chunk, Tile<C>& tile, std::int64_t column, std::int64_t count) {
  const PlanePass& pass = chunk.pass;
  read(tile.point, pass.point, chunk.problem, column, count);
  if (pass.update == Update::kNone) return;
  if (pass.update == Update::kSgd) {
    const C lr = static_cast<C>(pass.lr);
    for (std::int64_t i = 0; i < count; ++i) tile.point[i] -= lr * tile.gradient[i];
  } else {
    read(tile.first, pass.exp_avg, chunk.problem, column, count);
    read(tile.second, pass.exp_avg_sq, chunk.problem, column, count);
    adam(pass, tile, count);
    write(tile.first, pass.exp_avg, chunk.problem, column, count);
    write(tile.second, pass.exp_avg_sq, chunk.problem, column, count);
  }
  write(tile.point, pass.point, chunk.problem, column, count);
  if (item_size(pass.point.type) < static_cast<std::int64_t>(sizeof(C))) {
    read(tile.point, pass.point, chunk.problem, column, count);
  }
}

// tile.moved = point - anchor, padded with zeros.
template <typename C>
void move(const Chunk<C>& chunk, Tile<C>& tile, std::int64_t column, std::int64_t count) {
  const Columns& anchor = chunk.pass.anchor;
  if (anchor.data == nullptr) {
    for (std::int64_t i = 0; i < count; ++i) tile.moved[i] = tile.point[i];
  } else if (anchor.type ==
             DataType::kFloat64) {  // also for a float32 point, so that the difference keeps the anchor's digits
    const double* source = static_cast<const double*>(anchor.data) + chunk.problem * anchor.problem_stride + column;
    for (std::int64_t i = 0; i < count; ++i) tile.moved[i] = static_cast<C>(tile.point[i] - source[i]);
  } else {
    read(tile.moved, anchor, chunk.problem, column, count);
    for (std::int64_t i = 0; i < count; ++i) tile.moved[i] = tile.point[i] - tile.moved[i];
  }
  clear(tile.moved, count, padded<C>(count));
  if (chunk.loops.interleaved) split_even_odd(tile.moved, padded<C>(count));
}

// chunk.sums += A (point - anchor) for the rows from `row` on. Each lane adds up 64 products before they go into a
// double.
template <typename C>
void evaluate_rows(const Chunk<C>& chunk, Tile<C>& tile, std::int64_t row, std::int64_t column, std::int64_t count,
                   const Ahead& ahead) {
  constexpr std::int64_t kPart = 64 * kStep<C>;
  for (int block = 0; block < 4; ++block) {
    const int rows = RowLoops<C>::kBlocks[block];
    for (; row + rows <= chunk.pass.planes; row += rows) {
      for (std::int64_t part = 0; part < count; part += kPart) {
        const char* starts[8];
        for (int r = 0; r < rows; ++r) starts[r] = row_at(chunk, row + r, column + part);
        chunk.loops.dot[block](tile.moved + part, min(kPart, count - part), starts, chunk.sums + row, ahead);
      }
    }
  }
}

// The same for all rows of the pass.
template <typename C>
void evaluate(const Chunk<C>& chunk, Tile<C>& tile, std::int64_t column, std::int64_t count, const Ahead& ahead) {
  std::int64_t done = 0;
#if defined(__AVX2__)
  const PlanePass& pass = chunk.pass;
  if constexpr (sizeof(C) == 4) {
    // Building the tables pays off from one whole block of rows on.
    const std::int64_t rows = pass.rows_type == kSigns ? pass.planes / kLookupRows * kLookupRows : 0;
    alignas(64) float tables[kTables * kWords * kWords];
    for (; rows > 0 && done + kLookupColumns <= count; done += kLookupColumns) {
      build_sign_tables(tile.moved + done, tables);
      const bool asking = asks_for_line(ahead, done);
      for (std::int64_t row = 0; row < rows; row += kLookupRows) {
        const char* start = row_at(chunk, row, column + done);
        for (int r = 0; asking && r < kLookupRows; ++r)
          __builtin_prefetch(start + r * pass.row_bytes + ahead.bytes, 0, 2);
        look_up_rows(start, pass.row_bytes, tables, chunk.sums + row);
      }
    }
    if (done > 0) evaluate_rows(chunk, tile, rows, column, done, ahead);
  }
#endif
  if (done < count) {
    for (std::int64_t i = done; done > 0 && i < padded<C>(count); ++i) tile.moved[i - done] = tile.moved[i];
    evaluate_rows(chunk, tile, 0, column + done, count - done, ahead);
  }
}

// Prefetches the next tile's part of every vector that the pass reads.
void prefetch_vectors(const PlanePass& pass, std::int64_t problem, std::int64_t column, std::int64_t count) {
  for (const Columns* vector : {&pass.gradient, &pass.point, &pass.anchor, &pass.exp_avg, &pass.exp_avg_sq}) {
    if (vector->data == nullptr) continue;
    const std::int64_t size = item_size(vector->type);
    const char* begin = static_cast<const char*>(vector->data) + (problem * vector->problem_stride + column) * size;
    for (std::int64_t byte = 0; byte < count * size; byte += kLineBytes) __builtin_prefetch(begin + byte, 0, 2);
  }
}

template <typename C>
void run_chunk(const Chunk<C>& chunk) {
  const PlanePass& pass = chunk.pass;
  Tile<C> tile;
  const std::int64_t width = tile_columns(pass);
  if (pass.evaluating) clear(chunk.sums, 0, pass.planes);
  const std::int64_t tiles = (chunk.end - chunk.begin + width - 1) / width;
  for (std::int64_t index = 0; index < tiles; ++index) {
    const std::int64_t column = chunk.begin + (pass.backwards ? tiles - 1 - index : index) * width;
    const std::int64_t count = min(width, chunk.end - column);
    // The next tile, even if it is in the next chunk; nothing past the end of the row is prefetched.
    const std::int64_t next = pass.backwards ? column - width : column + width;
    const std::int64_t bytes = (next - column) * kLineBytes / chunk.loops.line_columns;
    const Ahead ahead{next >= 0 && next < pass.size ? bytes : 0};
    // Memory is fastest without a pause, so each of the two products prefetches half of the next tile. If the first
    // product leaves rows out, the second one prefetches everything.
    const bool halves = pass.combining && pass.evaluating && pass.active_count[chunk.problem] == pass.planes;
    if (ahead.bytes != 0) prefetch_vectors(pass, chunk.problem, next, min(width, pass.size - next));
    if (pass.combining) {
      combine(chunk, tile, column, count, halves ? Ahead{ahead.bytes, 1, 0} : pass.evaluating ? Ahead{} : ahead);
    }
    if (!pass.evaluating) continue;
    update(chunk, tile, column, count);
    move(chunk, tile, column, count);
    evaluate(chunk, tile, column, count, halves ? Ahead{ahead.bytes, 1, 1} : ahead);
  }
}

// Runs item `index` of a pass: one chunk of one problem.
template <typename C>
void run_item(const PlanePass& pass, const RowLoops<C>& loops, std::int64_t index) {
  const std::int64_t chunks = chunk_count(pass), columns = chunk_columns(pass);
  const std::int64_t item = pass.backwards ? pass.problems * chunks - 1 - index : index;
  const std::int64_t begin = item % chunks * columns;
  run_chunk(Chunk<C>{pass, loops, pass.first_problem + item / chunks, begin, min(begin + columns, pass.size),
                     pass.evaluating ? pass.partial + item * pass.planes : nullptr});
}

// Adds up the chunks, in order, for output `index` of the problems that are run.
void add_chunks(const PlanePass& pass, std::int64_t index) {
  const std::int64_t chunks = chunk_count(pass);
  const double* parts = pass.partial + index / pass.planes * chunks * pass.planes + index % pass.planes;
  double sum = 0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += parts[chunk * pass.planes];
  pass.sums[pass.first_problem * pass.planes + index] = sum;
}

template <typename C>
void run_all(const PlanePass& pass) {
  const RowLoops<C>& loops = loops_for<C>(pass.rows_type);
  const std::int64_t items = pass.problems * chunk_count(pass);
  // Threads take a few neighbouring chunks at a time: enough pieces for an even load, few enough that handing them out
  // is cheap.
  const std::int64_t grain = items / (8 * pass.threads) + 1;
  const std::int64_t outputs = pass.evaluating ? pass.problems * pass.planes : 0;
#pragma omp parallel num_threads(pass.threads)
  {
#pragma omp for schedule(dynamic, grain)
    for (std::int64_t index = 0; index < items; ++index) run_item(pass, loops, index);
#pragma omp for schedule(static)
    for (std::int64_t index = 0; index < outputs; ++index) add_chunks(pass, index);
  }
}

void run(const PlanePass& pass) { pass.wide ? run_all<double>(pass) : run_all<float>(pass); }

// Computes a problem's values and the coefficients of its gradient from its sums.
void weigh_violations(const PenaltyPass& pass, std::int64_t problem) {
  const std::int64_t planes = pass.evaluate.planes, begin = problem * planes;
  std::int64_t end = begin;
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    const std::int64_t index = begin + plane;
    const double scale = pass.scale == nullptr ? 1 : pass.scale[index];
    const double value = scale * pass.evaluate.sums[index] + pass.offsets[index];
    pass.values[index] = value;
    const double slope = value <= 0 ? 0 : 2 * pass.multipliers[index] * value;  // NaN stays NaN
    if (slope == 0) continue;
    pass.active_rows[end] = plane;
    pass.coefficients[end++] = slope * scale;
  }
  pass.active_count[problem] = end - begin;
}

// Gives each thread a problem, and runs both products of it in a row.
template <typename C>
void run_penalty_apart(const PenaltyPass& pass) {
  const PlanePass& all = pass.evaluate;
  const RowLoops<C>& loops = loops_for<C>(all.rows_type);
  const std::int64_t chunks = chunk_count(all);
  const std::int64_t grain = all.problems / (16 * all.threads) + 1;
#pragma omp parallel for num_threads(all.threads) schedule(dynamic, grain)
  for (std::int64_t problem = 0; problem < all.problems; ++problem) {
    PlanePass evaluate = pass.evaluate, combine = pass.combine;
    evaluate.first_problem = combine.first_problem = problem;
    evaluate.problems = combine.problems = 1;
    evaluate.partial += problem * chunks * all.planes;
    for (std::int64_t index = 0; index < chunks; ++index) run_item(evaluate, loops, index);
    for (std::int64_t index = 0; index < all.planes; ++index) add_chunks(evaluate, index);
    weigh_violations(pass, problem);
    for (std::int64_t index = 0; index < chunks; ++index) run_item(combine, loops, index);
  }
}

// Runs all threads on one problem after another: for few problems, or when only one fits in the cache at a time.
void run_penalty_together(const PenaltyPass& pass) {
  for (std::int64_t problem = 0; problem < pass.evaluate.problems; ++problem) {
    PlanePass evaluate = pass.evaluate, combine = pass.combine;
    evaluate.first_problem = combine.first_problem = problem;
    evaluate.problems = combine.problems = 1;
    run(evaluate);
    weigh_violations(pass, problem);
    run(combine);
  }
}

void run_penalty(const PenaltyPass& pass) {
  constexpr std::int64_t kCacheBytes = 16 << 20;  // size of the last-level cache, which the threads share
  const PlanePass& all = pass.evaluate;
  const std::int64_t bits = all.rows_type == kSigns ? 1 : 8 * item_size(all.rows_type);
  const double bytes = static_cast<double>(all.planes) * static_cast<double>(all.size) * static_cast<double>(bits) / 8;
  const bool fits_together = bytes <= kCacheBytes && bytes * all.threads > kCacheBytes;
  if (all.problems < all.threads || fits_together) {
    run_penalty_together(pass);
  } else {
    all.wide ? run_penalty_apart<double>(pass) : run_penalty_apart<float>(pass);
  }
}

}  // namespace

extern const CuttingPlaneKernels cutting_plane_kernels = {run, run_penalty};

}  // namespace simmst::cpu::SIMMST_ISA
