// Cutting planes for Python. Shapes are those of csrc/cuda/cutting_plane.hpp, without P in the calls of one problem.
#include <pybind11/pybind11.h>

#include <array>
#include <string>

#include "bindings/arrays.hpp"
#include "core/cutting_plane_schedule.hpp"
#include "cuda/cutting_plane.hpp"

namespace py = pybind11;
using namespace simmst;
using namespace simmst::cuda;

namespace {

// Types of tensors with one entry a plane, and of those along N.
#define SIMMST_NUMBERS {DataType::kFloat32, DataType::kFloat64, DataType::kBfloat16, DataType::kFloat16}
#define SIMMST_FLOATS {DataType::kFloat32, DataType::kBfloat16, DataType::kFloat16}

// The sizes of a call, and its arrays checked against them.
class Call {
 public:
  Call(const py::tuple& planes, const py::object& scale, std::int64_t size, const Queue& queue)
      : queue_(queue), read_(Arrays::on_device(queue.device)) {
    const Array rows = read_("planes", planes,
                             {DataType::kFloat32, DataType::kBfloat16, DataType::kFloat16, DataType::kUint8});
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
    pass.rows = rows.data;
    pass.row_bytes = rows.stride(-2) * item_size(rows.type);
    pass.problem_bytes = batched_ ? rows.stride(0) * item_size(rows.type) : 0;
    const std::int64_t unit = packed ? 4 : 16;
    pass.aligned = reinterpret_cast<std::uintptr_t>(rows.data) % static_cast<std::uintptr_t>(unit) == 0 &&
                   pass.row_bytes % unit == 0 && pass.problem_bytes % unit == 0;
    if (packed != !scale.is_none()) throw py::type_error("scale goes with packed signs, and with them alone");
    if (packed) pass.scale = per_plane("scale", scale);
  }

  Strided per_plane(const char* name, const py::handle& given) const {
    return shaped(read_(name, given, SIMMST_NUMBERS), pass.planes);
  }
  Strided columns(const char* name, const py::handle& given) const {
    return shaped(read_(name, given, SIMMST_FLOATS), pass.size);
  }
  Strided anchor(const py::handle& given) const { return shaped(read_("anchor", given, SIMMST_NUMBERS), pass.size); }
  // Written to: no two entries may share a place.
  Strided written(const Strided& array, const char* name, std::int64_t last) const {
    if ((last > 1 && array.stride == 0) || (batched_ && pass.problems > 1 && last > 0 && array.problem_stride == 0)) {
      throw py::value_error(std::string(name) + " is written to, but several of its entries share one place in memory");
    }
    return array;
  }
  Strided mutable_columns(const char* name, const py::handle& given) const {
    return written(columns(name, given), name, pass.size);
  }
  // One entry a problem.
  Strided per_problem(const char* name, const py::handle& given) const {
    const Array array = read_(name, given, SIMMST_NUMBERS);
    if (batched_) {
      require_shape(array, {pass.problems});
      return written({array.data, array.type, array.strides[0], 0}, name, 1);
    }
    require_shape(array, {});
    return {array.data, array.type, 0, 0};
  }

  void set_values(const py::handle& offsets, const py::handle& values) {
    pass.evaluating = true;
    pass.offsets = per_plane("offsets", offsets);
    pass.values = written(per_plane("values", values), "values", pass.planes);
  }

  // `workspace` is what workspaces() asks for.
  void run(const py::handle& workspace) {
    const Array room = read_("workspace", workspace, {DataType::kFloat32});
    const std::array<std::int64_t, 3> parts = workspaces();
    require_shape(room, {parts[0] + parts[1] + parts[2]});
    require_contiguous(room);
    pass.partial = room.as<float>();
    pass.carried = pass.partial + parts[0];
    if (keeps_slopes) pass.slopes = pass.carried + parts[1];
    const py::gil_scoped_release unlocked;
    const DeviceGuard guard(queue_.device);
    simmst::cuda::run(pass, queue_);
    if (!keeps_slopes) return;
    // The gradient of the penalty needs all of the values: a second pass.
    PlanePass second = pass;
    second.evaluating = false;
    second.coefficients = {pass.slopes, DataType::kFloat32, pass.planes, 1};
    second.combined = gradient;
    second.point = {};
    simmst::cuda::run(second, queue_);
  }

  PlanePass pass;
  bool keeps_slopes = false;  // run() goes on to make `gradient` of them
  Strided gradient;

 private:
  // Floats for the blocks' shares, for the first product carried between row blocks, and for the slopes.
  std::array<std::int64_t, 3> workspaces() const;

  Strided shaped(const Array& array, std::int64_t last) const {
    if (batched_) {
      require_shape(array, {pass.problems, last});
      return {array.data, array.type, array.strides[0], array.strides[1]};
    }
    require_shape(array, {last});
    return {array.data, array.type, 0, array.strides[0]};
  }

