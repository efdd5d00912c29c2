// The innermost step of row_gemm: one register tile of C, compiled once per instruction set.
//
// Apart from row_gemm.hpp because the per-instruction-set source must not emit the standard
// library's inline code (see simd.hpp).
#pragma once

#include <cstddef>

#include "dispatch.hpp"

namespace qexp {

template <class T>
struct RowGemmTile {
  std::size_t rows;
  std::size_t columns;
  // c[r][j] = (load_c ? c[r][j] : 0) + sum over l < depth of a[l * rows + r] * b[l * columns + j],
  // as one chain of fused multiply-adds in the order of l.
  void (*apply)(std::size_t depth, const T* a, const T* b, T* c, std::ptrdiff_t c_stride,
                bool load_c);
};

// Tiles of every instruction set divide this width. The depth at which a triangular B is cut off
// is the same for the columns of one group, so that it does not depend on the instruction set.
inline constexpr std::size_t row_gemm_column_group = 32;

QEXP_DECLARE_PER_ISA(RowGemmTile<double> row_gemm_tile_f64())
QEXP_DECLARE_PER_ISA(RowGemmTile<float> row_gemm_tile_f32())

}  // namespace qexp
