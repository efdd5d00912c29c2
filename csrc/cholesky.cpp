#include "cholesky.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace qexp {
namespace {

// LAPACK reports a pivot that is not positive, but not every library notices one that is NaN or
// infinite, so the factored diagonal is looked at once more. `before` is the block's diagonal
// before it was factored: the pivot's value then follows from the rows of L that were finished.
template <class T>
CholeskyFailure factor_diagonal_block(const Blas& blas, MatrixView<T> a, std::vector<T>& before) {
  for (std::int64_t i = 0; i < a.rows; ++i) before[static_cast<std::size_t>(i)] = a(i, i);
  const std::int64_t reported = blas.potrf(Triangle::upper, a.rows, a.data, a.stride);
  const std::int64_t finished = reported == 0 ? a.rows : reported - 1;
  std::int64_t failed = 0;
  while (failed < finished && a(failed, failed) > 0 && std::isfinite(a(failed, failed))) ++failed;
  if (failed == a.rows) return {};
  T value = before[static_cast<std::size_t>(failed)];
  for (std::int64_t j = 0; j < failed; ++j) value -= a(failed, j) * a(failed, j);
  return {failed + 1, static_cast<double>(value)};
}

}  // namespace

template <class T>
CholeskyFailure cholesky_inplace(const Blas& blas, MatrixView<T> a) {
  constexpr std::int64_t width = 96;
  const std::int64_t n = a.rows;
  std::vector<T> before(static_cast<std::size_t>(std::min(width, n)));
  for (std::int64_t j = 0; j < n; j += width) {
    const std::int64_t nb = std::min(width, n - j);
    const std::int64_t rest = n - j - nb;
    const auto diagonal = a.block(j, j, nb, nb);
    if (auto failure = factor_diagonal_block(blas, diagonal, before); failure.pivot != 0) {
      failure.pivot += j;
      return failure;
    }
    const auto panel = a.block(j + nb, j, rest, nb);
    blas.trsm(Side::left, Triangle::upper, Transpose::yes, nb, rest, diagonal.data, a.stride,
              panel.data, a.stride);
    blas.syrk(Triangle::upper, Transpose::yes, rest, nb, T{-1}, panel.data, a.stride, T{1},
              &a(j + nb, j + nb), a.stride);
  }
  return {};
}

template CholeskyFailure cholesky_inplace(const Blas&, MatrixView<float>);
template CholeskyFailure cholesky_inplace(const Blas&, MatrixView<double>);

}  // namespace qexp
