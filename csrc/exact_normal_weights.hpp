// Digits of the exact normal sampler's weights, as many as anyone asks for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qexp {

// T = 199 exp(-n / 512) has an endless binary expansion (e to a rational power but 0 is
// irrational). Gives floor(2^bits T) modulo 2^64, always right: integer arithmetic with a proven
// error bound, repeated in a higher precision until the bound leaves no choice. For n below 2^50.
//
// 199 is the largest integer for which the sum of T over n = 0, 1, 4, 9, ... is below 4096.
std::uint64_t normal_weight_digits(std::uint64_t n, std::size_t bits);

}  // namespace qexp
