// Plain loops for the compiler to vectorise: every step is either exact in integers, elementwise,
// or summed in sixteen fixed lanes, so all instruction sets give the same bits.
#include "lattice_sum.hpp"
#include "masks.hpp"
#include "simd.hpp"

namespace qexp::QEXP_ISA {
namespace {

constexpr std::size_t lanes = 16;

double sum_in_lanes(const double* row, std::size_t k) {
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

// Registers of integers for the outer products. Values are at most 2^51 in magnitude.
#if defined(__AVX512DQ__)
struct Integers {
  using Register = __m512i;
  static constexpr std::size_t width = 8;
  QEXP_INLINE Register zero() { return _mm512_setzero_si512(); }
  QEXP_INLINE Register truncated(__m512d x) { return _mm512_cvttpd_epi64(x); }
  QEXP_INLINE Register add(Register a, Register b) { return _mm512_add_epi64(a, b); }
  QEXP_INLINE void store(std::uint64_t* p, Register v) { _mm512_storeu_si512(p, v); }
};
#elif defined(__AVX2__)
struct Integers {
  using Register = __m256i;
  static constexpr std::size_t width = 4;
  QEXP_INLINE Register zero() { return _mm256_setzero_si256(); }
  // There is no such conversion here. Adding 1.5 * 2^52 leaves an integer in the low bits.
  QEXP_INLINE Register truncated(__m256d x) {
    const __m256d shift = _mm256_set1_pd(6755399441055744.0);
    const __m256d whole = _mm256_round_pd(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    return _mm256_sub_epi64(_mm256_castpd_si256(_mm256_add_pd(whole, shift)),
                            _mm256_castpd_si256(shift));
  }
  QEXP_INLINE Register add(Register a, Register b) { return _mm256_add_epi64(a, b); }
  QEXP_INLINE void store(std::uint64_t* p, Register v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
};
#else
struct Integers {
  static constexpr std::size_t width = Vec<double>::width;
  struct Register {
    std::uint64_t lane[width];
  };
  QEXP_INLINE Register zero() { return {}; }
  QEXP_INLINE Register truncated(Vec<double>::Register x) {
    double value[width];
    Vec<double>::store(value, x);
    Register r;
    for (std::size_t i = 0; i < width; ++i) {
      r.lane[i] = static_cast<std::uint64_t>(static_cast<std::int64_t>(value[i]));
    }
    return r;
  }
  QEXP_INLINE Register add(Register a, Register b) {
    for (std::size_t i = 0; i < width; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  QEXP_INLINE void store(std::uint64_t* p, Register v) {
    for (std::size_t i = 0; i < width; ++i) p[i] = v.lane[i];
  }
};
#endif
static_assert(Integers::width == Vec<double>::width);

}  // namespace

double sum_of_squares(const double* x, std::size_t n) {
  return sum_in_lanes(x, n);
}

void scale_or_null(const double* from, std::size_t n, double factor, bool keep, double* to) {
  for (std::size_t j = 0; j < n; ++j) to[j] = choose(keep, from[j] * factor, 0.0);
}

void lattice_outer_tile(const double* left, std::size_t left_stride, const double* right,
                        std::size_t right_stride, std::size_t m, std::size_t rows,
                        std::size_t columns, std::uint64_t* total, std::size_t total_stride) {
  using Real = Vec<double>;
  // A strip of four registers by four rows at a time: sixteen sums and four factors fit the
  // register file.
  constexpr std::size_t strip = 4;
  for (std::size_t c = 0; c < columns; c += strip * Real::width) {
    Integers::Register sum[outer_rows][strip];
    for (auto& row : sum) {
      for (auto& lane : row) lane = Integers::zero();
    }
    for (std::size_t i = 0; i < m; ++i) {
      Real::Register a[strip];
      for (std::size_t s = 0; s < strip; ++s) {
        a[s] = Real::load(right + i * right_stride + c + s * Real::width);
      }
      for (std::size_t r = 0; r < outer_rows; ++r) {
        const Real::Register d = Real::broadcast(left[i * left_stride + r]);
        for (std::size_t s = 0; s < strip; ++s) {
          sum[r][s] = Integers::add(sum[r][s], Integers::truncated(Real::mul(d, a[s])));
        }
      }
    }
    for (std::size_t r = 0; r < rows; ++r) {
      std::uint64_t value[strip * Real::width];
      for (std::size_t s = 0; s < strip; ++s) Integers::store(value + s * Real::width, sum[r][s]);
      const std::size_t end = columns - c < strip * Real::width ? columns - c : strip * Real::width;
      for (std::size_t j = 0; j < end; ++j) total[r * total_stride + c + j] += value[j];
    }
  }
}

void lattice_vector(const double* row, std::size_t k, const LatticeScale& scale, std::int64_t* z) {
  // A norm that overflows makes the factor 0, a NaN makes it NaN: the record is then null.
  const double norm = __builtin_sqrt(sum_in_lanes(row, k));
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
