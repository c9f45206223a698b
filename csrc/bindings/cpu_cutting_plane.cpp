// Cutting planes for Python. All arguments are checked here before memory is touched. The interpreter lock is released
// while the kernels run.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "cpu/cutting_plane.hpp"

namespace py = pybind11;
namespace cpu = simmst::cpu;
using simmst::Array;
using simmst::Arrays;
using simmst::DataType;
using cpu::PlanePass;

namespace {

// Types of the planes, of vectors along N, and of tensors with one entry per plane.
#define SIMMST_FORMATS {DataType::kFloat32, DataType::kFloat64, DataType::kBfloat16, DataType::kFloat16, cpu::kSigns}
#define SIMMST_FLOATS {DataType::kFloat32, DataType::kFloat64, DataType::kBfloat16, DataType::kFloat16}
#define SIMMST_WIDE {DataType::kFloat32, DataType::kFloat64}

// All arrays of a call are (address, dtype, shape, strides).
const Arrays read = Arrays::typed();

const cpu::CuttingPlaneKernels& kernels() {
#define SIMMST_TABLE(isa) &cpu::isa::cutting_plane_kernels,
  return cpu::pick<cpu::CuttingPlaneKernels>({SIMMST_FOR_EACH_ISA(SIMMST_TABLE)});
#undef SIMMST_TABLE
}

// The sizes of a call, and its arrays, checked against those sizes.
class Call {
 public:
  Call(const py::tuple& planes, const py::object& scale, std::int64_t size, int threads) {
    const Array rows = read("planes", planes, SIMMST_FORMATS);
    if (rows.rank != 2 && rows.rank != 3) {
      rows.refuse("must have shape (L, N) or (P, L, N)");
    }
    batched_ = rows.rank == 3;
    const int first = batched_ ? 1 : 0;
    pass.problems = batched_ ? rows.shape[0] : 1;
    pass.planes = rows.shape[first];
    pass.size = size;
    const bool packed = rows.type == cpu::kSigns;
    const std::int64_t width = packed ? (size + 7) / 8 : size;
    if (size < 0 || rows.shape[first + 1] != width) {
      rows.refuse("must have " + std::to_string(width) + " in its last dimension, for " + std::to_string(size) +
                  " columns");
    }
    if (width > 1 && rows.strides[first + 1] != 1) {
      rows.refuse("must have stride 1 along its last dimension, got " + std::to_string(rows.strides[first + 1]));
    }
    if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
    if (pass.planes > 0 && pass.problems > std::numeric_limits<std::int64_t>::max() / 64 / pass.planes) {
      rows.refuse("is too large");
    }
    pass.rows = rows.data;
    pass.rows_type = rows.type;
    pass.row_bytes = rows.strides[first] * simmst::item_size(rows.type);
    pass.problem_bytes = batched_ ? rows.strides[0] * simmst::item_size(rows.type) : 0;
    // Starting a team takes some microseconds; one core processes about this many entries in the same time.
    constexpr double kEntriesAlone = 65536;
    const double entries =
        static_cast<double>(pass.problems) * static_cast<double>(pass.planes) * static_cast<double>(size);
    pass.threads = entries < kEntriesAlone ? 1 : threads;
    if (packed != !scale.is_none()) throw py::type_error("scale goes with packed signs, and with them alone");
    if (packed) scale_ = per_plane("scale", scale);
  }

  // (P, L) or (L,) of float32 or float64, as double.
  std::vector<double> per_plane(const char* name, const py::object& given) const {
    const Array array = small(name, given, 1);
    std::vector<double> values(pass.problems * pass.planes);
    auto value = values.begin();
    for (std::int64_t p = 0; p < pass.problems; ++p) {
      for (std::int64_t l = 0; l < pass.planes; ++l) *value++ = get(array, p, l);
    }
    return values;
  }

  // An output of shape (P, L) or (L,), of float32 or float64.
  Array plane_output(const char* name, const py::object& given) const { return small(name, given, 1); }
  // An output of shape (P,) or ().
  Array problem_output(const char* name, const py::object& given) const { return small(name, given, 0); }

