"""Types of the compiled kernels, one section a binding file, in the order of module.cpp."""

from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

# ---------------------------------------------------------------------------- bind_blas.cpp

# ------------------------------------------------------------------------ bind_boundary.cpp

# -------------------------------------------------------------------------- bind_config.cpp

__version__: str
compiler: str

def isa() -> Literal["baseline", "avx2", "avx512"]: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...

# -------------------------------------------------------------------------- bind_factor.cpp

# ------------------------------------------------------------------------ bind_hadamard.cpp

_Real = TypeVar("_Real", np.float32, np.float64)

def fwht(rows: NDArray[_Real]) -> None: ...
def srht_forward(
    rows: NDArray[_Real],
    signs: NDArray[np.uint64],
    indices: NDArray[np.int64],
    scale: float,
    out: NDArray[_Real],
) -> None: ...
def srht_adjoint(
    u: NDArray[_Real],
    signs: NDArray[np.uint64],
    indices: NDArray[np.int64],
    scale: float,
    out: NDArray[_Real],
) -> None: ...

# ------------------------------------------------------------------------ bind_networks.cpp

# ------------------------------------------------------------------------ bind_row_gemm.cpp
