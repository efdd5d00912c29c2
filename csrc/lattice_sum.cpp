#include "lattice_sum.hpp"

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "parallel.hpp"

namespace qexp {
namespace {

// A thread is worth starting for so many entries.
constexpr std::size_t grain_entries = 200'000;

}  // namespace

void lattice_sum(const double* rows, std::size_t m, std::size_t k, std::size_t row_stride,
                 const LatticeScale& scale, std::uint64_t* total) {
  const auto add_rows = QEXP_DISPATCH(lattice_add_rows);
  std::mutex total_mutex;
  const std::size_t grain = 1 + grain_entries / (k + 1);
  parallel_for(m, grain, [&](std::size_t begin, std::size_t end) {
    std::vector<std::uint64_t> partial(k);
    add_rows(rows + begin * row_stride, end - begin, k, row_stride, scale, partial.data());
    const std::scoped_lock lock(total_mutex);
    for (std::size_t j = 0; j < k; ++j) total[j] += partial[j];
  });
}

namespace {

// So many records at a time that a panel of right factors stays in a core's own cache while the
// left ones pass by.
constexpr std::size_t batch = 512;

// One layer's factors of a batch, scaled or nulled record by record, in panels. What a panel holds
// beyond the factors stays zero.
struct Panels {
  std::size_t left_stride, right_stride;
  std::vector<double> left, right;

  Panels(const OuterProducts& layer, std::size_t records)
      : left_stride(records * outer_rows),
        right_stride(records * outer_columns),
        left(divide_up(layer.n_left, outer_rows) * left_stride),
        right(divide_up(layer.n_right, outer_columns) * right_stride) {}
};

// Clips the records from `first` on by the joint norm of their factors, and scales these into
// panels.
//
// Why ||z|| <= B needs no count of integers here. With u = 2^-53 and d the largest number of
// entries in a sum, at most 2^29:
//   - |z| <= |fl(fl(f l) r)| <= f |l| |r| (1 + u)^2 entrywise, as truncation only shrinks, so
//     ||z|| <= f N (1 + u)^2 with N the true joint norm;
//   - the computed squares are at least (1 - (d + 4) u) of the true ones, `least_square` standing
//     for what underflow may lose, so the computed norm is at least (1 - (d + 4) u) N;
//   - f <= q min(1, c (1 - 2^-20) / norm) (1 + 4u), and q c <= (B + 1)(1 + 2u) by the lattice's
//     choice.
// Together ||z|| <= (B + 1)(1 - 2^-20)(1 + (d + 16) u) <= (B + 1)(1 - 2^-20)(1 + 2^-23), which is
// below B for B >= 2^21. That last condition, and the scale's, are checked where Python calls. A
// joint norm that is no finite number nulls the record; a finite one implies finite factors, since
// an infinite factor makes it infinite or, times zero, a NaN.
void scale_batch(std::span<const OuterProducts> layers, std::size_t first, std::size_t records,
                 const LatticeScale& scale, std::span<Panels> panels) {
  constexpr double least_square = 1e-290;
  const auto squares = QEXP_DISPATCH(sum_of_squares);
  const auto scaled = QEXP_DISPATCH(scale_or_null);
  std::size_t entries = 1;
  for (const OuterProducts& layer : layers) entries += layer.n_left + layer.n_right;
  parallel_for(records, 1 + grain_entries / entries, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      double sum = 0;
      for (const auto& [left, right, n_left, n_right] : layers) {
        sum += (squares(left + (first + i) * n_left, n_left) + least_square) *
               (squares(right + (first + i) * n_right, n_right) + least_square);
      }
      const double factor = clip_factor(sum, scale);
      const bool finite = sum <= std::numeric_limits<double>::max();
      for (std::size_t l = 0; l < layers.size(); ++l) {
        const auto& [left, right, n_left, n_right] = layers[l];
        Panels& p = panels[l];
        scaled(left + (first + i) * n_left, n_left, factor, finite, outer_rows,
               p.left.data() + i * outer_rows, p.left_stride);
        scaled(right + (first + i) * n_right, n_right, 1.0, finite, outer_columns,
               p.right.data() + i * outer_columns, p.right_stride);
      }
    }
  });
}

// total += the integers of one layer's outer products, from the panels of a batch.
void add_panels(const Panels& p, std::size_t records, std::size_t n_left, std::size_t n_right,
                std::uint64_t* total) {
  const auto tile = QEXP_DISPATCH(lattice_outer_tile);
  const std::size_t down = divide_up(n_left, outer_rows);
  const std::size_t across = divide_up(n_right, outer_columns);
  const std::size_t grain = 1 + grain_entries / (records * outer_rows * outer_columns);
  parallel_for(down * across, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      // Down the rows first: the panel of right factors stays in cache.
      const std::size_t left = t % down, right = t / down;
      const std::size_t r = left * outer_rows, c = right * outer_columns;
      tile(p.left.data() + left * p.left_stride, p.right.data() + right * p.right_stride, records,
           std::min(outer_rows, n_left - r), std::min(outer_columns, n_right - c),
           total + r * n_right + c, n_right);
    }
  });
}

}  // namespace

void lattice_sum_outer(std::span<const OuterProducts> layers, std::size_t m,
                       const LatticeScale& scale, std::uint64_t* total) {
  std::vector<Panels> panels;
  panels.reserve(layers.size());
  for (const OuterProducts& layer : layers) panels.emplace_back(layer, std::min(m, batch));
  for (std::size_t first = 0; first < m; first += batch) {
    const std::size_t records = std::min(batch, m - first);
    scale_batch(layers, first, records, scale, panels);
    std::uint64_t* matrix = total;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const std::size_t n_left = layers[l].n_left, n_right = layers[l].n_right;
      add_panels(panels[l], records, n_left, n_right, matrix);
      matrix += n_left * n_right;
    }
  }
}

}  // namespace qexp