  cpu::Columns columns(const char* name, const py::object& given) const {
    const Array array = read(name, given, SIMMST_FLOATS);
    check_shape(array, pass.size);
    if (pass.size > 1 && array.strides[array.rank - 1] != 1) {
      array.refuse("must have stride 1 along its last dimension, got " + std::to_string(array.strides[array.rank - 1]));
    }
    return {array.data, array.type, batched_ ? array.strides[0] : 0};
  }
  // A vector that is written to: its problems must not overlap.
  cpu::Columns mutable_columns(const char* name, const py::object& given) const {
    const cpu::Columns target = columns(name, given);
    if (pass.problems > 1 && target.problem_stride < pass.size) {
      throw py::value_error(std::string(name) + " is written to, but its problems overlap: stride " +
                            std::to_string(target.problem_stride) + " for " + std::to_string(pass.size) + " columns");
    }
    return target;
  }

  // Packs the rows with a non-zero coefficient to the front of each problem's part, with the coefficients times the
  // scale.
  void set_coefficients(const std::vector<double>& coefficients) {
    make_room_for_coefficients();
    for (std::int64_t p = 0; p < pass.problems; ++p) {
      std::int64_t end = p * pass.planes;
      for (std::int64_t l = 0; l < pass.planes; ++l) {
        const double coefficient = coefficients[p * pass.planes + l];
        if (coefficient == 0) continue;
        active_rows_[end] = l;
        coefficients_[end++] = scale_.empty() ? coefficient : coefficient * scale_[p * pass.planes + l];
      }
      active_count_[p] = end - p * pass.planes;
    }
  }

  // One pass over the planes of all problems.
  void run(bool combining, bool evaluating) { kernels_.run(prepare(combining, evaluating)); }

  // Computes the values, and writes the gradient of the penalty to pass.combined.
  void run_penalty(const std::vector<double>& offsets, const std::vector<double>& multipliers) {
    make_room_for_coefficients();
    values_.resize(offsets.size());
    cpu::PenaltyPass both{prepare(false, true), prepare(true, false)};
    both.combine.backwards = true;
    both.active_count = active_count_.data();
    both.active_rows = active_rows_.data();
    both.coefficients = coefficients_.data();
    both.offsets = offsets.data();
    both.multipliers = multipliers.data();
    both.scale = scale_.empty() ? nullptr : scale_.data();
    both.values = values_.data();
    kernels_.run_penalty(both);
  }

  // For one plane: its product with the point, plus its offset.
  double value(std::int64_t index, const std::vector<double>& offsets) const {
    return (scale_.empty() ? sums_[index] : scale_[index] * sums_[index]) + offsets[index];
  }

  static double get(const Array& array, std::int64_t p, std::int64_t l) {
    const char* address = at(array, p, l);
    return array.type == DataType::kFloat32 ? *reinterpret_cast<const float*>(address)
                                            : *reinterpret_cast<const double*>(address);
  }
  static void put(const Array& array, std::int64_t p, std::int64_t l, double value) {
    char* address = at(array, p, l);
    if (array.type == DataType::kFloat32) {
      *reinterpret_cast<float*>(address) = static_cast<float>(value);
    } else {
      *reinterpret_cast<double*>(address) = value;
    }
  }
  void write(const Array& target, const std::vector<double>& offsets) const {
    for (std::int64_t p = 0; p < pass.problems; ++p) {
      for (std::int64_t l = 0; l < pass.planes; ++l) put(target, p, l, value(p * pass.planes + l, offsets));
    }
  }

  PlanePass pass;

 private:
  void make_room_for_coefficients() {
    active_count_.resize(pass.problems);
    active_rows_.resize(pass.problems * pass.planes);
    coefficients_.resize(pass.problems * pass.planes);
  }

  PlanePass prepare(bool combining, bool evaluating) {
    PlanePass part = pass;
    part.combining = combining;
    part.evaluating = evaluating;
    if (combining) {
      part.active_count = active_count_.data();
      part.active_rows = active_rows_.data();
      part.coefficients = coefficients_.data();
    }
    if (evaluating) {
      sums_.resize(pass.problems * pass.planes);
      partial_.resize(pass.problems * pass.planes * cpu::chunk_count(pass));
      part.sums = sums_.data();
      part.partial = partial_.data();
    }
    return part;
  }

