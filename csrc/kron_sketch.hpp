// Kept entries of outer products: out[i][j] = scale * sum over t of left[i][t][a_j]
// right[i][t][b_j].
//
// With left and right the Walsh-Hadamard transforms of a record's two factors, these are kept
// entries of the transform of their outer product, as H_(2^a 2^b) = H_(2^a) (x) H_(2^b): the sketch
// of a gradient that is never formed. The sum over t serves layers that are applied at several
// positions. A record's result depends on that record alone, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace qexp {

struct KeptEntries {
  std::span<const std::int64_t> left;   // a_j
  std::span<const std::int64_t> right;  // b_j, as many
  double scale;
};

// left is (m, positions, n_left), right (m, positions, n_right), out has m rows of kept.left.size()
// numbers, out_stride apart. Indices are in range.
template <class T>
void outer_entries(const T* left, std::size_t n_left, const T* right, std::size_t n_right,
                   std::size_t m, std::size_t positions, const KeptEntries& kept, T* out,
                   std::size_t out_stride);

extern template void outer_entries<float>(const float*, std::size_t, const float*, std::size_t,
                                          std::size_t, std::size_t, const KeptEntries&, float*,
                                          std::size_t);
extern template void outer_entries<double>(const double*, std::size_t, const double*, std::size_t,
                                           std::size_t, std::size_t, const KeptEntries&, double*,
                                           std::size_t);

}  // namespace qexp
