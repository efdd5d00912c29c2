// Cholesky factorisation A = L Lᵀ, in place on the lower triangle of a row-major matrix.
//
// Blocked and right-looking: factor a narrow diagonal block, solve the panel below it, subtract the
// panel's products from what remains. The strict upper triangle is neither read nor written.
#pragma once

#include "blas.hpp"

namespace qexp {

// Returns 0, or the pivot, counted from 1, where the matrix turned out not to be positive definite
// or not finite. The lower triangle then holds no usable numbers.
template <class T>
std::int64_t cholesky_inplace(const Blas& blas, MatrixView<T> a);

}  // namespace qexp
