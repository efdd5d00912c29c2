// Gram matrix of a stream of rows: H += weight · rowsᵀ rows, or weight · rowsᵀ W rows with a weight
// W_r >= 0 for every row.
//
// H is k×k, in double precision, and only its lower triangle is touched. Rows of float64 are
// multiplied and summed in float64. Rows of float32 are multiplied and summed in float32 over at
// most 256 rows, and those partial sums are added up in float64: twice the speed of
// widening the rows first, and an error that does not grow with the length of the stream.
#pragma once

#include <span>

#include "blas.hpp"

namespace qexp {

// `rows` is m×k with any m; `weight` scales this block alone.
void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const double> rows,
                     double weight);
void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const float> rows,
                     double weight);

// As many row weights as rows. A row is multiplied by its weight's square root, in its own
// precision, beside the kernel that reads it.
void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const double> rows,
                     double weight, std::span<const double> row_weights);
void gram_accumulate(const Blas& blas, MatrixView<double> h, MatrixView<const float> rows,
                     double weight, std::span<const double> row_weights);

}  // namespace qexp
