"""Bridge to the BLAS and LAPACK entry points that SciPy exports to Cython."""
