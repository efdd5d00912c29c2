#include <algorithm>
#include <functional>
#include <utility>
#include <variant>

#include "bindings.hpp"
#include "row_gemm.hpp"

namespace qexp::bindings {
namespace {

struct AnyPackedMatrix {
  std::variant<PackedMatrix<float>, PackedMatrix<double>> matrix;
};

template <class T>
RowView<T> with_columns(MatrixView<T> rows, std::size_t columns, const char* name) {
  if (static_cast<std::size_t>(rows.cols) != columns) {
    refuse(name, "has rows of " + std::to_string(rows.cols) + " numbers; it needs " +
                     std::to_string(columns));
  }
  return {rows.data, static_cast<std::size_t>(rows.rows), rows.stride};
}

template <class T>
std::pair<const T*, const T*> extent_in_memory(const RowView<T>& rows, std::size_t columns) {
  const T* first = rows[0];
  const T* last = rows[rows.count - 1];
  return {std::min(first, last), std::max(first, last) + columns};
}

template <class S, class T>
void multiply(const PackedMatrix<T>& b, const Array<S>& a, Array<T>& out, bool accumulate) {
  const auto a_rows = with_columns(input_rows(a, "a"), b.rows(), "a");
  const auto c_rows = with_columns(output_rows(out, "out"), b.columns(), "out");
  require(a_rows.count == c_rows.count, "a has " + std::to_string(a_rows.count) +
                                            " rows but out has " + std::to_string(c_rows.count));
  if (c_rows.count == 0 || b.columns() == 0) return;
  if (b.rows() > 0) {
    const auto [a_begin, a_end] = extent_in_memory(a_rows, b.rows());
    const auto [c_begin, c_end] = extent_in_memory(c_rows, b.columns());
    const std::less<const void*> before;
    require(!before(a_begin, c_end) || !before(c_begin, a_end), "a and out share memory");
  }
  py::gil_scoped_release release;
  b.multiply(a_rows, c_rows, accumulate);
}

template <class T>
AnyPackedMatrix pack(const Array<T>& b, Filled filled) {
  require(b.ndim() == 2, "b has " + std::to_string(b.ndim()) + " dimensions; it needs 2");
  require_aligned(b, "b");
  constexpr auto size = static_cast<std::ptrdiff_t>(sizeof(T));
  const std::ptrdiff_t row_stride = b.strides(0) / size, column_stride = b.strides(1) / size;
  const T* data = b.data();
  const std::size_t rows = extent(b, 0), columns = extent(b, 1);
  py::gil_scoped_release release;
  return {PackedMatrix<T>(data, rows, columns, row_stride, column_stride, filled)};
}

AnyPackedMatrix make_packed(const py::array& b, const std::string& triangle) {
  require(triangle == "full" || triangle == "upper",
          "triangle is '" + triangle + "'; it must be 'full' or 'upper'");
  const Filled filled = triangle == "upper" ? Filled::upper : Filled::full;
  if (py::isinstance<Array<float>>(b)) return pack<float>(py::cast<Array<float>>(b), filled);
  if (py::isinstance<Array<double>>(b)) return pack<double>(py::cast<Array<double>>(b), filled);
  throw py::type_error("b is " + py::str(b.dtype()).cast<std::string>() +
                       "; it must be float32 or float64");
}

void multiply_any(const AnyPackedMatrix& self, const py::array& a, const py::array& out,
                  bool accumulate) {
  std::visit(
      [&]<class T>(const PackedMatrix<T>& b) {
        if (py::isinstance<Array<T>>(out)) {
          auto c = py::cast<Array<T>>(out);
          if (py::isinstance<Array<T>>(a)) {
            return multiply(b, py::cast<Array<T>>(a), c, accumulate);
          }
          if constexpr (std::is_same_v<T, double>) {
            if (py::isinstance<Array<float>>(a)) {
              return multiply(b, py::cast<Array<float>>(a), c, accumulate);
            }
          }
        }
        throw py::type_error("a is " + py::str(a.dtype()).cast<std::string>() + " and out is " +
                             py::str(out.dtype()).cast<std::string>() +
                             "; out must have the packed matrix's dtype " +
                             py::str(py::dtype::of<T>()).cast<std::string>() +
                             ", and a the same or float32");
      },
      self.matrix);
}

}  // namespace

void register_row_gemm(py::module_& module) {
  py::class_<AnyPackedMatrix>(
      module, "PackedMatrix",
      "A public matrix (k, n), packed once, by which private rows are multiplied. The bits of a\n"
      "row of the product depend on that row and on this matrix alone.")
      .def(py::init(&make_packed), py::arg("b").noconvert(), py::kw_only(),
           py::arg("triangle") = "full")
      .def("multiply", &multiply_any, py::arg("a").noconvert(), py::arg("out").noconvert(),
           py::kw_only(), py::arg("accumulate") = false)
      .def_property_readonly(
          "shape",
          [](const AnyPackedMatrix& self) {
            return std::visit([](const auto& b) { return py::make_tuple(b.rows(), b.columns()); },
                              self.matrix);
          })
      .def_property_readonly(
          "dtype",
          [](const AnyPackedMatrix& self) {
            return std::visit([]<class T>(const PackedMatrix<T>&) { return py::dtype::of<T>(); },
                              self.matrix);
          })
      .def_property_readonly("nbytes", [](const AnyPackedMatrix& self) {
        return std::visit([](const auto& b) { return b.bytes(); }, self.matrix);
      });
}

}  // namespace qexp::bindings
