// Exact normal noise on the integers: floor(2^b N) for N a standard normal, in integer arithmetic.
//
// Karney's Algorithm N (C. F. F. Karney, "Sampling exactly from the normal distribution", ACM TOMS
// 42(1), 2016) draws the digits of N one at a time and only as far as a comparison needs them, so
// no rounding and no approximated tail enters: the integer that comes out has exactly the
// distribution of the floor of a real Gaussian. Random bits come in as an array of words, which
// makes the sampler a pure function and leaves their origin to the caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace qexp {

struct NormalsDrawn {
  std::size_t normals;  // how many of `out` are final
  std::size_t words;    // how many words these have used up
};

// Fills `out` with independent draws of floor(2^lattice_bits N), 0 <= lattice_bits <= 62, until it
// is full or the words run out in the middle of a draw. That draw must then start again from the
// same words with more behind them: throwing its words away would favour draws that need few.
NormalsDrawn draw_lattice_normals(std::span<const std::uint64_t> words, int lattice_bits,
                                  std::span<std::int64_t> out);

// The same with digits of 8 bits, one a word. Ties between digits, which 64-bit digits meet once
// in 2^64 comparisons, then happen all the time: for tests of that path. lattice_bits <= 8.
NormalsDrawn draw_lattice_normals_short_digits(std::span<const std::uint64_t> words,
                                               int lattice_bits, std::span<std::int64_t> out);

}  // namespace qexp
