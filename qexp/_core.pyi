"""Types of the compiled kernels, one section a binding file, in the order of module.cpp."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# ---------------------------------------------------------------------------- bind_blas.cpp

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

# -------------------------------------------------------------------------- bind_config.cpp

__version__: str
compiler: str

def isa() -> Literal["baseline", "avx2", "avx512"]: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...

# -------------------------------------------------------------------------- bind_factor.cpp

# ------------------------------------------------------------------------ bind_hadamard.cpp

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
