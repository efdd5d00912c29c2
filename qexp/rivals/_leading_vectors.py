"""Leading right singular vectors: exact ones, and quick ones for trials on public records.

The quick ones need not agree in bits with anything; they hold as much of the matrices to four
digits.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MORE_VECTORS: Final = 10
_ITERATIONS: Final = 3


def right_vectors(matrix: NDArray[Any], rank: int) -> NDArray[Any]:
    """Give the leading right singular vectors, as columns."""
    vectors: NDArray[Any] = np.linalg.svd(matrix, full_matrices=False)[2][:rank].T
    return vectors


def quick_right_vectors(matrix: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """Give what spans the leading right singular vectors, through the few rows' Gram matrix."""
    doubles = matrix.astype(np.float64)
    left = np.linalg.eigh(doubles @ doubles.T)[1][:, ::-1][:, :rank]
    return np.linalg.qr(doubles.T @ left)[0].astype(np.float32)


class GramMatrix:
    """The Gram matrix of many rows, each weighted by a square; memory does not grow with them."""

    def __init__(self, columns: int, dtype: np.dtype[Any]) -> None:
        self._gram = np.zeros((columns, columns), dtype)

    def add(self, rows: NDArray[Any], squares: NDArray[Any]) -> None:
        """Add rows, (n, columns), and the squares of what scales them, (n, 1)."""
        self._gram += (rows * squares).T @ rows

    def leading(self, rank: int) -> NDArray[Any]:
        """Give the leading right singular vectors of all rows, as columns."""
        vectors: NDArray[Any] = np.linalg.eigh(self._gram)[1][:, ::-1][:, :rank]
        return vectors


class KeptRows:
    """The rows themselves, for which iteration is quicker than their Gram matrix."""

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.float32]] = []

    def add(self, rows: NDArray[np.float32], squares: NDArray[np.float32]) -> None:
        """Add rows, (n, columns), and the squares of what scales them, (n, 1)."""
        self._blocks.append(rows * np.sqrt(squares))

    def leading(self, rank: int) -> NDArray[np.float32]:
        """Give the leading right singular vectors, by iteration on a few random ones.

        After Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review,
        2011), algorithm 4.4: in a small part of the flops of the rows' Gram matrix and its
        eigenvectors.
        """
        rows = np.concatenate(self._blocks)
        columns = rows.shape[1]
        width = min(rank + _MORE_VECTORS, columns)
        basis = np.random.default_rng(0).standard_normal((columns, width), dtype=np.float32)
        for _ in range(_ITERATIONS):
            basis = np.linalg.qr(rows.T @ (rows @ basis))[0]
        image = (rows @ basis).astype(np.float64)
        turn = np.linalg.eigh(image.T @ image)[1][:, ::-1][:, :rank]
        return basis @ turn.astype(np.float32)
