// BLAS and LAPACK through a table of our own.
//
// The kernels never link against a BLAS library. They are handed a Blas object, which holds
// pointers to the few Fortran entry points listed in EntryPoints, for 32-bit (LP64) or 64-bit
// (ILP64) integers. Three providers fill such an object: the pointers that SciPy exports, bound at
// run time; a library found by CMake; and plain loops for tests that have neither.
//
// The calls below are column-major, as in BLAS itself. A row-major matrix is the transpose of the
// column-major one in the same memory, so a row-major lower triangle is Triangle::upper here.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

namespace qexp {

// A row-major matrix in someone else's memory: element (i, j) is data[i * stride + j].
template <class T>
struct MatrixView {
  T* data;
  std::int64_t rows, cols, stride;

  T& operator()(std::int64_t i, std::int64_t j) const { return data[i * stride + j]; }
  MatrixView block(std::int64_t i, std::int64_t j, std::int64_t m, std::int64_t n) const {
    return {data + i * stride + j, m, n, stride};
  }
  operator MatrixView<const T>() const { return {data, rows, cols, stride}; }
};

enum class Transpose : char { no = 'N', yes = 'T' };
enum class Triangle : char { lower = 'L', upper = 'U' };
enum class Side : char { left = 'L', right = 'R' };

// The functions of one precision, with the C types of their Fortran interface.
template <class Int, class T>
struct EntryPoints {
  void (*gemm)(char* transa, char* transb, Int* m, Int* n, Int* k, T* alpha, T* a, Int* lda, T* b,
               Int* ldb, T* beta, T* c, Int* ldc);
  void (*syrk)(char* uplo, char* trans, Int* n, Int* k, T* alpha, T* a, Int* lda, T* beta, T* c,
               Int* ldc);
  void (*trsm)(char* side, char* uplo, char* transa, char* diag, Int* m, Int* n, T* alpha, T* a,
               Int* lda, T* b, Int* ldb);
  void (*potrf)(char* uplo, Int* n, T* a, Int* lda, Int* info);
};

template <class Int>
struct BlasTable {
  EntryPoints<Int, double> f64;
  EntryPoints<Int, float> f32;
  double (*dasum)(Int* n, double* x, Int* incx);
};

// The width of the integers that a dasum of unknown make reads: 32 or 64. No header needed.
int detect_integer_bits(void (*dasum)()) noexcept;

class Blas {
 public:
  // Throws std::runtime_error where the library's integers turn out to have another width than
  // the table says: a call would then read and write past its arguments.
  Blas(std::string provider, BlasTable<std::int32_t> table);
  Blas(std::string provider, BlasTable<std::int64_t> table);

  const std::string& provider() const { return provider_; }
  int integer_bits() const { return table_.index() == 0 ? 32 : 64; }

  // The calls throw std::invalid_argument where a dimension does not fit the library's integers.

  // C = alpha op(A) op(B) + beta C, with C m×n and inner dimension k.
  template <class T>
  void gemm(Transpose transa, Transpose transb, std::int64_t m, std::int64_t n, std::int64_t k,
            T alpha, const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c,
            std::int64_t ldc) const;

  // One triangle of C = alpha A Aᵀ + beta C, or of alpha Aᵀ A + beta C; C is n×n.
  template <class T>
  void syrk(Triangle uplo, Transpose trans, std::int64_t n, std::int64_t k, T alpha, const T* a,
            std::int64_t lda, T beta, T* c, std::int64_t ldc) const;

  // Solves op(A) X = B or X op(A) = B in place on B, which is m×n; A is triangular.
  template <class T>
  void trsm(Side side, Triangle uplo, Transpose transa, std::int64_t m, std::int64_t n, const T* a,
            std::int64_t lda, T* b, std::int64_t ldb) const;

  // The Cholesky factor of one triangle, in place; returns LAPACK's `info`.
  template <class T>
  std::int64_t potrf(Triangle uplo, std::int64_t n, T* a, std::int64_t lda) const;

 private:
  std::string provider_;
  std::variant<BlasTable<std::int32_t>, BlasTable<std::int64_t>> table_;
};

// Plain loops: slow, and without any library.
const Blas& reference_blas();

#ifdef QEXP_BLAS_SYSTEM
// The library that CMake found.
Blas system_blas();
#endif

// The BLAS of this process. Binding another one leaves the earlier valid for calls under way.
// Without any, bound_blas() throws std::runtime_error; a build with QEXP_BLAS=system always has
// one.
void bind_blas(Blas blas);
bool blas_is_bound();
const Blas& bound_blas();

}  // namespace qexp
