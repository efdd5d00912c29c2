#include "product.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "dispatch.hpp"
#include "parallel.hpp"
#ifdef QEXP_X86_DISPATCH
#include "product_avx512.hpp"
#endif

namespace qexp {
namespace {

constexpr std::int64_t everywhere = std::numeric_limits<std::int64_t>::max() / 2;

#ifdef QEXP_X86_DISPATCH
static_assert(float_square_depth == avx512::product_depth<float>);
static_assert(solve_leaf_size == avx512::leaf_size);

struct alignas(64) CacheLine {
  std::byte bytes[64];
};

// Kept from call to call: fresh pages for every panel of a factorisation would cost as much as the
// products with it.
template <class T>
T* workspace(std::int64_t elements) {
  static thread_local std::vector<CacheLine> lines;
  const std::size_t needed = (static_cast<std::size_t>(elements) * sizeof(T) + 63) / 64;
  if (lines.size() < needed) lines.resize(needed);
  return reinterpret_cast<T*>(lines.data());
}

template <class T>
avx512::Strided<const T> strided(const Factor<T>& f) {
  if (f.transpose == Transpose::no) return {f.matrix.data, f.matrix.stride, 1};
  return {f.matrix.data, 1, f.matrix.stride};
}

// Tiles of C are independent, and how C is cut changes no bits; without threads one tile is best.
template <class T, class Sum>
void multiply(MatrixView<Sum> c, Sum alpha, const Factor<T>& a, const Factor<T>& b, bool lower) {
  const std::int64_t k = a.cols();
  const bool alone = num_threads() == 1 || c.rows * c.cols * k < 4'000'000;
  const std::int64_t side = alone ? std::max<std::int64_t>({c.rows, c.cols, 1}) : 384;
  struct Tile {
    std::int64_t i, j;
  };
  std::vector<Tile> tiles;
  for (std::int64_t i = 0; i < c.rows; i += side) {
    for (std::int64_t j = 0; j < (lower ? i + 1 : c.cols); j += side) tiles.push_back({i, j});
  }
  const auto left = strided(a), right = strided(b);
  parallel_for(tiles.size(), 1, [&](std::size_t begin, std::size_t end) {
    T* const space = workspace<T>(avx512::product_workspace<T>);
    for (std::size_t at = begin; at < end; ++at) {
      const auto [i, j] = tiles[at];
      avx512::add_product<T, Sum>(std::min(side, c.rows - i), std::min(side, c.cols - j), k, alpha,
                                  {left.data + i * left.row, left.row, left.column},
                                  {right.data + j * right.column, right.row, right.column},
                                  &c(i, j), c.stride, lower ? i - j : everywhere, space);
    }
  });
}
#endif

}  // namespace

bool has_own_products() noexcept {
  return active_isa() == Isa::avx512;
}

template <class T>
void add_product(const Blas& blas, MatrixView<T> c, T alpha, Factor<T> a, Factor<T> b) {
#ifdef QEXP_X86_DISPATCH
  if (has_own_products()) return multiply(c, alpha, a, b, false);
#endif
  // BLAS sees every row-major factor transposed, hence in the opposite order.
  blas.gemm(b.transpose, a.transpose, c.cols, c.rows, a.cols(), alpha, b.matrix.data,
            b.matrix.stride, a.matrix.data, a.matrix.stride, T{1}, c.data, c.stride);
}

template <class T>
void add_lower_square(const Blas& blas, MatrixView<T> c, T alpha, Factor<T> a) {
  const Transpose other = a.transpose == Transpose::no ? Transpose::yes : Transpose::no;
#ifdef QEXP_X86_DISPATCH
  if (has_own_products()) return multiply(c, alpha, a, Factor<T>{a.matrix, other}, true);
#endif
  blas.syrk(Triangle::upper, other, c.rows, a.cols(), alpha, a.matrix.data, a.matrix.stride, T{1},
            c.data, c.stride);
}

void add_lower_square(const Blas& blas, MatrixView<double> c, double alpha, Factor<float> a) {
  const Transpose other = a.transpose == Transpose::no ? Transpose::yes : Transpose::no;
#ifdef QEXP_X86_DISPATCH
  if (has_own_products()) return multiply(c, alpha, a, Factor<float>{a.matrix, other}, true);
#endif
  // A tile of C and its partial sum stay in the second-level cache while all depths are added.
  constexpr std::int64_t tile = 256;
  const std::int64_t k = c.rows, depth = a.cols();
  const auto part = [&](std::int64_t line, std::int64_t first) {
    return a.transpose == Transpose::no ? &a.matrix(line, first) : &a.matrix(first, line);
  };
  std::vector<float> partial(static_cast<std::size_t>(std::min(tile, k) * std::min(tile, k)));
  for (std::int64_t i = 0; i < k; i += tile) {
    for (std::int64_t j = 0; j <= i; j += tile) {
      const auto target = c.block(i, j, std::min(tile, k - i), std::min(tile, k - j));
      for (std::int64_t p = 0; p < depth; p += float_square_depth) {
        const std::int64_t count = std::min(float_square_depth, depth - p);
        if (i == j) {
          blas.syrk(Triangle::upper, other, target.cols, count, 1.0f, part(i, p), a.matrix.stride,
                    0.0f, partial.data(), target.cols);
        } else {
          blas.gemm(other, a.transpose, target.cols, target.rows, count, 1.0f, part(j, p),
                    a.matrix.stride, part(i, p), a.matrix.stride, 0.0f, partial.data(),
                    target.cols);
        }
        for (std::int64_t r = 0; r < target.rows; ++r) {
          const std::int64_t filled = i == j ? r + 1 : target.cols;
          const float* from = partial.data() + r * target.cols;
          double* to = &target(r, 0);
          for (std::int64_t s = 0; s < filled; ++s) to[s] += alpha * static_cast<double>(from[s]);
        }
      }
    }
  }
}

template <class T>
void solve_leaf(const Blas& blas, Side side, Transpose transpose, MatrixView<const T> l,
                MatrixView<T> b) {
#ifdef QEXP_X86_DISPATCH
  if (has_own_products()) {
    // X op(L) = B is op(L)ᵀ Xᵀ = Bᵀ; what is then upper triangular is lower when read backwards.
    const bool left = side == Side::left;
    const bool backward = left == (transpose == Transpose::yes);
    avx512::Strided<T> x{b.data, left ? b.stride : 1, left ? 1 : b.stride};
    avx512::Strided<const T> t{l.data, l.stride, 1};
    if (backward) {
      const std::int64_t last = l.rows - 1;
      x = {x.data + last * x.row, -x.row, x.column};
      t = {l.data + last * (l.stride + 1), -1, -l.stride};
    }
    constexpr std::size_t grain = 512;
    const auto columns = static_cast<std::size_t>(left ? b.cols : b.rows);
    parallel_for(columns, grain, [&](std::size_t begin, std::size_t end) {
      const auto first = static_cast<std::int64_t>(begin);
      avx512::solve_leaf(l.rows, static_cast<std::int64_t>(end - begin), t,
                         {x.data + first * x.column, x.row, x.column},
                         workspace<T>(avx512::leaf_workspace));
    });
    return;
  }
#endif
  blas.trsm(side == Side::left ? Side::right : Side::left, Triangle::upper, transpose, b.cols,
            b.rows, l.data, l.stride, b.data, b.stride);
}

#define QEXP_INSTANTIATE(T)                                                       \
  template void add_product(const Blas&, MatrixView<T>, T, Factor<T>, Factor<T>); \
  template void add_lower_square(const Blas&, MatrixView<T>, T, Factor<T>);       \
  template void solve_leaf(const Blas&, Side, Transpose, MatrixView<const T>, MatrixView<T>);
QEXP_INSTANTIATE(float)
QEXP_INSTANTIATE(double)
#undef QEXP_INSTANTIATE

}  // namespace qexp
