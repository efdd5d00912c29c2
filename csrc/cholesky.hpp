// Cholesky factorisation A = L Lᵀ, in place on the lower triangle of a row-major matrix.
//
// Blocked and right-looking: factor a narrow diagonal block, solve the panel below it, subtract the
// panel's products from what remains. The strict upper triangle is neither read nor written.
#pragma once

#include "blas.hpp"

namespace qexp {

// Where the factorisation met a matrix that is not positive definite, or not finite.
struct CholeskyFailure {
  std::int64_t pivot = 0;  // 1-based; 0 for success
  double value = 0;        // what should have been positive and finite there
};

// After a failure the lower triangle holds no usable numbers.
template <class T>
CholeskyFailure cholesky_inplace(const Blas& blas, MatrixView<T> a);

}  // namespace qexp
