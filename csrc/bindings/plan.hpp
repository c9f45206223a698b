// A call whose sizes, strides and types are checked once. Each run only needs the addresses of the arrays.
#pragma once

#include <pybind11/pybind11.h>

#include <bit>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "cuda/launch.hpp"

namespace simmst {

// The addresses and numbers of a call, in the order of its places.
class Addresses {
 public:
  explicit Addresses(const std::uintptr_t* begin) : begin_(begin) {}
  std::uintptr_t operator[](std::size_t place) const { return begin_[place]; }
  template <typename T>
  T* as(std::size_t place) const {
    return reinterpret_cast<T*>(begin_[place]);
  }
  double number(std::size_t place) const { return std::bit_cast<double>(begin_[place]); }

 private:
  const std::uintptr_t* begin_;
};

// Python calls a plan with an address for each place and then the addresses of the workspace and the stream; it reads
// the size of the workspace, in bytes, from the plan. A plan keeps nothing from one call to the next.
class Plan {
 public:
  // `stream` belongs to the plan's device, which is current.
  using Run = std::function<void(const Addresses& at, const cuda::Queue& queue)>;

  explicit Plan(int device) : device_(device) {}

  // Adds the next place: an array that was read, an optional one, or contiguous memory with entries of this type.
  void add(const Array& array) { places_.push_back({array.name, item_of(array.type), !array.empty()}); }
  void add_optional(const char* name, DataType type) { places_.push_back({name, item_of(type), false}); }
  void add_needed(const char* name, DataType type, bool empty) { places_.push_back({name, item_of(type), !empty}); }
  // A floating-point number, which may differ from call to call.
  void add_number(const char* name) { places_.push_back({name, 0, false}); }
  std::size_t count() const { return places_.size(); }
  // Called after all places are added.
  void finish(std::int64_t workspace_bytes, Run run) {
    workspace_ = workspace_bytes;
    places_.push_back({"workspace", 16, workspace_bytes > 0});
    run_ = std::move(run);
  }

  std::int64_t workspace() const { return workspace_; }
  int device() const { return device_; }

  // Throws TypeError or ValueError before anything is launched.
  void operator()(const py::args& given) const;

 private:
  struct Place {
    const char* name;
    std::uintptr_t multiple;  // the address must be a multiple of this; 0 for a number
    bool needed;
  };
  static std::uintptr_t item_of(DataType type) { return static_cast<std::uintptr_t>(item_size(type)); }

  int device_;
  std::int64_t workspace_ = 0;
  std::vector<Place> places_;
  Run run_;
};

}  // namespace simmst
