"""Types of the compiled kernels, one section a binding file, in the order of module.cpp."""

from collections.abc import Sequence
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

def draw_lattice_normals(
    words: NDArray[np.uint64], lattice_bits: int, out: NDArray[np.int64]
) -> tuple[int, int]: ...
def lattice_sum(
    rows: NDArray[np.float64],
    total: NDArray[np.int64],
    *,
    units_per_norm: float,
    clipping_norm: float,
    bound: int,
) -> None: ...
def lattice_sum_outer(
    factors: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    total: NDArray[np.int64],
    *,
    units_per_norm: float,
    clipping_norm: float,
    bound: int,
) -> None: ...

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

def gram_accumulate(
    h: NDArray[np.float64],
    rows: _Matrix,
    weight: float,
    *,
    row_weights: NDArray[np.float64] | None = None,
) -> None: ...
def cholesky_inplace(a: _Matrix) -> int: ...
def triangular_solve(
    l: _Matrix, b: _Matrix, *, side: Literal["left", "right"], transpose: bool
) -> None: ...
def triangular_inverse_inplace(l: _Matrix) -> None: ...

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

# --------------------------------------------------------------------- bind_kron_sketch.cpp

def kron_sketch(
    left: NDArray[_Real],
    left_signs: NDArray[np.uint64],
    left_indices: NDArray[np.int64],
    right: NDArray[_Real],
    right_signs: NDArray[np.uint64],
    right_indices: NDArray[np.int64],
    scale: float,
    out: NDArray[_Real],
) -> None: ...

# ------------------------------------------------------------------------ bind_networks.cpp

class Network:
    def __init__(
        self,
        layer_sizes: Sequence[int],
        activation: Literal["tanh", "relu"],
        weights: NDArray[Any],
    ) -> None: ...
    def log_probabilities(self, x: NDArray[Any], out: NDArray[Any]) -> None: ...
    def gradient_rows(
        self, x: NDArray[Any], labels: NDArray[np.int64], out: NDArray[Any]
    ) -> None: ...
    def curvature_rows(self, x: NDArray[Any], out: NDArray[Any]) -> None: ...
    def gradient_factors(
        self,
        x: NDArray[Any],
        labels: NDArray[np.int64],
        inputs: Sequence[NDArray[Any]],
        deltas: Sequence[NDArray[Any]],
    ) -> None: ...
    def curvature_factors(
        self, x: NDArray[Any], inputs: Sequence[NDArray[Any]], deltas: Sequence[NDArray[Any]]
    ) -> None: ...

# ------------------------------------------------------------------------ bind_row_gemm.cpp

class PackedMatrix:
    def __init__(
        self,
        b: NDArray[np.float32] | NDArray[np.float64],
        *,
        triangle: Literal["full", "upper"] = "full",
    ) -> None: ...
    def multiply(
        self,
        a: NDArray[np.float32] | NDArray[np.float64],
        out: NDArray[np.float32] | NDArray[np.float64],
        *,
        accumulate: bool = False,
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...
