// Dense products and small triangular solves in AVX-512 registers.
//
// They stand in for BLAS where the processor has AVX-512: a BLAS library may not use it (OpenBLAS
// runs its 256-bit kernels on the Zen family) and pays for its generality on narrow panels. Each
// element of a result is one chain of fused multiply-adds in an order that depends on its row and
// column of factors alone, so the caller may split the work among threads without changing bits.
#pragma once

#include <cstdint>

namespace qexp::avx512 {

// Any matrix with regular strides: element (i, j) is data[i * row + j * column].
template <class T>
struct Strided {
  T* data;
  std::int64_t row, column;
};

// Extent of the inner dimension that is summed in registers before it is added to the result. Deep
// enough to hide that addition, whose tile may come from memory; in float32 the depth also bounds
// the error of the sums, see add_lower_square in csrc/product.hpp.
template <class T>
inline constexpr std::int64_t product_depth = sizeof(T) == 4 ? 256 : 512;
inline constexpr std::int64_t product_rows = 96;
inline constexpr std::int64_t product_columns = 2048;
// Elements of workspace for a product, at most.
template <class T>
inline constexpr std::int64_t product_workspace =
    product_depth<T> * (product_rows + product_columns);

// C += alpha A B for a row-major C of m×n, an inner dimension k, and only where j <= i + diagonal.
// `workspace` is aligned to 64 bytes.
template <class T, class Sum>
void add_product(std::int64_t m, std::int64_t n, std::int64_t k, Sum alpha, Strided<const T> a,
                 Strided<const T> b, Sum* c, std::int64_t ldc, std::int64_t diagonal, T* workspace);

// Largest triangle of solve_leaf, how many of its unknowns and columns of X are in registers at a
// time (of float; half as many columns of double), and its elements of workspace, aligned to 64
// bytes.
inline constexpr std::int64_t leaf_size = 64, leaf_chunk = 8, leaf_columns = 32;
inline constexpr std::int64_t leaf_workspace = leaf_size * (leaf_size + leaf_chunk + leaf_columns);

// Forward substitution in place: T X = X for a lower triangular T of order n <= leaf_size and many
// columns of X. Backward substitution is this with both indices of T, and X's rows, running down.
template <class T>
void solve_leaf(std::int64_t n, std::int64_t columns, Strided<const T> t, Strided<T> x,
                T* workspace);

}  // namespace qexp::avx512
