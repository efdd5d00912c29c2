#include "triangular.hpp"

#include "product.hpp"

namespace qexp {
namespace {

constexpr std::int64_t inverse_leaf = 16;

std::int64_t halved(std::int64_t n, std::int64_t leaf) {
  return (n / 2 + leaf - 1) / leaf * leaf;
}

template <class T>
struct Halves {
  MatrixView<T> l11, l21, l22;
  Halves(MatrixView<T> l, std::int64_t k)
      : l11(l.block(0, 0, k, k)),
        l21(l.block(k, 0, l.rows - k, k)),
        l22(l.block(k, k, l.rows - k, l.rows - k)) {}
};

// Forward substitution, one column of the inverse after another: for its leaves.
template <class T>
void invert_leaf(MatrixView<T> l) {
  for (std::int64_t j = 0; j < l.rows; ++j) {
    l(j, j) = T{1} / l(j, j);
    for (std::int64_t i = j + 1; i < l.rows; ++i) {
      T sum = 0;
      for (std::int64_t k = j; k < i; ++k) sum += l(i, k) * l(k, j);
      l(i, j) = -sum / l(i, i);
    }
  }
}

}  // namespace

template <class T>
void triangular_solve(const Blas& blas, Side side, Transpose transpose, MatrixView<const T> l,
                      MatrixView<T> b) {
  if (l.rows == 0 || b.rows == 0 || b.cols == 0) return;
  if (l.rows <= solve_leaf_size) {
    solve_leaf(blas, side, transpose, l, b);
    return;
  }
  const std::int64_t k = halved(l.rows, solve_leaf_size);
  const Halves<const T> half(l, k);
  const bool left = side == Side::left;
  const auto b1 = left ? b.block(0, 0, k, b.cols) : b.block(0, 0, b.rows, k);
  const auto b2 = left ? b.block(k, 0, b.rows - k, b.cols) : b.block(0, k, b.rows, b.cols - k);
  const auto eliminate = [&](MatrixView<T> from, MatrixView<const T> solved) {
    if (left) {
      add_product(blas, from, T{-1}, Factor<T>{half.l21, transpose}, Factor<T>{solved});
    } else {
      add_product(blas, from, T{-1}, Factor<T>{solved}, Factor<T>{half.l21, transpose});
    }
  };
  // L X = B and X Lᵀ = B start from the top of L, the other two from its bottom.
  if (left == (transpose == Transpose::no)) {
    triangular_solve(blas, side, transpose, half.l11, b1);
    eliminate(b2, b1);
    triangular_solve(blas, side, transpose, half.l22, b2);
  } else {
    triangular_solve(blas, side, transpose, half.l22, b2);
    eliminate(b1, b2);
    triangular_solve(blas, side, transpose, half.l11, b1);
  }
}

template <class T>
void triangular_inverse_inplace(const Blas& blas, MatrixView<T> l) {
  if (l.rows <= inverse_leaf) {
    invert_leaf(l);
    return;
  }
  const Halves<T> half(l, halved(l.rows, inverse_leaf));
  // The lower left block of the inverse is −L22⁻¹ L21 L11⁻¹.
  triangular_solve<T>(blas, Side::left, Transpose::no, half.l22, half.l21);
  triangular_solve<T>(blas, Side::right, Transpose::no, half.l11, half.l21);
  for (std::int64_t i = 0; i < half.l21.rows; ++i) {
    for (std::int64_t j = 0; j < half.l21.cols; ++j) half.l21(i, j) = -half.l21(i, j);
  }
  triangular_inverse_inplace(blas, half.l11);
  triangular_inverse_inplace(blas, half.l22);
}

#define QEXP_INSTANTIATE(T)                                                         \
  template void triangular_solve(const Blas&, Side, Transpose, MatrixView<const T>, \
                                 MatrixView<T>);                                    \
  template void triangular_inverse_inplace(const Blas&, MatrixView<T>);
QEXP_INSTANTIATE(float)
QEXP_INSTANTIATE(double)
#undef QEXP_INSTANTIATE

}  // namespace qexp
