#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>
#include <vector>

#include "exact_normal.hpp"
#include "exact_normal_weights.hpp"

namespace {

using Draw = decltype(&qexp::draw_lattice_normals);

std::vector<std::uint64_t> random_words(std::size_t count, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::vector<std::uint64_t> words(count);
  for (auto& word : words) word = generator();
  return words;
}

double normal_cdf(double x) {
  return 0.5 * std::erfc(-x / std::numbers::sqrt2);
}

// Pearson's statistic of draws on the lattice 2^-bits against the normal distribution, in cells of
// one lattice unit from -4 to 4 and a tail on each side.
double chi_square(const std::vector<std::int64_t>& draws, int bits) {
  const int half = 4 << bits;
  std::vector<double> counts(2 * half + 2);
  for (std::int64_t z : draws) {
    ++counts[static_cast<std::size_t>(std::clamp<std::int64_t>(z + half + 1, 0, 2 * half + 1))];
  }
  double statistic = 0;
  for (int cell = 0; cell < 2 * half + 2; ++cell) {
    const double low = cell == 0 ? 0 : normal_cdf(std::ldexp(cell - 1 - half, -bits));
    const double high = cell == 2 * half + 1 ? 1 : normal_cdf(std::ldexp(cell - half, -bits));
    const double expected = static_cast<double>(draws.size()) * (high - low);
    statistic += (counts[cell] - expected) * (counts[cell] - expected) / expected;
  }
  return statistic;
}

}  // namespace

TEST_CASE("draws follow the normal distribution, with digits that tie and with those that do not") {
  const int bits = 3;  // 66 cells, 65 degrees of freedom: 121 is passed once in 30,000 runs
  std::vector<std::int64_t> draws(200'000);
  const auto words = random_words(4 * draws.size(), 1);
  for (Draw draw : {&qexp::draw_lattice_normals, &qexp::draw_lattice_normals_short_digits}) {
    const auto drawn = draw(words, bits, draws);
    REQUIRE(drawn.normals == draws.size());
    CHECK(chi_square(draws, bits) < 121);
  }
}

TEST_CASE("floors, not truncations: minus one half of a unit lies in cell -1") {
  std::vector<std::int64_t> draws(20'000);
  const auto drawn = qexp::draw_lattice_normals(random_words(2 * draws.size(), 2), 0, draws);
  REQUIRE(drawn.normals == draws.size());
  double cell[2] = {};
  for (std::int64_t z : draws) {
    if (z == -1 || z == 0) ++cell[z + 1];
  }
  CHECK(std::abs(cell[0] - cell[1]) < 5 * std::sqrt(0.68 * 20'000));
}

TEST_CASE("words in portions give the draws of words at once") {
  const auto words = random_words(2'000, 3);
  std::vector<std::int64_t> whole(1'000), parts(1'000);
  REQUIRE(qexp::draw_lattice_normals(words, 32, whole).normals == whole.size());

  std::span<const std::uint64_t> rest(words);
  std::size_t done = 0, portion = 1;
  while (done < parts.size()) {
    const auto drawn = qexp::draw_lattice_normals(rest.first(std::min(portion, rest.size())), 32,
                                                  std::span(parts).subspan(done));
    done += drawn.normals;
    rest = rest.subspan(drawn.words);
    portion = drawn.normals == 0 ? portion + 1 : 1;  // grow until one more draw fits
  }
  CHECK(parts == whole);
}

TEST_CASE("without words there are no draws") {
  std::vector<std::int64_t> out(3, 7);
  const auto drawn = qexp::draw_lattice_normals({}, 32, out);
  CHECK(drawn.normals == 0);
  CHECK(drawn.words == 0);
  CHECK(out == std::vector<std::int64_t>{7, 7, 7});
}

TEST_CASE("weights have the digits of 199 exp(-n / 512)") {
  for (std::uint64_t n : {0u, 1u, 2u, 100u, 511u, 512u, 1024u, 2500u}) {
    const auto digits = qexp::normal_weight_digits(n, 40);
    const double weight = 199 * std::exp(-static_cast<double>(n) / 512);
    CHECK(std::abs(std::ldexp(static_cast<double>(digits), -40) - weight) < 1e-11);
    // More digits change nothing about the ones before.
    for (std::size_t more : {1u, 7u, 16u}) {
      CHECK((qexp::normal_weight_digits(n, 40 + more) >> more) == digits);
    }
  }
  CHECK(qexp::normal_weight_digits(0, 0) == 199);
  CHECK(qexp::normal_weight_digits(0, 1'000) == 0);
  CHECK(qexp::normal_weight_digits(1'000'000, 64) == 0);
  // The binary digits 129 to 192 and 961 to 1024 of 199 / e, from a decimal expansion.
  CHECK(qexp::normal_weight_digits(512, 192) == 0xec2c67b30750a8ca);
  CHECK(qexp::normal_weight_digits(512, 1'024) == 0x48f4b281a5a4a282);
}

TEST_CASE("no word is asked of more than it holds") {
  // Words of all ones and of all zeros lead through the rarest cases for as long as they last.
  for (std::uint64_t word : {std::uint64_t{0}, ~std::uint64_t{0}}) {
    const std::vector<std::uint64_t> words(300, word);
    std::vector<std::int64_t> out(300);
    for (int bits : {0, 8, 62}) {
      CHECK(qexp::draw_lattice_normals(words, bits, out).words <= words.size());
    }
    CHECK(qexp::draw_lattice_normals_short_digits(words, 8, out).words <= words.size());
  }
}
