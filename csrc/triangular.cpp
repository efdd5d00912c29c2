#include "triangular.hpp"

#include <cmath>
#include <limits>
#include <vector>

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

// Forward or backward substitution, row by row: for the leaves of the inverse.
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

template <class T>
double one_norm(MatrixView<const T> l) {
  std::vector<double> sums(static_cast<std::size_t>(l.cols), 0.0);
  for (std::int64_t i = 0; i < l.rows; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      sums[static_cast<std::size_t>(j)] += std::abs(static_cast<double>(l(i, j)));
    }
  }
  double largest = 0;
  for (double sum : sums) largest = sum > largest || std::isnan(sum) ? sum : largest;
  return largest;
}

template <class T>
double one_norm(const std::vector<T>& x) {
  double sum = 0;
  for (T value : x) sum += std::abs(static_cast<double>(value));
  return sum;
}

// ‖L⁻¹‖₁ is the maximum of the convex function ‖L⁻¹x‖₁ over the unit ball, whose corners are ±eⱼ:
// walk from corner to corner along the subgradient L⁻ᵀ sign(L⁻¹x) while that promises an increase.
template <class T>
double inverse_one_norm(const Blas& blas, MatrixView<const T> l) {
  const std::int64_t n = l.rows;
  const auto size = static_cast<std::size_t>(n);
  const auto solve = [&](std::vector<T>& x, Transpose transpose) {
    triangular_solve(blas, Side::left, transpose, l, MatrixView<T>{x.data(), n, 1, 1});
  };
  std::vector<T> x(size, T{1} / static_cast<T>(n));
  double estimate = 0;
  constexpr int most_steps = 5;
  for (int step = 0; step < most_steps; ++step) {
    std::vector<T> y = x;
    solve(y, Transpose::no);
    const double reached = one_norm(y);
    if (step > 0 && !(reached > estimate)) break;
    estimate = reached;
    for (T& value : y) value = value < 0 ? T{-1} : T{1};
    solve(y, Transpose::yes);
    std::size_t corner = 0;
    double along = 0;
    for (std::size_t i = 0; i < size; ++i) {
      if (std::abs(y[i]) > std::abs(y[corner])) corner = i;
      along += static_cast<double>(y[i]) * static_cast<double>(x[i]);
    }
    if (!(std::abs(static_cast<double>(y[corner])) > along)) break;
    x.assign(size, T{0});
    x[corner] = 1;
  }
  // Higham's extra vector catches matrices whose cancellations stop the walk at once.
  for (std::size_t i = 0; i < size; ++i) {
    const double ramp = n == 1 ? 0.0 : static_cast<double>(i) / static_cast<double>(n - 1);
    x[i] = static_cast<T>((i % 2 == 0 ? 1 : -1) * (1 + ramp));
  }
  solve(x, Transpose::no);
  const double alternative = 2 * one_norm(x) / (3 * static_cast<double>(n));
  return alternative > estimate || std::isnan(alternative) ? alternative : estimate;
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

template <class T>
double triangular_condition(const Blas& blas, MatrixView<const T> l) {
  if (l.rows == 0) return 1;
  const double condition = one_norm(l) * inverse_one_norm(blas, l);
  return std::isfinite(condition) ? condition : std::numeric_limits<double>::infinity();
}

#define QEXP_INSTANTIATE(T)                                                         \
  template void triangular_solve(const Blas&, Side, Transpose, MatrixView<const T>, \
                                 MatrixView<T>);                                    \
  template void triangular_inverse_inplace(const Blas&, MatrixView<T>);             \
  template double triangular_condition(const Blas&, MatrixView<const T>);
QEXP_INSTANTIATE(float)
QEXP_INSTANTIATE(double)
#undef QEXP_INSTANTIATE

}  // namespace qexp
