// A supply of random 64-bit words: the two fields of NumPy's bitgen_t that the kernels need.
#pragma once

#include <cstdint>

namespace qexp {

struct BitSource {
  void* state;
  std::uint64_t (*next_uint64)(void* state);

  std::uint64_t next() const { return next_uint64(state); }
};

}  // namespace qexp
