#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "bindings.hpp"
#include "cholesky.hpp"
#include "gram.hpp"
#include "triangular.hpp"

namespace qexp::bindings {
namespace {

// BLAS takes neither rows that overlap nor rows that run backwards.
template <class T>
MatrixView<const T> input_matrix(const Array<T>& a, const char* name) {
  const auto view = input_rows(a, name);
  if (view.stride < view.cols) {
    refuse(name, "has rows that overlap or run backwards; copy it first");
  }
  return view;
}

template <class T>
MatrixView<T> output_matrix(Array<T>& a, const char* name) {
  input_matrix(a, name);
  return output_rows(a, name);
}

template <class T>
void require_square(MatrixView<T> a, const char* name) {
  require(a.rows == a.cols, std::string(name) + " is " + std::to_string(a.rows) + " by " +
                                std::to_string(a.cols) + "; it needs to be square");
}

template <class T>
void require_nonzero_diagonal(MatrixView<T> l) {
  for (std::int64_t i = 0; i < l.rows; ++i) {
    require(l(i, i) != 0, "l is singular: its diagonal is zero at row " + std::to_string(i));
  }
}

template <class T>
void gram(Array<double> h, const Array<T>& rows, double weight,
          const std::optional<Array<double>>& row_weights) {
  const auto sum = output_matrix(h, "h");
  const auto block = input_matrix(rows, "rows");
  require_square(sum, "h");
  require(sum.rows == block.cols, "rows has " + std::to_string(block.cols) + " columns, but h is " +
                                      std::to_string(sum.rows) + " by " + std::to_string(sum.cols));
  const Blas& blas = bound_blas();
  if (!row_weights) {
    py::gil_scoped_release release;
    return gram_accumulate(blas, sum, block, weight);
  }
  const auto weights = input(*row_weights, 1, "row_weights");
  require(static_cast<std::int64_t>(weights.size()) == block.rows,
          "row_weights has " + std::to_string(weights.size()) + " numbers, but rows has " +
              std::to_string(block.rows) + " rows");
  require(std::ranges::all_of(weights, [](double w) { return w >= 0; }),
          "row_weights holds a number that is negative or no number");
  py::gil_scoped_release release;
  gram_accumulate(blas, sum, block, weight, weights);
}

template <class T>
std::int64_t cholesky(Array<T> a) {
  const auto matrix = output_matrix(a, "a");
  require_square(matrix, "a");
  const Blas& blas = bound_blas();
  py::gil_scoped_release release;
  return cholesky_inplace(blas, matrix);
}

template <class T>
void solve(const Array<T>& l, Array<T> b, const std::string& side, bool transpose) {
  require(side == "left" || side == "right", "side is '" + side + "'; it can be 'left' or 'right'");
  const auto triangle = input_matrix(l, "l");
  const auto unknowns = output_matrix(b, "b");
  require_square(triangle, "l");
  const bool left = side == "left";
  if (triangle.rows != (left ? unknowns.rows : unknowns.cols)) {
    refuse("b", "has shape " + shape_of(b) + ", which does not match that of l, " + shape_of(l) +
                    ", on side '" + side + "'");
  }
  require_nonzero_diagonal(triangle);
  const Blas& blas = bound_blas();
  py::gil_scoped_release release;
  triangular_solve(blas, left ? Side::left : Side::right,
                   transpose ? Transpose::yes : Transpose::no, triangle, unknowns);
}

template <class T>
void inverse(Array<T> l) {
  const auto triangle = output_matrix(l, "l");
  require_square(triangle, "l");
  require_nonzero_diagonal(triangle);
  const Blas& blas = bound_blas();
  py::gil_scoped_release release;
  triangular_inverse_inplace(blas, triangle);
}

template <class T>
void register_precision(py::module_& module) {
  module.def("gram_accumulate", &gram<T>, py::arg("h").noconvert(), py::arg("rows").noconvert(),
             py::arg("weight"), py::kw_only(), py::arg("row_weights").noconvert() = py::none());
  module.def("cholesky_inplace", &cholesky<T>, py::arg("a").noconvert());
  module.def("triangular_solve", &solve<T>, py::arg("l").noconvert(), py::arg("b").noconvert(),
             py::kw_only(), py::arg("side"), py::arg("transpose"));
  module.def("triangular_inverse_inplace", &inverse<T>, py::arg("l").noconvert());
}

}  // namespace

void register_factor(py::module_& module) {
  register_precision<double>(module);
  register_precision<float>(module);
}

}  // namespace qexp::bindings
