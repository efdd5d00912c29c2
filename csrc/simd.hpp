// Vec<T>: one register of the instruction set that this source is being compiled for.
//
// Included only by sources that CMake compiles for one instruction set, which QEXP_ISA names:
// *_isa.cpp for each of them, product_avx512.cpp for its own. What these define lives in
// qexp::<QEXP_ISA> or has internal linkage, and what they call of other headers is inlined always,
// so the copies never meet. A function that is merely inline, as the standard library's are, would
// be emitted as a weak symbol, which the linker could take from the AVX-512 copy for everyone. A
// test looks for such symbols in the objects.
//
// fma() is fused on every set but x86-64's baseline, which has no such instruction. Kernels that
// apply one fma chain per output element therefore give the same bits under AVX2, AVX-512 and
// NEON, whatever the register width.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef QEXP_ISA
#error "simd.hpp is for sources that CMake compiles once per instruction set"
#endif

namespace qexp::QEXP_ISA {

template <class T>
struct Vec;

#define QEXP_INLINE static inline __attribute__((always_inline))
#define QEXP_DEFINE_VEC(T, REG, WIDTH, LOAD, STORE, SET1, ADD, SUB, MUL, FMA)    \
  template <>                                                                    \
  struct Vec<T> {                                                                \
    using Register = REG;                                                        \
    static constexpr std::size_t width = WIDTH;                                  \
    QEXP_INLINE Register load(const T* p) { return LOAD; }                       \
    QEXP_INLINE void store(T* p, Register v) { STORE; }                          \
    QEXP_INLINE Register broadcast(T s) { return SET1; }                         \
    QEXP_INLINE Register add(Register a, Register b) { return ADD; }             \
    QEXP_INLINE Register sub(Register a, Register b) { return SUB; }             \
    QEXP_INLINE Register mul(Register a, Register b) { return MUL; }             \
    /* a * b + c */                                                              \
    QEXP_INLINE Register fma(Register a, Register b, Register c) { return FMA; } \
  };

#if defined(__AVX512F__)
QEXP_DEFINE_VEC(double, __m512d, 8, _mm512_loadu_pd(p), _mm512_storeu_pd(p, v), _mm512_set1_pd(s),
                _mm512_add_pd(a, b), _mm512_sub_pd(a, b), _mm512_mul_pd(a, b),
                _mm512_fmadd_pd(a, b, c))
QEXP_DEFINE_VEC(float, __m512, 16, _mm512_loadu_ps(p), _mm512_storeu_ps(p, v), _mm512_set1_ps(s),
                _mm512_add_ps(a, b), _mm512_sub_ps(a, b), _mm512_mul_ps(a, b),
                _mm512_fmadd_ps(a, b, c))
#elif defined(__AVX2__)
QEXP_DEFINE_VEC(double, __m256d, 4, _mm256_loadu_pd(p), _mm256_storeu_pd(p, v), _mm256_set1_pd(s),
                _mm256_add_pd(a, b), _mm256_sub_pd(a, b), _mm256_mul_pd(a, b),
                _mm256_fmadd_pd(a, b, c))
QEXP_DEFINE_VEC(float, __m256, 8, _mm256_loadu_ps(p), _mm256_storeu_ps(p, v), _mm256_set1_ps(s),
                _mm256_add_ps(a, b), _mm256_sub_ps(a, b), _mm256_mul_ps(a, b),
                _mm256_fmadd_ps(a, b, c))
#elif defined(__SSE2__)
QEXP_DEFINE_VEC(double, __m128d, 2, _mm_loadu_pd(p), _mm_storeu_pd(p, v), _mm_set1_pd(s),
                _mm_add_pd(a, b), _mm_sub_pd(a, b), _mm_mul_pd(a, b),
                _mm_add_pd(_mm_mul_pd(a, b), c))
QEXP_DEFINE_VEC(float, __m128, 4, _mm_loadu_ps(p), _mm_storeu_ps(p, v), _mm_set1_ps(s),
                _mm_add_ps(a, b), _mm_sub_ps(a, b), _mm_mul_ps(a, b),
                _mm_add_ps(_mm_mul_ps(a, b), c))
#elif defined(__aarch64__)
QEXP_DEFINE_VEC(double, float64x2_t, 2, vld1q_f64(p), vst1q_f64(p, v), vdupq_n_f64(s),
                vaddq_f64(a, b), vsubq_f64(a, b), vmulq_f64(a, b), vfmaq_f64(c, a, b))
QEXP_DEFINE_VEC(float, float32x4_t, 4, vld1q_f32(p), vst1q_f32(p, v), vdupq_n_f32(s),
                vaddq_f32(a, b), vsubq_f32(a, b), vmulq_f32(a, b), vfmaq_f32(c, a, b))
#else
QEXP_DEFINE_VEC(double, double, 1, *p, *p = v, s, a + b, a - b, a* b, __builtin_fma(a, b, c))
QEXP_DEFINE_VEC(float, float, 1, *p, *p = v, s, a + b, a - b, a* b, __builtin_fmaf(a, b, c))
#endif

#undef QEXP_DEFINE_VEC

// swap_lanes<H>(v): lane i of the result is lane i XOR H of v, for H a power of two below the
// width.
#if defined(__AVX512F__)
// Full masks instead of the unmasked intrinsics: GCC 12 warns of an uninitialised operand in those.
template <std::size_t H>
QEXP_INLINE __m512d swap_lanes(__m512d v) {
  if constexpr (H == 1) return _mm512_maskz_permute_pd(0xFF, v, 0x55);
  if constexpr (H == 2) return _mm512_maskz_permutex_pd(0xFF, v, 0x4E);
  if constexpr (H == 4) return _mm512_maskz_shuffle_f64x2(0xFF, v, v, 0x4E);
}
template <std::size_t H>
QEXP_INLINE __m512 swap_lanes(__m512 v) {
  if constexpr (H == 1) return _mm512_maskz_permute_ps(0xFFFF, v, 0xB1);
  if constexpr (H == 2) return _mm512_maskz_permute_ps(0xFFFF, v, 0x4E);
  if constexpr (H == 4) return _mm512_maskz_shuffle_f32x4(0xFFFF, v, v, 0xB1);
  if constexpr (H == 8) return _mm512_maskz_shuffle_f32x4(0xFFFF, v, v, 0x4E);
}
#elif defined(__AVX2__)
template <std::size_t H>
QEXP_INLINE __m256d swap_lanes(__m256d v) {
  if constexpr (H == 1) return _mm256_permute_pd(v, 0x5);
  if constexpr (H == 2) return _mm256_permute2f128_pd(v, v, 0x01);
}
template <std::size_t H>
QEXP_INLINE __m256 swap_lanes(__m256 v) {
  if constexpr (H == 1) return _mm256_permute_ps(v, 0xB1);
  if constexpr (H == 2) return _mm256_permute_ps(v, 0x4E);
  if constexpr (H == 4) return _mm256_permute2f128_ps(v, v, 0x01);
}
#elif defined(__SSE2__)
template <std::size_t H>
QEXP_INLINE __m128d swap_lanes(__m128d v) {
  return _mm_shuffle_pd(v, v, 0x1);
}
template <std::size_t H>
QEXP_INLINE __m128 swap_lanes(__m128 v) {
  if constexpr (H == 1) return _mm_shuffle_ps(v, v, 0xB1);
  if constexpr (H == 2) return _mm_shuffle_ps(v, v, 0x4E);
}
#elif defined(__aarch64__)
template <std::size_t H>
QEXP_INLINE float64x2_t swap_lanes(float64x2_t v) {
  return vextq_f64(v, v, 1);
}
template <std::size_t H>
QEXP_INLINE float32x4_t swap_lanes(float32x4_t v) {
  if constexpr (H == 1) return vrev64q_f32(v);
  if constexpr (H == 2) return vextq_f32(v, v, 2);
}
#else
template <std::size_t H, class T>
QEXP_INLINE T swap_lanes(T v) {
  return v;  // never called: there is one lane
}
#endif

// How many registers a kernel may keep live without spilling.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr std::size_t register_count = 32;
#else
inline constexpr std::size_t register_count = 16;
#endif

}  // namespace qexp::QEXP_ISA
