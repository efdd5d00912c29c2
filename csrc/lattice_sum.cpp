#include "lattice_sum.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "masks.hpp"
#include "parallel.hpp"

namespace qexp {

void lattice_sum(const double* rows, std::size_t m, std::size_t k, std::size_t row_stride,
                 const LatticeScale& scale, std::uint64_t* total) {
  const auto add_rows = QEXP_DISPATCH(lattice_add_rows);
  std::mutex total_mutex;
  // A thread is worth starting for some hundred thousand entries.
  const std::size_t grain = 1 + 200'000 / (k + 1);
  parallel_for(m, grain, [&](std::size_t begin, std::size_t end) {
    std::vector<std::uint64_t> partial(k);
    add_rows(rows + begin * row_stride, end - begin, k, row_stride, scale, partial.data());
    const std::scoped_lock lock(total_mutex);
    for (std::size_t j = 0; j < k; ++j) total[j] += partial[j];
  });
}

namespace {

std::size_t padded(std::size_t n, std::size_t tile) {
  return (n + tile - 1) / tile * tile;
}

// One layer's factors, scaled or nulled record by record and padded to whole tiles.
struct ScaledFactors {
  std::size_t left_stride, right_stride;
  std::vector<double> left, right;

  ScaledFactors(const OuterProducts& layer, std::size_t m)
      : left_stride(padded(layer.n_left, outer_rows)),
        right_stride(padded(layer.n_right, outer_columns)),
        left(m * left_stride),
        right(m * right_stride) {}
};

}  // namespace

// Why ||z|| <= B needs no count of integers here. With u = 2^-53 and d the largest number of
// entries in a sum, at most 2^29:
//   - |z| <= |fl(fl(f l) r)| <= f |l| |r| (1 + u)^2 entrywise, as truncation only shrinks, so
//     ||z|| <= f N (1 + u)^2 with N the true joint norm;
//   - the computed squares are at least (1 - (d + 4) u) of the true ones, `least_square` standing
//     for what underflow may lose, so the computed norm is at least (1 - (d + 4) u) N;
//   - f <= q min(1, c (1 - 2^-20) / norm) (1 + 4u), and q c <= (B + 1)(1 + 2u) by the lattice's
//     choice.
// Together ||z|| <= (B + 1)(1 - 2^-20)(1 + (d + 16) u) <= (B + 1)(1 - 2^-20)(1 + 2^-23), which is
// below B for B >= 2^21. That last condition, and the scale's, are checked below. A joint norm that
// is no finite number nulls the record; a finite one implies finite factors, since an infinite
// factor makes it infinite or, times zero, a NaN.
void lattice_sum_outer(std::span<const OuterProducts> layers, std::size_t m,
                       const LatticeScale& scale, std::uint64_t* total) {
  constexpr double least_square = 1e-290;
  const auto squares = QEXP_DISPATCH(sum_of_squares);
  const auto scaled = QEXP_DISPATCH(scale_or_null);
  const auto tile = QEXP_DISPATCH(lattice_outer_tile);

  std::vector<ScaledFactors> factors;
  factors.reserve(layers.size());
  for (const OuterProducts& layer : layers) factors.emplace_back(layer, m);

  std::size_t entries = 1;
  for (const OuterProducts& layer : layers) entries += layer.n_left + layer.n_right;
  parallel_for(m, 1 + 200'000 / entries, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      double sum = 0;
      for (const OuterProducts& layer : layers) {
        sum += (squares(layer.left + i * layer.n_left, layer.n_left) + least_square) *
               (squares(layer.right + i * layer.n_right, layer.n_right) + least_square);
      }
      const double ratio = scale.clipping_norm * (1.0 - clipping_margin) / std::sqrt(sum);
      const double factor = scale.units_per_norm * choose(ratio >= 1.0, 1.0, ratio);
      const bool finite = sum <= std::numeric_limits<double>::max();
      for (std::size_t l = 0; l < layers.size(); ++l) {
        const OuterProducts& layer = layers[l];
        scaled(layer.left + i * layer.n_left, layer.n_left, factor, finite,
               factors[l].left.data() + i * factors[l].left_stride);
        scaled(layer.right + i * layer.n_right, layer.n_right, 1.0, finite,
               factors[l].right.data() + i * factors[l].right_stride);
      }
    }
  });

  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto [left, right, n_left, n_right] = layers[l];
    const ScaledFactors& f = factors[l];
    const std::size_t row_tiles = f.left_stride / outer_rows;
    const std::size_t column_tiles = f.right_stride / outer_columns;
    const std::size_t grain = 1 + 200'000 / (m * outer_rows * outer_columns + 1);
    parallel_for(row_tiles * column_tiles, grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t t = begin; t < end; ++t) {
        // Down the rows first: the strip of right factors stays in cache.
        const std::size_t r = t % row_tiles * outer_rows, c = t / row_tiles * outer_columns;
        tile(f.left.data() + r, f.left_stride, f.right.data() + c, f.right_stride, m,
             std::min(outer_rows, n_left - r), std::min(outer_columns, n_right - c),
             total + r * n_right + c, n_right);
      }
    });
    total += n_left * n_right;
  }
}

}  // namespace qexp
