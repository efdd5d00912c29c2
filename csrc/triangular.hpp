// Solves with a lower triangular matrix L, its inverse, and an estimate of its condition number.
//
// All matrices are row-major; the strict upper triangle of L is neither read nor written. A zero on
// L's diagonal gives infinities and NaNs, as in BLAS. With many right-hand sides the bits of one
// solution may depend on its neighbours, so these solves are for public matrices: a private record
// is whitened by the row kernels instead.
#pragma once

#include "blas.hpp"

namespace qexp {

// Overwrites B with X, where op(L) X = B (left) or X op(L) = B (right).
template <class T>
void triangular_solve(const Blas& blas, Side side, Transpose transpose, MatrixView<const T> l,
                      MatrixView<T> b);

// Overwrites L with its inverse.
template <class T>
void triangular_inverse_inplace(const Blas& blas, MatrixView<T> l);

// Estimates the condition number ‖L‖₁ ‖L⁻¹‖₁ from a few solves, after Hager (1984) and Higham
// (1988): a lower bound, rarely below a third of the truth. Infinite where L is singular or holds
// an infinity or NaN; 1 for an empty L.
template <class T>
double triangular_condition(const Blas& blas, MatrixView<const T> l);

}  // namespace qexp
