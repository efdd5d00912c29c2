#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "tanh.hpp"

namespace {

// Of all sizes that the formula has parts for, both signs.
template <class T>
std::vector<T> arguments() {
  std::mt19937_64 engine(1);
  std::uniform_real_distribution<double> exponent(-40, 6);
  std::vector<T> x{T{0}, std::numeric_limits<T>::denorm_min(), std::numeric_limits<T>::max()};
  for (int i = 0; i < 20000; ++i) x.push_back(static_cast<T>(std::exp2(exponent(engine))));
  const std::size_t n = x.size();
  for (std::size_t i = 0; i < n; ++i) x.push_back(-x[i]);
  return x;
}

template <class T>
std::vector<T> tanh_of(std::vector<T> x) {
  if constexpr (std::is_same_v<T, float>) {
    QEXP_DISPATCH(tanh_f32)(x.data(), x.size());
  } else {
    QEXP_DISPATCH(tanh_f64)(x.data(), x.size());
  }
  return x;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace

TEST_CASE_TEMPLATE("within 3 units of the last place, odd, and never beyond 1", T, float, double) {
  const auto x = arguments<T>();
  const auto y = tanh_of(x);
  const std::size_t n = x.size() / 2;
  for (std::size_t i = 0; i < n; ++i) {
    const long double exact = std::tanh(static_cast<long double>(x[i]));
    const T unit = std::nextafter(static_cast<T>(exact), T{2}) - static_cast<T>(exact);
    CHECK(std::fabs(static_cast<long double>(y[i]) - exact) <= 3 * static_cast<long double>(unit));
    CHECK(y[i] <= T{1});
    CHECK(y[n + i] == -y[i]);
    CHECK(std::signbit(y[n + i]));
  }
}

TEST_CASE_TEMPLATE("what is no number stays none, and infinities give 1", T, float, double) {
  const T inf = std::numeric_limits<T>::infinity();
  const auto y = tanh_of<T>({std::numeric_limits<T>::quiet_NaN(), inf, -inf, T{0.5}});
  CHECK(std::isnan(y[0]));
  CHECK(y[1] == T{1});
  CHECK(y[2] == T{-1});
  CHECK(y[3] == doctest::Approx(0.46211715726));
}

TEST_CASE_TEMPLATE("a number's place does not move its bits", T, float, double) {
  const auto x = arguments<T>();
  const auto together = tanh_of(x);
  for (std::size_t i = 0; i < x.size(); i += 97) {
    CHECK(same_bits(tanh_of<T>({x[i]}), {together[i]}));
  }
}

#ifdef QEXP_X86_DISPATCH
TEST_CASE("instruction sets with fused multiply-adds give the same bits") {
  if (qexp::active_isa() != qexp::Isa::avx512) return;
  auto single = arguments<float>(), other_single = single;
  qexp::avx2::tanh_f32(single.data(), single.size());
  qexp::avx512::tanh_f32(other_single.data(), other_single.size());
  CHECK(same_bits(single, other_single));
  auto twice = arguments<double>(), other_twice = twice;
  qexp::avx2::tanh_f64(twice.data(), twice.size());
  qexp::avx512::tanh_f64(other_twice.data(), other_twice.size());
  CHECK(same_bits(twice, other_twice));
}
#endif
