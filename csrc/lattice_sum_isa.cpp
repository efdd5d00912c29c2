// Every step is either exact in integers, elementwise, or summed in sixteen fixed lanes, so all
// instruction sets give the same bits.
#include "lattice_sum.hpp"
#include "masks.hpp"
#include "simd.hpp"

namespace qexp::QEXP_ISA {
namespace {

// Registers of integers. truncated(x) is right for |x| <= 2^52 and anything otherwise.
#if defined(__AVX512DQ__)
struct Integers {
  using Register = __m512i;
  static constexpr std::size_t width = 8;
  QEXP_INLINE Register zero() { return _mm512_setzero_si512(); }
  QEXP_INLINE Register broadcast(std::uint64_t s) {
    return _mm512_set1_epi64(static_cast<long long>(s));
  }
  QEXP_INLINE Register truncated(__m512d x) { return _mm512_cvttpd_epi64(x); }
  QEXP_INLINE Register add(Register a, Register b) { return _mm512_add_epi64(a, b); }
  QEXP_INLINE Register both(Register a, Register b) { return _mm512_and_si512(a, b); }
  QEXP_INLINE Register square(Register a) { return _mm512_mullo_epi64(a, a); }
  QEXP_INLINE Register load(const std::uint64_t* p) { return _mm512_loadu_si512(p); }
  QEXP_INLINE void store(std::uint64_t* p, Register v) { _mm512_storeu_si512(p, v); }
};
// max(|a|, |b|), of numbers.
QEXP_INLINE __m512d larger_magnitude(__m512d a, __m512d b) {
  return _mm512_maskz_range_pd(0xFF, a, b, 0xB);
}
#elif defined(__AVX2__)
struct Integers {
  using Register = __m256i;
  static constexpr std::size_t width = 4;
  QEXP_INLINE Register zero() { return _mm256_setzero_si256(); }
  QEXP_INLINE Register broadcast(std::uint64_t s) {
    return _mm256_set1_epi64x(static_cast<long long>(s));
  }
  // There is no such conversion here. Adding 2^52 leaves the magnitude's integer in the low bits.
  QEXP_INLINE Register truncated(__m256d x) {
    const __m256d shift = _mm256_set1_pd(4503599627370496.0);
    const __m256d sign = _mm256_set1_pd(-0.0);
    const __m256d whole =
        _mm256_round_pd(_mm256_andnot_pd(sign, x), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    const __m256i magnitude = _mm256_sub_epi64(_mm256_castpd_si256(_mm256_add_pd(whole, shift)),
                                               _mm256_castpd_si256(shift));
    const __m256i negative = _mm256_cmpgt_epi64(_mm256_setzero_si256(), _mm256_castpd_si256(x));
    return _mm256_sub_epi64(_mm256_xor_si256(magnitude, negative), negative);
  }
  QEXP_INLINE Register add(Register a, Register b) { return _mm256_add_epi64(a, b); }
  QEXP_INLINE Register both(Register a, Register b) { return _mm256_and_si256(a, b); }
  // (2^32 h + l)^2 = 2^33 h l + l^2 modulo 2^64.
  QEXP_INLINE Register square(Register a) {
    const __m256i cross = _mm256_mul_epu32(a, _mm256_srli_epi64(a, 32));
    return _mm256_add_epi64(_mm256_mul_epu32(a, a), _mm256_slli_epi64(cross, 33));
  }
  QEXP_INLINE Register load(const std::uint64_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  QEXP_INLINE void store(std::uint64_t* p, Register v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
};
QEXP_INLINE __m256d larger_magnitude(__m256d a, __m256d b) {
  const __m256d sign = _mm256_set1_pd(-0.0);
  return _mm256_max_pd(_mm256_andnot_pd(sign, a), _mm256_andnot_pd(sign, b));
}
#else
struct Integers {
  static constexpr std::size_t width = Vec<double>::width;
  struct Register {
    std::uint64_t lane[width];
  };
  QEXP_INLINE Register zero() { return {}; }
  QEXP_INLINE Register broadcast(std::uint64_t s) {
    Register r;
    for (std::size_t i = 0; i < width; ++i) r.lane[i] = s;
    return r;
  }
  QEXP_INLINE Register truncated(Vec<double>::Register x) {
    double value[width];
    Vec<double>::store(value, x);
    Register r;
    for (std::size_t i = 0; i < width; ++i) {
      // The language leaves other conversions undefined.
      const double safe = choose(__builtin_fabs(value[i]) <= 4503599627370496.0, value[i], 0.0);
      r.lane[i] = static_cast<std::uint64_t>(static_cast<std::int64_t>(safe));
    }
    return r;
  }
  QEXP_INLINE Register add(Register a, Register b) {
    for (std::size_t i = 0; i < width; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  QEXP_INLINE Register both(Register a, Register b) {
    for (std::size_t i = 0; i < width; ++i) a.lane[i] &= b.lane[i];
    return a;
  }
  QEXP_INLINE Register square(Register a) {
    for (std::size_t i = 0; i < width; ++i) a.lane[i] *= a.lane[i];
    return a;
  }
  QEXP_INLINE Register load(const std::uint64_t* p) {
    Register r;
    for (std::size_t i = 0; i < width; ++i) r.lane[i] = p[i];
    return r;
  }
  QEXP_INLINE void store(std::uint64_t* p, Register v) {
    for (std::size_t i = 0; i < width; ++i) p[i] = v.lane[i];
  }
};
QEXP_INLINE Vec<double>::Register larger_magnitude(Vec<double>::Register a,
                                                   Vec<double>::Register b) {
  double x[Integers::width], y[Integers::width];
  Vec<double>::store(x, a);
  Vec<double>::store(y, b);
  for (std::size_t i = 0; i < Integers::width; ++i) {
    const double p = __builtin_fabs(x[i]), q = __builtin_fabs(y[i]);
    x[i] = choose(p > q, p, q);
  }
  return Vec<double>::load(x);
}
#endif
static_assert(Integers::width == Vec<double>::width);

using Real = Vec<double>;

// Folds halves onto each other until one lane has everything.
template <std::size_t distance, class Register, class Combine>
QEXP_INLINE Register folded(Register v, Combine combine) {
  if constexpr (distance == 0) {
    return v;
  } else {
    const auto swapped = swap_lanes<distance>(__builtin_bit_cast(Real::Register, v));
    return folded<distance / 2>(combine(v, __builtin_bit_cast(Register, swapped)), combine);
  }
}
template <std::size_t n, class Register, class Combine>
QEXP_INLINE Register folded(Register (&part)[n], Combine combine) {
  for (std::size_t half = n / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) part[i] = combine(part[i], part[i + half]);
  }
  return folded<Real::width / 2>(part[0], combine);
}

QEXP_INLINE double first_lane(Real::Register v) {
  double lane[Real::width];
  Real::store(lane, v);
  return lane[0];
}

// Calls step(from) for every full piece of x, and once more for what is left, padded with zeros.
template <std::size_t piece, class Step>
QEXP_INLINE void in_pieces(const double* x, std::size_t n, Step step) {
  std::size_t j = 0;
  for (; j + piece <= n; j += piece) step(x + j);
  if (j < n) {
    double padded[piece] = {};
    for (std::size_t i = 0; j + i < n; ++i) padded[i] = x[j + i];
    step(padded);
  }
}

// Memory that comes next, fetched by and by while there is arithmetic to do.
struct Ahead {
  const double* next;
  std::size_t step;  // doubles in a cache line, or 0 if nothing comes next
  __attribute__((always_inline)) void fetch_line() {
    __builtin_prefetch(next);
    next += step;
  }
};

constexpr std::size_t lanes = 16;

double sum_in_lanes(const double* x, std::size_t n, Ahead& ahead) {
  constexpr std::size_t parts = lanes / Real::width;
  Real::Register part[parts];
  for (auto& p : part) p = Real::broadcast(0.0);
  in_pieces<lanes>(x, n, [&](const double* from) __attribute__((always_inline)) {
    ahead.fetch_line();
    for (std::size_t i = 0; i < parts; ++i) {
      const Real::Register v = Real::load(from + i * Real::width);
      part[i] = Real::add(part[i], Real::mul(v, v));
    }
  });
  return first_lane(folded(part, Real::add));
}

// ||z||^2 of a record's integers z = trunc(t), exactly, from two sums: one in integers modulo 2^64,
// and one in floating point that is off by less than 2^62 and thus tells the multiple of 2^64 to
// add. With u = 2^-53, for each chunk of at most 512 entries a lane and eight more:
//   - where the floating-point sum S of t^2 is above 2^105 or a NaN, ||z|| exceeds any bound (of at
//     most 2^52), and nothing needs to be exact;
//   - otherwise S is off from the true sum of t^2 by at most 2^105 (512 + 16) u < 2^61.1,
//   - which is off from ||z||^2 by at most the sum of 2 |t|, at most 2 sqrt(2^105 4104) < 2^59.6.
constexpr std::size_t chunk = 512 * Real::width;
constexpr double largest_sum = 0x1p105;

struct Size {
  Real::Register largest, real;
  Integers::Register modular;
  unsigned __int128 squares = 0;  // ||z||^2, unless outside
  std::uint64_t outside = 0;  // not 0 where some |t| <= bound does not hold, or surely ||z|| > B

  __attribute__((always_inline)) void start_chunk() {
    largest = real = Real::broadcast(0.0);
    modular = Integers::zero();
  }

  __attribute__((always_inline)) void count(Real::Register t, Integers::Register z) {
    largest = larger_magnitude(t, largest);
    real = Real::fma(t, t, real);
    modular = Integers::add(modular, Integers::square(z));
  }

  __attribute__((always_inline)) void end_chunk(double bound) {
    const double top = first_lane(folded<Real::width / 2>(largest, larger_magnitude));
    const double sum = first_lane(folded<Real::width / 2>(real, Real::add));
    std::uint64_t low[Integers::width];
    Integers::store(low, folded<Real::width / 2>(modular, Integers::add));
    const bool bounded = sum <= largest_sum;
    // By halves, since an unsigned conversion may take a jump.
    const double rest = 2.0 * static_cast<double>(static_cast<std::int64_t>(low[0] >> 1));
    const double multiple = choose(bounded, (sum - rest) * 0x1p-64, 0.0) + 0.5;
    squares += (static_cast<unsigned __int128>(static_cast<std::int64_t>(multiple)) << 64) + low[0];
    outside |= static_cast<std::uint64_t>(!bounded) | static_cast<std::uint64_t>(!(top <= bound));
  }

  // All ones, or 0.
  std::uint64_t within(std::int64_t bound) const {
    const auto b = static_cast<unsigned __int128>(bound);
    return -static_cast<std::uint64_t>((outside == 0) & (squares <= b * b));
  }
};

// Takes back a record's integers.
void subtract_row(const double* row, std::size_t k, double factor, std::uint64_t* total) {
  in_pieces<Real::width>(row, k, [&](const double* from) {
    const Real::Register t = Real::mul(Real::load(from), Real::broadcast(factor));
    std::uint64_t z[Integers::width];
    Integers::store(z, Integers::truncated(t));
    for (std::size_t i = 0; i < Integers::width && k > 0; ++i, --k) *total++ -= z[i];
  });
}

// total += the integers of several rows, so that the total is loaded and stored once for all of
// them. They come from memory for the norms and are in cache when they are added. The first `head`
// entries go ahead of the others, which are then aligned.
//
// A finite norm passes the exact check: ||z|| <= q (1 + 4u) min(1, c (1 - 2^-20) / norm) N with the
// true norm N <= norm (1 + (k / 16 + 8) u), which a lattice's q c <= (B + 1)(1 + 2u), k <= 2^30 and
// B >= 2^21 make less than B (its c of at least 1e-100 keeps underflow of squares out of sight). So
// records are added while they are checked, and the jump that takes back a record that fails is
// there for faults alone.
template <std::size_t group>
void add_group(const double* rows, std::size_t k, std::size_t row_stride, std::size_t head,
               const LatticeScale& scale, Ahead ahead, std::uint64_t* total) {
  double factor[group];
  std::uint64_t finite[group];
  for (std::size_t g = 0; g < group; ++g) {
    const double squared_norm = sum_in_lanes(rows + g * row_stride, k, ahead);
    factor[g] = clip_factor(squared_norm, scale);
    finite[g] = -static_cast<std::uint64_t>(squared_norm <= __DBL_MAX__);
  }
  Real::Register factors[group];
  Integers::Register keep[group];
  Size size[group];
  for (std::size_t g = 0; g < group; ++g) {
    factors[g] = Real::broadcast(factor[g]);
    keep[g] = Integers::broadcast(finite[g]);
  }
  const auto plus = [&](Integers::Register sum, const double* from,
                        std::size_t stride) __attribute__((always_inline)) {
    for (std::size_t g = 0; g < group; ++g) {
      const Real::Register t = Real::mul(Real::load(from + g * stride), factors[g]);
      const Integers::Register z = Integers::truncated(t);
      size[g].count(t, z);
      sum = Integers::add(sum, Integers::both(z, keep[g]));
    }
    return sum;
  };
  const auto add_part = [&](std::size_t begin, std::size_t end) __attribute__((always_inline)) {
    double padded[group * Integers::width] = {};
    for (std::size_t g = 0; g < group; ++g) {
      const double* row = rows + g * row_stride + begin;
      for (std::size_t l = 0; begin + l < end; ++l) padded[g * Integers::width + l] = row[l];
    }
    std::uint64_t sum[Integers::width];
    Integers::store(sum, plus(Integers::zero(), padded, Integers::width));
    for (std::size_t l = 0; begin + l < end; ++l) total[begin + l] += sum[l];
  };
  for (std::size_t j = 0; j < k;) {
    for (Size& s : size) s.start_chunk();
    while (j < head) {
      const std::size_t end = head - j < Integers::width ? head : j + Integers::width;
      add_part(j, end);
      j = end;
    }
    const std::size_t end = k - j < chunk ? k : j + chunk;
    for (; j + Integers::width <= end; j += Integers::width) {
      if constexpr (group > 1) {
        ahead.fetch_line();
        ahead.fetch_line();
      }
      Integers::store(total + j, plus(Integers::load(total + j), rows + j, row_stride));
    }
    if (j < end) {
      add_part(j, end);
      j = end;
    }
    for (Size& s : size) s.end_chunk(static_cast<double>(scale.bound));
  }
  std::uint64_t fault[group], any_fault = 0;
  for (std::size_t g = 0; g < group; ++g) {
    fault[g] = finite[g] & ~size[g].within(scale.bound);
    any_fault |= fault[g];
  }
  if (any_fault != 0) [[unlikely]] {
    for (std::size_t g = 0; g < group; ++g) {
      if (fault[g] != 0) subtract_row(rows + g * row_stride, k, factor[g], total);
    }
  }
}

// Four registers by four rows at a time: sixteen sums and four factors fit the register file.
constexpr std::size_t strip = 4;

template <std::size_t rows, std::size_t registers>
void add_outer_strip(const double* left, const double* right, std::size_t m, std::size_t columns,
                     std::uint64_t* total, std::size_t total_stride) {
  Integers::Register sum[rows][registers];
  for (auto& row : sum) {
    for (auto& lane : row) lane = Integers::zero();
  }
  for (std::size_t i = 0; i < m; ++i) {
    Real::Register a[registers];
    for (std::size_t s = 0; s < registers; ++s) {
      a[s] = Real::load(right + i * outer_columns + s * Real::width);
    }
    for (std::size_t r = 0; r < rows; ++r) {
      const Real::Register d = Real::broadcast(left[i * outer_rows + r]);
      for (std::size_t s = 0; s < registers; ++s) {
        sum[r][s] = Integers::add(sum[r][s], Integers::truncated(Real::mul(d, a[s])));
      }
    }
  }
  for (std::size_t r = 0; r < rows; ++r) {
    std::uint64_t value[registers * Real::width];
    for (std::size_t s = 0; s < registers; ++s) Integers::store(value + s * Real::width, sum[r][s]);
    for (std::size_t j = 0; j < columns; ++j) total[r * total_stride + j] += value[j];
  }
}

// By rows and registers that a strip really has, less one: at an edge no more is computed.
using AddOuterStrip = decltype(&add_outer_strip<1, 1>);
static_assert(outer_rows == 4 && strip == 4);
constexpr AddOuterStrip strips[outer_rows][strip] = {
    {add_outer_strip<1, 1>, add_outer_strip<1, 2>, add_outer_strip<1, 3>, add_outer_strip<1, 4>},
    {add_outer_strip<2, 1>, add_outer_strip<2, 2>, add_outer_strip<2, 3>, add_outer_strip<2, 4>},
    {add_outer_strip<3, 1>, add_outer_strip<3, 2>, add_outer_strip<3, 3>, add_outer_strip<3, 4>},
    {add_outer_strip<4, 1>, add_outer_strip<4, 2>, add_outer_strip<4, 3>, add_outer_strip<4, 4>},
};

}  // namespace

double sum_of_squares(const double* x, std::size_t n) {
  Ahead nothing{x, 0};
  return sum_in_lanes(x, n, nothing);
}

void scale_or_null(const double* from, std::size_t n, double factor, bool keep, std::size_t panel,
                   double* to, std::size_t panel_stride) {
  for (std::size_t begin = 0; begin < n; begin += panel) {
    const std::size_t width = n - begin < panel ? n - begin : panel;
    for (std::size_t j = 0; j < width; ++j) to[j] = choose(keep, from[begin + j] * factor, 0.0);
    to += panel_stride;
  }
}

void lattice_outer_tile(const double* left, const double* right, std::size_t m, std::size_t rows,
                        std::size_t columns, std::uint64_t* total, std::size_t total_stride) {
  for (std::size_t c = 0; c < columns; c += strip * Real::width) {
    const std::size_t rest = columns - c;
    const std::size_t width = rest < strip * Real::width ? rest : strip * Real::width;
    const std::size_t registers = (width + Real::width - 1) / Real::width;
    strips[rows - 1][registers - 1](left, right + c, m, width, total + c, total_stride);
  }
}

void lattice_add_rows(const double* rows, std::size_t m, std::size_t k, std::size_t row_stride,
                      const LatticeScale& scale, std::uint64_t* total) {
  // Two groups of rows have to fit the cache.
  constexpr std::size_t group = Real::width == 8 ? 4 : 1, longest = 8192, line = 8;
  // Long rows are worth aligning, for the passes whose order is free.
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(rows) / sizeof(double) % line;
  const std::size_t head = k < 1024 ? 0 : (line - misaligned) % line;
  std::size_t i = 0;
  if (k <= longest) {
    for (; i + group <= m; i += group) {
      const double* row = rows + i * row_stride;
      const bool last = i + 2 * group > m;
      const Ahead ahead = last ? Ahead{row, 0} : Ahead{row + group * row_stride, line};
      add_group<group>(row, k, row_stride, head, scale, ahead, total);
    }
  }
  for (; i < m; ++i) {
    const double* row = rows + i * row_stride;
    add_group<1>(row, k, row_stride, head, scale, {row, 0}, total);
  }
}

}  // namespace qexp::QEXP_ISA