  Queue queue_;
  Arrays read_;
  bool batched_ = false;
};

std::array<std::int64_t, 3> workspace_sizes(const PlanePass& pass, int device) {
  const simmst::PlaneSchedule schedule = plane_schedule(pass, device);
  const std::int64_t rows = pass.problems * pass.planes;
  return {rows * schedule.blocks, schedule.row_blocks > 1 ? pass.problems * pass.size : 0, rows};
}

std::array<std::int64_t, 3> Call::workspaces() const { return workspace_sizes(pass, queue_.device); }

std::int64_t workspace(int type, std::int64_t problems, std::int64_t planes, std::int64_t size, int device) {
  PlanePass pass;
  pass.format = format_of(static_cast<DataType>(type));
  pass.problems = problems;
  pass.planes = planes;
  pass.size = size;
  const auto parts = workspace_sizes(pass, device);
  return parts[0] + parts[1] + parts[2];
}

std::int64_t last_size(const char* name, const py::tuple& given, int device) {
  const Array array = Arrays::on_device(device)(name, given);
  if (array.rank == 0) array.refuse("must have shape (N,) or (P, N)");
  return array.size(-1);
}

void values(const py::tuple& planes, const py::object& scale, const py::tuple& offsets, const py::tuple& point,
            const py::tuple& out, const py::tuple& workspace, int device, std::uintptr_t stream) {
  Call call(planes, scale, last_size("point", point, device), {device, stream});
  call.pass.point = call.columns("point", point);
  call.set_values(offsets, out);
  call.run(workspace);
}

void combine(const py::tuple& planes, const py::object& scale, const py::tuple& coefficients, const py::tuple& out,
             const py::tuple& workspace, int device, std::uintptr_t stream) {
  Call call(planes, scale, last_size("out", out, device), {device, stream});
  call.pass.coefficients = call.per_plane("coefficients", coefficients);
  call.pass.combined = call.mutable_columns("out", out);
  call.run(workspace);
}

// The penalty or the Lagrangian's term, the values, and, where `gradient` is given, d total / d point.
void total(bool penalty, const py::tuple& planes, const py::object& scale, const py::tuple& offsets,
           const py::tuple& multipliers, const py::tuple& point, const py::tuple& out, const py::tuple& values,
           const py::object& gradient, const py::tuple& workspace, int device, std::uintptr_t stream) {
  Call call(planes, scale, last_size("point", point, device), {device, stream});
  call.pass.point = call.columns("point", point);
  call.set_values(offsets, values);
  call.pass.total_of = penalty ? Total::kPenalty : Total::kLagrangian;
  call.pass.multipliers = call.per_plane("multipliers", multipliers);
  call.pass.total = call.per_problem("out", out);
  if (!gradient.is_none() && penalty) {
    call.keeps_slopes = true;
    call.gradient = call.mutable_columns("gradient", gradient);
  } else if (!gradient.is_none()) {
    call.pass.coefficients = call.pass.multipliers;
    call.pass.combined = call.mutable_columns("gradient", gradient);
  }
  call.run(workspace);
}

// `averages` is (exp_avg, exp_avg_sq) for Adam or None for SGD. `step` is the number of steps taken, on the device, with
// step_size the learning rate; or None with what follows from it for Adam.
void step(const py::tuple& planes, const py::object& scale, const py::tuple& coefficients, const py::tuple& gradient,
          const py::tuple& point, const py::tuple& anchor, const py::tuple& anchor_values, const py::object& averages,
          const py::object& step, float step_size, float second_root, const py::tuple& out, const py::tuple& workspace,
          int device, std::uintptr_t stream) {
  Call call(planes, scale, last_size("point", point, device), {device, stream});
  PlanePass& pass = call.pass;
  pass.coefficients = call.per_plane("coefficients", coefficients);
  pass.gradient = call.columns("gradient", gradient);
  pass.point = call.mutable_columns("point", point);
  pass.anchor = call.anchor(anchor);
  call.set_values(anchor_values, out);
  pass.update = averages.is_none() ? Update::kSgd : Update::kAdam;
  pass.step_size = step_size;
  pass.second_root = second_root;
  if (!averages.is_none()) {
    const auto pair = averages.cast<py::tuple>();
    if (pair.size() != 2) throw py::type_error("averages must be (exp_avg, exp_avg_sq)");
    pass.exp_avg = call.mutable_columns("exp_avg", pair[0]);
    pass.exp_avg_sq = call.mutable_columns("exp_avg_sq", pair[1]);
  }
  if (!step.is_none()) {
    const Array taken = Arrays::on_device(device)("step", step,
                                            {DataType::kFloat32, DataType::kFloat64, DataType::kBfloat16,
                                             DataType::kFloat16, DataType::kInt64, DataType::kInt32});
    require_shape(taken, {});
    pass.step = {taken.data, taken.type, 0, 0};
  }
  call.run(workspace);
}

}  // namespace

void bind_cutting_plane(py::module_& module) {
  module.def("cutting_plane_workspace", &workspace, "Floats of workspace for a call on planes of this dtype and shape.");
  module.def("cutting_plane_values", &values, "A x + c.");
  module.def("cutting_plane_combine", &combine, "A^T s; rows whose coefficient is zero are not read.");
  module.def("cutting_plane_total", &total, "The penalty or the Lagrangian's term, the values, and the gradient.");
  module.def("cutting_plane_step", &step, "One step of SGD or Adam in place, and the values after it.");
}
