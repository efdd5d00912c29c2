"""Where private gradients come from: a source yields them in blocks of rows.

An array or memmap is such a source once wrapped; the models of :mod:`qexp.models` make their
blocks on the fly. No n × p array is ever needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qexp import _checks

__all__ = ["ArrayRecords", "RecordSource", "as_record_source"]

_BLOCK_BYTES = 4 * 2**20


@runtime_checkable
class RecordSource(Protocol):
    """A source of per-record gradients.

    Attributes
    ----------
    n_records : int
        n, public.
    n_parameters : int
        p, the length of a gradient.
    """

    @property
    def n_records(self) -> int:
        """Number of records n."""
        ...

    @property
    def n_parameters(self) -> int:
        """Length of a gradient p."""
        ...

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the gradients in order, as float32 or float64 arrays of shape (m, p).

        A block may be a view of a buffer that the next block overwrites. A row must depend on
        its own record and on public values alone: not on the other rows of its block.
        """
        ...


class ArrayRecords:
    """Per-record gradients that stand in an array or a memory-mapped file.

    Parameters
    ----------
    gradients : ndarray or memmap of float32 or float64, shape (n, p)
        Never copied as a whole; a block at a time is, where it is not C-contiguous.
    block_size : int, optional
        Records a block. Any value gives the same release, bit for bit; the default keeps a block
        near 4 MiB.
    """

    def __init__(self, gradients: NDArray[Any], *, block_size: int | None = None) -> None:
        self._gradients = _checks.real_array(gradients, "records", 2)
        n, p = self._gradients.shape
        if n == 0 or p == 0:
            raise ValueError(f"records have shape {(n, p)}; they need at least one row and column")
        if block_size is None:
            block_size = max(1, min(n, _BLOCK_BYTES // (8 * p)))
        self._block_size = _checks.count(block_size, "block_size")

    @property
    def n_records(self) -> int:
        """Number of records n."""
        return int(self._gradients.shape[0])

    @property
    def n_parameters(self) -> int:
        """Length of a gradient p."""
        return int(self._gradients.shape[1])

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield C-contiguous blocks of rows, in order."""
        for start in range(0, self.n_records, self._block_size):
            yield np.ascontiguousarray(self._gradients[start : start + self._block_size])


def as_record_source(records: Any, *, n_parameters: int) -> RecordSource:
    """Give an array or a source as a source of gradients of the right length.

    Parameters
    ----------
    records : array of shape (n, p) or RecordSource
    n_parameters : int
        p, the number of pretrained weights.

    Returns
    -------
    RecordSource

    Raises
    ------
    TypeError, ValueError
        If `records` are neither, or of another length.
    """
    if isinstance(records, RecordSource):
        source: RecordSource = records
    elif isinstance(records, np.ndarray):
        source = ArrayRecords(records)
    else:
        raise TypeError(
            f"records are a {type(records).__name__}; they need to be an (n, p) array of "
            "per-record gradients or a source with n_records, n_parameters and blocks()"
        )
    if source.n_parameters != n_parameters:
        raise ValueError(
            f"records have gradients of {source.n_parameters} entries, pretrained has "
            f"{n_parameters} weights; they need the same number"
        )
    _checks.count(source.n_records, "n_records")
    return source
