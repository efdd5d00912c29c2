#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kron_sketch.hpp"
#include "parallel.hpp"

namespace {

using namespace qexp;

template <class T>
struct Side {
  std::size_t length;
  std::vector<T> rows;
  std::vector<std::uint64_t> signs;
  std::vector<std::int64_t> kept;

  Side(std::size_t count, std::size_t n, std::size_t k, unsigned seed) : length(n) {
    std::mt19937_64 engine(seed);
    std::uniform_real_distribution<double> uniform(-1, 1);
    for (std::size_t i = 0; i < count * n; ++i) rows.push_back(static_cast<T>(uniform(engine)));
    for (std::size_t i = 0; i < n; i += 64) signs.push_back(engine());
    for (std::size_t j = 0; j < k; ++j) {
      kept.push_back(static_cast<std::int64_t>(engine() % std::bit_ceil(n)));
    }
  }
  KroneckerFactor<T> factor() const { return {rows.data(), length, signs, kept}; }

  // Entry kept[j] of H D x for a row x.
  double entry(std::size_t row, std::size_t j) const {
    double sum = 0;
    for (std::size_t i = 0; i < length; ++i) {
      const bool flipped = ((signs[i / 64] >> (i % 64)) & 1) != 0;
      const bool negative = std::popcount(i & static_cast<std::size_t>(kept[j])) % 2 != 0;
      sum += (flipped != negative ? -1 : 1) * static_cast<double>(rows[row * length + i]);
    }
    return sum;
  }
};

}  // namespace

TEST_CASE_TEMPLATE("sketches are kept entries of transformed outer products", T, float, double) {
  constexpr std::size_t m = 5, positions = 3, k = 17, stride = k + 2;
  for (const auto& [n_left, n_right] : {std::pair{1u, 9u}, {70u, 64u}, {3u, 10'001u}}) {
    const Side<T> left(m * positions, n_left, k, 1), right(m * positions, n_right, k, 2);
    std::vector<T> first;
    for (int threads : {1, 2, 3}) {
      set_num_threads(threads);
      std::vector<T> out(m * stride, T(7));
      kron_sketch(left.factor(), right.factor(), m, positions, 0.5, out.data(),
                  static_cast<std::ptrdiff_t>(stride));
      for (std::size_t i = 0; i < m; ++i) {
        for (std::size_t j = 0; j < k; ++j) {
          double sum = 0;
          for (std::size_t t = 0; t < positions; ++t) {
            sum += left.entry(i * positions + t, j) * right.entry(i * positions + t, j);
          }
          const double scale = std::sqrt(static_cast<double>(n_left * n_right));
          const double error = std::abs(static_cast<double>(out[i * stride + j]) - 0.5 * sum);
          CHECK(error < 100 * std::numeric_limits<T>::epsilon() * scale);
        }
        CHECK(out[i * stride + k] == T(7));
      }
      if (first.empty()) first = out;
      CHECK(std::memcmp(first.data(), out.data(), out.size() * sizeof(T)) == 0);
    }
  }
}
