#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "fwht.hpp"

namespace {

template <class T>
std::vector<T> numbers(std::size_t count, std::uint64_t seed = 1) {
  std::vector<T> x(count);
  for (T& v : x) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    v = static_cast<T>(static_cast<std::int64_t>(seed) >> 20) / T(1 << 30);
  }
  return x;
}

template <class T>
void textbook(T* x, std::size_t n) {
  for (std::size_t h = 1; h < n; h *= 2) {
    for (std::size_t i = 0; i < n; i += 2 * h) {
      for (std::size_t j = i; j < i + h; ++j) {
        const T a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
    }
  }
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace

TEST_CASE_TEMPLATE("every size has the bits of the textbook loop, on any number of threads", T,
                   float, double) {
  for (std::size_t n = 1; n <= (std::size_t{1} << 21); n *= 2) {
    const std::vector<T> x = numbers<T>(n);
    std::vector<T> expected = x;
    textbook(expected.data(), n);
    for (int threads : {1, 2, 5}) {
      qexp::set_num_threads(threads);
      std::vector<T> actual = x;
      qexp::fwht(actual.data(), 1, n, 0);
      CAPTURE(n);
      CAPTURE(threads);
      CHECK(same_bits(actual, expected));
    }
  }
}

TEST_CASE_TEMPLATE("rows of a batch are transformed alone, and the gaps between them are left", T,
                   float, double) {
  constexpr std::size_t rows = 7, n = 512, stride = n + 3;
  const std::vector<T> x = numbers<T>(rows * stride);
  std::vector<T> expected = x;
  for (std::size_t i = 0; i < rows; ++i) textbook(expected.data() + i * stride, n);
  for (int threads : {1, 3}) {
    qexp::set_num_threads(threads);
    std::vector<T> forwards = x, backwards = x;
    qexp::fwht(forwards.data(), rows, n, static_cast<std::ptrdiff_t>(stride));
    qexp::fwht(backwards.data() + (rows - 1) * stride, rows, n,
               -static_cast<std::ptrdiff_t>(stride));
    CHECK(same_bits(forwards, expected));
    CHECK(same_bits(backwards, expected));
  }
}

TEST_CASE_TEMPLATE("where an array stands changes no bits", T, float, double) {
  constexpr std::size_t line = 64 / sizeof(T);
  for (std::size_t n : {std::size_t{256}, 16384 / sizeof(T), 262144 / sizeof(T),
                        std::size_t{2097152} / sizeof(T), std::size_t{4194304} / sizeof(T)}) {
    const std::vector<T> x = numbers<T>(n);
    std::vector<T> expected = x;
    textbook(expected.data(), n);
    for (std::size_t offset = 0; offset < line; offset += line / 8 + 1) {
      for (int threads : {1, 3}) {
        qexp::set_num_threads(threads);
        // Also what stands before and after is left alone.
        std::vector<T> room(n + 2 * line, T(7));
        std::copy(x.begin(), x.end(), room.begin() + static_cast<std::ptrdiff_t>(offset));
        qexp::fwht(room.data() + offset, 1, n, 0);
        CAPTURE(n);
        CAPTURE(offset);
        CAPTURE(threads);
        CHECK(std::memcmp(room.data() + offset, expected.data(), n * sizeof(T)) == 0);
        CHECK(std::count(room.begin(), room.end(), T(7)) >= static_cast<std::ptrdiff_t>(2 * line));
      }
    }
  }
}

TEST_CASE("no rows, no work") {
  qexp::fwht<double>(nullptr, 0, 8, 8);
  double one = 3;
  qexp::fwht(&one, 1, 1, 1);
  CHECK(one == 3);
}
