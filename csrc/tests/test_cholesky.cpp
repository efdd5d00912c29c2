#include <doctest/doctest.h>

#include "cholesky.hpp"
#include "dense_reference.hpp"

using namespace qexp;
using namespace qexp::testing;

TEST_CASE_TEMPLATE("the factor is recovered from its product", T, float, double) {
  for (std::int64_t n : {0, 1, 2, 17, 95, 96, 97, 200}) {
    const Dense<T> l = random_lower<T>(n, static_cast<unsigned>(n));
    Dense<T> a = product_with_transpose(l);
    CHECK(cholesky_inplace(blas_under_test(), a.view()) == 0);
    CHECK(largest_lower_difference(a, l) < tolerance<T>());
    CHECK(upper_is_untouched(a));
  }
}

TEST_CASE_TEMPLATE("the failing pivot is reported", T, float, double) {
  for (std::int64_t n : {1, 5, 97, 200}) {
    const Dense<T> l = random_lower<T>(n, static_cast<unsigned>(n));
    for (std::int64_t pivot : {std::int64_t{0}, n / 2, n - 1}) {
      Dense<T> a = product_with_transpose(l);
      a(pivot, pivot) -= l(pivot, pivot) * l(pivot, pivot) + T{0.5};
      CHECK(cholesky_inplace(blas_under_test(), a.view()) == pivot + 1);
    }
  }
}

TEST_CASE_TEMPLATE("a matrix that is not finite fails at the row concerned", T, float, double) {
  using Limits = std::numeric_limits<T>;
  for (T bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
    for (std::int64_t row : {0, 40, 96, 199}) {
      for (std::int64_t col : {std::int64_t{0}, row / 2, row}) {
        Dense<T> a = product_with_transpose(random_lower<T>(200, 1));
        a(row, col) = bad;
        CHECK(cholesky_inplace(blas_under_test(), a.view()) == row + 1);
      }
    }
  }
}
