// Cutting planes v = A x + c on a CPU: both products with A, and the optimiser's step between them, in one pass over A.
//
// A is (P, L, N): P independent problems of L planes. Columns are cut into tiles; a tile's slice of the point, of the
// gradient and of the partial sums stays in the first-level cache and its slice of A in the second-level cache while
//   g = gradient + A^T s,   x <- step(x, g),   v += A (x - anchor)
// run on it, so that A comes from memory once, whatever the number of products. Tiles are grouped into chunks that depend
// on the sizes alone; threads share out chunks, whose sums are added in order: results do not depend on the team size.
#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/instruction_set.hpp"

namespace simmst::cpu {

// The type of planes of packed signs, eight entries in a byte.
constexpr DataType kSigns = DataType::kUint8;

// A vector of N entries for each problem, unit stride along N. Any floating type.
struct Columns {
  void* data = nullptr;
  DataType type = DataType::kFloat32;
  std::int64_t problem_stride = 0;  // in entries
};

enum class Update : std::uint8_t { kNone, kSgd, kAdam };

// One pass over the planes. Everything was checked by the caller. Small arrays, one entry a plane, are double.
struct PlanePass {
  std::int64_t problems = 0, planes = 0, size = 0;  // P, L, N
  std::int64_t first_problem = 0;                   // of the P that are run; arrays begin with problem 0
  const char* rows = nullptr;                       // unit stride along N
  DataType rows_type = DataType::kFloat32;
  std::int64_t problem_bytes = 0, row_bytes = 0;  // strides
  bool wide = false;                              // compute in double, else in float

  // First product, A^T s: the rows with a non-zero coefficient, (P, L) with active_count[p] entries used.
  bool combining = false;
  const std::int64_t* active_count = nullptr;
  const std::int64_t* active_rows = nullptr;
  const double* coefficients = nullptr;
  Columns gradient;  // added to the product when given
  Columns combined;  // receives the sum when given

  Update update = Update::kNone;
  Columns point;  // updated in place unless update is kNone
  Columns exp_avg, exp_avg_sq;
  double lr = 0;           // Adam: lr / (1 - beta1^t)
  double second_root = 1;  // Adam: sqrt(1 - beta2^t)

  // Second product: sums[p, l] = a_l . (point - anchor).
  bool evaluating = false;
  Columns anchor;
  double* sums = nullptr;
  double* partial = nullptr;  // (P, chunks, L) workspace of the problems run; chunks = chunk_count(*this)

  bool backwards = false;  // last column first: what the pass before read last is still in the cache
  int threads = 1;
};

constexpr std::int64_t kMaxTileColumns = 2048;

// Columns in a tile, a multiple of 64: two neighbouring tiles of planes, one in use and one on its way, take half a
// megabyte at most. It depends on the sizes alone, as the chunks do.
static inline std::int64_t tile_columns(const PlanePass& pass) {
  constexpr std::int64_t kTileBits = 8 * 256 * 1024;
  const std::int64_t bits = pass.rows_type == kSigns ? 1 : 8 * item_size(pass.rows_type);
  const std::int64_t columns = kTileBits / (bits * (pass.planes > 0 ? pass.planes : 1)) / 64 * 64;
  return columns < 64 ? 64 : columns > kMaxTileColumns ? kMaxTileColumns : columns;
}

// Columns in a chunk: a problem has up to 128 of at least four tiles.
static inline std::int64_t chunk_columns(const PlanePass& pass) {
  const std::int64_t width = tile_columns(pass), tiles = (pass.size + width - 1) / width;
  const std::int64_t share = (tiles + 127) / 128;
  return width * (share < 4 ? 4 : share);
}

static inline std::int64_t chunk_count(const PlanePass& pass) {
  const std::int64_t columns = chunk_columns(pass);
  return pass.size <= columns ? 1 : (pass.size + columns - 1) / columns;
}

// values = A x + c, then gradient = A^T s with s = 2 mu max(0, v): the second product needs the whole of the first, so a
// problem is gone through twice. It comes from memory once where it stays in the cache in between.
struct PenaltyPass {
  PlanePass evaluate, combine;  // the two products; combine runs backwards and reads the three arrays below
  std::int64_t* active_count = nullptr;
  std::int64_t* active_rows = nullptr;
  double* coefficients = nullptr;
  const double* offsets = nullptr;
  const double* multipliers = nullptr;
  const double* scale = nullptr;  // of packed signs, else null
  double* values = nullptr;
};

struct CuttingPlaneKernels {
  void (*run)(const PlanePass& pass);
  void (*run_penalty)(const PenaltyPass& pass);
};

#define SIMMST_DECLARE(isa)                               \
  namespace isa {                                         \
  extern const CuttingPlaneKernels cutting_plane_kernels; \
  }
SIMMST_FOR_EACH_ISA(SIMMST_DECLARE)
#undef SIMMST_DECLARE

}  // namespace simmst::cpu
