// Which instruction set the kernels run on, decided once per process.
//
// A kernel `f` declares its copies with QEXP_DECLARE_PER_ISA(void f(...)) and calls the active one
// through QEXP_DISPATCH(f)(...). The environment variable QEXP_ISA (baseline, avx2, avx512) can
// lower the choice, never raise it above what the processor has.
#pragma once

#include <string_view>

namespace qexp {

enum class Isa { baseline, avx2, avx512 };

Isa active_isa() noexcept;
std::string_view isa_name(Isa isa) noexcept;

}  // namespace qexp

#ifdef QEXP_X86_DISPATCH
#define QEXP_DECLARE_PER_ISA(...) \
  namespace baseline {            \
  __VA_ARGS__;                    \
  }                               \
  namespace avx2 {                \
  __VA_ARGS__;                    \
  }                               \
  namespace avx512 {              \
  __VA_ARGS__;                    \
  }
#define QEXP_DISPATCH(f)                                           \
  (::qexp::active_isa() == ::qexp::Isa::avx512 ? ::qexp::avx512::f \
   : ::qexp::active_isa() == ::qexp::Isa::avx2 ? ::qexp::avx2::f   \
                                               : ::qexp::baseline::f)
#else
#define QEXP_DECLARE_PER_ISA(...) \
  namespace baseline {            \
  __VA_ARGS__;                    \
  }
#define QEXP_DISPATCH(f) (::qexp::baseline::f)
#endif
