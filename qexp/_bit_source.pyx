"""Bridge to NumPy bit generators, whose C interface is supported through Cython."""
