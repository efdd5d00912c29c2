"""Damp and factor a public curvature matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexp import _blas, _checks, _core

__all__ = [
    "NotPositiveDefiniteError",
    "damped_inverse_factor",
    "new_gram",
    "row_product",
    "whitener",
]


class NotPositiveDefiniteError(ValueError):
    """H + damping·I has no Cholesky factor."""


def new_gram(k: int) -> NDArray[np.float64]:
    """Give zeros (k, k) to accumulate the lower triangle of Σ r rᵀ in."""
    _blas.ensure_bound()
    return np.zeros((k, k))


def damped_inverse_factor(h: NDArray[np.float64], damping: float, name: str) -> NDArray[np.float64]:
    """Overwrite the lower triangle of H by L⁻¹, with H + damping·I = L Lᵀ.

    Parameters
    ----------
    h : ndarray, shape (k, k)
        Lower triangle of H; used up.
    damping : float
    name : str
        What messages call the matrix.

    Returns
    -------
    ndarray, shape (k, k)
        `h`, with a strict upper triangle of zeros.

    Raises
    ------
    ValueError
        If H holds a NaN or an infinity.
    NotPositiveDefiniteError
        If the damped matrix is not positive definite.
    """
    if not np.all(np.isfinite(h)):
        raise ValueError(
            f"{name} holds NaN or infinite values; look for them in the public rows it is made of"
        )
    _blas.ensure_bound()
    h[np.diag_indices_from(h)] += damping
    failed_pivot = _core.cholesky_inplace(h)
    if failed_pivot:
        raise NotPositiveDefiniteError(
            f"{name} with damping {damping:g} is not positive definite (pivot {failed_pivot} of "
            f"{len(h)}); use a larger damping or more public records"
        )
    _core.triangular_inverse_inplace(h)
    for i in range(len(h)):
        h[i, i + 1 :] = 0.0
    return h


def whitener(inverse_factor: NDArray[np.float64]) -> Any:
    """Pack L⁻ᵀ, so that rows times it are whitened, each by itself."""
    return _core.PackedMatrix(inverse_factor.T, triangle="upper")


def row_product(matrix: NDArray[np.float64]) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    """Give the map of rows (m, a) to rows times a public matrix (a, b), each by itself."""
    packed = _core.PackedMatrix(_checks.for_kernels(matrix, np.float64))

    def product(rows: NDArray[Any]) -> NDArray[np.float64]:
        out = np.empty((len(rows), matrix.shape[1]))
        packed.multiply(_checks.for_kernels(rows, np.float64), out)
        return out

    return product
