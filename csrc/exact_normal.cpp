#include "exact_normal.hpp"

#include <limits>
#include <vector>

namespace qexp {
namespace {

struct OutOfWords {};

template <class Digit>
class Words {
 public:
  explicit Words(std::span<const std::uint64_t> words) : words_(words) {}

  Digit next() {
    if (used_ == words_.size()) throw OutOfWords{};
    return static_cast<Digit>(words_[used_++]);
  }
  std::size_t used() const { return used_; }

 private:
  std::span<const std::uint64_t> words_;
  std::size_t used_ = 0;
};

// A uniform deviate in (0, 1), known so far to its first digits; more are drawn on demand.
template <class Digit>
class Uniform {
 public:
  explicit Uniform(Words<Digit>& words) : head_(words.next()) {}

  Digit head() const { return head_; }

  // Decides x < y. Two deviates never tie for ever, so this ends with probability one.
  static bool less(Uniform& x, Uniform& y, Words<Digit>& words) {
    if (x.head_ != y.head_) return x.head_ < y.head_;
    for (std::size_t i = 0;; ++i) {
      const Digit a = x.tail_digit(i, words);
      const Digit b = y.tail_digit(i, words);
      if (a != b) return a < b;
    }
  }

 private:
  Digit tail_digit(std::size_t i, Words<Digit>& words) {
    if (i == tail_.size()) tail_.push_back(words.next());
    return tail_[i];
  }

  Digit head_;
  std::vector<Digit> tail_;  // empty but for the rare ties
};

// The steps carry the letters of the paper.
template <class Digit>
class AlgorithmN {
  static constexpr int digit_bits = std::numeric_limits<Digit>::digits;
  using Real = Uniform<Digit>;

 public:
  explicit AlgorithmN(std::span<const std::uint64_t> words) : words_(words) {}

  std::size_t words_used() const { return words_.used(); }

  std::int64_t draw(int lattice_bits) {
    for (;;) {
      const std::uint64_t k = geometric();
      if (!accept_integer(k)) continue;
      Real x(words_);
      if (!accept_fraction(k, x)) continue;
      // The magnitude is k + x; floor(-v) = -floor(v) - 1, as x is almost surely no integer
      // multiple of anything. Unsigned, so that an absurdly large k wraps instead of overflowing.
      const std::uint64_t fraction =
          lattice_bits == 0 ? 0 : std::uint64_t{x.head()} >> (digit_bits - lattice_bits);
      const std::uint64_t magnitude = (k << lattice_bits) + fraction;
      const bool negative = (words_.next() & 1) != 0;
      return static_cast<std::int64_t>(negative ? ~magnitude : magnitude);
    }
  }

 private:
  // H: true with probability exp(-1/2). The run 1/2 > u1 > u2 > ... has even length so often
  // (von Neumann).
  bool bernoulli_exp_half() {
    Real u(words_);
    if ((u.head() >> (digit_bits - 1)) != 0) return true;
    for (;;) {
      Real v(words_);
      if (!Real::less(v, u, words_)) return false;
      u = Real(words_);
      if (!Real::less(u, v, words_)) return true;
    }
  }

  // G: k with probability exp(-k/2) (1 - exp(-1/2)).
  std::uint64_t geometric() {
    std::uint64_t k = 0;
    while (bernoulli_exp_half()) ++k;
    return k;
  }

  // P: true with probability exp(-k (k - 1) / 2).
  bool accept_integer(std::uint64_t k) {
    if (k < 2) return true;
    for (std::uint64_t trials = k * (k - 1); trials > 0; --trials) {
      if (!bernoulli_exp_half()) return false;
    }
    return true;
  }

  // True with probability exp(-x (2k + x) / 2), by k + 1 trials of probability
  // exp(-x (2k + x) / (2k + 2)).
  bool accept_fraction(std::uint64_t k, Real& x) {
    for (std::uint64_t trials = k + 1; trials > 0; --trials) {
      if (!bernoulli_fraction(k, x)) return false;
    }
    return true;
  }

  // B: the run x > z1 > z2 > ..., prolonged each time with probability (2k + x) / (2k + 2) only.
  bool bernoulli_fraction(std::uint64_t k, Real& x) {
    Real z(words_);
    if (!Real::less(z, x, words_) || !prolong(k, x)) return true;
    for (bool even = false;; even = !even) {
      Real next(words_);
      if (!Real::less(next, z, words_) || !prolong(k, x)) return even;
      z = std::move(next);
    }
  }

  // C: of 2k + 2 equally likely cases one ends the run, one leaves it to a coin of probability x.
  bool prolong(std::uint64_t k, Real& x) {
    const std::uint64_t which = below(2 * k + 2);
    if (which == 0) return false;
    if (which > 1) return true;
    Real u(words_);
    return Real::less(u, x, words_);
  }

  // Uniform on 0 .. bound - 1. Bounds beyond one digit (k of 127 with 8-bit digits, whose
  // probability is below exp(-8000)) take several.
  std::uint64_t below(std::uint64_t bound) {
    std::uint64_t mask = bound - 1;
    for (int shift = 1; shift < 64; shift *= 2) mask |= mask >> shift;
    for (;;) {
      std::uint64_t value = words_.next();
      for (std::uint64_t rest = mask; digit_bits < 64 && (rest >>= digit_bits % 64) != 0;) {
        value = value << (digit_bits % 64) | words_.next();
      }
      value &= mask;
      if (value < bound) return value;
    }
  }

  Words<Digit> words_;
};

template <class Digit>
NormalsDrawn draw_all(std::span<const std::uint64_t> words, int lattice_bits,
                      std::span<std::int64_t> out) {
  AlgorithmN<Digit> sampler(words);
  NormalsDrawn drawn{0, 0};
  try {
    for (std::int64_t& value : out) {
      value = sampler.draw(lattice_bits);
      drawn = {drawn.normals + 1, sampler.words_used()};
    }
  } catch (const OutOfWords&) {
    // `drawn` stands at the last complete draw.
  }
  return drawn;
}

}  // namespace

NormalsDrawn draw_lattice_normals(std::span<const std::uint64_t> words, int lattice_bits,
                                  std::span<std::int64_t> out) {
  return draw_all<std::uint64_t>(words, lattice_bits, out);
}

NormalsDrawn draw_lattice_normals_short_digits(std::span<const std::uint64_t> words,
                                               int lattice_bits, std::span<std::int64_t> out) {
  return draw_all<std::uint8_t>(words, lattice_bits, out);
}

}  // namespace qexp
