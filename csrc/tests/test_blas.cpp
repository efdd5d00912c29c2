#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "blas.hpp"

using namespace qexp;

namespace {

template <class Int>
double dasum(Int* n, double* x, Int*) {
  return *n > 0 ? std::abs(x[0]) : 0.0;
}

template <class Int>
void (*untyped(double (*f)(Int*, double*, Int*)))() {
  return reinterpret_cast<void (*)()>(f);
}

template <class Int>
BlasTable<Int> table_with(double (*asum)(Int*, double*, Int*)) {
  return {{}, {}, asum};
}

}  // namespace

TEST_CASE("the width of a library's integers is read off one call") {
  CHECK(detect_integer_bits(untyped<std::int32_t>(dasum<std::int32_t>)) == 32);
  CHECK(detect_integer_bits(untyped<std::int64_t>(dasum<std::int64_t>)) == 64);
}

TEST_CASE("a table that declares another width than its library's is refused") {
  const auto narrow = reinterpret_cast<double (*)(std::int64_t*, double*, std::int64_t*)>(
      untyped<std::int32_t>(dasum<std::int32_t>));
  CHECK_THROWS_AS(Blas("fake", table_with<std::int64_t>(narrow)), std::runtime_error);
  const auto wide = reinterpret_cast<double (*)(std::int32_t*, double*, std::int32_t*)>(
      untyped<std::int64_t>(dasum<std::int64_t>));
  CHECK_THROWS_AS(Blas("fake", table_with<std::int32_t>(wide)), std::runtime_error);
}

TEST_CASE("dimensions that do not fit are refused before the library is called") {
  const Blas narrow("fake", table_with<std::int32_t>(dasum<std::int32_t>));
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  double x = 1;
  CHECK_THROWS_AS(narrow.potrf(Triangle::upper, most + 1, &x, most + 1), std::invalid_argument);
  CHECK_THROWS_AS(narrow.potrf(Triangle::upper, 1, &x, most + 1), std::invalid_argument);
  CHECK_THROWS_AS(narrow.potrf(Triangle::upper, -1, &x, 1), std::invalid_argument);
  CHECK_THROWS_AS(narrow.gemm(Transpose::no, Transpose::no, most + 1, std::int64_t{1},
                              std::int64_t{1}, 1.0, &x, 1, &x, 1, 0.0, &x, 1),
                  std::invalid_argument);
}

#ifndef QEXP_BLAS_SYSTEM
TEST_CASE("an unbound BLAS is an error, a bound one is found") {
  CHECK_FALSE(blas_is_bound());
  CHECK_THROWS_AS(bound_blas(), std::runtime_error);
  bind_blas(reference_blas());
  REQUIRE(blas_is_bound());
  CHECK(bound_blas().provider() == "reference");
  CHECK(bound_blas().integer_bits() == 64);
}
#endif

TEST_CASE_TEMPLATE("the calls mean what their comments say", T, float, double) {
  std::vector<const Blas*> providers{&reference_blas()};
#ifdef QEXP_BLAS_SYSTEM
  providers.push_back(&bound_blas());
#endif
  for (const Blas* blas : providers) {
    // Column-major: A = [1 3; 2 4], B = [5 7; 6 8].
    const std::vector<T> a{1, 2, 3, 4}, b{5, 6, 7, 8};
    std::vector<T> c{1, 1, 1, 1};
    blas->gemm(Transpose::no, Transpose::no, 2, 2, 2, T{2}, a.data(), 2, b.data(), 2, T{3},
               c.data(), 2);
    CHECK(c == std::vector<T>{49, 71, 65, 95});
    c.assign(4, std::numeric_limits<T>::quiet_NaN());
    blas->gemm(Transpose::yes, Transpose::yes, 2, 2, 2, T{1}, a.data(), 2, b.data(), 2, T{0},
               c.data(), 2);
    CHECK(c == std::vector<T>{19, 43, 22, 50});

    c = {0, -1, 0, 0};
    blas->syrk(Triangle::upper, Transpose::no, 2, 2, T{1}, a.data(), 2, T{1}, c.data(), 2);
    CHECK(c == std::vector<T>{10, -1, 14, 20});
    c = {0, 0, -1, 0};
    blas->syrk(Triangle::lower, Transpose::yes, 2, 2, T{1}, a.data(), 2, T{1}, c.data(), 2);
    CHECK(c == std::vector<T>{5, 11, -1, 25});

    // U = [2 1; . 4]
    const std::vector<T> u{2, -9, 1, 4};
    std::vector<T> x{4, 4, 2, 8};
    blas->trsm(Side::left, Triangle::upper, Transpose::no, 2, 2, u.data(), 2, x.data(), 2);
    CHECK(x == std::vector<T>{1.5, 1, 0, 2});
    x = {4, 6, 2, 8};
    blas->trsm(Side::left, Triangle::upper, Transpose::yes, 2, 2, u.data(), 2, x.data(), 2);
    CHECK(x == std::vector<T>{2, 1, 1, 1.75});
    x = {4, 2, 6, 9};
    blas->trsm(Side::right, Triangle::upper, Transpose::no, 2, 2, u.data(), 2, x.data(), 2);
    CHECK(x == std::vector<T>{2, 1, 1, 2});
    x = {6, 3, 4, 8};
    blas->trsm(Side::right, Triangle::upper, Transpose::yes, 2, 2, u.data(), 2, x.data(), 2);
    CHECK(x == std::vector<T>{2.5, 0.5, 1, 2});

    std::vector<T> s{4, -9, 2, 5};
    CHECK(blas->potrf(Triangle::upper, 2, s.data(), 2) == 0);
    CHECK(s == std::vector<T>{2, -9, 1, 2});
    s = {4, 2, -9, 1};
    CHECK(blas->potrf(Triangle::lower, 2, s.data(), 2) == 2);
  }
}
