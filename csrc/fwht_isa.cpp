// The Walsh-Hadamard kernels that live in registers and the first-level cache; see fwht.hpp.
#include "simd.hpp"

namespace qexp::QEXP_ISA {
namespace {

template <class T>
using Register = typename Vec<T>::Register;

// +1 where bit H of the lane's number is clear, -1 where it is set.
template <class T, std::size_t H>
struct LaneSigns {
  alignas(64) T value[Vec<T>::width];
  constexpr LaneSigns() : value() {
    for (std::size_t i = 0; i < Vec<T>::width; ++i) value[i] = (i & H) ? T(-1) : T(1);
  }
};
template <class T, std::size_t H>
constexpr LaneSigns<T, H> lane_signs;

// Butterflies between lanes H apart: a + b in the lower one, a - b in the upper one. The product
// with +-1 is exact, so a fused and an unfused multiply-add round alike.
template <class T, std::size_t H, std::size_t N>
QEXP_INLINE void butterflies_in_lanes(Register<T> (&r)[N]) {
  if constexpr (H < Vec<T>::width) {
    const Register<T> signs = Vec<T>::load(lane_signs<T, H>.value);
#pragma GCC unroll 16
    for (std::size_t i = 0; i < N; ++i) r[i] = Vec<T>::fma(r[i], signs, swap_lanes<H>(r[i]));
    butterflies_in_lanes<T, 2 * H>(r);
  }
}

template <class T, std::size_t H, std::size_t N>
QEXP_INLINE void butterflies(Register<T> (&r)[N]) {
  if constexpr (H < N) {
#pragma GCC unroll 16
    for (std::size_t i = 0; i < N; ++i) {
      if ((i & H) == 0) {
        const Register<T> a = r[i], b = r[i + H];
        r[i] = Vec<T>::add(a, b);
        r[i + H] = Vec<T>::sub(a, b);
      }
    }
    butterflies<T, 2 * H>(r);
  }
}

// Whole transforms of N registers, one after another. Where the numbers straddle cache lines, the
// compiler is kept from reading them twice, which it prefers to holding them, and what comes next
// is asked for: processors foresee less of such a stream.
template <class T, std::size_t N, bool Straddling = false>
void base(const T* x, T* target, std::size_t n) {
  constexpr std::size_t width = Vec<T>::width;
  for (const T* end = x + n; x != end; x += N * width, target += N * width) {
    Register<T> r[N];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < N; ++i) {
      r[i] = Vec<T>::load(x + i * width);
#ifdef __AVX512F__
      if constexpr (Straddling) {
        asm("" : "+v"(r[i]));
        __builtin_prefetch(reinterpret_cast<const char*>(x + i * width) + 8192);
      }
#endif
    }
    butterflies_in_lanes<T, 1>(r);
    butterflies<T, 1>(r);
#pragma GCC unroll 16
    for (std::size_t i = 0; i < N; ++i) Vec<T>::store(target + i * width, r[i]);
  }
}

// `width` columns of R rows each.
template <class T, std::size_t R>
void radix(const T* source, std::size_t source_stride, T* target, std::size_t target_stride,
           std::size_t width) {
  for (std::size_t c = 0; c < width; c += Vec<T>::width) {
    Register<T> r[R];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < R; ++i) r[i] = Vec<T>::load(source + i * source_stride + c);
    butterflies<T, 1>(r);
#pragma GCC unroll 16
    for (std::size_t i = 0; i < R; ++i) Vec<T>::store(target + i * target_stride + c, r[i]);
  }
}

template <class T>
void radix(std::size_t rows, const T* source, std::size_t source_stride, T* target,
           std::size_t target_stride, std::size_t width) {
  switch (rows) {
    case 2:
      return radix<T, 2>(source, source_stride, target, target_stride, width);
    case 4:
      return radix<T, 4>(source, source_stride, target, target_stride, width);
    case 8:
      return radix<T, 8>(source, source_stride, target, target_stride, width);
    default:
      return radix<T, 16>(source, source_stride, target, target_stride, width);
  }
}

// Half of the registers, so that a butterfly's temporaries fit beside them.
constexpr std::size_t most_registers = register_count / 2;

