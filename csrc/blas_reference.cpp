// The reference provider: each routine as its definition, for the options that the kernels use.
#include <cmath>

#include "blas.hpp"

namespace qexp {
namespace {

using Int = std::int64_t;

template <class T>
void gemm(char* transa, char* transb, Int* m, Int* n, Int* k, T* alpha, T* a, Int* lda, T* b,
          Int* ldb, T* beta, T* c, Int* ldc) {
  const auto left = [&](Int i, Int l) {
    return *transa == 'N' ? a[i + l * *lda] : a[l + i * *lda];
  };
  const auto right = [&](Int l, Int j) {
    return *transb == 'N' ? b[l + j * *ldb] : b[j + l * *ldb];
  };
  for (Int j = 0; j < *n; ++j) {
    for (Int i = 0; i < *m; ++i) {
      T sum = 0;
      for (Int l = 0; l < *k; ++l) sum += left(i, l) * right(l, j);
      T& out = c[i + j * *ldc];
      out = *alpha * sum + (*beta == 0 ? T{0} : *beta * out);
    }
  }
}

template <class T>
void syrk(char* uplo, char* trans, Int* n, Int* k, T* alpha, T* a, Int* lda, T* beta, T* c,
          Int* ldc) {
  char other = *trans == 'N' ? 'T' : 'N';
  for (Int j = 0; j < *n; ++j) {
    Int begin = *uplo == 'U' ? 0 : j;
    Int count = *uplo == 'U' ? j + 1 : *n - j;
    Int one = 1;
    const auto line = [&](Int i) { return *trans == 'N' ? a + i : a + i * *lda; };
    gemm(trans, &other, &count, &one, k, alpha, line(begin), lda, line(j), lda, beta,
         c + begin + j * *ldc, ldc);
  }
}

template <class T>
void trsm(char* side, char* uplo, char* transa, char* /*diag*/, Int* m, Int* n, T* alpha, T* a,
          Int* lda, T* b, Int* ldb) {
  // X op(A) = B is op(A)ᵀ Xᵀ = Bᵀ, so both sides are one loop over the unknowns of a system.
  const bool left = *side == 'L';
  const bool transposed = (*transa == 'T') == left;
  const Int size = left ? *m : *n;
  const Int systems = left ? *n : *m;
  const auto matrix = [&](Int i, Int j) { return transposed ? a[j + i * *lda] : a[i + j * *lda]; };
  const bool forward = (*uplo == 'L') != transposed;
  for (Int s = 0; s < systems; ++s) {
    const auto x = [&](Int i) -> T& { return left ? b[i + s * *ldb] : b[s + i * *ldb]; };
    for (Int step = 0; step < size; ++step) {
      const Int i = forward ? step : size - 1 - step;
      T sum = *alpha * x(i);
      for (Int done = 0; done < step; ++done) {
        const Int j = forward ? done : size - 1 - done;
        sum -= matrix(i, j) * x(j);
      }
      x(i) = sum / matrix(i, i);
    }
  }
}

template <class T>
void potrf(char* uplo, Int* n, T* a, Int* lda, Int* info) {
  const auto factor = [&](Int i, Int j) -> T& {
    return *uplo == 'L' ? a[i + j * *lda] : a[j + i * *lda];
  };
  *info = 0;
  for (Int j = 0; j < *n; ++j) {
    for (Int i = j; i < *n; ++i) {
      for (Int l = 0; l < j; ++l) factor(i, j) -= factor(i, l) * factor(j, l);
    }
    const T pivot = factor(j, j);
    if (!(pivot > 0)) {
      *info = j + 1;
      return;
    }
    factor(j, j) = std::sqrt(pivot);
    for (Int i = j + 1; i < *n; ++i) factor(i, j) /= factor(j, j);
  }
}

double dasum(Int* n, double* x, Int* incx) {
  double sum = 0;
  for (Int i = 0; i < *n; ++i) sum += std::abs(x[i * *incx]);
  return sum;
}

}  // namespace

const Blas& reference_blas() {
  static const Blas blas(
      "reference", BlasTable<Int>{{gemm, syrk, trsm, potrf}, {gemm, syrk, trsm, potrf}, dasum});
  return blas;
}

}  // namespace qexp
