// Cutting planes v = A x + c on a CPU: both products with A, and the optimiser's step between them, in one pass over A.
//
// A is (P, L, N): P independent problems of L planes. The columns are divided into tiles. While
//   g = gradient + A^T s,   x <- step(x, g),   v += A (x - anchor)
// run on a tile, its slices of the point, the gradient and the partial sums stay in the first-level cache, and its
// slice of A stays in the second-level cache, so that A is read from memory once, whatever the number of products.
// Tiles are grouped into chunks that depend only on the sizes. Threads share the chunks, and the chunks' sums are added
// in order, so that results do not depend on the team size.
#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/instruction_set.hpp"

namespace simmst::cpu {

// The type of planes of packed signs, eight entries per byte.
constexpr DataType kSigns = DataType::kUint8;

// A vector of N entries per problem, with unit stride along N, in any floating type.
struct Columns {
  void* data = nullptr;
  DataType type = DataType::kFloat32;
  std::int64_t problem_stride = 0;  // in entries
};

enum class Update : std::uint8_t { kNone, kSgd, kAdam };

// One pass over the planes. The caller has checked everything. Small arrays, with one entry per plane, are double.
struct PlanePass {
  std::int64_t problems = 0, planes = 0, size = 0;  // P, L, N
  std::int64_t first_problem = 0;                   // first of the P problems that are run; arrays begin with problem 0
  const char* rows = nullptr;                       // unit stride along N
  DataType rows_type = DataType::kFloat32;
  std::int64_t problem_bytes = 0, row_bytes = 0;  // strides
  bool wide = false;                              // compute in double rather than float

  // First product, A^T s: the rows with a non-zero coefficient, (P, L) of which active_count[p] entries are used.
  bool combining = false;
  const std::int64_t* active_count = nullptr;
  const std::int64_t* active_rows = nullptr;
  const double* coefficients = nullptr;
  Columns gradient;  // if given, is added to the product
  Columns combined;  // if given, receives the sum

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

  bool backwards = false;  // last column first, because the cache still holds what the previous pass read last
  int threads = 1;
};

constexpr std::int64_t kMaxTileColumns = 2048;

// The number of columns in a tile, a multiple of 64. Two neighbouring tiles of planes, one in use and one being
// fetched, take at most half a megabyte. The number of columns in a tile and that in a chunk depend only on the sizes.
static inline std::int64_t tile_columns(const PlanePass& pass) {
  constexpr std::int64_t kTileBits = 8 * 256 * 1024;
  const std::int64_t bits = pass.rows_type == kSigns ? 1 : 8 * item_size(pass.rows_type);
  const std::int64_t columns = kTileBits / (bits * (pass.planes > 0 ? pass.planes : 1)) / 64 * 64;
  return columns < 64 ? 64 : columns > kMaxTileColumns ? kMaxTileColumns : columns;
}

// The number of columns in a chunk. A problem has up to 128 chunks, each of at least four tiles.
static inline std::int64_t chunk_columns(const PlanePass& pass) {
  const std::int64_t width = tile_columns(pass), tiles = (pass.size + width - 1) / width;
  const std::int64_t share = (tiles + 127) / 128;
  return width * (share < 4 ? 4 : share);
}

static inline std::int64_t chunk_count(const PlanePass& pass) {
  const std::int64_t columns = chunk_columns(pass);
  return pass.size <= columns ? 1 : (pass.size + columns - 1) / columns;
}

// values = A x + c, then gradient = A^T s with s = 2 mu max(0, v). The second product needs all values of the first, so
// each problem is passed over twice. It is read from memory only once if it stays in the cache in between.
struct PenaltyPass {
  PlanePass evaluate, combine;  // the two products; combine runs backwards and reads the three arrays below
  std::int64_t* active_count = nullptr;
  std::int64_t* active_rows = nullptr;
  double* coefficients = nullptr;
  const double* offsets = nullptr;
  const double* multipliers = nullptr;
  const double* scale = nullptr;  // for packed signs, else null
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
