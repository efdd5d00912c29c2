// With e = exp(2|x|) - 1, tanh |x| = e / (e + 2), which loses no digits near 0. As usual,
// 2|x| = k ln 2 + r with a whole k and |r| <= ln 2 / 2, so that e = 2^k (exp(r) - 1) + 2^k - 1.
#include <cstdint>

#include "simd.hpp"
#include "tanh.hpp"

namespace qexp::QEXP_ISA {
namespace {

template <class T>
QEXP_INLINE T multiply_add(T a, T b, T c) {
#if defined(__FMA__) || defined(__aarch64__)
  if constexpr (sizeof(T) == sizeof(float)) {
    return __builtin_fmaf(a, b, c);
  } else {
    return __builtin_fma(a, b, c);
  }
#else
  return a * b + c;
#endif
}

// ln 2 in two parts, of which the first has so few digits that a product with k is exact; 1.5 times
// the power of two where the last digit is the unit; and from where on tanh rounds to 1.
template <class T>
struct Constants;
template <>
struct Constants<float> {
  using Bits = std::uint32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr Bits one = 0x3F800000;
  static constexpr Bits sign = 0x80000000;
  static constexpr float units = 0x1.8p23f;
  static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
  static constexpr float largest = 10.0f;
  static constexpr int terms = 7;
};
template <>
struct Constants<double> {
  using Bits = std::uint64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr Bits one = 0x3FF0000000000000;
  static constexpr Bits sign = 0x8000000000000000;
  static constexpr double units = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double largest = 20.0;
  static constexpr int terms = 13;
};

// 1/2! + r/3! + r^2/4! + ..., as far as digits reach.
template <class T>
QEXP_INLINE T series(T r) {
  constexpr double factorials[] = {2,         6,          24,         120,     720,
                                   5040,      40320,      362880,     3628800, 39916800,
                                   479001600, 6227020800, 87178291200};
  constexpr int terms = Constants<T>::terms;
  T sum = static_cast<T>(1 / factorials[terms - 1]);
#pragma GCC unroll 16
  for (int i = terms - 2; i >= 0; --i) {
    sum = multiply_add(sum, r, static_cast<T>(1 / factorials[i]));
  }
  return sum;
}

template <class T>
QEXP_INLINE T tanh_of(T x) {
  using C = Constants<T>;
  using Bits = typename C::Bits;
  const Bits sign = __builtin_bit_cast(Bits, x) & C::sign;
  const T magnitude = __builtin_bit_cast(T, __builtin_bit_cast(Bits, x) ^ sign);
  // A NaN comes through: it is not larger.
  const T a = 2 * (magnitude > C::largest ? C::largest : magnitude);
  const T shifted = multiply_add(a, static_cast<T>(1.4426950408889634), C::units);
  const T k = shifted - C::units;
  const T r = multiply_add(k, -C::ln2_low, multiply_add(k, -C::ln2_high, a));
  const T exp_less_one = multiply_add(r * r, series(r), r);
  // The last digits of `shifted` are those of k.
  const Bits power_bits = (__builtin_bit_cast(Bits, shifted) << C::mantissa_bits) + C::one;
  const T power = __builtin_bit_cast(T, power_bits);
  const T e = multiply_add(power, exp_less_one, power - 1);
  return __builtin_bit_cast(T, __builtin_bit_cast(Bits, e / (e + 2)) | sign);
}

}  // namespace

void tanh_f32(float* x, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) x[i] = tanh_of(x[i]);
}

void tanh_f64(double* x, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) x[i] = tanh_of(x[i]);
}

}  // namespace qexp::QEXP_ISA
