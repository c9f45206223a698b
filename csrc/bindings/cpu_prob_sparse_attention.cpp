// simmst._cpu.prob_sparse_*: tensors come as (address, shape, strides). Everything is checked here, before any memory
// is touched, whatever Python has checked already.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/instruction_set.hpp"
#include "cpu/prob_sparse_attention.hpp"

namespace py = pybind11;
namespace ps = simmst::cpu::prob_sparse;

namespace {

const ps::Kernels& kernels_of(simmst::cpu::InstructionSet set) {
#define SIMMST_PROB_SPARSE_TABLE(isa) &simmst::cpu::isa::prob_sparse_kernels,
  return simmst::cpu::pick<ps::Kernels>(set, {SIMMST_FOR_EACH_ISA(SIMMST_PROB_SPARSE_TABLE)});
#undef SIMMST_PROB_SPARSE_TABLE
}

const ps::Kernels& kernels() {
  if (std::getenv("SIMMST_CPU_ISA") != nullptr) return kernels_of(simmst::cpu::active_instruction_set());
  static const ps::Kernels& highest = kernels_of(simmst::cpu::choose_instruction_set(""));  // asked for once
  return highest;
}

// A tensor as Python hands it over: the tuple (address, shape, strides).
struct Tensor {
  const char* name;
  uintptr_t address;
  PyObject* shape;
  PyObject* strides;
  int64_t dims;

  Tensor(const char* name_, const py::tuple& parts) : name(name_) {
    if (parts.size() != 3 || !PyTuple_Check(PyTuple_GET_ITEM(parts.ptr(), 1)) ||
        !PyTuple_Check(PyTuple_GET_ITEM(parts.ptr(), 2)))
      throw py::type_error(std::string(name) + " must be a tuple (address, shape, strides)");
    address = PyLong_AsSize_t(PyTuple_GET_ITEM(parts.ptr(), 0));
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    shape = PyTuple_GET_ITEM(parts.ptr(), 1);
    strides = PyTuple_GET_ITEM(parts.ptr(), 2);
    dims = PyTuple_GET_SIZE(shape);
    if (dims != PyTuple_GET_SIZE(strides)) fail("as many strides as sizes");
    for (int64_t i = 0; i < dims; ++i)
      if (size(i) < 0) fail("no negative size");
  }

  static int64_t item(PyObject* tuple, int64_t i) {
    const long long value = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
    if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return value;
  }
  int64_t size(int64_t i) const { return item(shape, i); }
  int64_t stride(int64_t i) const { return item(strides, i); }
  int64_t count() const {
    int64_t product = 1;
    for (int64_t i = 0; i < dims; ++i) product *= size(i);
    return product;
  }

