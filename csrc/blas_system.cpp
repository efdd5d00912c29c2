// The system provider: the Fortran symbols of the library that CMake found.
#include <cstddef>

#include "blas.hpp"

#define QEXP_CONCATENATE_(a, b) a##b
#define QEXP_CONCATENATE(a, b) QEXP_CONCATENATE_(a, b)
#define QEXP_SYMBOL(name) QEXP_CONCATENATE(name, QEXP_BLAS_SUFFIX)

namespace qexp {
namespace {

using Int = QEXP_BLAS_INTEGER;

// A Fortran compiler appends the length of each character argument. Libraries written in C ignore
// them; those written in Fortran may rely on them.
extern "C" {
#define QEXP_DECLARE(T, p)                                                                        \
  void QEXP_SYMBOL(p##gemm)(char*, char*, Int*, Int*, Int*, T*, T*, Int*, T*, Int*, T*, T*, Int*, \
                            std::size_t, std::size_t);                                            \
  void QEXP_SYMBOL(p##syrk)(char*, char*, Int*, Int*, T*, T*, Int*, T*, T*, Int*, std::size_t,    \
                            std::size_t);                                                         \
  void QEXP_SYMBOL(p##trsm)(char*, char*, char*, char*, Int*, Int*, T*, T*, Int*, T*, Int*,       \
                            std::size_t, std::size_t, std::size_t, std::size_t);                  \
  void QEXP_SYMBOL(p##potrf)(char*, Int*, T*, Int*, Int*, std::size_t);
QEXP_DECLARE(float, s)
QEXP_DECLARE(double, d)
double QEXP_SYMBOL(dasum)(Int*, double*, Int*);
}

#define QEXP_ENTRY_POINTS(T, p)                                                                  \
  {[](char* ta, char* tb, Int* m, Int* n, Int* k, T* alpha, T* a, Int* lda, T* b, Int* ldb,      \
      T* beta, T* c, Int* ldc) {                                                                 \
     QEXP_SYMBOL(p##gemm)(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, 1, 1);           \
   },                                                                                            \
   [](char* uplo, char* trans, Int* n, Int* k, T* alpha, T* a, Int* lda, T* beta, T* c,          \
      Int* ldc) { QEXP_SYMBOL(p##syrk)(uplo, trans, n, k, alpha, a, lda, beta, c, ldc, 1, 1); }, \
   [](char* side, char* uplo, char* ta, char* diag, Int* m, Int* n, T* alpha, T* a, Int* lda,    \
      T* b, Int* ldb) {                                                                          \
     QEXP_SYMBOL(p##trsm)(side, uplo, ta, diag, m, n, alpha, a, lda, b, ldb, 1, 1, 1, 1);        \
   },                                                                                            \
   [](char* uplo, Int* n, T* a, Int* lda, Int* info) {                                           \
     QEXP_SYMBOL(p##potrf)(uplo, n, a, lda, info, 1);                                            \
   }}

}  // namespace

Blas system_blas() {
  return Blas("system", BlasTable<Int>{QEXP_ENTRY_POINTS(double, d), QEXP_ENTRY_POINTS(float, s),
                                       QEXP_SYMBOL(dasum)});
}

}  // namespace qexp
