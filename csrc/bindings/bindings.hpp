// What every binding file shares: pybind11, and views of NumPy arrays that are never copies.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string>

#include "blas.hpp"

namespace qexp::bindings {

namespace py = pybind11;

// Bind arguments of this type with py::arg(...).noconvert(): another dtype is then a TypeError
// instead of a hidden copy. The Python layer normalises before it calls.
template <class T>
using Array = py::array_t<T, 0>;

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// For what every call checks: the message is written for the refused alone.
[[noreturn]] inline void refuse(const char* name, const std::string& why) {
  throw std::invalid_argument(name + (" " + why));
}

// To read a number where none can stand is undefined, whatever the processor makes of it.
inline void require_aligned(const py::array& a, const char* name) {
  if ((a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0) return;
  refuse(name,
         "is misaligned; its numbers need to stand at multiples of their size: copy it first");
}

template <class T>
void require_contiguous(const Array<T>& a, py::ssize_t ndim, const char* name) {
  if (a.ndim() != ndim) {
    refuse(name,
           "has " + std::to_string(a.ndim()) + " dimensions; it needs " + std::to_string(ndim));
  }
  require_aligned(a, name);
  if ((a.flags() & py::array::c_style) == 0) refuse(name, "is not C-contiguous");
}

template <class T>
void require_writeable(const Array<T>& a, const char* name) {
  if (!a.writeable()) refuse(name, "is read-only");
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
  require_writeable(a, name);
  return {a.mutable_data(), static_cast<std::size_t>(a.size())};
}

template <class T>
std::size_t extent(const Array<T>& a, py::ssize_t axis) {
  return static_cast<std::size_t>(a.shape(axis));
}

inline std::string shape_of(const py::array& a) {
  return py::str(a.attr("shape")).cast<std::string>();
}

template <class T>
void require_shape(const Array<T>& a, std::size_t rows, std::size_t columns, const char* name) {
  if (a.ndim() == 2 && extent(a, 0) == rows && extent(a, 1) == columns) return;
  refuse(name, "has shape " + shape_of(a) + "; it needs (" + std::to_string(rows) + ", " +
                   std::to_string(columns) + ")");
}

// Rows whose numbers are adjacent. The rows themselves may stand apart, or run backwards.
template <class T>
MatrixView<const T> input_rows(const Array<T>& a, const char* name) {
  if (a.ndim() != 2) refuse(name, "has shape " + shape_of(a) + "; it needs two dimensions");
  require_aligned(a, name);
  // So the strides of an aligned array are whole numbers of items.
  static_assert(alignof(T) == sizeof(T));
  constexpr auto size = static_cast<py::ssize_t>(sizeof(T));
  const py::ssize_t rows = a.shape(0), columns = a.shape(1);
  if (a.size() != 0 && columns != 1 && a.strides(1) != size) {
    refuse(name, "has rows that are not contiguous; copy it first");
  }
  // NumPy leaves a stride arbitrary where it leads to no other item.
  return {a.data(), rows, columns, a.size() == 0 || rows == 1 ? columns : a.strides(0) / size};
}

// Raises where rows overlap, or the array is read-only.
template <class T>
MatrixView<T> output_rows(Array<T>& a, const char* name) {
  const auto view = input_rows(a, name);
  if (std::abs(view.stride) < view.cols) refuse(name, "has rows that overlap; copy it first");
  require_writeable(a, name);
  return {a.mutable_data(), view.rows, view.cols, view.stride};
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