  [[noreturn]] void fail(const std::string& wanted) const {
    std::string text = std::string(name) + " must have " + wanted + ", got shape " +
                       std::string(py::str(py::handle(shape))) + " and strides " +
                       std::string(py::str(py::handle(strides)));
    throw py::value_error(text);
  }
};

ps::Batch batch_of(const Tensor& query) {
  if (query.dims < 2 || query.dims - 2 > ps::kMaxBatchDims)
    query.fail("2 to " + std::to_string(ps::kMaxBatchDims + 2) + " dimensions");
  ps::Batch batch;
  batch.dims = static_cast<int>(query.dims - 2);
  for (int i = 0; i < batch.dims; ++i) batch.count *= batch.size[i] = query.size(i);
  return batch;
}

// A tensor (batch..., rows, columns); -1 accepts any number of rows or columns.
ps::Matrices matrices_of(const Tensor& tensor, const ps::Batch& batch, int64_t rows, int64_t columns) {
  if (tensor.dims != batch.dims + 2) tensor.fail("the dimensions of query");
  ps::Matrices result;
  for (int i = 0; i < batch.dims; ++i) {
    if (tensor.size(i) != batch.size[i]) tensor.fail("the leading sizes of query");
    result.batch_stride[i] = tensor.stride(i);
  }
  result.rows = tensor.size(batch.dims);
  result.columns = tensor.size(batch.dims + 1);
  result.row_stride = tensor.stride(batch.dims);
  if (rows >= 0 && result.rows != rows) tensor.fail(std::to_string(rows) + " rows");
  if (columns >= 0 && result.columns != columns) tensor.fail(std::to_string(columns) + " columns");
  const bool empty = batch.count == 0 || result.rows == 0;  // its strides mean nothing
  if (!empty && result.columns > 1 && tensor.stride(batch.dims + 1) != 1) tensor.fail("a contiguous last dimension");
  // Rows and keys are counted in 32 bits by the dropout's random numbers and the causal mask.
  if (result.rows > INT32_MAX) tensor.fail("at most 2147483647 rows");
  result.data = reinterpret_cast<void*>(tensor.address);
  return result;
}

void* contiguous(const Tensor& tensor, int64_t count) {
  const bool empty = tensor.count() == 0;  // its strides mean nothing
  int64_t expected = 1;
  for (int64_t i = tensor.dims - 1; i >= 0; --i) {
    if (!empty && tensor.size(i) > 1 && tensor.stride(i) != expected) tensor.fail("contiguous memory");
    expected *= tensor.size(i);
  }
  if (count >= 0 && expected != count) tensor.fail(std::to_string(count) + " entries");
  return reinterpret_cast<void*>(tensor.address);
}

ps::Dtype dtype_of(int code) {
  if (code < 0 || code > 3) throw py::value_error("dtype must be a code from 0 to 3, got " + std::to_string(code));
  return static_cast<ps::Dtype>(code);
}

int threads_of(int threads) {
  if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
  return threads;
}

void check_indices(const char* name, const int64_t* indices, int64_t count, int64_t upper) {
  if (!kernels().in_range(indices, count, upper))
    throw py::index_error(std::string(name) + " must hold indices from 0 to " + std::to_string(upper - 1));
}

void check_memory(bool enough) {
  if (!enough) throw std::bad_alloc();
}

// All but what depends on the results' place: selected, top and measure.
ps::SelectCall select_call(int dtype, int threads, const py::tuple& query, const py::tuple& key,
                           const py::tuple& sample, double divisor) {
  ps::SelectCall call;
  call.dtype = dtype_of(dtype);
  call.threads = threads_of(threads);
  const Tensor query_tensor("query", query), sample_tensor("sample", sample);
  call.batch = batch_of(query_tensor);
  call.query = matrices_of(query_tensor, call.batch, -1, -1);
  call.key = matrices_of(Tensor("key", key), call.batch, -1, call.query.columns);
  if (call.key.rows < 1) throw py::value_error("key must have at least one position");
  const int64_t rows = call.query.rows;
  if (sample_tensor.dims < 1 || sample_tensor.dims > 2 || sample_tensor.size(sample_tensor.dims - 1) < 1 ||
      (sample_tensor.dims == 2 && sample_tensor.size(0) != rows))
    sample_tensor.fail("shape (L_Q, S) or (S,) with S >= 1 and L_Q = " + std::to_string(rows));
  call.shared = sample_tensor.dims == 1;
  call.samples = sample_tensor.size(sample_tensor.dims - 1);
  call.sample = static_cast<const int64_t*>(contiguous(sample_tensor, -1));
  call.divisor = divisor;
  return call;
}

void check_sample(const ps::SelectCall& call) {
  check_indices("sample", call.sample, call.shared ? call.samples : call.query.rows * call.samples, call.key.rows);
}

void select_queries(int dtype, int threads, const py::tuple& query, const py::tuple& key, const py::tuple& sample,
                    double divisor, const py::tuple& top, const py::tuple& measure) {
  ps::SelectCall call = select_call(dtype, threads, query, key, sample, divisor);
  const Tensor top_tensor("top", top);
  if (top_tensor.dims != call.batch.dims + 1) top_tensor.fail("shape (..., u)");
  call.selected = top_tensor.size(top_tensor.dims - 1);
  if (call.selected > call.query.rows) top_tensor.fail("at most " + std::to_string(call.query.rows) + " columns");
  call.top = static_cast<int64_t*>(contiguous(top_tensor, call.batch.count * call.selected));
  call.measure = contiguous(Tensor("measure", measure), call.batch.count * call.query.rows);
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

// All but what depends on the selection: selected, top and lse.
ps::AttendCall attend_call(int dtype, int threads, const py::tuple& query, const py::tuple& key,
                           const py::tuple& value, const Options& options, const py::tuple& out) {
  ps::AttendCall call;
  call.dtype = dtype_of(dtype);
  call.threads = threads_of(threads);
  const Tensor query_tensor("query", query);
  call.batch = batch_of(query_tensor);
  call.query = matrices_of(query_tensor, call.batch, -1, -1);
  call.key = matrices_of(Tensor("key", key), call.batch, -1, call.query.columns);
  if (call.key.rows < 1) throw py::value_error("key must have at least one position");
  call.value = matrices_of(Tensor("value", value), call.batch, call.key.rows, -1);
  call.out = matrices_of(Tensor("out", out), call.batch, call.query.rows, call.value.columns);
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
  const Tensor top_tensor("top", top);
  if (top_tensor.dims != call.batch.dims + 1) top_tensor.fail("shape (..., u)");
  call.selected = top_tensor.size(top_tensor.dims - 1);
  if (call.selected > call.query.rows) top_tensor.fail("at most " + std::to_string(call.query.rows) + " columns");
  call.top = static_cast<const int64_t*>(contiguous(top_tensor, call.batch.count * call.selected));
  call.lse = contiguous(Tensor("lse", lse), call.batch.count * call.selected);
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
    enough = kernels().attend(call);
  }
  check_memory(enough);
}

// Select and attend in one call, for when nobody asks for what lies between.
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
    const auto batch = static_cast<size_t>(select.batch.count), u = static_cast<size_t>(selected);
    const std::unique_ptr<int64_t[]> top(new int64_t[batch * u]);
    // Room for float64, whatever the measure holds.
    const std::unique_ptr<double[]> wide(new double[batch * (u + static_cast<size_t>(select.query.rows))]);
    select.selected = attend.selected = selected;
    attend.top = select.top = top.get();
    attend.lse = wide.get();
    select.measure = wide.get() + batch * u;
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
  const auto like = [&](const char* name, const py::tuple& tensor, const ps::Matrices& model) {
    return matrices_of(Tensor(name, tensor), call.forward.batch, model.rows, model.columns);
  };
  call.grad_out = like("grad_out", grad_out, call.forward.out);
  call.grad_query = like("grad_query", grad_query, call.forward.query);
  call.grad_key = like("grad_key", grad_key, call.forward.key);
  call.grad_value = like("grad_value", grad_value, call.forward.value);
  bool enough = false;
  {
    py::gil_scoped_release release;
    check_indices("top", call.forward.top, call.forward.batch.count * call.forward.selected, call.forward.query.rows);
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
