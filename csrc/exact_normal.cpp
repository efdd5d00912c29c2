#include "exact_normal.hpp"

#include <array>
#include <bit>
#include <utility>
#include <vector>

#include "exact_normal_weights.hpp"

namespace qexp {
namespace {

// How many bits of a word serve where.
struct LongDigits {
  static constexpr int head = 42, tail = 64, unit = 64;
};
struct ShortDigits {
  static constexpr int head = 4, tail = 4, unit = 8;
};

// A random word serves as one of three: the first word of a draw or a step of a run, as
//   slot (12 bits, lowest) | coin (9) | sign (1) | first digit of a uniform number (42, highest)
// of which a step of a run needs the coin and the digit, or as one later digit, or as plain bits.
constexpr std::size_t slots = 4096;
constexpr std::uint64_t slot_of(std::uint64_t word) {
  return word & (slots - 1);
}
constexpr std::uint64_t coin_of(std::uint64_t word) {
  return word >> 12 & 511;
}
constexpr bool sign_of(std::uint64_t word) {
  return (word >> 21 & 1) != 0;
}
template <int bits>
constexpr std::uint64_t top_bits(std::uint64_t word) {
  return word >> (64 - bits);
}

// Cells from here on weigh less than half as much as the one before, and together less than half
// a unit; sixteenths of a standard deviation.
constexpr std::uint64_t first_far_cell = 192;

template <class Digits>
struct Cells {
  // Twice the cell that owns a slot; too large for any coin where the slot is left over.
  static constexpr std::uint16_t left_over = 512;
  std::array<std::uint16_t, slots> twice_cell;
  std::size_t owned = 0;                            // the slots left over come after these
  std::array<std::uint64_t, first_far_cell> units;  // whole units of each cell's fraction

  Cells() {
    twice_cell.fill(left_over);
    for (std::uint64_t j = 0; j < first_far_cell; ++j) {
      for (std::uint64_t n = normal_weight_digits(j * j, 0); n > 0; --n) {
        twice_cell[owned++] = static_cast<std::uint16_t>(2 * j);
      }
      units[j] =
          normal_weight_digits(j * j, Digits::unit) & (~std::uint64_t{0} >> (64 - Digits::unit));
    }
  }

  static const Cells& table() {
    static const Cells cells;
    return cells;
  }
};

struct OutOfWords {};

class Words {
 public:
  explicit Words(std::span<const std::uint64_t> words) : words_(words) {}

  std::uint64_t next() {
    if (used_ == words_.size()) throw OutOfWords{};
    return words_[used_++];
  }
  std::size_t used() const { return used_; }

 private:
  std::span<const std::uint64_t> words_;
  std::size_t used_ = 0;
};

// A uniform number in (0, 1), known so far to its first digits; more are drawn on demand.
template <class Digits>
class Uniform {
 public:
  explicit Uniform(std::uint64_t word) : head_(top_bits<Digits::head>(word)) {}

  std::uint64_t head() const { return head_; }

  std::uint64_t tail(std::size_t i, Words& words) {
    if (i == tail_.size()) tail_.push_back(top_bits<Digits::tail>(words.next()));
    return tail_[i];
  }

  static bool less(Uniform& x, Uniform& y, Words& words) {
    if (x.head_ != y.head_) return x.head_ < y.head_;
    for (std::size_t i = 0;; ++i) {
      const std::uint64_t a = x.tail(i, words);
      const std::uint64_t b = y.tail(i, words);
      if (a != b) return a < b;
    }
  }

 private:
  std::uint64_t head_;
  std::vector<std::uint64_t> tail_;  // empty but for the rare ties
};

// One draw, with every case.
template <class Digits>
class Draw {
  using Real = Uniform<Digits>;

 public:
  explicit Draw(std::span<const std::uint64_t> words) : words_(words) {}

  std::size_t words_used() const { return words_.used(); }

  std::int64_t draw(int lattice_bits) {
    for (;;) {
      const std::uint64_t word = words_.next();
      std::uint64_t j = 0;
      if (!cell(slot_of(word), j)) continue;
      Real v(word);
      if (!accept(j, coin_of(word), v)) continue;
      const std::uint64_t magnitude = floor_of(j, v, lattice_bits);
      return static_cast<std::int64_t>(sign_of(word) ? ~magnitude : magnitude);
    }
  }

 private:
  // Step 2; false if the slot leads to no cell.
  bool cell(std::size_t slot, std::uint64_t& j) {
    const Cells<Digits>& cells = Cells<Digits>::table();
    if (slot < cells.owned) {
      j = cells.twice_cell[slot] / 2;
      return true;
    }
    // Where the number stands, in units, with the slots still to go apart from the units in one.
    std::uint64_t whole = slot - cells.owned;
    std::uint64_t rest = top_bits<Digits::unit>(words_.next());
    // Whether it lies beyond so many more units, which are then counted off.
    const auto beyond = [&](std::uint64_t count) {
      if (whole == 0 && rest < count) return false;
      if (rest < count) --whole;
      rest = (rest - count) & (~std::uint64_t{0} >> (64 - Digits::unit));
      return true;
    };
    for (j = 0; j < first_far_cell; ++j) {
      if (!beyond(cells.units[j])) return true;
      if (!beyond(1)) return below_fraction(j, Digits::unit);
    }
    return !beyond(1) && far_cell(j);
  }

