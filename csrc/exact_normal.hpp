// Exact normal noise on the integers: floor(2^b N) for N a standard normal, in integer arithmetic.
//
// The digits of N are drawn one at a time and only as far as a comparison needs them, as in
// C. F. F. Karney, "Sampling exactly from the normal distribution", ACM TOMS 42(1), 2016: no
// rounding and no approximated tail enters, so the integer that comes out has exactly the
// distribution of the floor of a real Gaussian. Karney builds the integer part of |N| from coins of
// probability exp(-1/2). Here the line is cut into finer cells, and a cell comes from a table whose
// entries' digits go on for ever, so that most draws take one random word and one comparison:
//
//   1. |N| = (j + v) / 16 has a density proportional to exp(-(j + v)^2 / 512)
//      = exp(-j^2 / 512) exp(-v (2j + v) / 512). So take a cell j with probability proportional to
//      exp(-j^2 / 512), v uniform in (0, 1), and keep them with probability exp(-v (2j + v) / 512);
//      otherwise start again.
//   2. Cell j has the weight T_j = 199 exp(-j^2 / 512) out of 4096 slots: floor(T_j) of them are
//      its own. The sum of the fractions left over is below the number of remaining slots. In
//      these a uniform real number is compared with the running sum of the fractions, as far as
//      their digits up to 2^-64, of which each cell owns a whole number of units, and one unit more
//      that it owns in part. If the number falls into that one, its further digits decide against
//      the further digits of T_j, computed on demand (exact_normal_weights). Everything that
//      belongs to no cell starts the draw again. Each cell is therefore taken with probability
//      T_j / 4096, exactly.
//   3. exp(-v p) with p = (2j + v) / 512 needs no exponential (von Neumann; Karney's step B). The
//      run v > z1 > z2 > ... of uniform z, each step taken only if a coin of probability p says so,
//      has at least n steps with probability v^n/n! p^n, thus even length with probability
//      1 - vp + (vp)^2/2 - ... = exp(-v p). The coin is a uniform integer r below 512: true if
//      r < 2j, false if r > 2j, and if r = 2j then u < v for one more uniform u (his step C).
//   4. A fair bit gives the sign, and floor(-x) = -floor(x) - 1 for an x that is no integer.
//
// Comparisons of uniform numbers draw digits until they differ, which they do with probability one.
// Random bits come in as an array of words, which makes the sampler a pure function and leaves
// their origin to the caller. A draw takes 1.1 words on average.
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

// The same with digits of 4 bits and units of 2^-8. Ties, which the long digits meet once in 2^42
// comparisons, then happen all the time: for tests of those paths. lattice_bits <= 8.
NormalsDrawn draw_lattice_normals_short_digits(std::span<const std::uint64_t> words,
                                               int lattice_bits, std::span<std::int64_t> out);

}  // namespace qexp
