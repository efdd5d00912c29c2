#include "dispatch.hpp"

#include <algorithm>
#include <cstdlib>

namespace qexp {
namespace {

Isa best_supported() noexcept {
#ifdef QEXP_X86_DISPATCH
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa requested_limit() noexcept {
  const char* value = std::getenv("QEXP_ISA");
  if (value == nullptr) return Isa::avx512;
  for (Isa isa : {Isa::baseline, Isa::avx2}) {
    if (isa_name(isa) == value) return isa;
  }
  return Isa::avx512;
}

}  // namespace

Isa active_isa() noexcept {
  static const Isa isa = std::min(best_supported(), requested_limit());
  return isa;
}

std::string_view isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

}  // namespace qexp
