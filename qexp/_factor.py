"""Damp and factor a public curvature matrix, and whiten by the factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexp import _blas, _checks, _core

__all__ = ["InverseFactor", "NotPositiveDefiniteError", "new_gram", "row_product"]


class NotPositiveDefiniteError(ValueError):
    """H + damping·I has no Cholesky factor."""


def new_gram(k: int) -> NDArray[np.float64]:
    """Give zeros (k, k) to accumulate the lower triangle of Σ r rᵀ in."""
    _blas.ensure_bound()
    return np.zeros((k, k))


class InverseFactor:
    """L⁻¹ of a damped curvature H + damping·I = L Lᵀ, ready to whiten.

    Whitening multiplies by the triangular inverse, formed once: as many flops as a solve, on the
    product whose rows do not depend on each other's presence, which is what the privacy proof asks
    of the whitening (its rounding errors are part of a public map and need no bound).

    Parameters
    ----------
    matrix : ndarray, shape (k, k)
        L⁻¹, with a strict upper triangle of zeros.
    damping : float
    """

    def __init__(self, matrix: NDArray[np.float64], damping: float) -> None:
        self.matrix = matrix
        self.damping = damping
        self._packed = _core.PackedMatrix(matrix.T, triangle="upper")

    def __reduce__(self) -> tuple[Any, ...]:
        return InverseFactor, (self.matrix, self.damping)

    @classmethod
    def of(cls, h: NDArray[np.float64], damping: float, name: str) -> InverseFactor:
        """Damp, factor and invert.

        Parameters
        ----------
        h : ndarray, shape (k, k)
            Lower triangle of H; used up, as L⁻¹ takes its memory.
        damping : float
        name : str
            What messages call the matrix.

        Raises
        ------
        ValueError
            If H holds a NaN or an infinity.
        NotPositiveDefiniteError
            If the damped matrix is not positive definite.
        """
        if not np.all(np.isfinite(h)):
            raise ValueError(
                f"{name} holds NaN or infinite values; look for them in the public rows it is made "
                "of"
            )
        _blas.ensure_bound()
        h[np.diag_indices_from(h)] += damping
        failed_pivot = _core.cholesky_inplace(h)
        if failed_pivot:
            raise NotPositiveDefiniteError(
                f"{name} with damping {damping:g} is not positive definite (pivot {failed_pivot} "
                f"of {len(h)}); use a larger damping or more public records"
            )
        _core.triangular_inverse_inplace(h)
        for i in range(len(h)):
            h[i, i + 1 :] = 0.0
        return cls(h, damping)

    @property
    def effective_dimension(self) -> float:
        """tr(H (H + damping·I)⁻¹) = k - damping ‖L⁻¹‖², between 0 and k."""
        squares = float(np.einsum("ij,ij->", self.matrix, self.matrix))
        return max(0.0, len(self.matrix) - self.damping * squares)

    def whitened_moments(self) -> NDArray[np.float64]:
        """L⁻¹ H L⁻ᵀ = I - damping L⁻¹ L⁻ᵀ."""
        moments: NDArray[np.float64] = -self.damping * (self.matrix @ self.matrix.T)
        moments[np.diag_indices_from(moments)] += 1.0
        return moments

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Turn rows g (m, k) into L⁻¹ g, each by itself."""
        rows = _checks.for_kernels(rows)
        out = np.empty(rows.shape)
        self._packed.multiply(rows, out)
        return out


def row_product(matrix: NDArray[np.float64]) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    """Give the map of rows (m, a) to rows times a public matrix (a, b), each by itself."""
    packed = _core.PackedMatrix(_checks.for_kernels(matrix, np.float64))

    def product(rows: NDArray[Any]) -> NDArray[np.float64]:
        out = np.empty((len(rows), matrix.shape[1]))
        packed.multiply(_checks.for_kernels(rows, np.float64), out)
        return out

    return product
