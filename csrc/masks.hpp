// Choices without jumps, for values that time must not betray.
#pragma once

#include <cstdint>

namespace qexp {

// A conditional expression may become a jump, whose time tells the condition. Inlined always, as
// one source uses it on several instruction sets.
__attribute__((always_inline)) inline double choose(bool condition, double yes, double no) {
  const std::uint64_t mask = -static_cast<std::uint64_t>(condition);
  return __builtin_bit_cast(double, (__builtin_bit_cast(std::uint64_t, yes) & mask) |
                                        (__builtin_bit_cast(std::uint64_t, no) & ~mask));
}

}  // namespace qexp
