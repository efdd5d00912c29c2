#include "gram.hpp"

#include "product.hpp"

namespace qexp {

void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const double> rows,
                     double weight) {
  add_lower_square(blas, h, weight, Factor<double>{rows, Transpose::yes});
}

void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const float> rows,
                     double weight) {
  add_lower_square(blas, h, weight, Factor<float>{rows, Transpose::yes});
}

}  // namespace qexp
