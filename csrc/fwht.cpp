#include "fwht.hpp"

#include <vector>

namespace qexp {
namespace {

using namespace fwht_parts;

constexpr auto in_place = [](std::size_t, std::size_t, auto*) {};

// One row by all threads: parts of it, then the columns over ever more of them.
template <class T>
void fwht_one_row(T* x, std::size_t n) {
  constexpr std::size_t parts_a_thread = 4;
  const std::size_t wanted = parts_a_thread * static_cast<std::size_t>(num_threads());
  std::vector<Split> splits;
  std::size_t part = n;
  while (n / part < wanted && split<T>(part).rows > 1) {
    splits.push_back(split<T>(part));
    part = splits.back().stride;
  }
  parallel_for_balanced(n / part, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) transform(x + i * part, part, 0, in_place);
  });
  for (; !splits.empty(); splits.pop_back()) {
    const Split s = splits.back();
    const std::size_t width = s.panel_width<T>(), panels = s.stride / width;
    parallel_for_balanced(n / (s.rows * width), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t column = i % panels * width;
        columns_in_place(x + i / panels * s.rows * s.stride, s, column, column + width);
      }
    });
  }
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
  parallel_for_balanced(rows, grain_bytes / (n * sizeof(T)),
                        [&](std::size_t begin, std::size_t end) {
                          for (std::size_t i = begin; i < end; ++i)
                            transform(row(i), n, 0, in_place);
                        });
}

template void fwht<float>(float*, std::size_t, std::size_t, std::ptrdiff_t);
template void fwht<double>(double*, std::size_t, std::size_t, std::ptrdiff_t);

}  // namespace qexp
