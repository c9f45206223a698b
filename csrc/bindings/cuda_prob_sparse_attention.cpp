// simmst._cuda.prob_sparse_*: every array is checked before anything is launched, whatever Python has checked already.
// Indices lie on the device and are not read here; the kernels clamp them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bindings/cuda_arrays.hpp"
#include "core/philox.hpp"
#include "cuda/prob_sparse_attention.hpp"

namespace py = pybind11;
namespace ps = simmst::cuda::prob_sparse;
using namespace simmst::cuda;
using std::int64_t;

namespace {

constexpr std::initializer_list<DataType> kFloats = {DataType::kFloat32, DataType::kBfloat16, DataType::kFloat16};

// Reads the operands of one call.
class Operands {
 public:
  Operands(const Queue& queue, const py::handle& query) : read_(queue) {
    const Array array = read_("query", query, kFloats);
    if (array.rank < 2) throw py::value_error(array.describe() + " must have at least two dimensions");
    type_ = array.type;
    batch_.dims = array.rank - 2;
    for (int i = 0; i < batch_.dims; ++i) batch_.count *= batch_.size[i] = array.size(i);
    query_ = operand(array, -1, -1);
  }

  // A tensor (batch..., rows, columns); -1 accepts any number of rows or columns.
  ps::Operand operator()(const char* name, const py::handle& given, int64_t rows, int64_t columns) const {
    return operand(read_(name, given, {type_}), rows, columns);
  }

