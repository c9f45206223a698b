#include "bindings/cuda_arrays.hpp"

namespace simmst::cuda {

namespace {

template <typename Sizes>
std::string list(const Sizes& begin, std::size_t count) {
  std::string text = "(";
  for (std::size_t i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + std::to_string(begin[i]);
  return text + ")";
}

}  // namespace

std::string Array::describe() const {
  return std::string(name) + " " + kTypeNames[static_cast<int>(type)] + " " +
         list(shape.begin(), static_cast<std::size_t>(rank));
}

Array Arrays::operator()(const char* name, const py::handle& given, std::initializer_list<DataType> types) const {
  const auto fields = py::cast<py::tuple>(given);
  if (fields.size() != 5) {
    throw py::type_error(std::string(name) + " must be (address, dtype, shape, strides, device)");
  }
  Array array;
  array.name = name;
  array.data = reinterpret_cast<char*>(fields[0].cast<std::uintptr_t>());
  const auto type = fields[1].cast<int>();
  const auto shape = fields[2].cast<py::tuple>(), strides = fields[3].cast<py::tuple>();
  const auto device = fields[4].cast<int>();
  if (type < 0 || type >= static_cast<int>(kTypeNames.size())) {
    throw py::type_error(std::string(name) + " has the unknown dtype " + std::to_string(type));
  }
  array.type = static_cast<DataType>(type);
  if (shape.size() != strides.size() || shape.size() > Array::kMaxRank) {
    throw py::value_error(std::string(name) + " must have at most " + std::to_string(Array::kMaxRank) +
                          " dimensions and a stride for each, got " + std::to_string(shape.size()) + " and " +
                          std::to_string(strides.size()));
  }
  array.rank = static_cast<int>(shape.size());
  for (int i = 0; i < array.rank; ++i) {
    array.shape[i] = shape[i].cast<std::int64_t>();
    array.strides[i] = strides[i].cast<std::int64_t>();
    if (array.shape[i] < 0 || array.strides[i] < 0) {
      throw py::value_error(array.describe() + " has a negative size or stride");
    }
  }
  if (device != device_) {
    throw py::value_error(array.describe() + " lies on device " + std::to_string(device) + ", the call is for device " +
                          std::to_string(device_));
  }
  if (array.data == nullptr && !array.empty()) throw py::value_error(array.describe() + " has no address");
  const auto item = static_cast<std::uintptr_t>(item_size(array.type));
  if (reinterpret_cast<std::uintptr_t>(array.data) % item != 0) {
    throw py::value_error(array.describe() + " begins at an address that is no multiple of " + std::to_string(item));
  }
  if (types.size() > 0 && std::find(types.begin(), types.end(), array.type) == types.end()) {
    std::string allowed;
    for (const DataType one : types) allowed += (allowed.empty() ? "" : ", ") + std::string(kTypeNames[static_cast<int>(one)]);
    throw py::type_error(array.describe() + " must hold one of " + allowed);
  }
  return array;
}

void require_shape(const Array& array, std::initializer_list<std::int64_t> shape) {
  if (static_cast<std::size_t>(array.rank) == shape.size() && std::equal(shape.begin(), shape.end(), array.shape.begin())) {
    return;
  }
  throw py::value_error(array.describe() + " must have shape " + list(shape.begin(), shape.size()));
}

void require_contiguous(const Array& array) {
  std::int64_t expected = 1;
  for (int i = array.rank - 1; i >= 0 && !array.empty(); --i) {
    if (array.shape[i] > 1 && array.strides[i] != expected) {
      throw py::value_error(array.describe() + " must be contiguous, got strides " +
                            list(array.strides.begin(), static_cast<std::size_t>(array.rank)));
    }
    expected *= array.shape[i];
  }
}

}  // namespace simmst::cuda
