// Subsampled randomised Hadamard transform of rows: s * R H D and its adjoint.
//
// D flips signs, H is the unnormalised Walsh-Hadamard matrix of order n = the next power of two at
// or above p (a row of p numbers is padded with zeros), R keeps k of the n outputs. With
// s = 1/sqrt(k) this is P^T of the random projection P = sqrt(n/k) D H^T R^T / sqrt(n): lengths are
// kept on average. A row's result depends on that row alone, bit for bit, never on its neighbours,
// its place or the number of threads. Memory: one padded row a thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace qexp {

// The public map. It views its arrays and owns none.
struct Srht {
  std::size_t p;                         // numbers in a row
  std::span<const std::uint64_t> signs;  // bit j set: number j changes its sign
  std::span<const std::int64_t> kept;    // ascending indices of the k kept outputs
  double scale;

  std::size_t k() const { return kept.size(); }
  std::size_t padded() const;
};

// (m, p) -> (m, k). Consecutive rows stand row_stride apart; out is contiguous.
template <class T>
void srht_forward(const Srht& map, const T* rows, std::size_t m, std::ptrdiff_t row_stride, T* out);

// (m, k) -> (m, p), both contiguous: the transpose of srht_forward.
template <class T>
void srht_adjoint(const Srht& map, const T* u, std::size_t m, T* out);

extern template void srht_forward<float>(const Srht&, const float*, std::size_t, std::ptrdiff_t,
                                         float*);
extern template void srht_forward<double>(const Srht&, const double*, std::size_t, std::ptrdiff_t,
                                          double*);
extern template void srht_adjoint<float>(const Srht&, const float*, std::size_t, float*);
extern template void srht_adjoint<double>(const Srht&, const double*, std::size_t, double*);

}  // namespace qexp
