// Fast Walsh-Hadamard transform: rows of n = 2^b numbers, in place, x <- H x with H_ij = (-1)^<i,j>
// (Hadamard order, unnormalised, so H H = n I).
//
// Butterflies run through the bits of the index in ascending order, as in the textbook loop, and
// are additions and subtractions alone. Blocking, vectors and threads choose only *when* a
// butterfly is computed, so every output has the same bits on every instruction set, with any
// number of threads, and wherever its row stands in the batch.
//
// For large n the time goes to memory. A row is therefore cut twice: leaves that fit the
// first-level cache are transformed whole, then all higher bits are done at once, column panel by
// column panel, in a small buffer beside the row (a power-of-two stride would map a panel left in
// place onto very few cache sets).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
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

    /* Transforms `width` adjacent columns of a matrix with `rows` rows (a power of two, at least
       two) from source to target, which may be the same. Rows from `live` on (a multiple of
       columns_digit, or all) are zero and are not read. `panel` holds rows * width numbers; it may
       itself be the target, with stride `width`. */
    template <class T> void fwht_columns(const T* source, std::size_t source_stride, T* target,
                                         std::size_t target_stride, std::size_t rows,
                                         std::size_t live, std::size_t width, T* panel);

    /* target[i] = (-1)^s source[i] * scale, s = bit first + i of signs. */
    template <class T> void signed_scale(const T* source, const std::uint64_t* signs,
                                         std::size_t first, std::size_t count, T scale, T* target))

namespace fwht_parts {

// Rows whose butterflies fwht_columns reads from the source in one go.
inline constexpr std::size_t columns_digit = 8;

// Work below this many bytes a thread is not worth a thread.
inline constexpr std::size_t grain_bytes = 131072;

template <class T>
inline constexpr std::size_t leaf_size = 32768 / sizeof(T);

// The last step of a transform of n numbers: `rows` transforms of `stride` numbers each, then
// columns over them, `width` at a time. rows == 1: n fits a leaf.
struct Split {
  std::size_t rows;
  std::size_t stride;
  std::size_t width;

  std::size_t panels() const { return stride / width; }
};

// Sizes in bytes, measured: half a second-level cache for sub-transforms; panels that fit the first
// level and are wide enough for memory to deliver whole bursts.
template <class T>
constexpr Split split(std::size_t n) {
  constexpr std::size_t second_level = 524288 / sizeof(T);
  constexpr std::size_t most_rows = 256;
  constexpr std::size_t panel = 16384 / sizeof(T), narrowest = 512 / sizeof(T);
  if (n <= leaf_size<T>) return {1, n, n};
  const std::size_t rows =
      n <= second_level ? n / leaf_size<T> : std::min(most_rows, n / second_level);
  return {rows, n / rows, std::max(narrowest, panel / rows)};
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

// Room for the widest panel of any split, on the stack of the thread that works in it.
template <class T>
struct Panel {
  alignas(alignment) T values[131072 / sizeof(T)];
};

// How many numbers stand before the first one at a cache line's start. A whole register that
// straddles two lines costs two accesses, and arrays from elsewhere often stand askew.
template <class T>
std::size_t askew(const T* x) {
  const auto past = reinterpret_cast<std::uintptr_t>(x) % alignment;
  return past % sizeof(T) == 0 ? (alignment - past) % alignment / sizeof(T) : 0;
}

// Panel `index` of the columns. Panels begin at cache lines; the last one also does the columns
// before the first line and after the last, which a copy puts beside each other.
template <class T>
void columns_in_place(T* x, const Split& s, std::size_t index, Panel<T>& panel) {
  const auto kernel = QEXP_DISPATCH(fwht_columns<T>);
  const std::size_t before = askew(x);
  T* const from = x + before + index * s.width;
  if (before == 0 || index + 1 < s.panels()) {
    return kernel(from, s.stride, from, s.stride, s.rows, s.rows, s.width, panel.values);
  }
  constexpr std::size_t line = alignment / sizeof(T);
  const std::size_t whole = s.width - line, after = line - before;
  kernel(from, s.stride, from, s.stride, s.rows, s.rows, whole, panel.values);
  T* const edge = panel.values + std::size(panel.values) / 2;
  for (std::size_t i = 0; i < s.rows; ++i) {
    std::copy_n(x + i * s.stride, before, edge + i * line);
    std::copy_n(from + whole + i * s.stride, after, edge + i * line + before);
  }
  kernel(edge, line, edge, line, s.rows, s.rows, line, panel.values);
  for (std::size_t i = 0; i < s.rows; ++i) {
    std::copy_n(edge + i * line, before, x + i * s.stride);
    std::copy_n(edge + i * line + before, after, from + whole + i * s.stride);
  }
}

// Transforms the n numbers at x, which are numbers `offset` and on of their row. fill(offset,
// count, x) puts a leaf's numbers in place just before they are used.
template <class T, class Fill>
void transform(T* x, std::size_t n, std::size_t offset, Panel<T>& panel, const Fill& fill) {
  const Split s = split<T>(n);
  if (s.rows == 1) {
    fill(offset, n, x);
    QEXP_DISPATCH(fwht_leaf<T>)(x, n);
    return;
  }
  for (std::size_t i = 0; i < s.rows; ++i) {
    transform(x + i * s.stride, s.stride, offset + i * s.stride, panel, fill);
  }
  for (std::size_t i = 0; i < s.panels(); ++i) columns_in_place(x, s, i, panel);
}

}  // namespace fwht_parts
}  // namespace qexp
