"""Types of the compiled kernels, one section a binding file, in the order of module.cpp."""

from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

# ---------------------------------------------------------------------------- bind_blas.cpp

class _BlasConfig(TypedDict):
    provider: str
    integer_bits: Literal[32, 64]

def bind_blas(provider: str, entry_points: dict[str, Any], *, integer_bits: int | None) -> None: ...
def blas_config() -> _BlasConfig | None: ...

# ------------------------------------------------------------------------ bind_boundary.cpp

# -------------------------------------------------------------------------- bind_config.cpp

__version__: str
compiler: str

def isa() -> Literal["baseline", "avx2", "avx512"]: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...

# -------------------------------------------------------------------------- bind_factor.cpp
# Row-major matrices with contiguous rows; only lower triangles are read and written. Each needs
# qexp._blas.ensure_bound() to have been called.

_Matrix = TypeVar("_Matrix", NDArray[np.float32], NDArray[np.float64])

def gram_accumulate(h: NDArray[np.float64], rows: _Matrix, weight: float) -> None: ...
def cholesky_inplace(a: _Matrix) -> int: ...
def triangular_solve(
    l: _Matrix, b: _Matrix, *, side: Literal["left", "right"], transpose: bool
) -> None: ...
def triangular_inverse_inplace(l: _Matrix) -> None: ...
def triangular_condition(l: _Matrix) -> float: ...

# ------------------------------------------------------------------------ bind_hadamard.cpp

# ------------------------------------------------------------------------ bind_networks.cpp

# ------------------------------------------------------------------------ bind_row_gemm.cpp
