#include <doctest/doctest.h>

#include "dense_reference.hpp"
#include "triangular.hpp"

using namespace qexp;
using namespace qexp::testing;

TEST_CASE_TEMPLATE("a solve undoes the product, on both sides and transposed", T, float, double) {
  for (std::int64_t n : {0, 1, 5, 64, 65, 150}) {
    const Dense<T> l = random_lower<T>(n, static_cast<unsigned>(n));
    for (std::int64_t others : {0, 1, 10}) {
      for (Side side : {Side::left, Side::right}) {
        for (Transpose transpose : {Transpose::no, Transpose::yes}) {
          const bool left = side == Side::left;
          const Dense<T> x = random_matrix<T>(left ? n : others, left ? others : n, 7);
          Dense<T> b(x.rows, x.cols);
          const auto op = [&](std::int64_t i, std::int64_t j) {
            if (transpose == Transpose::yes) std::swap(i, j);
            return i >= j ? static_cast<double>(l(i, j)) : 0.0;
          };
          for (std::int64_t i = 0; i < b.rows; ++i) {
            for (std::int64_t j = 0; j < b.cols; ++j) {
              double sum = 0;
              for (std::int64_t k = 0; k < n; ++k) {
                sum += left ? op(i, k) * static_cast<double>(x(k, j))
                            : static_cast<double>(x(i, k)) * op(k, j);
              }
              b(i, j) = static_cast<T>(sum);
            }
          }
          triangular_solve(blas_under_test(), side, transpose, l.view(), b.view());
          for (std::int64_t i = 0; i < b.rows; ++i) {
            for (std::int64_t j = 0; j < b.cols; ++j) {
              CHECK(std::abs(static_cast<double>(b(i, j) - x(i, j))) < tolerance<T>());
            }
          }
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("the inverse times the matrix is the identity", T, float, double) {
  for (std::int64_t n : {0, 1, 2, 16, 17, 33, 150}) {
    const Dense<T> l = random_lower<T>(n, static_cast<unsigned>(n));
    Dense<T> inverse = l, product(n, n), identity(n, n);
    triangular_inverse_inplace(blas_under_test(), inverse.view());
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        double sum = 0;
        for (std::int64_t k = j; k <= i; ++k) {
          sum += static_cast<double>(inverse(i, k)) * static_cast<double>(l(k, j));
        }
        product(i, j) = static_cast<T>(sum);
        identity(i, j) = i == j;
      }
    }
    CHECK(largest_lower_difference(product, identity) < tolerance<T>());
    CHECK(upper_is_untouched(inverse));
  }
}
