#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "lattice_sum.hpp"
#include "parallel.hpp"

namespace {

using Vector = std::vector<std::int64_t>;

Vector lattice_vector(const std::vector<double>& row, const qexp::LatticeScale& scale) {
  std::vector<std::uint64_t> z(row.size());
  QEXP_DISPATCH(lattice_add_rows)(row.data(), 1, row.size(), row.size(), scale, z.data());
  return {z.begin(), z.end()};
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

TEST_CASE("the exact check counts long records to the last unit") {
  for (int bits : {10, 30, 51, 52}) {
    const std::int64_t bound = std::int64_t{1} << bits;
    const qexp::LatticeScale scale{1.0, std::ldexp(1.0, 70), bound};
    // 4096 entries of bound / 64 have exactly the norm `bound`.
    std::vector<double> row(4096, std::ldexp(1.0, bits - 6));
    CHECK(lattice_vector(row, scale) == Vector(4096, bound / 64));
    row.push_back(1.0);
    CHECK(lattice_vector(row, scale) == Vector(4097, 0));
    row.back() = 0.0;
    row[100] += 1.0;
    CHECK(lattice_vector(row, scale) == Vector(4097, 0));
    row[100] -= 1.5;  // truncates to one less
    Vector expected(4097, bound / 64);
    expected.back() = 0;
    --expected[100];
    if (bits > 10) CHECK(lattice_vector(row, scale) == expected);
    // An entry beyond the bound is one too many even where its integer is not.
    row.assign(5000, 0.0);
    row[4999] = static_cast<double>(bound);
    expected.assign(5000, 0);
    expected[4999] = bound;
    CHECK(lattice_vector(row, scale) == expected);
    if (bits < 52) {
      row[4999] += 0.5;
      CHECK(lattice_vector(row, scale) == Vector(5000, 0));
    }
  }
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

TEST_CASE("a record that fails the exact check is taken back and its neighbours stay") {
  // No clipping: what is too long has to be caught by the check.
  const qexp::LatticeScale scale{1.0, std::ldexp(1.0, 70), 1000};
  for (std::size_t k : {37u, 5003u}) {
    for (std::size_t m = 1; m <= 9; ++m) {
      std::vector<double> rows(m * k);
      std::vector<std::uint64_t> expected(k, 5);
      for (std::size_t i = 0; i < m; ++i) {
        const double entry = i % 3 == 1 ? 1e18 : i % 3 == 2 ? -801.0 : 600.5;
        rows[i * k + i] = entry;
        rows[i * k + k - 1] = i % 3 == 1 ? std::ldexp(1.0, 63) : -599.5 - 0.5 * (i % 3 == 0);
        if (i % 3 == 0) expected[i] += 600;
        if (i % 3 == 0) expected[k - 1] -= 600;
      }
      std::vector<std::uint64_t> total(k, 5);
      QEXP_DISPATCH(lattice_add_rows)(rows.data(), m, k, k, scale, total.data());
      CHECK(total == expected);
    }
  }
}

TEST_CASE("neither a record's place nor its address moves a bit") {
  const std::size_t k = 2111;
  const auto row = normals(k, 1.0, 8);
  const qexp::LatticeScale scale{std::ldexp(1.0, 40), 1.0, std::int64_t{1} << 40};
  const Vector alone = lattice_vector(row, scale);
  for (std::size_t offset = 0; offset < 9; ++offset) {
    for (std::size_t place : {0u, 3u, 4u, 8u}) {
      std::vector<double> rows(offset + 9 * k, std::numeric_limits<double>::quiet_NaN());
      std::copy(row.begin(), row.end(),
                rows.begin() + static_cast<std::ptrdiff_t>(offset + place * k));
      std::vector<std::uint64_t> total(k);
      QEXP_DISPATCH(lattice_add_rows)(rows.data() + offset, 9, k, k, scale, total.data());
      CHECK(Vector(total.begin(), total.end()) == alone);
    }
  }
}

namespace {

template <class Kernel>
std::vector<Kernel> up_to_active(std::vector<Kernel> copies) {
  copies.resize(static_cast<std::size_t>(qexp::active_isa()) + 1);
  return copies;
}

// A kernel's copies for all instruction sets of this processor.
#ifdef QEXP_X86_DISPATCH
#define EVERY_ISA(f) up_to_active(std::vector{&qexp::baseline::f, &qexp::avx2::f, &qexp::avx512::f})
#else
#define EVERY_ISA(f) up_to_active(std::vector{&qexp::baseline::f})
#endif

}  // namespace

TEST_CASE("every instruction set gives the same bits") {
  const qexp::LatticeScale scale{std::ldexp(1.0, 40), 1.0, std::int64_t{1} << 40};
  const std::size_t m = 3, k = 4099;
  const auto rows = normals(m * k, 1.0, 6);
  std::vector<std::uint64_t> portable(k, 7);
  qexp::baseline::lattice_add_rows(rows.data(), m, k, k, scale, portable.data());
  for (const auto add : EVERY_ISA(lattice_add_rows)) {
    std::vector<std::uint64_t> total(k, 7);
    add(rows.data(), m, k, k, scale, total.data());
    CHECK(total == portable);
  }
}

TEST_CASE("every instruction set gives the same bits for every shape of a tile") {
  using qexp::outer_columns, qexp::outer_rows;
  const std::size_t m = 5, stride = outer_columns + 3;
  const auto left = normals(m * outer_rows, std::ldexp(1.0, 20), 7);
  const auto right = normals(m * outer_columns, std::ldexp(1.0, 20), 8);
  for (std::size_t rows = 1; rows <= outer_rows; ++rows) {
    for (std::size_t columns = 1; columns <= outer_columns; ++columns) {
      Vector expected(outer_rows * stride, 7);
      for (std::size_t i = 0; i < m; ++i) {
        for (std::size_t r = 0; r < rows; ++r) {
          for (std::size_t c = 0; c < columns; ++c) {
            const double entry = left[i * outer_rows + r] * right[i * outer_columns + c];
            expected[r * stride + c] += static_cast<std::int64_t>(entry);
          }
        }
      }
      for (const auto add : EVERY_ISA(lattice_outer_tile)) {
        std::vector<std::uint64_t> total(outer_rows * stride, 7);
        add(left.data(), right.data(), m, rows, columns, total.data(), stride);
        CHECK(Vector(total.begin(), total.end()) == expected);
      }
    }
  }
}

namespace {

struct Layer {
  std::size_t n_left, n_right;
  std::vector<double> left, right;

  Layer(std::size_t m, std::size_t l, std::size_t r, unsigned seed)
      : n_left(l), n_right(r), left(normals(m * l, 1.0, seed)), right(normals(m * r, 1.0, ~seed)) {}
  qexp::OuterProducts view() const { return {left.data(), right.data(), n_left, n_right}; }
};

std::vector<std::uint64_t> outer_sum(const std::vector<Layer>& layers, std::size_t m,
                                     const qexp::LatticeScale& scale) {
  std::vector<qexp::OuterProducts> views;
  std::size_t entries = 0;
  for (const Layer& layer : layers) {
    views.push_back(layer.view());
    entries += layer.n_left * layer.n_right;
  }
  std::vector<std::uint64_t> total(entries, 3);
  qexp::lattice_sum_outer(views, m, scale, total.data());
  return total;
}

}  // namespace

TEST_CASE("outer products sum like the rows they stand for, and one record keeps to the bound") {
  const std::int64_t bound = std::int64_t{1} << 34;
  const qexp::LatticeScale scale{std::ldexp(1.0, 34) / 5.0, 5.0, bound};
  for (std::size_t m : {1u, 3u, 70u}) {
    const std::vector<Layer> layers{{m, 1, 1, 1}, {m, 6, 35, 2}, {m, 64, 257, 3}, {m, 10, 64, 4}};
    std::vector<double> rows;
    for (std::size_t i = 0; i < m; ++i) {
      for (const Layer& layer : layers) {
        for (std::size_t j = 0; j < layer.n_left; ++j) {
          for (std::size_t c = 0; c < layer.n_right; ++c) {
            rows.push_back(layer.left[i * layer.n_left + j] * layer.right[i * layer.n_right + c]);
          }
        }
      }
    }
    const std::size_t k = rows.size() / m;
    std::vector<std::uint64_t> dense(k, 3);
    qexp::lattice_sum(rows.data(), m, k, k, scale, dense.data());
    for (int threads : {1, 3}) {
      qexp::set_num_threads(threads);
      const auto total = outer_sum(layers, m, scale);
      REQUIRE(total.size() == k);
      // The two clip in a different order of roundings: each record may differ by a unit.
      std::int64_t worst = 0;
      Vector z(k);
      for (std::size_t j = 0; j < k; ++j) {
        worst = std::max(worst, std::abs(static_cast<std::int64_t>(total[j] - dense[j])));
        z[j] = static_cast<std::int64_t>(total[j] - 3);
      }
      CHECK(worst <= static_cast<std::int64_t>(m));
      if (m == 1) {
        CHECK(squared_norm(z) <=
              static_cast<unsigned __int128>(bound) * static_cast<unsigned __int128>(bound));
        CHECK(std::sqrt(static_cast<double>(squared_norm(z))) >
              0.999998 * static_cast<double>(bound));
      }
    }
  }
}

TEST_CASE("how many records come at once does not move a bit") {
  const qexp::LatticeScale scale{std::ldexp(1.0, 34), 1.0, std::int64_t{1} << 34};
  const std::size_t m = 1300;
  const std::vector<Layer> layers{{m, 3, 41, 5}, {m, 9, 4, 6}};
  auto expected = outer_sum(layers, 0, scale);
  for (std::size_t i = 0; i < m; ++i) {
    auto one = layers;
    for (Layer& layer : one) {
      layer.left.erase(layer.left.begin(),
                       layer.left.begin() + static_cast<std::ptrdiff_t>(i * layer.n_left));
      layer.right.erase(layer.right.begin(),
                        layer.right.begin() + static_cast<std::ptrdiff_t>(i * layer.n_right));
    }
    const auto alone = outer_sum(one, 1, scale);
    for (std::size_t j = 0; j < expected.size(); ++j) expected[j] += alone[j] - 3;
  }
  for (int threads : {1, 3}) {
    qexp::set_num_threads(threads);
    CHECK(outer_sum(layers, m, scale) == expected);
  }
}

TEST_CASE("a bad factor nulls its own record in every layer and no other") {
  const qexp::LatticeScale scale{std::ldexp(1.0, 30), 1.0, std::int64_t{1} << 30};
  const std::size_t m = 5;
  const std::vector<Layer> clean{{m, 3, 40, 7}, {m, 2, 5, 8}};
  auto without = clean;
  for (Layer& layer : without) {
    std::fill_n(layer.left.begin() + 2 * static_cast<std::ptrdiff_t>(layer.n_left), layer.n_left,
                0.0);
  }
  const auto expected = outer_sum(without, m, scale);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  for (double value : {nan, inf, -inf, 1e200, -1e308}) {
    for (int layer : {0, 1}) {
      auto bad = clean;
      bad[layer].right[2 * bad[layer].n_right + 1] = value;
      CHECK(outer_sum(bad, m, scale) == expected);
      bad = clean;
      bad[layer].left[2 * bad[layer].n_left] = value;
      CHECK(outer_sum(bad, m, scale) == expected);
    }
  }
}

TEST_CASE("factors that underflow when squared still keep to the bound") {
  const std::int64_t bound = std::int64_t{1} << 30;
  const qexp::LatticeScale scale{std::ldexp(1.0, 30) / 1e-12, 1e-12, bound};
  std::vector<Layer> layers{{1, 1, 2, 1}};
  layers[0].left = {1e-163};
  layers[0].right = {1e153, 1e153};
  for (std::uint64_t z : outer_sum(layers, 1, scale)) {
    CHECK(std::abs(static_cast<std::int64_t>(z - 3)) <= bound);
  }
}
