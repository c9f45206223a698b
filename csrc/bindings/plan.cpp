#include "bindings/plan.hpp"

#include <array>

namespace simmst {

void Plan::operator()(const py::args& given) const {
  constexpr std::size_t kMost = 32;
  const std::size_t count = places_.size();
  if (given.size() != count + 1 || count > kMost) {
    throw py::type_error("the call takes " + std::to_string(count) + " addresses and a stream, got " +
                         std::to_string(given.size()) + " numbers");
  }
  std::array<std::uintptr_t, kMost + 1> at;
  for (std::size_t i = 0; i <= count; ++i) {
    PyObject* const item = PyTuple_GET_ITEM(given.ptr(), static_cast<Py_ssize_t>(i));
    if (i < count && places_[i].multiple == 0) {
      at[i] = std::bit_cast<std::uintptr_t>(PyFloat_AsDouble(item));
    } else {
      at[i] = PyLong_AsSize_t(item);
    }
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  }
  for (std::size_t i = 0; i < count; ++i) {
    const Place& place = places_[i];
    if (place.multiple == 0) continue;
    if (at[i] == 0 && place.needed) throw py::value_error(std::string(place.name) + " has no address");
    if (at[i] % place.multiple != 0) {
      throw py::value_error(std::string(place.name) + " begins at an address that is no multiple of " +
                            std::to_string(place.multiple));
    }
  }
  const cuda::DeviceGuard guard(device_);
  run_(Addresses(at.data()), {device_, at[count]});
}

}  // namespace simmst
