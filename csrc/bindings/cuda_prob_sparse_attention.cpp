// simmst._cuda.prob_sparse_*: every array is checked before anything is launched, whatever Python has checked already.
// Indices lie on the device and are not read here; the kernels clamp them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
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
  Operands(const Queue& queue, const py::handle& query) : read_(Arrays::on_device(queue.device)) {
    const Array array = read_("query", query, kFloats);
    type_ = array.type;
    batch_ = batch_of(array);
    query_ = operand(array, -1, -1);
  }

  // A tensor (batch..., rows, columns); -1 accepts any number of rows or columns.
  ps::Operand operator()(const char* name, const py::handle& given, int64_t rows, int64_t columns) const {
    return operand(read_(name, given, {type_}), rows, columns);
  }

  // A contiguous tensor (batch..., columns).
  template <typename T>
  T* vectors(const char* name, const py::handle& given, DataType type, int64_t columns) const {
    return reinterpret_cast<T*>(vectors_of(read_(name, given, {type}), batch_, columns));
  }

  int64_t last_size(const char* name, const py::handle& given) const {
    const Array array = read_(name, given);
    return array.rank < 1 ? 0 : array.size(-1);
  }

  void* workspace(const py::handle& given, int64_t bytes) const {
    const Array array = read_("workspace", given, {DataType::kUint8});
    require_contiguous(array);
    if (array.rank != 1 || array.size(0) < bytes ||
        (bytes > 0 && reinterpret_cast<std::uintptr_t>(array.data) % 16 != 0))
      array.refuse("must have " + std::to_string(bytes) + " bytes, aligned to 16");
    return array.data;
  }

  ps::Problem problem(const ps::Operand& key, int64_t widest) const {
    const int64_t width = simmst::prob_sparse::padded_width(widest);
    if (width == 0)
      throw py::value_error("heads must have at most " + std::to_string(simmst::prob_sparse::kLargestWidth) +
                            " columns, got " + std::to_string(widest));
    return {type_, width, batch_, query_, key};
  }

  const ps::Operand& query() const { return query_; }
  const Arrays& arrays() const { return read_; }

 private:
  ps::Operand operand(const Array& array, int64_t rows, int64_t columns) const {
    ps::Operand result{matrices_of(array, batch_, rows, columns)};
    result.aligned = rows_are_aligned(result.matrices, batch_, item_size(array.type), 16);
    return result;
  }

  Arrays read_;
  DataType type_;
  simmst::Batch batch_;
  ps::Operand query_;
};

ps::Operand keys_of(const Operands& read, const py::handle& key) {
  const ps::Operand operand = read("key", key, -1, read.query().matrices.columns);
  if (operand.matrices.rows < 1 || operand.matrices.columns < 1)
    throw py::value_error("key must have at least one position and a width of at least one");
  return operand;
}

struct Options {
  bool is_causal;
  double scale;
  int fill;
  double dropout_p;
};

ps::AttendCall attend_call(const Operands& read, const py::handle& key, const py::handle& value, const py::handle& top,
                           const py::handle& seed, const Options& options, const py::handle& out,
                           const py::handle& lse) {
  ps::AttendCall call;
  const ps::Operand keys = keys_of(read, key);
  call.value = read("value", value, keys.matrices.rows, -1);
  const int64_t queries = read.query().matrices.rows, value_width = call.value.matrices.columns;
  call.problem = read.problem(keys, std::max(keys.matrices.columns, value_width));
  call.out = read("out", out, queries, value_width);
  call.selected = read.last_size("top", top);
  if (call.selected > queries) throw py::value_error("top must have at most " + std::to_string(queries) + " columns");
  call.top = read.vectors<int64_t>("top", top, DataType::kInt64, call.selected);
  call.lse = read.vectors<float>("lse", lse, DataType::kFloat32, call.selected);
  if (options.fill < 0 || options.fill > 2)
    throw py::value_error("fill must be a code from 0 to 2, got " + std::to_string(options.fill));
  if (!(options.dropout_p >= 0.0 && options.dropout_p < 1.0))
    throw py::value_error("dropout_p must be at least 0 and less than 1, got " + std::to_string(options.dropout_p));
  call.scale = static_cast<float>(options.scale);
  call.is_causal = options.is_causal;
  call.fill = static_cast<ps::Fill>(options.fill);
  if (options.dropout_p > 0.0) {
    const Array array = read.arrays()("seed", seed, {DataType::kInt64});
    require_shape(array, {2});
    require_contiguous(array);
    call.dropout = {array.as<int64_t>(), simmst::keep_threshold(options.dropout_p),
                    static_cast<float>(1.0 / (1.0 - options.dropout_p))};
  }
  return call;
}

