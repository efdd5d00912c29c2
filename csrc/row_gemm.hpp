// C = A B or C += A B, where the bits of a row of C depend on that row of A and on B alone.
//
// A library's matrix product may choose its order of summation by the shape of the batch; a
// private record would then leave traces in its neighbours' bits. Here every element of C is one
// chain of fused multiply-adds over l = 0, 1, ..., k - 1, whatever the number of rows, the row's
// position, the number of threads, and the instruction set (x86-64's baseline, which has no fused
// multiply-add, gives bits of its own). A NaN in one row of A stays in that row of C.
//
// B is public and packed once, into panels as wide as the register tile. C itself carries the
// chain from one block of k to the next, which keeps the order plain while B's panel stays in
// cache. Rows and columns that a tile lacks are padded with zeros.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "row_gemm_tile.hpp"

namespace qexp {

// Zero-initialised memory on a cache line's boundary.
template <class T>
class AlignedArray {
 public:
  explicit AlignedArray(std::size_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), alignment))), size_(size) {
    std::uninitialized_value_construct_n(data_.get(), size);
  }

  T* data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(T* p) const noexcept { ::operator delete(p, alignment); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_;
};

// A matrix whose rows are contiguous, `stride` elements apart.
template <class T>
struct RowView {
  T* data;
  std::size_t count;
  std::ptrdiff_t stride;

  T* operator[](std::size_t i) const noexcept {
    return data + static_cast<std::ptrdiff_t>(i) * stride;
  }
  RowView subrows(std::size_t begin, std::size_t n) const noexcept {
    return {(*this)[begin], n, stride};
  }
  operator RowView<const T>() const noexcept { return {data, count, stride}; }
};

// upper: elements below the diagonal (row > column) are taken as zero and never read. Parts of B
// that this makes zero are skipped, so a NaN in column l of A reaches column l of C and those to
// its right, and some of those just left of it.
enum class Filled { full, upper };

template <class T>
class PackedMatrix {
 public:
  PackedMatrix(const T* b, std::size_t rows, std::size_t columns, std::ptrdiff_t row_stride,
               std::ptrdiff_t column_stride, Filled filled = Filled::full);

  std::size_t rows() const noexcept { return rows_; }
  std::size_t columns() const noexcept { return columns_; }
  std::size_t bytes() const noexcept { return packed_.size() * sizeof(T); }

  // a.count == c.count, A is (m, rows), C is (m, columns), and they do not overlap. S may be
  // narrower than T; A is then widened first.
  template <class S>
  void multiply(RowView<const S> a, RowView<T> c, bool accumulate = false) const;

  // The same on the calling thread, for callers with threads of their own.
  // scratch.size() >= scratch_size(a.count).
  template <class S>
  void multiply_serial(RowView<const S> a, RowView<T> c, bool accumulate,
                       std::span<T> scratch) const noexcept;
  std::size_t scratch_size(std::size_t rows_of_a) const noexcept;

 private:
  std::size_t panel_depth(std::size_t panel) const noexcept;
  template <class S>
  void pack_rows(RowView<const S> a, std::size_t l_begin, std::size_t l_count,
                 T* packed) const noexcept;
  void apply_edge(std::size_t depth, const T* a, const T* b, RowView<T> c, std::size_t width,
                  bool load_c, T* tile_of_c) const noexcept;

  RowGemmTile<T> tile_;
  std::size_t rows_;
  std::size_t columns_;
  Filled filled_;
  std::vector<std::size_t> panel_offset_;  // one more than there are panels
  AlignedArray<T> packed_;
};

}  // namespace qexp
