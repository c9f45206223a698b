// simmst._cpu.prob_sparse_*. All arguments are checked here, before any memory is touched, even those that Python has
// checked.
#include <pybind11/pybind11.h>

#include <memory>
#include <new>
#include <string>

#include "bindings/arrays.hpp"
#include "cpu/huge_pages.hpp"
#include "cpu/prob_sparse_attention.hpp"

namespace py = pybind11;
namespace ps = simmst::cpu::prob_sparse;
using simmst::Array;
using simmst::Arrays;
using simmst::DataType;
using simmst::Matrices;

namespace {

// All arrays of a call are (address, shape, strides).
const Arrays read = Arrays::untyped();

const ps::Kernels& kernels() {
#define SIMMST_TABLE(isa) &simmst::cpu::isa::prob_sparse::kernels,
  return simmst::cpu::pick<ps::Kernels>({SIMMST_FOR_EACH_ISA_AND_BF16(SIMMST_TABLE)});
#undef SIMMST_TABLE
}

int threads_of(int threads) {
  if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
  return threads;
}

void check_indices(const char* name, const int64_t* indices, int64_t count, int64_t upper) {
  if (!kernels().in_range(indices, count, upper))
    throw py::index_error(std::string(name) + " must hold indices from 0 to " + std::to_string(upper - 1));
}

// Checks that a result is contiguous before it is written.
void will_write(const Matrices& result, const simmst::Batch& batch, DataType type) {
  const int64_t items = batch.count * result.rows * result.columns;
  int64_t extent = items > 0 ? 1 + (result.rows - 1) * result.row_stride + (result.columns - 1) : 0;
  for (int i = 0; i < batch.dims && items > 0; ++i) extent += (batch.size[i] - 1) * result.batch_stride[i];
  if (extent == items) simmst::cpu::prefer_huge_pages(result.data, items * simmst::item_size(type));
}

void check_memory(bool enough) {
  if (!enough) throw std::bad_alloc();
}

// Reads a tensor of the call's type and batch.
template <typename Call>
Matrices matrices(const Call& call, const char* name, const py::tuple& given, int64_t rows, int64_t columns) {
  return simmst::matrices_of(read(name, given, {call.type}), call.batch, rows, columns);
}

// One float for each of `columns` rows of every batch entry; one double if the call is in doubles.
template <typename Call>
void* results(const Call& call, const char* name, const py::tuple& given, int64_t columns) {
  const DataType type = call.type == DataType::kFloat64 ? call.type : DataType::kFloat32;
  return simmst::vectors_of(read(name, given, {type}), call.batch, columns);
}

// The part that select and attend have in common.
template <typename Call>
Call call_of(int dtype, int threads, const py::tuple& query, const py::tuple& key) {
  Call call;
  call.type = simmst::floating_type(dtype);
  call.threads = threads_of(threads);
  const Array queries = read("query", query, {call.type});
  call.batch = simmst::batch_of(queries);
  call.query = simmst::matrices_of(queries, call.batch, -1, -1);
  call.key = matrices(call, "key", key, -1, call.query.columns);
  if (call.key.rows < 1) throw py::value_error("key must have at least one position");
  return call;
}

// Sets the place of the selected indices, which the caller has chosen or wants to receive.
template <typename Call>
void set_top(Call& call, const py::tuple& given) {
  const Array top = read("top", given, {DataType::kInt64});
  call.selected = top.rank < 1 ? 0 : top.size(-1);
  if (call.selected > call.query.rows) top.refuse("must have at most " + std::to_string(call.query.rows) + " columns");
  call.top = reinterpret_cast<int64_t*>(simmst::vectors_of(top, call.batch, call.selected));
}

// Sets all fields but those that depend on where the results are: selected, top and measure.
ps::SelectCall select_call(int dtype, int threads, const py::tuple& query, const py::tuple& key,
                           const py::tuple& sample, double divisor) {
  auto call = call_of<ps::SelectCall>(dtype, threads, query, key);
  const Array samples = read("sample", sample, {DataType::kInt64});
  const int64_t rows = call.query.rows;
  if (samples.rank < 1 || samples.rank > 2 || samples.size(-1) < 1 || (samples.rank == 2 && samples.size(0) != rows))
    samples.refuse("must have shape (L_Q, S) or (S,) with S >= 1 and L_Q = " + std::to_string(rows));
  simmst::require_contiguous(samples);
  call.shared = samples.rank == 1;
  call.samples = samples.size(-1);
  call.sample = samples.as<int64_t>();
  call.divisor = divisor;
  return call;
}

void check_sample(const ps::SelectCall& call) {
  check_indices("sample", call.sample, call.shared ? call.samples : call.query.rows * call.samples, call.key.rows);
}

void select_queries(int dtype, int threads, const py::tuple& query, const py::tuple& key, const py::tuple& sample,
                    double divisor, const py::tuple& top, const py::tuple& measure) {
  ps::SelectCall call = select_call(dtype, threads, query, key, sample, divisor);
  set_top(call, top);
  call.measure = results(call, "measure", measure, call.query.rows);
  bool enough = false;
  {
    py::gil_scoped_release release;
    check_sample(call);
    enough = kernels().select(call);
  }
  check_memory(enough);
}

struct Options {
  bool is_causal;
  double scale;
  int fill;
  double dropout_p = 0.0;
  uint32_t seed[2] = {0, 0};
};

// Sets all fields but those that depend on the selection: selected, top and lse.
ps::AttendCall attend_call(int dtype, int threads, const py::tuple& query, const py::tuple& key, const py::tuple& value,
                           const Options& options, const py::tuple& out) {
  auto call = call_of<ps::AttendCall>(dtype, threads, query, key);
  call.value = matrices(call, "value", value, call.key.rows, -1);
  call.out = matrices(call, "out", out, call.query.rows, call.value.columns);
  if (options.fill < 0 || options.fill > 2)
    throw py::value_error("fill must be a code from 0 to 2, got " + std::to_string(options.fill));
  if (!(options.dropout_p >= 0.0 && options.dropout_p < 1.0))
    throw py::value_error("dropout_p must be at least 0 and less than 1, got " + std::to_string(options.dropout_p));
  call.scale = options.scale;
  call.is_causal = options.is_causal;
  call.fill = static_cast<ps::Fill>(options.fill);
  call.dropout_p = options.dropout_p;
  call.seed[0] = options.seed[0];
  call.seed[1] = options.seed[1];
  return call;
}

void add_selection(ps::AttendCall& call, const py::tuple& top, const py::tuple& lse) {
  set_top(call, top);
  call.lse = results(call, "lse", lse, call.selected);
}

void attend(int dtype, int threads, const py::tuple& query, const py::tuple& key, const py::tuple& value,
            const py::tuple& top, bool is_causal, double scale, int fill, double dropout_p, uint32_t seed0,
            uint32_t seed1, const py::tuple& out, const py::tuple& lse) {
  const Options options{is_causal, scale, fill, dropout_p, {seed0, seed1}};
  ps::AttendCall call = attend_call(dtype, threads, query, key, value, options, out);
  add_selection(call, top, lse);
  bool enough = false;
  {
    py::gil_scoped_release release;
    check_indices("top", call.top, call.batch.count * call.selected, call.query.rows);
    will_write(call.out, call.batch, call.type);
    enough = kernels().attend(call);
  }
  check_memory(enough);
}

// Selects and attends in one call, when the caller does not need the results in between.
void forward(int dtype, int threads, const py::tuple& query, const py::tuple& key, const py::tuple& value,
             const py::tuple& sample, double divisor, int64_t selected, bool is_causal, double scale, int fill,
             const py::tuple& out) {
  ps::SelectCall select = select_call(dtype, threads, query, key, sample, divisor);
  ps::AttendCall attend = attend_call(dtype, threads, query, key, value, {is_causal, scale, fill}, out);
  if (selected < 0 || selected > select.query.rows)
    throw py::value_error("u must be from 0 to " + std::to_string(select.query.rows) + ", got " +
                          std::to_string(selected));
  bool enough = false;
  {
    py::gil_scoped_release release;
    check_sample(select);
    will_write(attend.out, attend.batch, attend.type);
    const auto batch = static_cast<size_t>(select.batch.count), u = static_cast<size_t>(selected);
    const std::unique_ptr<int64_t[]> top(new int64_t[batch * u]);
    // Room for float64, whatever type the measure has.
    const std::unique_ptr<double[]> measure(new double[batch * static_cast<size_t>(select.query.rows)]);
    select.selected = attend.selected = selected;
    attend.top = select.top = top.get();
    attend.lse = nullptr;
    select.measure = measure.get();
    if (selected == select.query.rows) {  // nothing to select
      for (size_t i = 0; i < batch * u; ++i) top[i] = static_cast<int64_t>(i % u);
      enough = kernels().attend(attend);
    } else {
      enough = kernels().select(select) && kernels().attend(attend);
    }
  }
  check_memory(enough);
}

void attend_backward(int dtype, int threads, const py::tuple& query, const py::tuple& key, const py::tuple& value,
                     const py::tuple& top, bool is_causal, double scale, int fill, double dropout_p, uint32_t seed0,
                     uint32_t seed1, const py::tuple& out, const py::tuple& lse, const py::tuple& grad_out,
                     const py::tuple& grad_query, const py::tuple& grad_key, const py::tuple& grad_value) {
  ps::BackwardCall call;
  const Options options{is_causal, scale, fill, dropout_p, {seed0, seed1}};
  call.forward = attend_call(dtype, threads, query, key, value, options, out);
  add_selection(call.forward, top, lse);
  const auto like = [&](const char* name, const py::tuple& tensor, const Matrices& model) {
    return matrices(call.forward, name, tensor, model.rows, model.columns);
  };
  call.grad_out = like("grad_out", grad_out, call.forward.out);
  call.grad_query = like("grad_query", grad_query, call.forward.query);
  call.grad_key = like("grad_key", grad_key, call.forward.key);
  call.grad_value = like("grad_value", grad_value, call.forward.value);
  bool enough = false;
  {
    py::gil_scoped_release release;
    check_indices("top", call.forward.top, call.forward.batch.count * call.forward.selected, call.forward.query.rows);
    for (const Matrices* result : {&call.grad_query, &call.grad_key, &call.grad_value})
      will_write(*result, call.forward.batch, call.forward.type);
    enough = kernels().backward(call);
  }
  check_memory(enough);
}

}  // namespace

void bind_prob_sparse_attention(py::module_& module) {
  module.def("prob_sparse_select", &select_queries, "Measure the queries and select those with the largest.");
  module.def("prob_sparse_forward", &forward, "prob_sparse_select and prob_sparse_attend in one call.");
  module.def("prob_sparse_attend", &attend, "Attention in the selected rows, the fill in all others.");
  module.def("prob_sparse_attend_backward", &attend_backward, "Gradients of prob_sparse_attend.");
}
