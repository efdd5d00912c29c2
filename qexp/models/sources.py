"""Streams of per-record gradients and of curvature rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qexp import _checks
from qexp.models._records import (
    Rows,
    as_classes,
    public_uniforms,
    record_blocks,
    require_finite,
)

if TYPE_CHECKING:
    from qexp import _core

# Enough rows to keep a matrix product busy, in memory that stays close to the processor.
_BLOCK_BYTES = 8 << 20
_LEAST_ROWS, _MOST_ROWS = 16, 4096

LayerFactors = list[tuple[NDArray[Any], NDArray[Any]]]


class _RowSource(ABC):
    """Blocks of rows of weight space, computed as they are asked for.

    Attributes
    ----------
    n_records : int
        Number of records.
    rows_per_record : int
        Rows that each record contributes, one after another.
    n_rows : int
        ``n_records * rows_per_record``.
    n_parameters : int
        Length p of a row.
    layer_shapes : tuple of (int, int)
        Shape (out, in + 1) of each layer's part of a row.
    dtype : numpy.dtype
        float32 or float64, the model's.
    """

    def __init__(
        self,
        network: _core.Network,
        features: Rows,
        *,
        layer_shapes: tuple[tuple[int, int], ...],
        dtype: np.dtype[Any],
        rows_per_record: int,
        block_size: int | None,
    ) -> None:
        self._network = network
        self._features = features
        self._block_size = block_size
        self.layer_shapes = layer_shapes
        self.dtype = dtype
        self.rows_per_record = rows_per_record
        self.n_records = len(features)
        self.n_rows = self.n_records * rows_per_record
        self.n_parameters = sum(rows * columns for rows, columns in layer_shapes)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield C-contiguous blocks (m, p) of rows, in the order of the records.

        All blocks share one buffer: a block is valid until the next one is asked for. Copy what
        must last.
        """
        records = self._records_per_block(self.n_parameters)
        buffer = np.empty((records * self.rows_per_record, self.n_parameters), self.dtype)
        for features, labels in self._prepared(records):
            block = buffer[: len(features) * self.rows_per_record]
            self._write_rows(features, labels, block)
            yield block

    def factor_blocks(self) -> Iterator[LayerFactors]:
        """Yield blocks of per-layer pairs (inputs, deltas) whose outer products make the rows.

        ``inputs`` is (m, in + 1), the layer's input with a trailing 1, one row a record;
        ``deltas`` is (m * rows_per_record, out), the derivative of the loss in the layer's sums.
        The layer's part of row ``r`` is ``numpy.outer(deltas[r], inputs[r // rows_per_record])``.
        Averages over records divide the sums of either factor's outer products by ``n_records``.

        As with `blocks`, the arrays are valid until the next block is asked for.
        """
        widths = [columns + self.rows_per_record * rows for rows, columns in self.layer_shapes]
        records = self._records_per_block(sum(widths) // self.rows_per_record + 1)
        inputs = [np.empty((records, columns), self.dtype) for _, columns in self.layer_shapes]
        deltas = [
            np.empty((records * self.rows_per_record, rows), self.dtype)
            for rows, _ in self.layer_shapes
        ]
        for features, labels in self._prepared(records):
            m = len(features)
            block_inputs = [a[:m] for a in inputs]
            block_deltas = [d[: m * self.rows_per_record] for d in deltas]
            self._write_factors(features, labels, block_inputs, block_deltas)
            yield list(zip(block_inputs, block_deltas, strict=True))

    def _records_per_block(self, elements_per_row: int) -> int:
        rows = self._block_size
        if rows is None:
            fitting = _BLOCK_BYTES // (elements_per_row * self.dtype.itemsize)
            rows = min(max(fitting, _LEAST_ROWS), _MOST_ROWS)
        return min(max(rows // self.rows_per_record, 1), max(self.n_records, 1))

    def _write_rows(
        self, features: NDArray[Any], labels: NDArray[np.int64] | None, out: NDArray[Any]
    ) -> None:
        if labels is None:
            self._network.curvature_rows(features, out)
        else:
            self._network.gradient_rows(features, labels, out)

    def _write_factors(
        self,
        features: NDArray[Any],
        labels: NDArray[np.int64] | None,
        inputs: list[NDArray[Any]],
        deltas: list[NDArray[Any]],
    ) -> None:
        if labels is None:
            self._network.curvature_factors(features, inputs, deltas)
        else:
            self._network.gradient_factors(features, labels, inputs, deltas)

    @abstractmethod
    def _prepared(self, block_size: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64] | None]]:
        """Yield blocks of features with their labels; None stands for every class in turn."""


class GradientSource(_RowSource):
    """Per-record gradients of the loss at a model's weights. Made by ``gradient_blocks``.

    A row depends on its record and the weights alone, bit for bit: not on the block size, the
    record's position, its neighbours, or the number of threads. A record with a NaN or an infinity
    in its features, or a label that is no class, has a row of NaN, and raises nothing: the private
    sum replaces such rows by zero.

    Attributes
    ----------
    records_are_inputs : bool
        The first layer's inputs are the records with a trailing 1, at any weights.
    """

    records_are_inputs = True

    def __init__(
        self,
        network: _core.Network,
        features: Rows,
        labels: Rows,
        *,
        n_classes: int,
        layer_shapes: tuple[tuple[int, int], ...],
        dtype: np.dtype[Any],
        block_size: int | None,
    ) -> None:
        super().__init__(
            network,
            features,
            layer_shapes=layer_shapes,
            dtype=dtype,
            rows_per_record=1,
            block_size=block_size,
        )
        self._labels = labels
        self._n_classes = n_classes

    def _prepared(self, block_size: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        for rows, features in record_blocks(self._features, block_size, self.dtype):
            yield features, as_classes(self._labels[rows], self._n_classes)


class CurvatureSource(_RowSource):
    """Rows r of *public* records with Σ r rᵀ / n_records the curvature of the mean loss.

    Made by ``curvature_blocks``. Reading the rows raises ValueError where a record is not finite.
    Every reading gives the same rows.
    """

    def __init__(
        self,
        network: _core.Network,
        features: Rows,
        *,
        labels: Literal["sampled", "expected"] | NDArray[np.int64],
        seed: int,
        first_record: int,
        n_classes: int,
        layer_shapes: tuple[tuple[int, int], ...],
        dtype: np.dtype[Any],
        block_size: int | None,
    ) -> None:
        expected = isinstance(labels, str) and labels == "expected"
        super().__init__(
            network,
            features,
            layer_shapes=layer_shapes,
            dtype=dtype,
            rows_per_record=n_classes if expected else 1,
            block_size=block_size,
        )
        self._n_classes = n_classes
        self._labels = labels
        self._seed = np.random.SeedSequence(_checks.seed(seed))
        self._first_record = first_record

    def _prepared(self, block_size: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64] | None]]:
        generator = public_uniforms(self._seed, self._first_record)
        for rows, features in record_blocks(self._features, block_size, self.dtype):
            require_finite(features, rows.start)
            if not isinstance(self._labels, str):
                yield features, self._labels[rows]
            elif self._labels == "expected":
                yield features, None
            else:
                yield features, self._sampled(features, generator.random(len(features)))

    def _sampled(self, features: NDArray[Any], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        log_probabilities = np.empty((len(features), self._n_classes), self.dtype)
        self._network.log_probabilities(features, log_probabilities)
        cumulative = np.cumsum(np.exp(log_probabilities.astype(np.float64)), axis=1)
        # Scaled by the last sum, which rounding may keep from one; so no class is beyond the last.
        beyond = uniform[:, None] * cumulative[:, -1:] >= cumulative[:, :-1]
        classes: NDArray[np.int64] = beyond.sum(axis=1, dtype=np.int64)
        return classes
