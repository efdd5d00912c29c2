// Kronecker SRHT of outer products: out[i][j] = scale * sum over t of (H D_l left[i][t])[a_j]
// (H D_r right[i][t])[b_j].
//
// As H_(2^a 2^b) = H_(2^a) (x) H_(2^b), these are kept entries of the transform of the sum of outer
// products, signs applied: the sketch of a gradient that is never formed. The sum over t serves
// layers that are applied at several positions. Both small transforms stay in the cache beside the
// processor, and nothing but the sketch is written. A record's result depends on that record alone,
// bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace qexp {

// One side of the outer products: rows of `length` numbers, padded with zeros to a power of two.
template <class T>
struct KroneckerFactor {
  const T* rows;
  std::size_t length;
  std::span<const std::uint64_t> signs;  // bit j set: number j changes its sign
  std::span<const std::int64_t> kept;    // a_j, below the padded length
};

// Either factor has m * positions rows, one record's after another; out has m rows of
// left.kept.size() = right.kept.size() numbers, out_stride apart.
template <class T>
void kron_sketch(const KroneckerFactor<T>& left, const KroneckerFactor<T>& right, std::size_t m,
                 std::size_t positions, double scale, T* out, std::ptrdiff_t out_stride);

extern template void kron_sketch<float>(const KroneckerFactor<float>&,
                                        const KroneckerFactor<float>&, std::size_t, std::size_t,
                                        double, float*, std::ptrdiff_t);
extern template void kron_sketch<double>(const KroneckerFactor<double>&,
                                         const KroneckerFactor<double>&, std::size_t, std::size_t,
                                         double, double*, std::ptrdiff_t);

}  // namespace qexp