// All but the problem, which depends on whether values come as well.
ps::SelectCall select_call(const Operands& read, const py::handle& sample, double divisor, const py::handle& top,
                           const py::handle& measure) {
  ps::SelectCall call;
  const int64_t queries = read.query().matrices.rows;
  const Array samples = read.arrays()("sample", sample, {DataType::kInt64});
  if (samples.rank < 1 || samples.rank > 2 || samples.size(-1) < 1 || (samples.rank == 2 && samples.size(0) != queries))
    samples.refuse("must be (L_Q, S) or (S,) with S >= 1 and L_Q = " + std::to_string(queries));
  require_contiguous(samples);
  call.sample = samples.as<int64_t>();
  call.samples = samples.size(-1);
  call.shared = samples.rank == 1;
  call.divisor = static_cast<float>(divisor);
  call.selected = read.last_size("top", top);
  if (call.selected > queries) throw py::value_error("top must have at most " + std::to_string(queries) + " columns");
  call.top = read.vectors<int64_t>("top", top, DataType::kInt64, call.selected);
  call.measure = read.vectors<float>("measure", measure, DataType::kFloat32, queries);
  return call;
}

void select_queries(const py::tuple& query, const py::tuple& key, const py::tuple& sample, double divisor,
                    const py::tuple& top, const py::tuple& measure, const py::object& allocate, int device,
                    std::uintptr_t stream) {
  const Queue queue{device, stream};
  const Operands read(queue, query);
  ps::SelectCall call = select_call(read, sample, divisor, top, measure);
  call.problem = read.problem(keys_of(read, key), read.query().matrices.columns);
  const DeviceGuard guard(device);
  const int64_t bytes = ps::select_workspace(call, queue);
  call.workspace = read.workspace(allocate(bytes), bytes);
  ps::select_queries(call, queue);
}

void attend(const py::tuple& query, const py::tuple& key, const py::tuple& value, const py::tuple& top,
            const py::object& seed, bool is_causal, double scale, int fill, double dropout_p, const py::tuple& out,
            const py::tuple& lse, const py::object& allocate, int device, std::uintptr_t stream) {
  const Queue queue{device, stream};
  const Operands read(queue, query);
  ps::AttendCall call = attend_call(read, key, value, top, seed, {is_causal, scale, fill, dropout_p}, out, lse);
  const DeviceGuard guard(device);
  const int64_t bytes = ps::attend_workspace(call, queue);
  call.workspace = read.workspace(allocate(bytes), bytes);
  ps::attend(call, queue);
}

// Selects and attends: in one launch where a block has room for a whole entry, else one after the other. Returns
// whether it was one launch.
bool forward(const py::tuple& query, const py::tuple& key, const py::tuple& value, const py::tuple& sample,
             double divisor, const py::object& seed, bool is_causal, double scale, int fill, double dropout_p,
             const py::tuple& out, const py::tuple& lse, const py::tuple& top, const py::tuple& measure,
             const py::object& allocate, int device, std::uintptr_t stream) {
  const Queue queue{device, stream};
  const Operands read(queue, query);
  ps::AttendCall attend = attend_call(read, key, value, top, seed, {is_causal, scale, fill, dropout_p}, out, lse);
  ps::SelectCall select = select_call(read, sample, divisor, top, measure);
  select.problem = attend.problem;
  const DeviceGuard guard(device);
  if (ps::fits_one_launch(select, queue)) {
    ps::forward_in_one_launch(select, attend, queue);
    return true;
  }
  const int64_t bytes = std::max(ps::select_workspace(select, queue), ps::attend_workspace(attend, queue));
  select.workspace = attend.workspace = read.workspace(allocate(bytes), bytes);
  ps::select_queries(select, queue);
  ps::attend(attend, queue);
  return false;
}

void attend_backward(const py::tuple& grad_out, const py::tuple& query, const py::tuple& key, const py::tuple& value,
                     const py::tuple& top, const py::tuple& out, const py::tuple& lse, const py::object& seed,
                     bool is_causal, double scale, int fill, double dropout_p, const py::tuple& grad_query,
                     const py::tuple& grad_key, const py::tuple& grad_value, const py::object& allocate, int device,
                     std::uintptr_t stream) {
  const Queue queue{device, stream};
  const Operands read(queue, query);
  ps::BackwardCall call;
  call.forward = attend_call(read, key, value, top, seed, {is_causal, scale, fill, dropout_p}, out, lse);
  const auto like = [&](const char* name, const py::tuple& given, const ps::Operand& model) {
    return read(name, given, model.matrices.rows, model.matrices.columns);
  };
  call.grad_out = like("grad_out", grad_out, call.forward.out);
  call.grad_query = like("grad_query", grad_query, call.forward.problem.query);
  call.grad_key = like("grad_key", grad_key, call.forward.problem.key);
  call.grad_value = like("grad_value", grad_value, call.forward.value);
  const DeviceGuard guard(device);
  const int64_t bytes = ps::backward_workspace(call, queue);
  call.forward.workspace = read.workspace(allocate(bytes), bytes);
  ps::backward(call, queue);
}

}  // namespace

void bind_prob_sparse_attention(py::module_& module) {
  module.def("prob_sparse_select", &select_queries, "Measure the queries and select those with the largest.");
  module.def("prob_sparse_attend", &attend, "Attention in the selected rows, the fill in all others.");
  module.def("prob_sparse_forward", &forward, "prob_sparse_select and prob_sparse_attend; whether it took one launch.");
  module.def("prob_sparse_attend_backward", &attend_backward, "Gradients of prob_sparse_attend.");
}
