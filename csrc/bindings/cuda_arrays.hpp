// Arrays of device memory from Python, checked before anything is launched. An array comes as
// (address, dtype, shape, strides, device): dtype is a number of DataType, strides are in entries, device is
// tensor.get_device(), -1 for the CPU tensors that the emulator takes.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "cuda/half_types.hpp"
#include "cuda/launch.hpp"

namespace simmst::cuda {

namespace py = pybind11;

constexpr std::array<const char*, 8> kTypeNames{"float32", "float64", "bfloat16", "float16",
                                                "uint8",   "int64",   "bool",     "int32"};

struct Array {
  static constexpr int kMaxRank = 6;

  const char* name = "";
  char* data = nullptr;
  DataType type = DataType::kFloat32;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> strides{};

  // "planes bfloat16 (64, 1000)"
  std::string describe() const;
  bool empty() const {
    return std::any_of(shape.begin(), shape.begin() + rank, [](std::int64_t size) { return size == 0; });
  }
  std::int64_t size(int dimension) const { return shape[dimension < 0 ? rank + dimension : dimension]; }
  std::int64_t stride(int dimension) const { return strides[dimension < 0 ? rank + dimension : dimension]; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

// Reads arrays that all lie on one device.
class Arrays {
 public:
  explicit Arrays(const Queue& queue) : device_(queue.device) {}

  // Throws TypeError or ValueError for anything but an array of this device, with one of these types when some are given.
  Array operator()(const char* name, const py::handle& given, std::initializer_list<DataType> types = {}) const;

 private:
  int device_;
};

// ValueError unless the array has this shape and, where asked, lies without gaps in row-major order.
void require_shape(const Array& array, std::initializer_list<std::int64_t> shape);
void require_contiguous(const Array& array);

}  // namespace simmst::cuda
