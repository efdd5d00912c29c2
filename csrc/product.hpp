// C += alpha op(A) op(B), whole or lower triangle: what Gram, Cholesky and the solves are made of.
//
// Row-major matrices. Runs on the AVX-512 kernels where the processor has them, on BLAS elsewhere.
#pragma once

#include "blas.hpp"

namespace qexp {

// Whether the kernels of csrc/product_avx512.hpp are used.
bool has_own_products() noexcept;

template <class T>
struct Factor {
  MatrixView<const T> matrix;
  Transpose transpose = Transpose::no;

  std::int64_t rows() const { return transpose == Transpose::no ? matrix.rows : matrix.cols; }
  std::int64_t cols() const { return transpose == Transpose::no ? matrix.cols : matrix.rows; }
};

template <class T>
void add_product(const Blas& blas, MatrixView<T> c, T alpha, Factor<T> a, Factor<T> b);

// The lower triangle of C += alpha op(A) op(A)ᵀ.
template <class T>
void add_lower_square(const Blas& blas, MatrixView<T> c, T alpha, Factor<T> a);

// The same with sums of at most `float_square_depth` products in float32, added up in float64.
inline constexpr std::int64_t float_square_depth = 256;
void add_lower_square(const Blas& blas, MatrixView<double> c, double alpha, Factor<float> a);

// triangular_solve for an L of order at most solve_leaf_size.
inline constexpr std::int64_t solve_leaf_size = 64;
template <class T>
void solve_leaf(const Blas& blas, Side side, Transpose transpose, MatrixView<const T> l,
                MatrixView<T> b);

}  // namespace qexp
