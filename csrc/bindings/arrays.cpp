#include "bindings/arrays.hpp"

namespace simmst {

namespace {

constexpr std::array<const char*, 8> kTypeNames{"float32", "float64", "bfloat16", "float16",
                                                "uint8",   "int64",   "bool",     "int32"};

template <typename Sizes>
std::string list(const Sizes& begin, std::size_t count) {
  std::string text = "(";
  for (std::size_t i = 0; i < count; ++i) text.append(i > 0 ? ", " : "").append(std::to_string(begin[i]));
  return text + ")";
}

std::string count_or_any(std::int64_t count) { return count >= 0 ? std::to_string(count) : "any"; }

// Turns a pending Python error into an exception.
template <typename T>
T checked(T value) {
  if (value == static_cast<T>(-1) && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

// Reads sizes and strides only; the array gets no address.
Array make_layout(const char* name, DataType type, const py::handle& shape, const py::handle& strides) {
  if (!PyTuple_Check(shape.ptr()) || !PyTuple_Check(strides.ptr())) {
    throw py::type_error(std::string(name) + " must have a tuple of sizes and one of strides");
  }
  Array array;
  array.name = name;
  array.type = type;
  const auto rank = PyTuple_GET_SIZE(shape.ptr()), steps = PyTuple_GET_SIZE(strides.ptr());
  if (rank != steps || rank > Array::kMaxRank) {
    throw py::value_error(std::string(name) + " must have at most " + std::to_string(Array::kMaxRank) +
                          " dimensions and a stride for each, got " + std::to_string(rank) + " and " +
                          std::to_string(steps));
  }
  array.rank = static_cast<int>(rank);
  for (int i = 0; i < array.rank; ++i) {
    array.shape[i] = checked(PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i)));
    array.strides[i] = checked(PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), i)));
  }
  for (int i = 0; i < array.rank; ++i)
    if (array.shape[i] < 0 || array.strides[i] < 0) array.refuse("must have no negative size or stride");
  return array;
}

}  // namespace

std::string Array::describe() const {
  return std::string(name) + " " + kTypeNames[static_cast<int>(type)] + " " +
         list(shape.begin(), static_cast<std::size_t>(rank));
}

void Array::refuse(const std::string& requirement) const { throw py::value_error(describe() + " " + requirement); }

Array make_array(const char* name, std::uintptr_t address, DataType type, const py::handle& shape,
                 const py::handle& strides) {
  Array array = make_layout(name, type, shape, strides);
  array.data = reinterpret_cast<char*>(address);
  if (array.data == nullptr && !array.empty()) array.refuse("has no address");
  return array;
}

Array Arrays::operator()(const char* name, const py::handle& given, std::initializer_list<DataType> types) const {
  constexpr std::array<const char*, 4> kForms{"(address, shape, strides)", "(address, dtype, shape, strides)",
                                              "(address, dtype, shape, strides, device)",
                                              "(dtype, shape, strides, device)"};
  constexpr std::array<int, 4> kFields{3, 4, 5, 4};
  const auto form = static_cast<std::size_t>(form_);
  if (!PyTuple_Check(given.ptr()) || PyTuple_GET_SIZE(given.ptr()) != kFields[form]) {
    throw py::type_error(std::string(name) + " must be " + kForms[form]);
  }
  int field = 0;
  const auto next = [&] { return PyTuple_GET_ITEM(given.ptr(), field++); };
  const std::uintptr_t address = form_ == Form::kPlanned ? 0 : checked(PyLong_AsSize_t(next()));
  DataType type = types.size() > 0 ? *types.begin() : DataType::kFloat32;
  if (form_ != Form::kUntyped) {
    const long code = checked(PyLong_AsLong(next()));
    if (code < 0 || code >= static_cast<long>(kTypeNames.size())) {
      throw py::type_error(std::string(name) + " has the unknown dtype " + std::to_string(code));
    }
    type = static_cast<DataType>(code);
  }
  const py::handle shape = next(), strides = next();
  const Array array = form_ == Form::kPlanned ? make_layout(name, type, shape, strides)
                                              : make_array(name, address, type, shape, strides);
  if (form_ == Form::kOnDevice || form_ == Form::kPlanned) {
    const long device = checked(PyLong_AsLong(next()));
    if (device != device_) {
      array.refuse("lies on device " + std::to_string(device) + ", the call is for device " + std::to_string(device_));
    }
    const auto item = static_cast<std::uintptr_t>(item_size(type));
    if (address % item != 0) array.refuse("begins at an address that is no multiple of " + std::to_string(item));
  }
  if (types.size() > 0 && std::find(types.begin(), types.end(), type) == types.end()) {
    std::string allowed;
    for (const DataType one : types)
      allowed.append(allowed.empty() ? "" : ", ").append(kTypeNames[static_cast<int>(one)]);
    throw py::type_error(array.describe() + " must hold one of " + allowed);
  }
  return array;
}

