// The lattice sum: clip whitened records, round them to integers, add them up.
//
// With csrc/exact_normal this is all of the privacy boundary's arithmetic. What one record adds to
// the sum is an integer vector z with ||z||^2 <= bound^2, checked in exact integers whatever the
// floating-point steps before did; a record that fails the check, or holds a NaN or an infinity,
// adds the zero vector. Sums wrap modulo 2^64, which is a homomorphism, so the order of records,
// blocks, threads or machines cannot change a bit of the result.
//
// No branch and no memory access depends on the value of a record. One jump hangs on the exact
// check: a dense record that fails it is taken back out of the sum. With q c <= (B + 1)(1 + 2^-52)
// and B >= 2^21, as in any lattice of private_sum, no record with a finite norm fails (the proof is
// in lattice_sum_isa.cpp), and those without one never enter the sum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dispatch.hpp"
#include "masks.hpp"

namespace qexp {

struct LatticeScale {
  double units_per_norm;  // q: lattice units for one unit of whitened norm
  double clipping_norm;   // c, whitened units
  std::int64_t bound;     // B: no record's integer norm exceeds it; at most 2^52
};

// The clip leaves this much room below c for the rounding errors of norms of up to 2^30 entries,
// so that an honest record never fails the exact check.
inline constexpr double clipping_margin = 1.0 / (1 << 20);

// What clips and scales a record of this squared norm: q min(1, c (1 - margin) / norm). Inlined
// always, as choose() is.
__attribute__((always_inline)) inline double clip_factor(double squared_norm,
                                                         const LatticeScale& scale) {
  const double norm = __builtin_sqrt(squared_norm);
  const double ratio = scale.clipping_norm * (1.0 - clipping_margin) / norm;
  return scale.units_per_norm * choose(ratio >= 1.0, 1.0, ratio);
}

// total[j] += sum over the m rows of trunc(q clip_c(row))[j], modulo 2^64.
void lattice_sum(const double* rows, std::size_t m, std::size_t k, std::size_t row_stride,
                 const LatticeScale& scale, std::uint64_t* total);

// One layer's share of the gradients of m records, as outer products: record i's share is
// left[i] ⊗ right[i], a row-major matrix of n_left x n_right entries. Dense rows are the case
// n_left = 1 with left[i] = 1.
struct OuterProducts {
  const double* left;   // m x n_left
  const double* right;  // m x n_right
  std::size_t n_left;
  std::size_t n_right;
};

// The same for records whose gradients are several layers' outer products side by side, clipped by
// their joint norm; none is ever formed. `total` has the layers' matrices one after the other.
// Needs scale.bound of at most 2^51.
void lattice_sum_outer(std::span<const OuterProducts> layers, std::size_t m,
                       const LatticeScale& scale, std::uint64_t* total);

// The dense sum, by one thread.
QEXP_DECLARE_PER_ISA(void lattice_add_rows(const double* rows, std::size_t m, std::size_t k,
                                           std::size_t row_stride, const LatticeScale& scale,
                                           std::uint64_t* total))

// Outer products are summed in tiles of `outer_rows` x `outer_columns` entries, which stay in
// registers while the records pass by. The factors come in panels, each as wide as a tile and with
// a row for each record, so that a tile reads its two panels from one end to the other.
inline constexpr std::size_t outer_rows = 4;
inline constexpr std::size_t outer_columns = 32;

// ||x||^2 for the joint norm of outer products.
QEXP_DECLARE_PER_ISA(double sum_of_squares(const double* x, std::size_t n))
// Writes keep ? factor * from[j] : 0 without a jump, into one row of each of the panels that are
// `panel` entries wide and `panel_stride` entries apart.
QEXP_DECLARE_PER_ISA(void scale_or_null(const double* from, std::size_t n, double factor, bool keep,
                                        std::size_t panel, double* to, std::size_t panel_stride))
// total[r][c] += sum over the m records of trunc(left[i][r] right[i][c]), for one tile, of which
// the first `rows` x `columns` entries exist. What a panel of right factors holds beyond `columns`
// is read, and has to be numbers.
QEXP_DECLARE_PER_ISA(void lattice_outer_tile(const double* left, const double* right, std::size_t m,
                                             std::size_t rows, std::size_t columns,
                                             std::uint64_t* total, std::size_t total_stride))

}  // namespace qexp
