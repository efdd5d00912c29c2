// tanh of many numbers at once.
//
// A library's tanh takes one number at a time, chooses its formula by jumps on its value, and
// differs from one library to the next. This one takes the same steps for all numbers, so that the
// compiler can take them by the register; it is within 3 units of the last place, and its bits are
// those of any machine with fused multiply-adds.
#pragma once

#include <cstddef>

#include "dispatch.hpp"

namespace qexp {

// x[i] = tanh(x[i]). A NaN stays a NaN.
QEXP_DECLARE_PER_ISA(void tanh_f32(float* x, std::size_t n))
QEXP_DECLARE_PER_ISA(void tanh_f64(double* x, std::size_t n))

}  // namespace qexp
