#include "fwht.hpp"

namespace qexp {
namespace {

using namespace fwht_parts;

constexpr auto in_place = [](std::size_t, std::size_t, auto*) {};

// One row by all threads: its sub-transforms, then its column panels.
template <class T>
void fwht_one_row(T* x, std::size_t n) {
  const Split s = split<T>(n);
  parallel_for_balanced(s.rows, 1, [&](std::size_t begin, std::size_t end) {
    Panel<T> panel;
    for (std::size_t i = begin; i < end; ++i) {
      transform(x + i * s.stride, s.stride, i * s.stride, panel, in_place);
    }
  });
  parallel_for_balanced(s.panels(), 1, [&](std::size_t begin, std::size_t end) {
    Panel<T> panel;
    for (std::size_t i = begin; i < end; ++i) columns_in_place(x, s, i, panel);
  });
}

}  // namespace

template <class T>
void fwht(T* data, std::size_t rows, std::size_t n, std::ptrdiff_t row_stride) {
  if (n <= 1) return;
  const auto row = [&](std::size_t i) {
    return data + static_cast<std::ptrdiff_t>(i) * row_stride;
  };
  const std::size_t threads = static_cast<std::size_t>(num_threads());
  if (rows < threads && n * sizeof(T) >= threads * grain_bytes) {
    for (std::size_t i = 0; i < rows; ++i) fwht_one_row(row(i), n);
    return;
  }
  parallel_for_balanced(rows, grain_bytes / (n * sizeof(T)), [&](std::size_t begin, std::size_t end) {
    Panel<T> panel;
    for (std::size_t i = begin; i < end; ++i) transform(row(i), n, 0, panel, in_place);
  });
}

template void fwht<float>(float*, std::size_t, std::size_t, std::ptrdiff_t);
template void fwht<double>(double*, std::size_t, std::size_t, std::ptrdiff_t);

}  // namespace qexp
