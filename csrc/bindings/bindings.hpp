// What every binding file shares: pybind11, and views of NumPy arrays that are never copies.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>

namespace qexp::bindings {

namespace py = pybind11;

// Bind arguments of this type with py::arg(...).noconvert(): another dtype is then a TypeError
// instead of a hidden copy. The Python layer normalises before it calls.
template <class T>
using Array = py::array_t<T, 0>;

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
void require_contiguous(const Array<T>& a, py::ssize_t ndim, const char* name) {
  require(a.ndim() == ndim, std::string(name) + " has " + std::to_string(a.ndim()) +
                                " dimensions; it needs " + std::to_string(ndim));
  require((a.flags() & py::array::c_style) != 0, std::string(name) + " is not C-contiguous");
}

template <class T>
std::span<const T> input(const Array<T>& a, py::ssize_t ndim, const char* name) {
  require_contiguous(a, ndim, name);
  return {a.data(), static_cast<std::size_t>(a.size())};
}

// Raises where the array is read-only.
template <class T>
std::span<T> output(Array<T>& a, py::ssize_t ndim, const char* name) {
  require_contiguous(a, ndim, name);
  require(a.writeable(), std::string(name) + " is read-only");
  return {a.mutable_data(), static_cast<std::size_t>(a.size())};
}

template <class T>
std::size_t extent(const Array<T>& a, py::ssize_t axis) {
  return static_cast<std::size_t>(a.shape(axis));
}

void register_blas(py::module_& module);
void register_boundary(py::module_& module);
void register_config(py::module_& module);
void register_factor(py::module_& module);
void register_hadamard(py::module_& module);
void register_kron_sketch(py::module_& module);
void register_networks(py::module_& module);
void register_row_gemm(py::module_& module);

}  // namespace qexp::bindings
