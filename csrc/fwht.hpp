// Fast Walsh-Hadamard transform: rows of n = 2^b numbers, in place, x <- H x with H_ij = (-1)^<i,j>
// (Hadamard order, unnormalised, so H H = n I).
//
// Butterflies run through the bits of the index in ascending order, as in the textbook loop, and
// are additions and subtractions alone. Blocking, vectors and threads choose only *when* a
// butterfly is computed, so every output has the same bits on every instruction set, with any
// number of threads, and wherever its row stands in the batch.
//
// For large n the time goes to memory, and between the caches as much as outside of them. A row is
// therefore cut in eight, and each part again, until a leaf fits the first-level cache: whatever
// the sizes of the caches, all that fits one is done while it is there, and eight streams a pass
// are few enough that a power-of-two distance between them evicts none of them from its set of
// lines.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "dispatch.hpp"
#include "parallel.hpp"

namespace qexp {

// In place on `rows` rows of n numbers each (n a power of two), the first elements of consecutive
// rows row_stride apart.
template <class T>
void fwht(T* data, std::size_t rows, std::size_t n, std::ptrdiff_t row_stride);

extern template void fwht<float>(float*, std::size_t, std::size_t, std::ptrdiff_t);
extern template void fwht<double>(double*, std::size_t, std::size_t, std::ptrdiff_t);

// ---------------------------------------------------------------- parts shared with srht.cpp

QEXP_DECLARE_PER_ISA(
    /* In place on n contiguous numbers that fit the first-level cache. */
    template <class T> void fwht_leaf(T* x, std::size_t n);

    /* Transforms `width` adjacent columns of a matrix with 2, 4 or 8 rows from source to target,
       which may be the same. */
    template <class T>
    void fwht_columns(const T* source, std::size_t source_stride, T* target,
                      std::size_t target_stride, std::size_t rows, std::size_t width);

    /* target[i] = (-1)^s source[i] * scale, s = bit first + i of signs. */
    template <class T> void signed_scale(const T* source, const std::uint64_t* signs,
                                         std::size_t first, std::size_t count, T scale, T* target))

namespace fwht_parts {

// Work below this many bytes a thread is not worth a thread.
inline constexpr std::size_t grain_bytes = 131072;

template <class T>
inline constexpr std::size_t leaf_size = 32768 / sizeof(T);

// The last step of a transform of n numbers: `rows` transforms of `stride` numbers each, then
// columns over them. rows == 1: n fits a leaf.
struct Split {
  std::size_t rows;
  std::size_t stride;

  // Columns, panel by panel, where something else is done with each panel; or threads share them.
  template <class T>
  std::size_t panel_width() const {
    constexpr std::size_t panel = 16384 / sizeof(T);
    return std::min(stride, panel / rows);
  }
};

template <class T>
constexpr Split split(std::size_t n) {
  if (n <= leaf_size<T>) return {1, n};
  const std::size_t leaves = n / leaf_size<T>;
  const std::size_t rows = leaves == 16 ? 4 : std::min<std::size_t>(8, leaves);  // 16 = 4 x 4
  return {rows, n / rows};
}

inline constexpr std::size_t alignment = 64;
struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

// Uninitialised, so that memory no thread touches is never committed. Long strides through a large
// row miss the address cache at every step, so such a row asks for large pages.
template <class T>
Buffer<T> make_buffer(std::size_t count) {
  constexpr std::size_t large_page = std::size_t{1} << 21;
  const std::size_t bytes = count * sizeof(T);
  const std::size_t unit = bytes >= large_page ? large_page : alignment;
  const std::size_t whole = (bytes + unit - 1) / unit * unit;
  void* const memory = std::aligned_alloc(unit, whole);
  if (memory == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (unit == large_page) madvise(memory, whole, MADV_HUGEPAGE);
#endif
  return Buffer<T>(static_cast<T*>(memory));
}

// Room for a panel of any split.
template <class T>
struct Panel {
  alignas(alignment) T values[16384 / sizeof(T)];
};

// How many numbers stand before the first one at a cache line's start. A whole register that
// straddles two lines costs two accesses, and arrays from elsewhere often stand askew.
template <class T>
std::size_t askew(const T* x) {
  const auto past = reinterpret_cast<std::uintptr_t>(x) % alignment;
  return past % sizeof(T) == 0 ? (alignment - past) % alignment / sizeof(T) : 0;
}

// Columns [begin, end), both multiples of a cache line's numbers, counted from the first cache
// line's start. The last ones are those after the last line and those before the first, which a
// copy puts beside each other.
template <class T>
void columns_in_place(T* x, const Split& s, std::size_t begin, std::size_t end) {
  const auto kernel = QEXP_DISPATCH(fwht_columns<T>);
  const std::size_t before = askew(x);
  T* const lines = x + before;
  const bool edge = before > 0 && end == s.stride;
  constexpr std::size_t line = alignment / sizeof(T);
  const std::size_t last = edge ? s.stride - line : end;
  kernel(lines + begin, s.stride, lines + begin, s.stride, s.rows, last - begin);
  if (!edge) return;
  alignas(alignment) T both[8 * line];
  for (std::size_t i = 0; i < s.rows; ++i) {
    std::copy_n(x + i * s.stride, before, both + i * line);
    std::copy_n(lines + last + i * s.stride, line - before, both + i * line + before);
  }
  kernel(both, line, both, line, s.rows, line);
  for (std::size_t i = 0; i < s.rows; ++i) {
    std::copy_n(both + i * line, before, x + i * s.stride);
    std::copy_n(both + i * line + before, line - before, lines + last + i * s.stride);
  }
}

// Transforms the n numbers at x, which are numbers `offset` and on of their row. fill(offset,
// count, x) puts a leaf's numbers in place just before they are used.
template <class T, class Fill>
void transform(T* x, std::size_t n, std::size_t offset, const Fill& fill) {
  const Split s = split<T>(n);
  if (s.rows == 1) {
    fill(offset, n, x);
    QEXP_DISPATCH(fwht_leaf<T>)(x, n);
    return;
  }
  for (std::size_t i = 0; i < s.rows; ++i) {
    transform(x + i * s.stride, s.stride, offset + i * s.stride, fill);
  }
  columns_in_place(x, s, 0, s.stride);
}

}  // namespace fwht_parts
}  // namespace qexp
