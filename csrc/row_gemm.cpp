#include "row_gemm.hpp"

#include <algorithm>
#include <cstdint>

#include "parallel.hpp"

namespace qexp {
namespace {

// A panel of B of this depth takes half of a first-level cache (16 doubles x 192 = 24 KiB); a
// block of A of this many tiles stays in the second level while all panels pass by.
constexpr std::size_t block_depth = 192;
constexpr std::size_t block_tiles = 16;

// Multiply-adds that repay the start of one more thread.
constexpr std::size_t work_per_thread = std::size_t{1} << 22;

template <class T>
RowGemmTile<T> active_tile();
template <>
RowGemmTile<double> active_tile() {
  return QEXP_DISPATCH(row_gemm_tile_f64)();
}
template <>
RowGemmTile<float> active_tile() {
  return QEXP_DISPATCH(row_gemm_tile_f32)();
}

}  // namespace

template <class T>
PackedMatrix<T>::PackedMatrix(const T* b, std::size_t rows, std::size_t columns,
                              std::ptrdiff_t row_stride, std::ptrdiff_t column_stride,
                              Filled filled)
    : tile_(active_tile<T>()),
      rows_(rows),
      columns_(columns),
      filled_(filled),
      panel_offset_([&] {
        std::vector<std::size_t> offset{0};
        for (std::size_t panel = 0; panel * tile_.columns < columns; ++panel) {
          offset.push_back(offset.back() + panel_depth(panel) * tile_.columns);
        }
        return offset;
      }()),
      packed_(panel_offset_.back()) {
  parallel_for(panel_offset_.size() - 1, 1 + work_per_thread / (1 + rows * tile_.columns),
               [&](std::size_t begin, std::size_t end) {
                 for (std::size_t panel = begin; panel < end; ++panel) {
                   const std::size_t first = panel * tile_.columns;
                   const std::size_t width = std::min(tile_.columns, columns - first);
                   T* out = packed_.data() + panel_offset_[panel];
                   for (std::size_t l = 0; l < panel_depth(panel); ++l, out += tile_.columns) {
                     for (std::size_t j = 0; j < width; ++j) {
                       if (filled == Filled::upper && l > first + j) continue;
                       out[j] = b[static_cast<std::ptrdiff_t>(l) * row_stride +
                                  static_cast<std::ptrdiff_t>(first + j) * column_stride];
                     }
                   }
                 }
               });
}

// How many rows of B matter to the columns of this panel.
template <class T>
std::size_t PackedMatrix<T>::panel_depth(std::size_t panel) const noexcept {
  if (filled_ == Filled::full) return rows_;
  const std::size_t group = panel * tile_.columns / row_gemm_column_group;
  return std::min(rows_, (group + 1) * row_gemm_column_group);
}

template <class T>
std::size_t PackedMatrix<T>::scratch_size(std::size_t rows_of_a) const noexcept {
  const std::size_t tiles = std::min(block_tiles, divide_up(rows_of_a, tile_.rows));
  return tile_.rows * (tiles * std::min(block_depth, rows_) + tile_.columns);
}

// Tile after tile, each with its rows side by side: packed[l * tile_.rows + r] = a[r][l].
template <class T>
template <class S>
void PackedMatrix<T>::pack_rows(RowView<const S> a, std::size_t l_begin, std::size_t l_count,
                                T* packed) const noexcept {
  for (std::size_t first = 0; first < a.count; first += tile_.rows) {
    for (std::size_t r = 0; r < tile_.rows; ++r) {
      T* out = packed + r;
      if (first + r < a.count) {
        const S* row = a[first + r] + l_begin;
        for (std::size_t l = 0; l < l_count; ++l) out[l * tile_.rows] = static_cast<T>(row[l]);
      } else {
        for (std::size_t l = 0; l < l_count; ++l) out[l * tile_.rows] = T{0};
      }
    }
    packed += tile_.rows * l_count;
  }
}

// A tile that C does not fill: the same kernel, on a copy with zeros around it.
template <class T>
void PackedMatrix<T>::apply_edge(std::size_t depth, const T* a, const T* b, RowView<T> c,
                                 std::size_t width, bool load_c, T* tile_of_c) const noexcept {
  std::fill_n(tile_of_c, tile_.rows * tile_.columns, T{0});
  if (load_c) {
    for (std::size_t r = 0; r < c.count; ++r) {
      std::copy_n(c[r], width, tile_of_c + r * tile_.columns);
    }
  }
  tile_.apply(depth, a, b, tile_of_c, static_cast<std::ptrdiff_t>(tile_.columns), load_c);
  for (std::size_t r = 0; r < c.count; ++r) {
    std::copy_n(tile_of_c + r * tile_.columns, width, c[r]);
  }
}

template <class T>
template <class S>
void PackedMatrix<T>::multiply_serial(RowView<const S> a, RowView<T> c, bool accumulate,
                                      std::span<T> scratch) const noexcept {
  if (rows_ == 0 && !accumulate) {
    for (std::size_t i = 0; i < c.count; ++i) std::fill_n(c[i], columns_, T{0});
  }
  T* packed_a = scratch.data();
  T* tile_of_c = packed_a + (scratch_size(a.count) - tile_.rows * tile_.columns);
  const std::size_t panels = panel_offset_.size() - 1;
  const std::size_t block_rows = block_tiles * tile_.rows;

  for (std::size_t i = 0; i < a.count; i += block_rows) {
    const std::size_t m = std::min(block_rows, a.count - i);
    for (std::size_t l = 0; l < rows_; l += block_depth) {
      const std::size_t packed_depth = std::min(block_depth, rows_ - l);
      const bool load_c = accumulate || l > 0;
      pack_rows(a.subrows(i, m), l, packed_depth, packed_a);
      for (std::size_t panel = 0; panel < panels; ++panel) {
        if (panel_depth(panel) <= l) continue;
        const std::size_t depth = std::min(packed_depth, panel_depth(panel) - l);
        const std::size_t first_column = panel * tile_.columns;
        const std::size_t width = std::min(tile_.columns, columns_ - first_column);
        const T* b = packed_.data() + panel_offset_[panel] + l * tile_.columns;
        for (std::size_t r = 0; r < m; r += tile_.rows) {
          const T* tile_of_a = packed_a + r * packed_depth;
          const RowView<T> target{c[i + r] + first_column, std::min(tile_.rows, m - r), c.stride};
          if (target.count == tile_.rows && width == tile_.columns) {
            tile_.apply(depth, tile_of_a, b, target.data, target.stride, load_c);
          } else {
            apply_edge(depth, tile_of_a, b, target, width, load_c, tile_of_c);
          }
        }
      }
    }
  }
}

template <class T>
template <class S>
void PackedMatrix<T>::multiply(RowView<const S> a, RowView<T> c, bool accumulate) const {
  const std::size_t tiles = divide_up(a.count, tile_.rows);
  const std::size_t work_per_tile = std::max<std::size_t>(1, tile_.rows * rows_ * columns_);
  const std::size_t parts =
      std::clamp<std::size_t>(tiles / divide_up(work_per_thread, work_per_tile), 1,
                              static_cast<std::size_t>(num_threads()));
  const std::size_t rows_per_part = divide_up(tiles, parts) * tile_.rows;
  const std::size_t scratch_per_part = scratch_size(std::min(a.count, rows_per_part));
  const AlignedArray<T> scratch(parts * scratch_per_part);
  parallel_for(parts, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t part = begin; part < end; ++part) {
      const std::size_t first = std::min(a.count, part * rows_per_part);
      const std::size_t m = std::min(rows_per_part, a.count - first);
      multiply_serial(a.subrows(first, m), c.subrows(first, m), accumulate,
                      std::span<T>(scratch.data() + part * scratch_per_part, scratch_per_part));
    }
  });
}

template class PackedMatrix<float>;
template class PackedMatrix<double>;

#define QEXP_INSTANTIATE(S, T)                                                                     \
  template void PackedMatrix<T>::multiply(RowView<const S>, RowView<T>, bool) const;               \
  template void PackedMatrix<T>::multiply_serial(RowView<const S>, RowView<T>, bool, std::span<T>) \
      const noexcept;
QEXP_INSTANTIATE(float, float)
QEXP_INSTANTIATE(double, double)
QEXP_INSTANTIATE(float, double)
#undef QEXP_INSTANTIATE

}  // namespace qexp
