// Plain loops for the compiler to vectorise: every step is either exact in integers, elementwise,
// or summed in sixteen fixed lanes, so all instruction sets give the same bits.
#include "lattice_sum.hpp"
#include "simd.hpp"

namespace qexp::QEXP_ISA {
namespace {

constexpr std::size_t lanes = 16;

// A choice by masks: a conditional expression may become a jump, whose time tells the condition.
inline double choose(bool condition, double yes, double no) {
  const std::uint64_t mask = -static_cast<std::uint64_t>(condition);
  return __builtin_bit_cast(double, (__builtin_bit_cast(std::uint64_t, yes) & mask) |
                                        (__builtin_bit_cast(std::uint64_t, no) & ~mask));
}

double sum_of_squares(const double* row, std::size_t k) {
  double partial[lanes] = {};
  std::size_t j = 0;
  for (; j + lanes <= k; j += lanes) {
    for (std::size_t i = 0; i < lanes; ++i) partial[i] += row[j + i] * row[j + i];
  }
  for (std::size_t i = 0; j + i < k; ++i) partial[i] += row[j + i] * row[j + i];
  for (std::size_t half = lanes / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) partial[i] += partial[i + half];
  }
  return partial[0];
}

// Squares of integers below 2^52 by halves of 26 bits, so that products fit 52 bits and 2^11 of
// them a 64-bit sum.
constexpr std::size_t exact_chunk = 2048;
constexpr std::uint64_t half_mask = (std::uint64_t{1} << 26) - 1;

// Rounds one chunk towards zero, leaving 0 where |t| <= bound does not hold (so also for a NaN) and
// counting such entries; adds the exact squares to `squares`.
std::uint64_t quantise_chunk(const double* row, std::size_t count, double factor, double bound,
                             std::int64_t* z, unsigned __int128& squares) {
  std::uint64_t high = 0, cross = 0, low = 0, outside = 0;
  for (std::size_t j = 0; j < count; ++j) {
    const double t = row[j] * factor;
    const bool inside = __builtin_fabs(t) <= bound;
    z[j] = static_cast<std::int64_t>(choose(inside, t, 0.0));
    outside += static_cast<std::uint64_t>(!inside);
  }
  for (std::size_t j = 0; j < count; ++j) {
    const std::uint64_t a = static_cast<std::uint64_t>(z[j] < 0 ? -z[j] : z[j]);
    const std::uint64_t a_high = a >> 26, a_low = a & half_mask;
    high += a_high * a_high;
    cross += a_high * a_low;
    low += a_low * a_low;
  }
  squares += (static_cast<unsigned __int128>(high) << 52) +
             (static_cast<unsigned __int128>(cross) << 27) + low;
  return outside;
}

}  // namespace

void lattice_vector(const double* row, std::size_t k, const LatticeScale& scale, std::int64_t* z) {
  // A norm that overflows makes the factor 0, a NaN makes it NaN: the record is then null.
  const double norm = __builtin_sqrt(sum_of_squares(row, k));
  const double ratio = scale.clipping_norm * (1.0 - clipping_margin) / norm;
  const double factor = scale.units_per_norm * choose(ratio >= 1.0, 1.0, ratio);
  unsigned __int128 squares = 0;
  std::uint64_t outside = 0;
  for (std::size_t j = 0; j < k; j += exact_chunk) {
    const std::size_t count = k - j < exact_chunk ? k - j : exact_chunk;
    outside +=
        quantise_chunk(row + j, count, factor, static_cast<double>(scale.bound), z + j, squares);
  }
  const unsigned __int128 limit =
      static_cast<unsigned __int128>(scale.bound) * static_cast<unsigned __int128>(scale.bound);
  const std::int64_t keep = -static_cast<std::int64_t>((outside == 0) & (squares <= limit));
  for (std::size_t j = 0; j < k; ++j) z[j] &= keep;
}

void lattice_add(const std::int64_t* z, std::size_t k, std::uint64_t* total) {
  for (std::size_t j = 0; j < k; ++j) total[j] += static_cast<std::uint64_t>(z[j]);
}

}  // namespace qexp::QEXP_ISA