  // A contiguous tensor (batch..., columns).
  template <typename T>
  T* vectors(const char* name, const py::handle& given, DataType type, int64_t columns) const {
    const Array array = read_(name, given, {type});
    int64_t entries = 1;
    for (int i = 0; i + 1 < array.rank; ++i) entries *= array.size(i);
    if (array.rank < 1 || entries != batch_.count || array.size(-1) != columns)
      throw py::value_error(array.describe() + " must have " + std::to_string(batch_.count) + " rows of " +
                            std::to_string(columns));
    require_contiguous(array);
    return array.as<T>();
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
      throw py::value_error(array.describe() + " must have " + std::to_string(bytes) + " bytes, aligned to 16");
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
    if (array.rank != batch_.dims + 2) throw py::value_error(array.describe() + " must have the dimensions of query");
    ps::Operand result;
    simmst::Matrices& m = result.matrices;
    for (int i = 0; i < batch_.dims; ++i) {
      if (array.size(i) != batch_.size[i])
        throw py::value_error(array.describe() + " must have the leading sizes of query");
      m.batch_stride[i] = array.stride(i);
    }
    m.data = array.data;
    m.rows = array.size(-2);
    m.columns = array.size(-1);
    m.row_stride = array.stride(-2);
    if ((rows >= 0 && m.rows != rows) || (columns >= 0 && m.columns != columns))
      throw py::value_error(array.describe() + " must have " + (rows >= 0 ? std::to_string(rows) : "any") +
                            " rows and " + (columns >= 0 ? std::to_string(columns) : "any") + " columns");
    if (!array.empty() && m.columns > 1 && array.stride(-1) != 1)
      throw py::value_error(array.describe() + " must have a contiguous last dimension");
    // Rows and keys are counted in 32 bits by the random numbers of dropout.
    if (m.rows > INT32_MAX) throw py::value_error(array.describe() + " must have at most 2147483647 rows");
    result.aligned = rows_are_aligned(m, batch_, item_size(array.type), 16);
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
    throw py::value_error(samples.describe() + " must be (L_Q, S) or (S,) with S >= 1 and L_Q = " +
                          std::to_string(queries));
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

// How the work is cut, for tests: plain arithmetic that needs no device.

namespace schedule = simmst::prob_sparse;

py::tuple spans(int64_t keys, int64_t queries, int64_t entries, int64_t blocks) {
  const schedule::Spans found = schedule::spans_of(keys, queries, entries, blocks);
  return py::make_tuple(found.size, found.keys, found.rows);
}

py::tuple key_tiles(int64_t keys, int64_t samples, int64_t row_bytes, int64_t block_bytes) {
  constexpr const char* names[] = {"whole", "tiles", "straight"};
  const schedule::KeyTiles tiles = schedule::key_tiles(keys, samples, row_bytes, block_bytes);
  return py::make_tuple(names[static_cast<int>(tiles.gather)], tiles.size, tiles.count);
}

py::dict workspaces(int64_t batch, int64_t queries, int64_t keys, int64_t samples, int64_t selected, int64_t width,
                    int64_t row_bytes, int64_t block_bytes, int64_t blocks) {
  const schedule::Spans cut = schedule::spans_of(keys, queries, batch, blocks);
  py::dict bytes;
  bytes["measure"] =
      schedule::measure_workspace(queries, samples, schedule::key_tiles(keys, samples, row_bytes, block_bytes));
  bytes["attend"] = schedule::attend_workspace(batch, cut.keys, schedule::attend_rows(selected, queries), width);
  bytes["backward"] = schedule::backward_workspace(batch, cut, selected, width);
  return bytes;
}

py::tuple bucket_place(int64_t group, int64_t samples, int64_t tiles) {
  return py::make_tuple(schedule::first_entry(group, samples), schedule::first_offset(group, tiles));
}

py::tuple bucket_entry(int64_t key, int64_t query) {
  const std::uint16_t entry = schedule::bucket_entry(key, query);
  return py::make_tuple(schedule::entry_key(entry), schedule::entry_query(entry));
}

// The radix search for the `wanted`-th largest, over counts made one value at a time.
std::uint32_t radix_search(const std::vector<std::uint32_t>& ordered, int64_t wanted) {
  schedule::RadixState state{0, wanted};
  for (int pass = 0; pass < schedule::kPasses; ++pass) {
    std::vector<int64_t> bins(schedule::kDigits);
    for (const std::uint32_t value : ordered)
      if (schedule::shares_prefix(value, state.prefix, pass))
        ++bins[static_cast<std::size_t>(schedule::digit(value, pass))];
    int found = schedule::kDigits - 1;
    int64_t above = 0;
    for (; above + bins[static_cast<std::size_t>(found)] < state.wanted; --found)
      above += bins[static_cast<std::size_t>(found)];
    state = schedule::narrowed(state, pass, found, above);
  }
  return state.prefix;
}

int64_t entry_offset(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int64_t index) {
  simmst::Batch batch;
  simmst::Matrices matrices;
  if (sizes.size() != strides.size() || sizes.size() > simmst::kMaxBatchDims)
    throw py::value_error("sizes and strides must be of one length, at most " + std::to_string(simmst::kMaxBatchDims));
  batch.dims = static_cast<int>(sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    batch.count *= batch.size[i] = sizes[i];
    matrices.batch_stride[i] = strides[i];
  }
  return simmst::entry_offset(matrices, batch, index);
}

}  // namespace

void bind_prob_sparse_attention(py::module_& module) {
  module.def("prob_sparse_select", &select_queries, "Measure the queries and select those with the largest.");
  module.def("prob_sparse_attend", &attend, "Attention in the selected rows, the fill in all others.");
  module.def("prob_sparse_forward", &forward, "prob_sparse_select and prob_sparse_attend; whether it took one launch.");
  module.def("prob_sparse_attend_backward", &attend_backward, "Gradients of prob_sparse_attend.");
  module.def("prob_sparse_padded_width", &schedule::padded_width, "Width of the kernels for so many columns, or 0.");
  module.def("prob_sparse_spans", &spans, "(rows of a span, spans of keys, spans of queries).");
  module.def("prob_sparse_chunk", &schedule::chunk_queries, "Queries that a block measures.");
  module.def("prob_sparse_key_tiles", &key_tiles, "(how keys are gathered, keys of a tile, tiles).");
  module.def("prob_sparse_workspaces", &workspaces, "Bytes of workspace by call.");
  module.def("prob_sparse_bucket_place", &bucket_place, "First entry and first offset of a group's buckets.");
  module.def("prob_sparse_bucket_entry", &bucket_entry, "A bucketed sample, packed and unpacked.");
  module.def("prob_sparse_radix_search", &radix_search, "The wanted-th largest of some words.");
  module.def("prob_sparse_entry_offset", &entry_offset, "Where a batch entry begins, in elements.");
}
