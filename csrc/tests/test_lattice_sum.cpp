#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "lattice_sum.hpp"
#include "parallel.hpp"

namespace {

using Vector = std::vector<std::int64_t>;

Vector lattice_vector(const std::vector<double>& row, const qexp::LatticeScale& scale) {
  Vector z(row.size(), 99);
  QEXP_DISPATCH(lattice_vector)(row.data(), row.size(), scale, z.data());
  return z;
}

unsigned __int128 squared_norm(const Vector& z) {
  unsigned __int128 sum = 0;
  for (std::int64_t v : z) {
    sum += static_cast<unsigned __int128>(static_cast<__int128>(v) * v);
  }
  return sum;
}

std::vector<double> normals(std::size_t count, double spread, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(0, spread);
  std::vector<double> values(count);
  for (double& value : values) value = normal(generator);
  return values;
}

}  // namespace

TEST_CASE("short records are rounded towards zero") {
  CHECK(lattice_vector({0.25, -0.25, 0.0}, {10.0, 1.0, 10}) == Vector{2, -2, 0});
}

TEST_CASE("long records are clipped to just below the bound and keep their direction") {
  const std::int64_t bound = std::int64_t{1} << 40;
  const qexp::LatticeScale scale{std::ldexp(1.0, 40) / 3.0, 3.0, bound};
  for (std::size_t k : {1u, 2u, 15u, 16u, 17u, 2047u, 2048u, 2049u, 100'000u}) {
    const auto row = normals(k, 1e6, static_cast<unsigned>(k));
    const Vector z = lattice_vector(row, scale);
    const auto limit =
        static_cast<unsigned __int128>(bound) * static_cast<unsigned __int128>(bound);
    CHECK(squared_norm(z) <= limit);
    CHECK(std::sqrt(static_cast<double>(squared_norm(z))) >
          static_cast<double>(bound) * (1 - 2 * qexp::clipping_margin));
    CHECK((z[0] > 0) == (row[0] > 0));
  }
}

TEST_CASE("the exact check nulls what floating point let through") {
  // A scale that promises more units than the bound allows stands for any fault before the check.
  CHECK(lattice_vector({3.0, 4.0}, {1.0, 10.0, 5}) == Vector{3, 4});
  CHECK(lattice_vector({3.0, 4.0}, {1.0, 10.0, 4}) == Vector{0, 0});
  const std::int64_t half = std::int64_t{1} << 51;
  const double unit = std::ldexp(1.0, 51);
  // Norm exactly 2^52 = bound, then one unit of one entry more.
  const qexp::LatticeScale scale{1.0, std::ldexp(1.0, 60), 2 * half};
  CHECK(lattice_vector({unit, unit, unit, unit}, scale) == Vector{half, half, half, half});
  CHECK(lattice_vector({unit, unit, unit, unit, 1.0}, scale) == Vector{0, 0, 0, 0, 0});
}

TEST_CASE("records with bad values are null, the others stay as they are") {
  const double bad[] = {std::numeric_limits<double>::quiet_NaN(),
                        std::numeric_limits<double>::infinity(),
                        -std::numeric_limits<double>::infinity(), 1e200, -1e308};
  const qexp::LatticeScale scale{1000.0, 1.0, 1000};
  for (double value : bad) {
    for (std::size_t place : {0u, 7u, 39u}) {
      std::vector<double> row(40, 0.01);
      row[place] = value;
      CHECK(lattice_vector(row, scale) == Vector(40, 0));
    }
  }
}

TEST_CASE("the sum adds every record's vector, on any number of threads, and wraps") {
  const std::size_t m = 500, k = 1001;
  const auto rows = normals(m * k, 1.0, 5);
  const qexp::LatticeScale scale{std::ldexp(1.0, 32), 1.0, std::int64_t{1} << 32};
  std::vector<std::uint64_t> expected(k, ~std::uint64_t{0} - 5);
  for (std::size_t i = 0; i < m; ++i) {
    const Vector z = lattice_vector({rows.begin() + static_cast<std::ptrdiff_t>(i * k),
                                     rows.begin() + static_cast<std::ptrdiff_t>((i + 1) * k)},
                                    scale);
    for (std::size_t j = 0; j < k; ++j) expected[j] += static_cast<std::uint64_t>(z[j]);
  }
  for (int threads : {1, 2, 5}) {
    qexp::set_num_threads(threads);
    std::vector<std::uint64_t> total(k, ~std::uint64_t{0} - 5);
    qexp::lattice_sum(rows.data(), m, k, k, scale, total.data());
    CHECK(total == expected);
  }
}

#ifdef QEXP_X86_DISPATCH
TEST_CASE("every instruction set gives the same bits") {
  const qexp::LatticeScale scale{std::ldexp(1.0, 40), 1.0, std::int64_t{1} << 40};
  const auto row = normals(4099, 1.0, 6);
  Vector portable(row.size()), active(row.size());
  qexp::baseline::lattice_vector(row.data(), row.size(), scale, portable.data());
  QEXP_DISPATCH(lattice_vector)(row.data(), row.size(), scale, active.data());
  CHECK(portable == active);
}
#endif
