#include "row_gemm_tile.hpp"
#include "simd.hpp"

namespace qexp::QEXP_ISA {
namespace {

// Two registers of columns and as many rows as leave room for them and for a broadcast element.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr std::size_t tile_rows = 12;
#elif defined(__AVX2__)
constexpr std::size_t tile_rows = 6;
#else
constexpr std::size_t tile_rows = 4;
#endif

template <class T>
void apply_tile(std::size_t depth, const T* a, const T* b, T* c, std::ptrdiff_t c_stride,
                bool load_c) {
  using V = Vec<T>;
  static_assert(row_gemm_column_group % (2 * V::width) == 0);
  typename V::Register left[tile_rows];
  typename V::Register right[tile_rows];
  if (load_c) {
#pragma GCC unroll 16
    for (std::size_t r = 0; r < tile_rows; ++r) {
      const T* row = c + static_cast<std::ptrdiff_t>(r) * c_stride;
      left[r] = V::load(row);
      right[r] = V::load(row + V::width);
    }
  } else {
#pragma GCC unroll 16
    for (std::size_t r = 0; r < tile_rows; ++r) left[r] = right[r] = V::broadcast(T{0});
  }
  for (std::size_t l = 0; l < depth; ++l, a += tile_rows, b += 2 * V::width) {
    const auto b_left = V::load(b);
    const auto b_right = V::load(b + V::width);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < tile_rows; ++r) {
      const auto a_r = V::broadcast(a[r]);
      left[r] = V::fma(a_r, b_left, left[r]);
      right[r] = V::fma(a_r, b_right, right[r]);
    }
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < tile_rows; ++r) {
    T* row = c + static_cast<std::ptrdiff_t>(r) * c_stride;
    V::store(row, left[r]);
    V::store(row + V::width, right[r]);
  }
}

}  // namespace

RowGemmTile<double> row_gemm_tile_f64() {
  return {tile_rows, 2 * Vec<double>::width, apply_tile<double>};
}

RowGemmTile<float> row_gemm_tile_f32() {
  return {tile_rows, 2 * Vec<float>::width, apply_tile<float>};
}

}  // namespace qexp::QEXP_ISA
