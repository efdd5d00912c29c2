#include "gram.hpp"

#include <algorithm>
#include <vector>

namespace qexp {
namespace {

// A tile of H (float64) and its float32 partial sum stay in a second-level cache of 1 MiB while
// all row blocks are added to it.
constexpr std::int64_t tile = 256;

}  // namespace

void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const double> rows,
                     double weight) {
  blas.syrk(Triangle::upper, Transpose::no, rows.cols, rows.rows, weight, rows.data, rows.stride,
            1.0, h.data, h.stride);
}

void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const float> rows,
                     double weight) {
  const std::int64_t k = rows.cols;
  std::vector<float> partial(static_cast<std::size_t>(std::min(tile, k) * std::min(tile, k)));
  for (std::int64_t i = 0; i < k; i += tile) {
    for (std::int64_t j = 0; j <= i; j += tile) {
      const auto target = h.block(i, j, std::min(tile, k - i), std::min(tile, k - j));
      for (std::int64_t r = 0; r < rows.rows; r += gram_float_rows) {
        const std::int64_t count = std::min(gram_float_rows, rows.rows - r);
        const float* first = &rows(r, i);
        const float* second = &rows(r, j);
        if (i == j) {
          blas.syrk(Triangle::upper, Transpose::no, target.cols, count, 1.0f, first, rows.stride,
                    0.0f, partial.data(), target.cols);
        } else {
          blas.gemm(Transpose::no, Transpose::yes, target.cols, target.rows, count, 1.0f, second,
                    rows.stride, first, rows.stride, 0.0f, partial.data(), target.cols);
        }
        for (std::int64_t a = 0; a < target.rows; ++a) {
          const std::int64_t filled = i == j ? a + 1 : target.cols;
          const float* from = partial.data() + a * target.cols;
          double* to = &target(a, 0);
          for (std::int64_t b = 0; b < filled; ++b) to[b] += weight * static_cast<double>(from[b]);
        }
      }
    }
  }
}

}  // namespace qexp
