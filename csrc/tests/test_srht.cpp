#include "srht.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "parallel.hpp"

namespace {

std::uint64_t step(std::uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 16;
}

struct Example {
  std::size_t p, n;
  std::vector<std::uint64_t> signs;
  std::vector<std::int64_t> kept;

  Example(std::size_t p_, std::size_t keep_one_in) : p(p_), n(std::bit_ceil(p_)) {
    std::uint64_t state = p;
    for (std::size_t i = 0; i < (p + 63) / 64; ++i) signs.push_back(step(state) * step(state));
    for (std::size_t j = 0; j < n; ++j) {
      if (step(state) % keep_one_in == 0 || j + 1 == n) {
        kept.push_back(static_cast<std::int64_t>(j));
      }
    }
  }
  qexp::Srht map() const {
    return {p, signs, kept, 1 / std::sqrt(static_cast<double>(kept.size()))};
  }
  double entry(std::size_t out, std::size_t in) const {
    const auto parity = std::popcount(static_cast<std::uint64_t>(kept[out]) & in) & 1u;
    return (parity ^ (signs[in / 64] >> (in % 64) & 1u) ? -1.0 : 1.0) * map().scale;
  }
};

std::vector<double> numbers(std::size_t count) {
  std::uint64_t state = count;
  std::vector<double> x(count);
  for (double& v : x) v = static_cast<double>(step(state) % 2001) / 1000 - 1;
  return x;
}

}  // namespace

TEST_CASE("forward and adjoint are the explicit matrix and its transpose") {
  for (std::size_t p : {1u, 2u, 3u, 17u, 64u, 100u, 1000u}) {
    const Example e(p, 3);
    const std::size_t k = e.kept.size(), m = 3;
    const auto x = numbers(m * p), u = numbers(m * k);
    std::vector<double> y(m * k), z(m * p);
    qexp::srht_forward(e.map(), x.data(), m, static_cast<std::ptrdiff_t>(p), y.data());
    qexp::srht_adjoint(e.map(), u.data(), m, z.data());
    for (std::size_t i = 0; i < m; ++i) {
      for (std::size_t a = 0; a < k; ++a) {
        double sum = 0;
        for (std::size_t b = 0; b < p; ++b) sum += e.entry(a, b) * x[i * p + b];
        CHECK(y[i * k + a] == doctest::Approx(sum).epsilon(1e-12));
      }
      for (std::size_t b = 0; b < p; ++b) {
        double sum = 0;
        for (std::size_t a = 0; a < k; ++a) sum += e.entry(a, b) * u[i * k + a];
        CHECK(z[i * p + b] == doctest::Approx(sum).epsilon(1e-12));
      }
    }
  }
}

TEST_CASE("large rows: adjoint identity, and the same bits on any number of threads") {
  for (std::size_t p : {2049u, 5000u, 33000u, 70001u, 131072u, 600000u, 1200000u}) {
    for (std::size_t keep_one_in : {1u, 7u, 5000u}) {
      const Example e(p, keep_one_in);
      const std::size_t k = e.kept.size();
      const auto x = numbers(p), u = numbers(k);
      std::vector<double> y(k), z(p);
      qexp::set_num_threads(1);
      qexp::srht_forward(e.map(), x.data(), 1, 0, y.data());
      qexp::srht_adjoint(e.map(), u.data(), 1, z.data());
      double left = 0, right = 0, size = 0;
      for (std::size_t a = 0; a < k; ++a) left += y[a] * u[a];
      for (std::size_t b = 0; b < p; ++b) right += x[b] * z[b], size += std::abs(x[b] * z[b]);
      CHECK(std::abs(left - right) <= 1e-12 * size);

      // Each output is a signed sum of the inputs; check a few against the definition.
      for (std::size_t a : {std::size_t{0}, k / 2, k - 1}) {
        double sum = 0;
        for (std::size_t b = 0; b < p; ++b) sum += e.entry(a, b) * x[b];
        CHECK(std::abs(y[a] - sum) <= 1e-9 * static_cast<double>(p) * e.map().scale);
      }

      qexp::set_num_threads(3);
      std::vector<double> y3(k), z3(p);
      qexp::srht_forward(e.map(), x.data(), 1, 0, y3.data());
      qexp::srht_adjoint(e.map(), u.data(), 1, z3.data());
      CHECK(y3 == y);
      CHECK(z3 == z);

      // The same row inside a batch with gaps between its rows.
      const std::size_t m = 4, stride = p + 5;
      std::vector<double> batch(m * stride), ym(m * k);
      for (std::size_t i = 0; i < m; ++i) {
        std::copy(x.begin(), x.end(), batch.begin() + static_cast<std::ptrdiff_t>(i * stride));
      }
      qexp::srht_forward(e.map(), batch.data(), m, static_cast<std::ptrdiff_t>(stride), ym.data());
      for (std::size_t i = 0; i < m; ++i) {
        CHECK(std::equal(y.begin(), y.end(), ym.begin() + static_cast<std::ptrdiff_t>(i * k)));
      }
    }
  }
}
