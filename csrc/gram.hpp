// Gram matrix of a stream of rows: H += weight · rowsᵀ rows.
//
// H is k×k, in double precision, and only its lower triangle is touched. Rows of float64 are
// multiplied and summed in float64. Rows of float32 are multiplied and summed in float32 over at
// most 256 rows, and those partial sums are added up in float64: twice the speed of
// widening the rows first, and an error that does not grow with the length of the stream.
#pragma once

#include "blas.hpp"

namespace qexp {

// `rows` is m×k with any m; `weight` scales this block alone.
void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const double> rows,
                     double weight);
void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const float> rows,
                     double weight);

}  // namespace qexp
