// simmst._cuda.prob_sparse_*: plans of calls. Sizes and strides are checked once, even those that Python has checked;
// then a plan takes addresses. The indices are in device memory and are not read here; the kernels clamp them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/plan.hpp"
#include "core/merged_batch.hpp"
#include "core/philox.hpp"
#include "cuda/prob_sparse_attention.hpp"

namespace py = pybind11;
namespace ps = simmst::cuda::prob_sparse;
using namespace simmst;
using namespace simmst::cuda;
using std::int64_t;

namespace {

constexpr std::initializer_list<DataType> kFloats = {DataType::kFloat32, DataType::kBfloat16, DataType::kFloat16};

// Reads the operands of one call.
class Operands {
 public:
  Operands(int device, const py::handle& query) : read_(Arrays::planned(device)) {
    array_ = read_("query", query, kFloats);
    batch_ = batch_of(array_);
    query_ = operand(array_, -1, -1);
  }

  // A tensor (batch..., rows, columns); -1 accepts any number of rows or columns.
  ps::Operand operator()(Plan& plan, const char* name, const py::handle& given, int64_t rows, int64_t columns) const {
    const Array array = read_(name, given, {array_.type});
    plan.add(array);
    return operand(array, rows, columns);
  }

  // A contiguous tensor (batch..., columns).
  void vectors(Plan& plan, const char* name, const py::handle& given, DataType type, int64_t columns) const {
    const Array array = read_(name, given, {type});
    vectors_of(array, batch_, columns);
    plan.add(array);
  }
  // The same for a result, which is always contiguous.
  void result(Plan& plan, const char* name, DataType type, int64_t columns) const {
    plan.add_needed(name, type, batch_.count * columns == 0);
  }

  ps::Problem problem(const ps::Operand& key, int64_t widest) const {
    const int64_t width = simmst::prob_sparse::padded_width(widest);
    if (width == 0)
      throw py::value_error("heads must have at most " + std::to_string(simmst::prob_sparse::kLargestWidth) +
                            " columns, got " + std::to_string(widest));
    return {array_.type, width, batch_, query_, key};
  }

  // Checks the number of selected rows.
  int64_t selected(int64_t count) const {
    if (count < 0 || count > query_.matrices.rows)
      throw py::value_error("top must have at most " + std::to_string(query_.matrices.rows) + " columns, got " +
                            std::to_string(count));
    return count;
  }

  const ps::Operand& query() const { return query_; }
  const Array& array() const { return array_; }
  const Arrays& arrays() const { return read_; }

 private:
  ps::Operand operand(const Array& array, int64_t rows, int64_t columns) const {
    ps::Operand result{matrices_of(array, batch_, rows, columns)};
    result.aligned = rows_are_aligned(result.matrices, batch_, item_size(array.type), 16);
    return result;
  }