  // Entry [p, l] of an array of shape (P, L), (L,), (P,) or ().
  static char* at(const Array& array, std::int64_t p, std::int64_t l) {
    const std::int64_t last = array.rank > 0 ? array.strides[array.rank - 1] : 0;
    const std::int64_t entry = array.rank == 2 ? p * array.strides[0] + l * last : (p + l) * last;
    return array.data + entry * simmst::item_size(array.type);
  }

  Array small(const char* name, const py::object& given, int dimensions) const {
    const Array array = read(name, given, SIMMST_WIDE);
    if (dimensions == 1) {
      check_shape(array, pass.planes);
    } else if (array.rank != (batched_ ? 1 : 0) || (batched_ && array.shape[0] != pass.problems)) {
      array.refuse("must have one entry for each of " + std::to_string(pass.problems) + " problems");
    }
    return array;
  }

  void check_shape(const Array& array, std::int64_t last) const {
    const bool fits = array.rank == (batched_ ? 2 : 1) && array.shape[array.rank - 1] == last &&
                      (!batched_ || array.shape[0] == pass.problems);
    if (fits) return;
    const std::string expected = (batched_ ? std::to_string(pass.problems) + ", " : "") + std::to_string(last);
    array.refuse("must have shape (" + expected + ")");
  }

  bool batched_ = false;
  std::vector<double> scale_, coefficients_, sums_, partial_, values_;
  std::vector<std::int64_t> active_count_, active_rows_;
  const cpu::CuttingPlaneKernels& kernels_ = kernels();
};

std::int64_t last_size(const char* name, const py::tuple& given) {
  const Array array = read(name, given);
  if (array.rank == 0) array.refuse("must have shape (N,) or (P, N)");
  return array.shape[array.rank - 1];
}

void values(const py::tuple& planes, const py::object& scale, const py::object& offsets, const py::tuple& point,
            const py::object& out, int threads) {
  Call call(planes, scale, last_size("point", point), threads);
  const auto constants = call.per_plane("offsets", offsets);
  call.pass.point = call.columns("point", point);
  call.pass.wide = call.pass.point.type == DataType::kFloat64;
  const Array target = call.plane_output("out", out);
  py::gil_scoped_release unlocked;
  call.run(false, true);
  call.write(target, constants);
}

void combine(const py::tuple& planes, const py::object& scale, const py::object& coefficients, const py::tuple& out,
             int threads) {
  Call call(planes, scale, last_size("out", out), threads);
  const auto factors = call.per_plane("coefficients", coefficients);
  call.pass.combined = call.mutable_columns("out", out);
  call.pass.wide = call.pass.combined.type == DataType::kFloat64;
  py::gil_scoped_release unlocked;
  call.set_coefficients(factors);
  call.run(true, false);
}

// max(0, v), NaN for NaN.
double positive_part(double value) { return value <= 0 ? 0 : value; }

// total[p] = sum_l mu_l f(v_l); also writes the values.
template <typename Function>
void add_up(const Call& call, const std::vector<double>& offsets, const std::vector<double>& multipliers,
            const Array& total, const Array& plane_values, Function function) {
  for (std::int64_t p = 0; p < call.pass.problems; ++p) {
    double sum = 0;
    for (std::int64_t l = 0; l < call.pass.planes; ++l) {
      const std::int64_t index = p * call.pass.planes + l;
      const double value = call.value(index, offsets);
      Call::put(plane_values, p, l, value);
      sum += multipliers[index] * function(value);
    }
    Call::put(total, p, 0, sum);
  }
}

// Computes the penalty and, when `gradient` is given, d total / d point.
void penalty(const py::tuple& planes, const py::object& scale, const py::object& offsets, const py::object& multipliers,
             const py::tuple& point, const py::object& total, const py::object& plane_values,
             const py::object& gradient, int threads) {
  Call call(planes, scale, last_size("point", point), threads);
  const auto constants = call.per_plane("offsets", offsets);
  const auto factors = call.per_plane("multipliers", multipliers);
  call.pass.point = call.columns("point", point);
  call.pass.wide = call.pass.point.type == DataType::kFloat64;
  if (!gradient.is_none()) call.pass.combined = call.mutable_columns("gradient", gradient);
  const Array sum = call.problem_output("total", total), values_out = call.plane_output("values", plane_values);
  const bool differentiate = !gradient.is_none();
  py::gil_scoped_release unlocked;
  if (differentiate) {
    call.run_penalty(constants, factors);
  } else {
    call.run(false, true);
  }
  add_up(call, constants, factors, sum, values_out,
         [](double value) { return positive_part(value) * positive_part(value); });
}

// Computes the term and, when `gradient` is given, d total / d point = A^T mu, which is known beforehand, so that one
// pass computes both.
void lagrangian(const py::tuple& planes, const py::object& scale, const py::object& offsets,
                const py::object& multipliers, const py::tuple& point, const py::object& total,
                const py::object& plane_values, const py::object& gradient, int threads) {
  Call call(planes, scale, last_size("point", point), threads);
  const auto constants = call.per_plane("offsets", offsets);
  const auto factors = call.per_plane("multipliers", multipliers);
  call.pass.point = call.columns("point", point);
  call.pass.wide = call.pass.point.type == DataType::kFloat64;
  if (!gradient.is_none()) call.pass.combined = call.mutable_columns("gradient", gradient);
  const Array sum = call.problem_output("total", total), values_out = call.plane_output("values", plane_values);
  const bool differentiate = !gradient.is_none();
  py::gil_scoped_release unlocked;
  if (differentiate) call.set_coefficients(factors);
  call.run(differentiate, true);
  add_up(call, constants, factors, sum, values_out, [](double value) { return value; });
}

// `step_size` and `second_root` hold the two bias corrections of Adam: lr / (1 - beta1^t) and sqrt(1 - beta2^t).
void step(const py::tuple& planes, const py::object& scale, const py::object& coefficients, const py::tuple& gradient,
          const py::tuple& point, const py::tuple& anchor, const py::object& anchor_values, const py::object& exp_avg,
          const py::object& exp_avg_sq, double step_size, double second_root, const py::object& out, int threads) {
  Call call(planes, scale, last_size("point", point), threads);
  const auto factors = call.per_plane("coefficients", coefficients);
  const auto known = call.per_plane("anchor_values", anchor_values);
  PlanePass& pass = call.pass;
  pass.gradient = call.columns("gradient", gradient);
  pass.point = call.mutable_columns("point", point);
  pass.anchor = call.columns("anchor", anchor);
  call.pass.wide = pass.point.type == DataType::kFloat64;
  pass.update = exp_avg.is_none() ? cpu::Update::kSgd : cpu::Update::kAdam;
  if (exp_avg.is_none() != exp_avg_sq.is_none()) throw py::type_error("exp_avg and exp_avg_sq go together");
  if (!exp_avg.is_none()) {
    pass.exp_avg = call.mutable_columns("exp_avg", exp_avg);
    pass.exp_avg_sq = call.mutable_columns("exp_avg_sq", exp_avg_sq);
  }
  pass.lr = step_size;
  pass.second_root = second_root;
  const Array target = call.plane_output("out", out);
  py::gil_scoped_release unlocked;
  call.set_coefficients(factors);
  call.run(true, true);
  call.write(target, known);
}

}  // namespace