  // All far cells share one unit. Cell 192 + g is proposed with probability 2^-(g + 1).
  bool far_cell(std::uint64_t& j) {
    std::uint64_t shift = 1;
    j = first_far_cell;
    for (;; ++j, ++shift) {
      if (coin_bit()) return below_fraction(j, Digits::unit + shift);
    }
  }

  // Whether a uniform number is below the fraction of 2^shift T_j.
  bool below_fraction(std::uint64_t j, std::size_t shift) {
    for (;;) {
      shift += Digits::tail;
      const std::uint64_t digit =
          normal_weight_digits(j * j, shift) & (~std::uint64_t{0} >> (64 - Digits::tail));
      const std::uint64_t drawn = top_bits<Digits::tail>(words_.next());
      if (drawn != digit) return drawn < digit;
    }
  }

  bool coin_bit() { return (words_.next() & 1) != 0; }

  // Step 3. Beyond x = 16, where p would exceed 1, the probability is split into several equal
  // factors.
  bool accept(std::uint64_t j, std::uint64_t coin, Real& v) {
    const std::uint64_t factors = j / 256 + 1;
    for (std::uint64_t trial = 0; trial < factors; ++trial) {
      if (trial > 0) coin = coin_of(words_.next());
      if (!even_run(j, factors, coin, v)) return false;
    }
    return true;
  }

  // True with probability exp(-v p) for p = (2j + v) / (512 factors).
  bool even_run(std::uint64_t j, std::uint64_t factors, std::uint64_t coin, Real& v) {
    Real z(0);
    Real* last = &v;
    for (bool even = true;; even = !even) {
      if (!prolong(j, factors, coin, v)) return even;
      const std::uint64_t word = words_.next();
      Real next(word);
      if (!Real::less(next, *last, words_)) return even;
      coin = coin_of(word);
      z = std::move(next);
      last = &z;
    }
  }

  bool prolong(std::uint64_t j, std::uint64_t factors, std::uint64_t coin, Real& v) {
    const std::uint64_t which = 512 * below(factors) + coin;
    if (which != 2 * j) return which < 2 * j;
    Real u(words_.next());
    return Real::less(u, v, words_);
  }

  // Uniform on 0 .. bound - 1.
  std::uint64_t below(std::uint64_t bound) {
    if (bound == 1) return 0;
    const std::uint64_t mask = std::bit_ceil(bound) - 1;
    for (;;) {
      const std::uint64_t value = words_.next() & mask;
      if (value < bound) return value;
    }
  }

  // floor(2^lattice_bits (j + v) / 16). Unsigned, so that an absurdly large j wraps.
  std::uint64_t floor_of(std::uint64_t j, Real& v, int lattice_bits) {
    const std::uint64_t known = j << Digits::head | v.head();
    const int missing = lattice_bits - 4 - Digits::head;
    if (missing <= 0) return known >> -missing;
    return known << missing | v.tail(0, words_) >> (Digits::tail - missing);
  }

  Words words_;
};

template <class Digits>
NormalsDrawn draw_all(std::span<const std::uint64_t> words, int lattice_bits,
                      std::span<std::int64_t> out) {
  const Cells<Digits>& cells = Cells<Digits>::table();
  const int spare = Digits::head + 4 - lattice_bits;
  NormalsDrawn drawn{0, 0};
  while (drawn.normals < out.size() && drawn.words < words.size()) {
    // Nineteen draws out of twenty: an owned slot and a coin that ends the run before it begins.
    const std::uint64_t word = words[drawn.words];
    const std::uint64_t twice = cells.twice_cell[slot_of(word)];
    if (coin_of(word) > twice && spare >= 0) [[likely]] {
      const std::uint64_t magnitude =
          (twice << (Digits::head - 1) | top_bits<Digits::head>(word)) >> spare;
      out[drawn.normals++] =
          static_cast<std::int64_t>(magnitude ^ -static_cast<std::uint64_t>(sign_of(word)));
      ++drawn.words;
      continue;
    }
    Draw<Digits> draw(words.subspan(drawn.words));
    try {
      out[drawn.normals] = draw.draw(lattice_bits);
    } catch (const OutOfWords&) {
      break;
    }
    ++drawn.normals;
    drawn.words += draw.words_used();
  }
  return drawn;
}

}  // namespace

NormalsDrawn draw_lattice_normals(std::span<const std::uint64_t> words, int lattice_bits,
                                  std::span<std::int64_t> out) {
  return draw_all<LongDigits>(words, lattice_bits, out);
}

NormalsDrawn draw_lattice_normals_short_digits(std::span<const std::uint64_t> words,
                                               int lattice_bits, std::span<std::int64_t> out) {
  return draw_all<ShortDigits>(words, lattice_bits, out);
}

}  // namespace qexp