Array make_bytes(const char* name, const py::handle& given) {
  if (!PyTuple_Check(given.ptr()) || PyTuple_GET_SIZE(given.ptr()) != 2) {
    throw py::type_error(std::string(name) + " must be (address, bytes)");
  }
  Array array;
  array.name = name;
  array.data = reinterpret_cast<char*>(checked(PyLong_AsSize_t(PyTuple_GET_ITEM(given.ptr(), 0))));
  array.type = DataType::kUint8;
  array.rank = 1;
  array.shape[0] = array.data == nullptr ? 0 : checked(PyLong_AsLongLong(PyTuple_GET_ITEM(given.ptr(), 1)));
  array.strides[0] = 1;
  return array;
}

float* make_floats(const char* name, const py::handle& given, std::int64_t count, bool optional) {
  const Array buffer = make_bytes(name, given);
  if (optional && buffer.data == nullptr) return nullptr;
  const auto bytes = count * static_cast<std::int64_t>(sizeof(float));
  if (buffer.size(0) != bytes)
    throw py::value_error(std::string(name) + " must hold " + std::to_string(bytes) + " bytes, got " +
                          std::to_string(buffer.size(0)));
  return reinterpret_cast<float*>(buffer.data);
}

DataType floating_type(int code) {
  if (code < 0 || code > 3) throw py::value_error("dtype must be a code from 0 to 3, got " + std::to_string(code));
  return static_cast<DataType>(code);
}

void require_shape(const Array& array, std::initializer_list<std::int64_t> shape) {
  if (static_cast<std::size_t>(array.rank) == shape.size() &&
      std::equal(shape.begin(), shape.end(), array.shape.begin())) {
    return;
  }
  array.refuse("must have shape " + list(shape.begin(), shape.size()));
}

void require_contiguous(const Array& array) {
  std::int64_t expected = 1;
  for (int i = array.rank - 1; i >= 0 && !array.empty(); --i) {
    if (array.shape[i] > 1 && array.strides[i] != expected) {
      array.refuse("must be contiguous, got strides " +
                   list(array.strides.begin(), static_cast<std::size_t>(array.rank)));
    }
    expected *= array.shape[i];
  }
}

Batch batch_of(const Array& array) {
  if (array.rank < 2) array.refuse("must have at least two dimensions");
  Batch batch;
  batch.dims = array.rank - 2;
  for (int i = 0; i < batch.dims; ++i) batch.count *= batch.size[i] = array.shape[i];
  return batch;
}

Matrices matrices_of(const Array& array, const Batch& batch, std::int64_t rows, std::int64_t columns) {
  if (array.rank != batch.dims + 2) array.refuse("must have the dimensions of query");
  Matrices result;
  for (int i = 0; i < batch.dims; ++i) {
    if (array.shape[i] != batch.size[i]) array.refuse("must have the leading sizes of query");
    result.batch_stride[i] = array.strides[i];
  }
  result.data = array.data;
  result.rows = array.size(-2);
  result.columns = array.size(-1);
  result.row_stride = array.stride(-2);
  if ((rows >= 0 && result.rows != rows) || (columns >= 0 && result.columns != columns)) {
    array.refuse("must have " + count_or_any(rows) + " rows and " + count_or_any(columns) + " columns");
  }
  if (!array.empty() && result.columns > 1 && array.stride(-1) != 1)
    array.refuse("must have a contiguous last dimension");
  // The dropout's random numbers and the causal mask count rows and keys in 32 bits.
  if (result.rows > INT32_MAX) array.refuse("must have at most 2147483647 rows");
  return result;
}

char* vectors_of(const Array& array, const Batch& batch, std::int64_t columns) {
  std::int64_t entries = 1;
  for (int i = 0; i + 1 < array.rank; ++i) entries *= array.shape[i];
  if (array.rank < 1 || entries != batch.count || array.size(-1) != columns) {
    array.refuse("must have " + std::to_string(batch.count) + " rows of " + std::to_string(columns));
  }
  require_contiguous(array);
  return array.data;
}

}  // namespace simmst
