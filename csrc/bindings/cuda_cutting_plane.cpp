// Cutting planes for Python: plans of calls, whose sizes and strides are checked once. Shapes are those of
// csrc/cuda/cutting_plane.hpp; calls of one problem have no P.
#include <pybind11/pybind11.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/plan.hpp"
#include "core/cutting_plane_schedule.hpp"
#include "cuda/cutting_plane.hpp"

namespace py = pybind11;
using namespace simmst;
using namespace simmst::cuda;

namespace {

// Types of tensors with one entry per plane, and of tensors along N.
#define SIMMST_NUMBERS {DataType::kFloat32, DataType::kFloat64, DataType::kBfloat16, DataType::kFloat16}
#define SIMMST_FLOATS {DataType::kFloat32, DataType::kBfloat16, DataType::kFloat16}

// The sizes of a call, and the layouts of its arrays, checked against those sizes. Each array that is read takes the
// next place.
class Call {
 public:
  Call(const py::tuple& planes, const py::object& scale, std::int64_t size, int device)
      : plan_(device), read_(Arrays::planned(device)) {
    const Array rows =
        read_("planes", planes, {DataType::kFloat32, DataType::kBfloat16, DataType::kFloat16, DataType::kUint8});
    plan_.add(rows);
    if (rows.rank != 2 && rows.rank != 3) {
      rows.refuse("must have shape (L, N) or (P, L, N)");
    }
    batched_ = rows.rank == 3;
    pass.problems = batched_ ? rows.size(0) : 1;
    pass.planes = rows.size(-2);
    pass.size = size;
    const bool packed = rows.type == DataType::kUint8;
    const std::int64_t width = packed ? (size + 7) / 8 : size;
    if (size < 0 || rows.size(-1) != width) {
      rows.refuse("must have " + std::to_string(width) + " in its last dimension, for " + std::to_string(size) +
                  " columns");
    }
    if (width > 1 && rows.stride(-1) != 1) {
      rows.refuse("must have stride 1 along its last dimension, got " + std::to_string(rows.stride(-1)));
    }
    pass.format = format_of(rows.type);
    pass.row_bytes = rows.stride(-2) * item_size(rows.type);
    pass.problem_bytes = batched_ ? rows.stride(0) * item_size(rows.type) : 0;
    pass.aligned = pass.row_bytes % unit() == 0 && pass.problem_bytes % unit() == 0;
    if (packed != !scale.is_none()) throw py::type_error("scale goes with packed signs, and with them alone");
    if (packed) per_plane("scale", scale, &PlanePass::scale);
    else plan_.add_optional("scale", DataType::kFloat32);
  }

  using Member = Strided PlanePass::*;

  void per_plane(const char* name, const py::handle& given, Member member) {
    take(shaped(read_(name, given, SIMMST_NUMBERS), pass.planes), member);
  }
  void columns(const char* name, const py::handle& given, Member member) {
    take(shaped(read_(name, given, SIMMST_FLOATS), pass.size), member);
  }
  void anchor(const py::handle& given) {
    take(shaped(read_("anchor", given, SIMMST_NUMBERS), pass.size), &PlanePass::anchor);
  }
  void mutable_columns(const char* name, const py::handle& given, Member member) {
    take(written(shaped(read_(name, given, SIMMST_FLOATS), pass.size), name, pass.size), member);
  }
  // One entry per problem.
  void per_problem(const char* name, const py::handle& given, Member member) {
    const Array array = read_(name, given, SIMMST_NUMBERS);
    if (batched_) {
      require_shape(array, {pass.problems});
      take({array, written({nullptr, array.type, array.strides[0], 0}, name, 1)}, member);
    } else {
      require_shape(array, {});
      take({array, {nullptr, array.type, 0, 0}}, member);
    }
  }
  // Plans a second pass, because the gradient of the penalty needs all of the values.
  void second_pass(const py::handle& gradient) {
    const auto [array, found] = shaped(read_("gradient", gradient, SIMMST_FLOATS), pass.size);
    gradient_ = written(std::pair{array, found}, "gradient", pass.size).second;
    gradient_place_ = plan_.count();
    plan_.add(array);
  }
  void set_values(const py::handle& offsets, const py::handle& values) {
    pass.evaluating = true;
    per_plane("offsets", offsets, &PlanePass::offsets);
    take(written(shaped(read_("values", values, SIMMST_NUMBERS), pass.planes), "values", pass.planes),
         &PlanePass::values);
  }
  // Makes the first product use the multipliers as coefficients.
  void combine_with_multipliers() {
    pass.coefficients = pass.multipliers;
    for (const auto& [member, place] : std::vector(arrays_))
      if (member == &PlanePass::multipliers) arrays_.emplace_back(&PlanePass::coefficients, place);
  }
  void step(const py::handle& given) {
    const Array taken = read_("step", given,
                              {DataType::kFloat32, DataType::kFloat64, DataType::kBfloat16, DataType::kFloat16,
                               DataType::kInt64, DataType::kInt32});
    require_shape(taken, {});
    take({taken, {nullptr, taken.type, 0, 0}}, &PlanePass::step);
  }
  void missing(const char* name) { plan_.add_optional(name, DataType::kFloat32); }
  // Called after all arrays. Adds the numbers step_size and second_root where there is an update.
  Plan finish();

