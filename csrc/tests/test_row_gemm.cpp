#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.hpp"
#include "random_values.hpp"
#include "row_gemm.hpp"

namespace {

using qexp::Filled;
using qexp::PackedMatrix;
using qexp::RowView;
using qexp::testing::random_values;

template <class T>
RowView<T> view(T* data, std::size_t rows, std::size_t columns) {
  return {data, rows, static_cast<std::ptrdiff_t>(columns)};
}

template <class S, class T>
std::vector<T> chain(const std::vector<S>& a, const std::vector<T>& b, std::vector<T> c,
                     std::size_t m, std::size_t k, std::size_t n, Filled filled) {
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      for (std::size_t l = 0; l < k; ++l) {
        if (filled == Filled::upper && l > j) break;
        c[i * n + j] = std::fma(static_cast<T>(a[i * k + l]), b[l * n + j], c[i * n + j]);
      }
    }
  }
  return c;
}

template <class T>
void check_close(const std::vector<T>& x, const std::vector<T>& y) {
  REQUIRE(x.size() == y.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    // x86-64's baseline has no fused multiply-add.
    if (qexp::active_isa() == qexp::Isa::baseline) {
      CHECK(x[i] == doctest::Approx(y[i]).epsilon(1e-3));
    } else {
      CHECK(x[i] == y[i]);
    }
  }
}

template <class S, class T>
void check_products() {
  for (const auto& [m, k, n] : {std::array<std::size_t, 3>{1, 1, 1},
                                {3, 0, 2},
                                {0, 3, 2},
                                {5, 200, 3},
                                {13, 33, 70},
                                {25, 401, 37},
                                {200, 20, 16}}) {
    const auto a = random_values<S>(m * k, 1);
    const auto b = random_values<T>(k * n, 2);
    const auto start = random_values<T>(m * n, 3);
    for (Filled filled : {Filled::full, Filled::upper}) {
      const PackedMatrix<T> packed(b.data(), k, n, static_cast<std::ptrdiff_t>(n), 1, filled);
      std::vector<T> c(m * n, std::numeric_limits<T>::quiet_NaN());
      packed.template multiply<S>(view(a.data(), m, k), view(c.data(), m, n));
      check_close(c, chain(a, b, std::vector<T>(m * n, T{0}), m, k, n, filled));
      c = start;
      packed.template multiply<S>(view(a.data(), m, k), view(c.data(), m, n), true);
      check_close(c, chain(a, b, start, m, k, n, filled));
    }
  }
}

}  // namespace

TEST_CASE("every element is one chain of fused multiply-adds") {
  check_products<double, double>();
  check_products<float, float>();
  check_products<float, double>();
}

TEST_CASE("a row's bits depend neither on its neighbours nor on the number of threads") {
  const std::size_t m = 700, k = 130, n = 120;
  const auto a = random_values<double>(m * k, 1);
  const auto b = random_values<double>(k * n, 2);
  const PackedMatrix<double> packed(b.data(), k, n, n, 1);
  std::vector<double> reference(m * n);
  qexp::set_num_threads(1);
  packed.multiply<double>(view(a.data(), m, k), view(reference.data(), m, n));
  for (int threads : {2, 3, 5}) {
    qexp::set_num_threads(threads);
    std::vector<double> c(m * n);
    packed.multiply<double>(view(a.data(), m, k), view(c.data(), m, n));
    CHECK(std::memcmp(c.data(), reference.data(), c.size() * sizeof(double)) == 0);
  }
  std::vector<double> row(n);
  for (std::size_t i = 0; i < m; i += 37) {
    packed.multiply<double>(view(a.data() + i * k, 1, k), view(row.data(), 1, n));
    CHECK(std::memcmp(row.data(), reference.data() + i * n, n * sizeof(double)) == 0);
  }
}

TEST_CASE("NaN stays in its row") {
  const std::size_t m = 20, k = 10, n = 5;
  auto a = random_values<float>(m * k, 1);
  a[7 * k + 3] = std::numeric_limits<float>::quiet_NaN();
  const auto b = random_values<float>(k * n, 2);
  const PackedMatrix<float> packed(b.data(), k, n, n, 1);
  std::vector<float> c(m * n);
  packed.multiply<float>(view(a.data(), m, k), view(c.data(), m, n));
  for (std::size_t i = 0; i < m * n; ++i) CHECK(std::isnan(c[i]) == (i / n == 7));
}