  Arrays read_;
  Array array_;
  simmst::Batch batch_;
  ps::Operand query_;
};

ps::Operand keys_of(const Operands& read, Plan& plan, const py::handle& key) {
  const ps::Operand operand = read(plan, "key", key, -1, read.query().matrices.columns);
  if (operand.matrices.rows < 1 || operand.matrices.columns < 1)
    throw py::value_error("key must have at least one position and a width of at least one");
  return operand;
}

// is_causal, scale, fill, dropout_p
using Options = std::tuple<bool, double, int, double>;

// Sets all fields but the number of rows and the addresses.
ps::AttendCall with_options(const Options& options) {
  const auto& [is_causal, scale, fill, dropout_p] = options;
  if (fill < 0 || fill > 2) throw py::value_error("fill must be a code from 0 to 2, got " + std::to_string(fill));
  if (!(dropout_p >= 0.0 && dropout_p < 1.0))
    throw py::value_error("dropout_p must be at least 0 and less than 1, got " + std::to_string(dropout_p));
  ps::AttendCall call;
  call.scale = static_cast<float>(scale);
  call.is_causal = is_causal;
  call.fill = static_cast<ps::Fill>(fill);
  if (dropout_p > 0.0)
    call.dropout = {nullptr, simmst::keep_threshold(dropout_p), static_cast<float>(1.0 / (1.0 - dropout_p))};
  return call;
}

// The dropout's seed is two words; it may be missing only when there is no dropout.
void add_seed(Plan& plan, const Options& options) {
  if (std::get<3>(options) > 0.0) plan.add_needed("seed", DataType::kInt64, false);
  else plan.add_optional("seed", DataType::kInt64);
}

void take_seed(ps::AttendCall& call, std::uintptr_t address, bool drops) {
  if (drops) call.dropout.seed = reinterpret_cast<const int64_t*>(address);
}

// Query, key and value.
void read_inputs(const Operands& read, Plan& plan, ps::AttendCall& call, const py::handle& key,
                 const py::handle& value) {
  plan.add(read.array());
  const ps::Operand keys = keys_of(read, plan, key);
  call.value = read(plan, "value", value, keys.matrices.rows, -1);
  call.problem = read.problem(keys, std::max(keys.matrices.columns, call.value.matrices.columns));
}

void read_sample(const Operands& read, Plan& plan, ps::SelectCall& call, const py::handle& sample, double divisor) {
  const int64_t queries = read.query().matrices.rows;
  const Array samples = read.arrays()("sample", sample, {DataType::kInt64});
  if (samples.rank < 1 || samples.rank > 2 || samples.size(-1) < 1 || (samples.rank == 2 && samples.size(0) != queries))
    samples.refuse("must be (L_Q, S) or (S,) with S >= 1 and L_Q = " + std::to_string(queries));
  require_contiguous(samples);
  plan.add(samples);
  call.samples = samples.size(-1);
  call.shared = samples.rank == 1;
  call.divisor = static_cast<float>(divisor);
}

void put(ps::Operand& operand, std::uintptr_t address) {
  operand.matrices.data = reinterpret_cast<void*>(address);
  operand.aligned = operand.aligned && address % 16 == 0;
}

Plan plan_select(const py::object& query, const py::object& key, const py::object& sample, double divisor,
                 int64_t selected, int device) {
  Plan plan(device);
  const Operands read(device, query);
  ps::SelectCall call;
  plan.add(read.array());
  const ps::Operand keys = keys_of(read, plan, key);
  call.problem = read.problem(keys, read.query().matrices.columns);
  read_sample(read, plan, call, sample, divisor);
  call.selected = read.selected(selected);
  read.result(plan, "top", DataType::kInt64, selected);
  read.result(plan, "measure", DataType::kFloat32, read.query().matrices.rows);
  simmst::merge_dimensions(call.problem.batch, {&call.problem.query.matrices, &call.problem.key.matrices});
  const DeviceGuard guard(device);
  plan.finish(ps::select_workspace(call, {device, 0}), [call](const Addresses& at, const Queue& queue) {
    ps::SelectCall now = call;
    put(now.problem.query, at[0]);
    put(now.problem.key, at[1]);
    now.sample = at.as<int64_t>(2);
    now.top = at.as<int64_t>(3);
    now.measure = at.as<float>(4);
    now.workspace = at.as<void>(5);
    ps::select_queries(now, queue);
  });
  return plan;
}

Plan plan_attend(const py::object& query, const py::object& key, const py::object& value, const py::object& top,
                 const py::object& out, const Options& options, int64_t selected, int device) {
  Plan plan(device);
  const Operands read(device, query);
  ps::AttendCall call = with_options(options);
  read_inputs(read, plan, call, key, value);
  call.selected = read.selected(selected);
  read.vectors(plan, "top", top, DataType::kInt64, selected);
  add_seed(plan, options);
  call.out = read(plan, "out", out, read.query().matrices.rows, call.value.matrices.columns);
  read.result(plan, "lse", DataType::kFloat32, selected);
  ps::Problem& problem = call.problem;
  simmst::merge_dimensions(problem.batch,
                           {&problem.query.matrices, &problem.key.matrices, &call.value.matrices, &call.out.matrices});
  const DeviceGuard guard(device);
  plan.finish(ps::attend_workspace(call, {device, 0}),
              [call, drops = std::get<3>(options) > 0.0](const Addresses& at, const Queue& queue) {
                ps::AttendCall now = call;
                put(now.problem.query, at[0]);
                put(now.problem.key, at[1]);
                put(now.value, at[2]);
                now.top = at.as<int64_t>(3);
                take_seed(now, at[4], drops);
                put(now.out, at[5]);
                now.lse = at.as<float>(6);
                now.workspace = at.as<void>(7);
                ps::attend(now, queue);
              });
  return plan;
}

// Selects and attends: in one launch where a block has room for a whole entry, otherwise in two.
Plan plan_forward(const py::object& query, const py::object& key, const py::object& value, const py::object& sample,
                  const py::object& out, double divisor, const Options& options, int64_t selected, int device) {
  Plan plan(device);
  const Operands read(device, query);
  ps::AttendCall attend = with_options(options);
  read_inputs(read, plan, attend, key, value);
  ps::SelectCall select;
  read_sample(read, plan, select, sample, divisor);
  add_seed(plan, options);
  attend.selected = select.selected = read.selected(selected);
  attend.out = read(plan, "out", out, read.query().matrices.rows, attend.value.matrices.columns);
  read.result(plan, "lse", DataType::kFloat32, selected);
  read.result(plan, "top", DataType::kInt64, selected);
  read.result(plan, "measure", DataType::kFloat32, read.query().matrices.rows);
  ps::Problem& problem = attend.problem;
  simmst::merge_dimensions(
      problem.batch, {&problem.query.matrices, &problem.key.matrices, &attend.value.matrices, &attend.out.matrices});
  select.problem = problem;
  const DeviceGuard guard(device);
  const Queue planned{device, 0};
  const bool once = ps::fits_one_launch(select, planned);
  const int64_t bytes =
      once ? 0 : std::max(ps::select_workspace(select, planned), ps::attend_workspace(attend, planned));
  plan.finish(bytes,
              [select, attend, once, drops = std::get<3>(options) > 0.0](const Addresses& at, const Queue& queue) {
                ps::AttendCall now = attend;
                put(now.problem.query, at[0]);
                put(now.problem.key, at[1]);
                put(now.value, at[2]);
                take_seed(now, at[4], drops);
                put(now.out, at[5]);
                now.lse = at.as<float>(6);
                ps::SelectCall first = select;
                first.problem = now.problem;
                first.sample = at.as<int64_t>(3);
                now.top = first.top = at.as<int64_t>(7);
                first.measure = at.as<float>(8);
                now.workspace = first.workspace = at.as<void>(9);
                if (once) return ps::forward_in_one_launch(first, now, queue);
                ps::select_queries(first, queue);
                ps::attend(now, queue);
              });
  return plan;
}

// `tensors`: grad_out, query, key, value, top, out, lse and the gradients of query, key and value.
Plan plan_attend_backward(const std::vector<py::object>& tensors, const Options& options, int64_t selected,
                          int device) {
  if (tensors.size() != 10) throw py::value_error("ten tensors are needed, got " + std::to_string(tensors.size()));
  Plan plan(device);
  const Operands read(device, tensors[1]);
  ps::BackwardCall call;
  call.forward = with_options(options);
  ps::AttendCall& forward = call.forward;
  read_inputs(read, plan, forward, tensors[2], tensors[3]);
  forward.selected = read.selected(selected);
  const auto like = [&](const char* name, const py::object& given, const ps::Operand& model) {
    return read(plan, name, given, model.matrices.rows, model.matrices.columns);
  };
  forward.out = read(plan, "out", tensors[5], read.query().matrices.rows, forward.value.matrices.columns);
  call.grad_out = like("grad_out", tensors[0], forward.out);
  call.grad_query = like("grad_query", tensors[7], forward.problem.query);
  call.grad_key = like("grad_key", tensors[8], forward.problem.key);
  call.grad_value = like("grad_value", tensors[9], forward.value);
  read.vectors(plan, "top", tensors[4], DataType::kInt64, selected);
  read.vectors(plan, "lse", tensors[6], DataType::kFloat32, selected);
  add_seed(plan, options);
  ps::Problem& problem = forward.problem;
  simmst::merge_dimensions(problem.batch, {&problem.query.matrices, &problem.key.matrices, &forward.value.matrices,
                                           &forward.out.matrices, &call.grad_out.matrices, &call.grad_query.matrices,
                                           &call.grad_key.matrices, &call.grad_value.matrices});
  const DeviceGuard guard(device);
  plan.finish(ps::backward_workspace(call, {device, 0}),
              [call, drops = std::get<3>(options) > 0.0](const Addresses& at, const Queue& queue) {
                ps::BackwardCall now = call;
                put(now.forward.problem.query, at[0]);
                put(now.forward.problem.key, at[1]);
                put(now.forward.value, at[2]);
                put(now.forward.out, at[3]);
                put(now.grad_out, at[4]);
                put(now.grad_query, at[5]);
                put(now.grad_key, at[6]);
                put(now.grad_value, at[7]);
                now.forward.top = at.as<int64_t>(8);
                now.forward.lse = at.as<float>(9);
                take_seed(now.forward, at[10], drops);
                now.forward.workspace = at.as<void>(11);
                ps::backward(now, queue);
              });
  return plan;
}

}  // namespace

void bind_prob_sparse_attention(py::module_& module) {
  module.def("prob_sparse_select", &plan_select,
             "Plan to measure the queries and select those with the largest: query, key, sample, top, measure.");
  module.def("prob_sparse_attend", &plan_attend,
             "Plan of attention in the selected rows, the fill in all others: query, key, value, top, seed, out, lse.");
  module.def("prob_sparse_forward", &plan_forward,
             "Plan of both: query, key, value, sample, seed, out, lse, top, measure.");
  module.def(
      "prob_sparse_attend_backward", &plan_attend_backward,
      "Plan of the gradients of prob_sparse_attend: query, key, value, out, grad_out, the gradients of query, key "
      "and value, top, lse, seed.");
}
