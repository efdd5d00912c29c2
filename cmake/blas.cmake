# QEXP_BLAS=scipy needs nothing at build time: the table in csrc/blas.hpp is filled at run time.