  PlanePass pass;

 private:
  using Found = std::pair<Array, Strided>;

  std::int64_t unit() const { return pass.format == PlaneFormat::kSigns ? 4 : 16; }
  void take(const Found& found, Member member) {
    pass.*member = found.second;
    arrays_.emplace_back(member, plan_.count());
    plan_.add(found.first);
  }
  // Checks an array that is written to: no two entries may share a place.
  Strided written(const Strided& array, const char* name, std::int64_t last) const {
    if ((last > 1 && array.stride == 0) || (batched_ && pass.problems > 1 && last > 0 && array.problem_stride == 0)) {
      throw py::value_error(std::string(name) + " is written to, but several of its entries share one place in memory");
    }
    return array;
  }
  Found written(const Found& found, const char* name, std::int64_t last) const {
    return {found.first, written(found.second, name, last)};
  }
  Found shaped(const Array& array, std::int64_t last) const {
    if (batched_) {
      require_shape(array, {pass.problems, last});
      return {array, {nullptr, array.type, array.strides[0], array.strides[1]}};
    }
    require_shape(array, {last});
    return {array, {nullptr, array.type, 0, array.strides[0]}};
  }

  Plan plan_;
  Arrays read_;
  bool batched_ = false;
  std::vector<std::pair<Member, std::size_t>> arrays_;
  Strided gradient_;
  std::size_t gradient_place_ = 0;  // 0: no second pass
};

Plan Call::finish() {
  const PlaneSchedule schedule = plane_schedule(pass, plan_.device());
  const std::int64_t rows = pass.problems * pass.planes, shares = rows * schedule.blocks,
                     carried = schedule.row_blocks > 1 ? pass.problems * pass.size : 0;
  const std::size_t numbers = plan_.count();
  if (pass.update != Update::kNone) {
    plan_.add_number("step_size");
    plan_.add_number("second_root");
  }
  const std::size_t workspace = plan_.count();
  // Floats for the blocks' shares, for the first product, which is carried between row blocks, and for the slopes.
  const std::int64_t bytes = (shares + carried + (gradient_place_ > 0 ? rows : 0)) * 4;
  plan_.finish(
      bytes, [planned = pass, arrays = arrays_, gradient = gradient_, place = gradient_place_, shares, carried, numbers,
              workspace, unit = static_cast<std::uintptr_t>(unit())](const Addresses& at, const Queue& queue) {
        PlanePass now = planned;
        now.rows = at.as<const char>(0);
        now.aligned = now.aligned && at[0] % unit == 0;
        for (const auto& [member, place_of] : arrays) (now.*member).data = at.as<void>(place_of);
        if (now.update != Update::kNone) {
          now.step_size = static_cast<float>(at.number(numbers));
          now.second_root = static_cast<float>(at.number(numbers + 1));
        }
        now.partial = at.as<float>(workspace);
        now.carried = now.partial + shares;
        if (place > 0) now.slopes = now.carried + carried;
        const py::gil_scoped_release unlocked;
        simmst::cuda::run(now, queue);
        if (place == 0) return;
        PlanePass second = now;
        second.evaluating = false;
        second.coefficients = {now.slopes, DataType::kFloat32, now.planes, 1};
        second.combined = gradient;
        second.combined.data = at.as<void>(place);
        second.point = {};
        simmst::cuda::run(second, queue);
      });
  return std::move(plan_);
}

std::int64_t last_size(const char* name, const py::tuple& given, int device) {
  const Array array = Arrays::planned(device)(name, given);
  if (array.rank == 0) array.refuse("must have shape (N,) or (P, N)");
  return array.size(-1);
}

Plan values(const py::tuple& planes, const py::object& scale, const py::tuple& offsets, const py::tuple& point,
            const py::tuple& out, int device) {
  Call call(planes, scale, last_size("point", point, device), device);
  call.columns("point", point, &PlanePass::point);
  call.set_values(offsets, out);
  return call.finish();
}

Plan combine(const py::tuple& planes, const py::object& scale, const py::tuple& coefficients, const py::tuple& out,
             int device) {
  Call call(planes, scale, last_size("out", out, device), device);
  call.per_plane("coefficients", coefficients, &PlanePass::coefficients);
  call.mutable_columns("out", out, &PlanePass::combined);
  return call.finish();
}

// Computes the penalty or the Lagrangian's term, the values, and, where `gradient` is given, d total / d point.
Plan total(bool penalty, const py::tuple& planes, const py::object& scale, const py::tuple& offsets,
           const py::tuple& multipliers, const py::tuple& point, const py::tuple& out, const py::tuple& values,
           const py::object& gradient, int device) {
  Call call(planes, scale, last_size("point", point, device), device);
  call.columns("point", point, &PlanePass::point);
  call.set_values(offsets, values);
  call.pass.total_of = penalty ? Total::kPenalty : Total::kLagrangian;
  call.per_plane("multipliers", multipliers, &PlanePass::multipliers);
  call.per_problem("out", out, &PlanePass::total);
  if (gradient.is_none()) {
    call.missing("gradient");
  } else if (penalty) {
    call.second_pass(gradient);
  } else {
    call.combine_with_multipliers();
    call.mutable_columns("gradient", gradient, &PlanePass::combined);
  }
  return call.finish();
}

// `averages` is (exp_avg, exp_avg_sq) for Adam or None for SGD. `step` is the number of steps taken, on the device; the
// number step_size is then the learning rate. Without `step`, step_size and second_root hold Adam's bias corrections.
Plan step(const py::tuple& planes, const py::object& scale, const py::tuple& coefficients, const py::tuple& gradient,
          const py::tuple& point, const py::tuple& anchor, const py::tuple& anchor_values, const py::object& averages,
          const py::object& step, const py::tuple& out, int device) {
  Call call(planes, scale, last_size("point", point, device), device);
  call.per_plane("coefficients", coefficients, &PlanePass::coefficients);
  call.columns("gradient", gradient, &PlanePass::gradient);
  call.mutable_columns("point", point, &PlanePass::point);
  call.anchor(anchor);
  call.set_values(anchor_values, out);
  call.pass.update = averages.is_none() ? Update::kSgd : Update::kAdam;
  if (averages.is_none()) {
    call.missing("exp_avg");
    call.missing("exp_avg_sq");
  } else {
    const auto pair = averages.cast<py::tuple>();
    if (pair.size() != 2) throw py::type_error("averages must be (exp_avg, exp_avg_sq)");
    call.mutable_columns("exp_avg", pair[0], &PlanePass::exp_avg);
    call.mutable_columns("exp_avg_sq", pair[1], &PlanePass::exp_avg_sq);
  }
  if (step.is_none()) call.missing("step");
  else call.step(step);
  return call.finish();
}

}  // namespace

void bind_cutting_plane(py::module_& module) {
  module.def("cutting_plane_values", &values, "Plan of A x + c: planes, scale, point, offsets, out.");
  module.def("cutting_plane_combine", &combine,
             "Plan of A^T s, where rows whose coefficient is zero are not read: planes, scale, coefficients, out.");
  module.def(
      "cutting_plane_total", &total,
      "Plan of the penalty or the Lagrangian's term, the values and the gradient: planes, scale, point, offsets, "
      "values, multipliers, out, gradient.");
  module.def(
      "cutting_plane_step", &step,
      "Plan of a step of SGD or Adam in place, and the values after it: planes, scale, coefficients, gradient, "
      "point, anchor, anchor_values, out, exp_avg, exp_avg_sq, step, and the numbers step_size and second_root.");
}
