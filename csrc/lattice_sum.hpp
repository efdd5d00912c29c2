// The lattice sum: clip whitened records, round them to integers, add them up.
//
// With csrc/exact_normal this is all of the privacy boundary's arithmetic. What one record adds to
// the sum is an integer vector z with ||z||^2 <= bound^2, checked in exact integers whatever the
// floating-point steps before did; a record that fails the check, or holds a NaN or an infinity,
// adds the zero vector. Sums wrap modulo 2^64, which is a homomorphism, so the order of records,
// blocks, threads or machines cannot change a bit of the result.
//
// No branch and no memory access depends on the value of a record.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.hpp"

namespace qexp {

struct LatticeScale {
  double units_per_norm;  // q: lattice units for one unit of whitened norm
  double clipping_norm;   // c, whitened units
  std::int64_t bound;     // B: no record's integer norm exceeds it; at most 2^52
};

// The clip leaves this much room below c for the rounding errors of norms of up to 2^30 entries,
// so that an honest record never fails the exact check.
inline constexpr double clipping_margin = 1.0 / (1 << 20);

// total[j] += sum over the m rows of trunc(q clip_c(row))[j], modulo 2^64.
void lattice_sum(const double* rows, std::size_t m, std::size_t k, std::size_t row_stride,
                 const LatticeScale& scale, std::uint64_t* total);

// One record's z into z[0..k), as above.
QEXP_DECLARE_PER_ISA(void lattice_vector(const double* row, std::size_t k,
                                         const LatticeScale& scale, std::int64_t* z))
// total += z, modulo 2^64.
QEXP_DECLARE_PER_ISA(void lattice_add(const std::int64_t* z, std::size_t k, std::uint64_t* total))

}  // namespace qexp
