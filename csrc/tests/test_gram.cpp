#include <doctest/doctest.h>

#include "dense_reference.hpp"
#include "gram.hpp"

using namespace qexp;
using namespace qexp::testing;

TEST_CASE_TEMPLATE("the Gram matrix of blocks of rows adds up", T, float, double) {
  for (std::int64_t k : {0, 1, 3, 40, 257}) {
    Dense<double> h(k, k), expected(k, k);
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) h(i, j) = expected(i, j) = 1.0;
    }
    for (std::int64_t m : {0, 1, 9, 300}) {
      const Dense<T> rows = random_matrix<T>(m, k, static_cast<unsigned>(m + k));
      gram_accumulate(blas_under_test(), h.view(), rows.view(), 0.5);
      for (std::int64_t i = 0; i < k; ++i) {
        for (std::int64_t j = 0; j <= i; ++j) {
          double sum = 0;
          for (std::int64_t r = 0; r < m; ++r) {
            sum += static_cast<double>(rows(r, i)) * static_cast<double>(rows(r, j));
          }
          expected(i, j) += 0.5 * sum;
        }
      }
    }
    CHECK(largest_lower_difference(h, expected) < 10 * tolerance<T>());
    CHECK(upper_is_untouched(h));
  }
}

TEST_CASE_TEMPLATE("every row may have a weight", T, float, double) {
  constexpr std::int64_t k = 37;
  for (std::int64_t m : {0, 1, 511, 1100}) {
    const Dense<T> rows = random_matrix<T>(m, k, 5);
    std::vector<double> weights;
    for (std::int64_t r = 0; r < m; ++r) weights.push_back(static_cast<double>(r % 5) / 4);
    Dense<double> h(k, k), expected(k, k);
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        h(i, j) = expected(i, j) = 1.0;
        for (std::int64_t r = 0; r < m; ++r) {
          expected(i, j) += 0.5 * weights[static_cast<std::size_t>(r)] *
                            static_cast<double>(rows(r, i)) * static_cast<double>(rows(r, j));
        }
      }
    }
    gram_accumulate(blas_under_test(), h.view(), rows.view(), 0.5, weights);
    CHECK(largest_lower_difference(h, expected) < 20 * tolerance<T>());
    CHECK(upper_is_untouched(h));
  }
}