template <class T>
void textbook(T* x, std::size_t n) {
  for (std::size_t h = 1; h < n; h *= 2) {
    for (std::size_t i = 0; i < n; ++i) {
      if ((i & h) == 0) {
        const T a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
    }
  }
}

// The stages from stride h < n on, of which the last one moves x to the target.
template <class T>
void upper_stages(T* x, T* target, std::size_t n, std::size_t h) {
  for (;;) {
    const std::size_t rest = n / h;
    if (rest <= most_registers) return radix(rest, x, h, target, h, h);
    constexpr std::size_t digit = 8;
    for (std::size_t i = 0; i < n; i += digit * h) radix(digit, x + i, h, x + i, h, h);
    h *= digit;
  }
}

// Registers that straddle two cache lines cost two accesses. Numbers that stand so are moved to
// `panel` by the first stage and back by the last, and straddle nothing in between.
template <class T>
void leaf(T* x, std::size_t n) {
  constexpr std::size_t width = Vec<T>::width;
  if (n < width) return textbook(x, n);
  switch (n / width) {
    case 1:
      return base<T, 1>(x, x, n);
    case 2:
      return base<T, 2>(x, x, n);
    case 4:
      return base<T, 4>(x, x, n);
    case 8:
      return base<T, 8>(x, x, n);
  }
  constexpr std::size_t whole = most_registers * width;
  if (n == whole) return base<T, most_registers>(x, x, n);
  alignas(64) T panel[32768 / sizeof(T)];  // leaf_size of fwht.hpp
  if (reinterpret_cast<std::uintptr_t>(x) % (width * sizeof(T)) == 0) {
    base<T, most_registers>(x, x, n);
    return upper_stages(x, x, n, whole);
  }
  base<T, most_registers, true>(x, panel, n);
  upper_stages(panel, x, n, whole);
}

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = std::uint32_t;
};
template <>
struct BitsOf<double> {
  using type = std::uint64_t;
};

template <class T>
QEXP_INLINE void scale_chunk(const T* source, typename BitsOf<T>::type signs, std::size_t count,
                             T scale, T* target) {
  using Bits = typename BitsOf<T>::type;
  for (std::size_t i = 0; i < count; ++i) {
    const T product = source[i] * scale;
    Bits bits;
    __builtin_memcpy(&bits, &product, sizeof bits);
    bits ^= (signs >> i) << (8 * sizeof(T) - 1);
    __builtin_memcpy(target + i, &bits, sizeof bits);
  }
}

template <class T>
void scaled(const T* source, const std::uint64_t* signs, std::size_t first, std::size_t count,
            T scale, T* target) {
  using Bits = typename BitsOf<T>::type;
  constexpr std::size_t chunk = 8 * sizeof(T);
  const auto bits = [=](std::size_t i) {
    return static_cast<Bits>(signs[(first + i) / 64] >> ((first + i) % 64));
  };
  std::size_t i = 0;
  if (first % chunk == 0) {  // a count the compiler knows: whole registers, no remainders
    for (; i + chunk <= count; i += chunk) {
      scale_chunk(source + i, bits(i), chunk, scale, target + i);
    }
  }
  while (i < count) {
    const std::size_t rest = chunk - (first + i) % chunk;
    const std::size_t run = count - i < rest ? count - i : rest;
    scale_chunk(source + i, bits(i), run, scale, target + i);
    i += run;
  }
}

}  // namespace

template <class T>
void fwht_leaf(T* x, std::size_t n) {
  leaf(x, n);
}

template <class T>
void fwht_columns(const T* source, std::size_t source_stride, T* target, std::size_t target_stride,
                  std::size_t rows, std::size_t width) {
  radix(rows, source, source_stride, target, target_stride, width);
}

template <class T>
void signed_scale(const T* source, const std::uint64_t* signs, std::size_t first, std::size_t count,
                  T scale, T* target) {
  scaled(source, signs, first, count, scale, target);
}

#define QEXP_INSTANTIATE_FWHT(T)                                                                \
  template void fwht_leaf(T*, std::size_t);                                                     \
  template void fwht_columns(const T*, std::size_t, T*, std::size_t, std::size_t, std::size_t); \
  template void signed_scale(const T*, const std::uint64_t*, std::size_t, std::size_t, T, T*);
QEXP_INSTANTIATE_FWHT(float)
QEXP_INSTANTIATE_FWHT(double)
#undef QEXP_INSTANTIATE_FWHT

}  // namespace qexp::QEXP_ISA
