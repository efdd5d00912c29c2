// Row-major matrices for the tests of the dense kernels: random ones, and what they should give.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "blas.hpp"

namespace qexp::testing {

// The provider that the dense kernels are tested with.
inline const Blas& blas_under_test() {
#ifdef QEXP_BLAS_SYSTEM
  return bound_blas();
#else
  return reference_blas();
#endif
}

// Rows lie three elements apart, and the gaps hold NaN, so that a wrong stride shows.
template <class T>
struct Dense {
  std::int64_t rows, cols, stride;
  std::vector<T> values;

  Dense(std::int64_t m, std::int64_t n)
      : rows(m),
        cols(n),
        stride(n + 3),
        values(static_cast<std::size_t>(m * (n + 3)), std::numeric_limits<T>::quiet_NaN()) {}

  T& operator()(std::int64_t i, std::int64_t j) {
    return values[static_cast<std::size_t>(i * stride + j)];
  }
  T operator()(std::int64_t i, std::int64_t j) const {
    return values[static_cast<std::size_t>(i * stride + j)];
  }
  MatrixView<T> view() { return {values.data(), rows, cols, stride}; }
  MatrixView<const T> view() const { return {values.data(), rows, cols, stride}; }
};

template <class T>
Dense<T> random_matrix(std::int64_t m, std::int64_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Dense<T> a(m, n);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) a(i, j) = static_cast<T>(uniform(engine));
  }
  return a;
}

// Well conditioned, with NaN above the diagonal, which no kernel may touch.
template <class T>
Dense<T> random_lower(std::int64_t n, unsigned seed) {
  Dense<T> l = random_matrix<T>(n, n, seed);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < i; ++j) l(i, j) /= static_cast<T>(std::sqrt(n));
    l(i, i) = T{2} + l(i, i);
    for (std::int64_t j = i + 1; j < n; ++j) l(i, j) = std::numeric_limits<T>::quiet_NaN();
  }
  return l;
}

// L Lᵀ, in the lower triangle.
template <class T>
Dense<T> product_with_transpose(const Dense<T>& l) {
  Dense<T> a(l.rows, l.rows);
  for (std::int64_t i = 0; i < l.rows; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k <= j; ++k) {
        sum += static_cast<double>(l(i, k)) * static_cast<double>(l(j, k));
      }
      a(i, j) = static_cast<T>(sum);
    }
  }
  return a;
}

template <class T>
bool upper_is_untouched(const Dense<T>& a) {
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = i + 1; j < a.stride; ++j) {
      if (!std::isnan(a(i, j))) return false;
    }
  }
  return true;
}

template <class T>
double largest_lower_difference(const Dense<T>& a, const Dense<T>& b) {
  double largest = 0;
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      const double difference =
          std::abs(static_cast<double>(a(i, j)) - static_cast<double>(b(i, j)));
      if (!(difference <= largest)) largest = difference;
    }
  }
  return largest;
}

template <class T>
double tolerance() {
  return 200 * static_cast<double>(std::numeric_limits<T>::epsilon());
}

}  // namespace qexp::testing
