// Arrays from Python, checked before their memory is touched or anything is launched.
//
// An array is a tuple (address, dtype, shape, strides): dtype is a number of DataType, strides count entries. An array
// on a GPU ends with its device, tensor.get_device(); that is -1 for the CPU tensors that the emulator takes. Where a
// call gives one type for all its arrays, they are (address, shape, strides). An array of a call that is only planned
// has no address yet: (dtype, shape, strides, device).
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/batched_matrices.hpp"
#include "core/dtype.hpp"

namespace simmst {

namespace py = pybind11;

struct Array {
  static constexpr int kMaxRank = kMaxBatchDims + 2;

  const char* name = "";
  char* data = nullptr;
  DataType type = DataType::kFloat32;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> strides{};

  // For example "planes bfloat16 (64, 1000)".
  std::string describe() const;
  // Throws ValueError "planes bfloat16 (64, 1000) must have ...".
  [[noreturn]] void refuse(const std::string& requirement) const;

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

// Reads the arrays of one call.
class Arrays {
 public:
  static Arrays typed() { return {Form::kTyped, -1}; }
  static Arrays untyped() { return {Form::kUntyped, -1}; }
  static Arrays on_device(int device) { return {Form::kOnDevice, device}; }
  static Arrays planned(int device) { return {Form::kPlanned, device}; }

  // Throws TypeError or ValueError unless `given` is an array of this form on this device, with one of `types` if any
  // are given. An array whose form has no dtype gets the first of `types`.
  Array operator()(const char* name, const py::handle& given, std::initializer_list<DataType> types = {}) const;

 private:
  enum class Form { kUntyped, kTyped, kOnDevice, kPlanned };

  Arrays(Form form, int device) : form_(form), device_(device) {}

  Form form_;
  int device_;
};

// Makes an array from its parts.
Array make_array(const char* name, std::uintptr_t address, DataType type, const py::handle& shape,
                 const py::handle& strides);
// Contiguous memory, given as (address, bytes).
Array make_bytes(const char* name, const py::handle& given);
// Contiguous memory that must hold exactly `count` floats; null if it is optional and missing.
float* make_floats(const char* name, const py::handle& given, std::int64_t count, bool optional);

// The floating type with this code. Throws ValueError for any other code.
DataType floating_type(int code);

// Throws ValueError unless the array has this shape.
void require_shape(const Array& array, std::initializer_list<std::int64_t> shape);
void require_contiguous(const Array& array);

// The leading sizes of a tensor (batch..., rows, columns), and the tensor itself; -1 accepts any number of rows or
// columns.
Batch batch_of(const Array& array);
Matrices matrices_of(const Array& array, const Batch& batch, std::int64_t rows, std::int64_t columns);
// A contiguous tensor (batch..., columns).
char* vectors_of(const Array& array, const Batch& batch, std::int64_t columns);

}  // namespace simmst
