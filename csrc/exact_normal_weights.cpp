#include "exact_normal_weights.hpp"

#include <vector>

namespace qexp {
namespace {

// Natural numbers in digits of 32 bits, lowest first, as long as they were made.
using Natural = std::vector<std::uint32_t>;

void add(Natural& a, const Natural& b) {
  std::uint64_t carry = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    carry += std::uint64_t{a[i]} + (i < b.size() ? b[i] : 0);
    a[i] = static_cast<std::uint32_t>(carry);
    carry >>= 32;
  }
}

void subtract(Natural& a, const Natural& b) {
  std::uint64_t borrow = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const std::uint64_t difference = a[i] - borrow - (i < b.size() ? b[i] : 0);
    a[i] = static_cast<std::uint32_t>(difference);
    borrow = difference >> 63;
  }
}

// Rounds down; true if anything is left.
bool divide(Natural& a, std::uint64_t divisor) {
  std::uint64_t rest = 0, any = 0;
  for (std::size_t i = a.size(); i-- > 0;) {
    rest = rest << 32 | a[i];
    a[i] = static_cast<std::uint32_t>(rest / divisor);
    rest %= divisor;
    any |= a[i];
  }
  return any != 0;
}

Natural product(const Natural& a, const Natural& b) {
  Natural result(a.size() + b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::uint64_t carry = 0;
    for (std::size_t j = 0; j < b.size(); ++j) {
      carry += std::uint64_t{a[i]} * b[j] + result[i + j];
      result[i + j] = static_cast<std::uint32_t>(carry);
      carry >>= 32;
    }
    result[i + b.size()] = static_cast<std::uint32_t>(carry);
  }
  return result;
}

Natural shifted_right(const Natural& a, std::size_t bits) {
  Natural result;
  for (std::size_t i = bits / 32; i < a.size(); ++i) {
    const std::uint64_t pair = a[i] | std::uint64_t{i + 1 < a.size() ? a[i + 1] : 0} << 32;
    result.push_back(static_cast<std::uint32_t>(pair >> bits % 32));
  }
  return result;
}

Natural natural(std::uint64_t value) {
  return {static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(value >> 32)};
}

// A real number x in [0, 1] as its enclosure lower <= 2^precision x <= lower + error.
struct Enclosure {
  Natural lower;
  std::uint64_t error;
};

Enclosure one(std::size_t precision) {
  Natural lower(precision / 32 + 2);
  lower[precision / 32] = std::uint32_t{1} << precision % 32;
  return {lower, 0};
}

// (a + e)(b + f) <= ab + (e + f) 2^p + ef, of which ef is at most one unit 2^p and rounding costs
// less than another.
Enclosure product(const Enclosure& a, const Enclosure& b, std::size_t precision) {
  Natural lower = shifted_right(product(a.lower, b.lower), precision);
  lower.resize(precision / 32 + 2);  // at most 2^precision
  return {lower, a.error + b.error + 2};
}

// exp(-1/512) by its alternating series. Every term is computed from the one before it, rounded
// down, hence too small by less than 1 + 1/512 + ... < 2; the first term that vanishes was below 2,
// and the rest of the series is smaller.
Enclosure exp_of_minus_512th(std::size_t precision) {
  Natural sum = one(precision).lower, term = sum;
  std::uint64_t i = 1;
  for (; divide(term, 512 * i); ++i) {
    if (i % 2 == 1) {
      subtract(sum, term);
    } else {
      add(sum, term);
    }
  }
  const std::uint64_t error = 2 * (i + 1);
  subtract(sum, natural(error));
  return {sum, 2 * error};
}

Enclosure power(Enclosure base, std::uint64_t exponent, std::size_t precision) {
  Enclosure result = one(precision);
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result = product(result, base, precision);
    base = product(base, base, precision);
  }
  return result;
}

}  // namespace

std::uint64_t normal_weight_digits(std::uint64_t n, std::size_t bits) {
  for (std::size_t guard = 128;; guard *= 2) {
    const std::size_t precision = bits + guard;
    const Enclosure x = power(exp_of_minus_512th(precision), n, precision);
    const Natural scale = natural(199);
    Natural upper = product(x.lower, scale);
    const Natural lower_floor = shifted_right(upper, guard);
    add(upper, product(natural(x.error), scale));
    if (shifted_right(upper, guard) == lower_floor) {
      return lower_floor[0] | std::uint64_t{lower_floor[1]} << 32;
    }
  }
}

}  // namespace qexp
