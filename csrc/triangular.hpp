// Solves with a lower triangular matrix L, and its inverse.
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

}  // namespace qexp
