#include <doctest/doctest.h>

#include <cstring>

#include "dense_reference.hpp"
#include "parallel.hpp"
#include "product.hpp"

using namespace qexp;
using namespace qexp::testing;

namespace {

template <class T>
double exact(const Factor<T>& a, const Factor<T>& b, std::int64_t i, std::int64_t j) {
  double sum = 0;
  for (std::int64_t k = 0; k < a.cols(); ++k) {
    const T left = a.transpose == Transpose::no ? a.matrix(i, k) : a.matrix(k, i);
    const T right = b.transpose == Transpose::no ? b.matrix(k, j) : b.matrix(j, k);
    sum += static_cast<double>(left) * static_cast<double>(right);
  }
  return sum;
}

template <class T>
Factor<T> factor_of(const Dense<T>& stored, Transpose transpose) {
  return {stored.view(), transpose};
}

template <class T>
Dense<T> stored_for(std::int64_t rows, std::int64_t cols, Transpose transpose, unsigned seed) {
  return transpose == Transpose::no ? random_matrix<T>(rows, cols, seed)
                                    : random_matrix<T>(cols, rows, seed);
}

}  // namespace

TEST_CASE_TEMPLATE("products of every shape and transposition", T, float, double) {
  for (std::int64_t m : {0, 1, 11, 12, 13, 30, 200}) {
    for (std::int64_t n : {0, 1, 15, 16, 17, 33, 65}) {
      for (std::int64_t k : {0, 1, 7, 260}) {
        for (Transpose ta : {Transpose::no, Transpose::yes}) {
          for (Transpose tb : {Transpose::no, Transpose::yes}) {
            const Dense<T> a = stored_for<T>(m, k, ta, 1), b = stored_for<T>(k, n, tb, 2);
            const Dense<T> start = random_matrix<T>(m, n, 3);
            Dense<T> c = start;
            add_product(blas_under_test(), c.view(), T{-0.5}, factor_of(a, ta), factor_of(b, tb));
            double worst = 0;
            for (std::int64_t i = 0; i < m; ++i) {
              for (std::int64_t j = 0; j < n; ++j) {
                const double expected = static_cast<double>(start(i, j)) -
                                        0.5 * exact(factor_of(a, ta), factor_of(b, tb), i, j);
                worst = std::max(worst, std::abs(static_cast<double>(c(i, j)) - expected));
              }
            }
            CHECK(worst < tolerance<T>());
          }
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("squares fill the lower triangle alone", T, float, double) {
  for (std::int64_t n : {0, 1, 12, 13, 40, 210}) {
    for (std::int64_t k : {0, 1, 300}) {
      for (Transpose transpose : {Transpose::no, Transpose::yes}) {
        const Dense<T> a = stored_for<T>(n, k, transpose, 1);
        Dense<T> c = random_lower<T>(n, 2);
        Dense<T> expected = c;
        add_lower_square(blas_under_test(), c.view(), T{2}, factor_of(a, transpose));
        const Transpose other = transpose == Transpose::no ? Transpose::yes : Transpose::no;
        for (std::int64_t i = 0; i < n; ++i) {
          for (std::int64_t j = 0; j <= i; ++j) {
            expected(i, j) +=
                static_cast<T>(2 * exact(factor_of(a, transpose), factor_of(a, other), i, j));
          }
        }
        CHECK(largest_lower_difference(c, expected) < 20 * tolerance<T>());
        CHECK(upper_is_untouched(c));
      }
    }
  }
}

TEST_CASE_TEMPLATE("more columns and rows than one panel of the kernel", T, float, double) {
  const Dense<T> a = random_matrix<T>(3, 5, 1), b = random_matrix<T>(5, 2100, 2);
  Dense<T> c(3, 2100);
  for (std::int64_t i = 0; i < 3; ++i) {
    for (std::int64_t j = 0; j < 2100; ++j) c(i, j) = 0;
  }
  add_product(blas_under_test(), c.view(), T{1}, factor_of(a, Transpose::no),
              factor_of(b, Transpose::no));
  for (std::int64_t j : {0, 2047, 2048, 2099}) {
    CHECK(static_cast<double>(c(2, j)) ==
          doctest::Approx(exact(factor_of(a, Transpose::no), factor_of(b, Transpose::no), 2, j)));
  }
}

TEST_CASE_TEMPLATE("bits do not depend on the number of threads", T, float, double) {
  if (!has_own_products()) return;
  const Dense<T> a = random_matrix<T>(500, 40, 1);
  Dense<T> alone = random_lower<T>(500, 2);
  const Dense<T> start = alone;
  set_num_threads(1);
  add_lower_square(blas_under_test(), alone.view(), T{-1}, factor_of(a, Transpose::no));
  for (int threads : {2, 3}) {
    Dense<T> together = start;
    set_num_threads(threads);
    add_lower_square(blas_under_test(), together.view(), T{-1}, factor_of(a, Transpose::no));
    CHECK(std::memcmp(alone.values.data(), together.values.data(),
                      alone.values.size() * sizeof(T)) == 0);
  }
}
