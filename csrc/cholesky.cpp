#include "cholesky.hpp"

#include <algorithm>
#include <cmath>

#include "product.hpp"
#include "triangular.hpp"

namespace qexp {
namespace {

constexpr std::int64_t leaf = 96;

// LAPACK reports a pivot that is not positive, but not every library notices one that is NaN or
// infinite, so the factored diagonal is looked at once more.
template <class T>
std::int64_t factor_leaf(const Blas& blas, MatrixView<T> a) {
  const std::int64_t reported = blas.potrf(Triangle::upper, a.rows, a.data, a.stride);
  const std::int64_t finished = reported == 0 ? a.rows : reported - 1;
  std::int64_t failed = 0;
  while (failed < finished && a(failed, failed) > 0 && std::isfinite(a(failed, failed))) ++failed;
  return failed == a.rows ? 0 : failed + 1;
}

}  // namespace

template <class T>
std::int64_t cholesky_inplace(const Blas& blas, MatrixView<T> a) {
  const std::int64_t n = a.rows;
  if (n <= leaf) return factor_leaf(blas, a);
  // Wide panels pass a large matrix through memory less often, narrow ones leave less to the
  // slower factorisation of their diagonal blocks.
  const std::int64_t width = n < 2048 ? leaf : n < 4096 ? 256 : 512;
  for (std::int64_t j = 0; j < n; j += width) {
    const std::int64_t nb = std::min(width, n - j);
    const std::int64_t rest = n - j - nb;
    const auto diagonal = a.block(j, j, nb, nb);
    if (const auto pivot = cholesky_inplace(blas, diagonal); pivot != 0) return j + pivot;
    if (rest == 0) break;
    const auto panel = a.block(j + nb, j, rest, nb);
    triangular_solve<T>(blas, Side::right, Transpose::yes, diagonal, panel);
    add_lower_square(blas, a.block(j + nb, j + nb, rest, rest), T{-1}, Factor<T>{panel});
  }
  return 0;
}

template std::int64_t cholesky_inplace(const Blas&, MatrixView<float>);
template std::int64_t cholesky_inplace(const Blas&, MatrixView<double>);

}  // namespace qexp
