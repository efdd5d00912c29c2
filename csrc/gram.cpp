#include "gram.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "product.hpp"

namespace qexp {
namespace {

// In blocks as deep as the products sum in registers, so that weights cost no pass over H.
template <class T>
void accumulate_weighted(const Blas& blas, MatrixView<double> h, MatrixView<const T> rows,
                         double weight, std::span<const double> row_weights) {
  constexpr std::int64_t depth = 2 * float_square_depth;
  const std::int64_t k = rows.cols;
  // Kept from call to call: fresh pages would cost more than the products that fill them.
  static thread_local std::vector<T> scaled;
  scaled.resize(static_cast<std::size_t>(std::min(depth, rows.rows) * k));
  for (std::int64_t first = 0; first < rows.rows; first += depth) {
    const std::int64_t count = std::min(depth, rows.rows - first);
    for (std::int64_t r = 0; r < count; ++r) {
      const T root = static_cast<T>(std::sqrt(row_weights[static_cast<std::size_t>(first + r)]));
      const T* const from = &rows(first + r, 0);
      T* const to = scaled.data() + r * k;
      for (std::int64_t j = 0; j < k; ++j) to[j] = root * from[j];
    }
    gram_accumulate(blas, h, MatrixView<const T>{scaled.data(), count, k, k}, weight);
  }
}

}  // namespace

void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const double> rows,
                     double weight) {
  add_lower_square(blas, h, weight, Factor<double>{rows, Transpose::yes});
}

void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const float> rows,
                     double weight) {
  add_lower_square(blas, h, weight, Factor<float>{rows, Transpose::yes});
}

void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const double> rows,
                     double weight, std::span<const double> row_weights) {
  accumulate_weighted(blas, h, rows, weight, row_weights);
}

void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const float> rows,
                     double weight, std::span<const double> row_weights) {
  accumulate_weighted(blas, h, rows, weight, row_weights);
}

}  // namespace qexp