void bind_cutting_plane(py::module_& module) {
  using namespace py::literals;
  module.def("cutting_plane_values", &values, "planes"_a, "scale"_a, "offsets"_a, "point"_a, "out"_a, "threads"_a,
             "out = A x + c");
  module.def("cutting_plane_combine", &combine, "planes"_a, "scale"_a, "coefficients"_a, "out"_a, "threads"_a,
             "out = A^T s, rows with coefficient zero left out");
  module.def("cutting_plane_penalty", &penalty, "planes"_a, "scale"_a, "offsets"_a, "multipliers"_a, "point"_a,
             "total"_a, "values"_a, "gradient"_a, "threads"_a,
             "total = sum_l mu_l max(0, v_l)^2, and d total / d point");
  module.def("cutting_plane_lagrangian", &lagrangian, "planes"_a, "scale"_a, "offsets"_a, "multipliers"_a, "point"_a,
             "total"_a, "values"_a, "gradient"_a, "threads"_a, "total = sum_l mu_l v_l, and d total / d point");
  module.def("cutting_plane_step", &step, "planes"_a, "scale"_a, "coefficients"_a, "gradient"_a, "point"_a, "anchor"_a,
             "anchor_values"_a, "exp_avg"_a, "exp_avg_sq"_a, "step_size"_a, "second_root"_a, "out"_a, "threads"_a,
             "The optimiser's step in place, then out = anchor_values + A (point - anchor)");
}
