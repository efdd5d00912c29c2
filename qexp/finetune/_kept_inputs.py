"""The records' whitened inputs to the first layer, kept from round to round.

They are products of the records with public matrices, whatever the weights are, and more work than
the rest of a round. They stay in this process's memory, beside the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from qexp.curvature import Curvature
from qexp.layered import Factors, KroneckerLayer, LayeredCurvature, WhitenedFactors
from qexp.projections import Identity, Projection

__all__ = ["KeptInputs"]

_MOST_BYTES: Final = 2**29


class KeptInputs:
    """Whitens the factors of one round after another, the first layer's inputs once.

    To the same bits as :meth:`qexp.layered.LayeredCurvature.whiten_factors`: they are its own.

    Attributes
    ----------
    curvature : LayeredCurvature
    """

    def __init__(self, curvature: LayeredCurvature) -> None:
        self.curvature = curvature
        self._inputs: list[NDArray[np.float64]] | None = None

    @classmethod
    def for_job(
        cls, X: object, source: Any, projection: Projection, curvature: Curvature
    ) -> Self | None:
        """Give one where inputs may be kept, by what is public alone; else None.

        The records need to be in memory, the source to say that they are the first layer's inputs,
        and what is kept may take half a gigabyte.
        """
        in_memory = isinstance(X, np.ndarray) and not isinstance(X, np.memmap)
        if not (in_memory and getattr(source, "records_are_inputs", False)):
            return None
        if not (isinstance(projection, Identity) and isinstance(curvature, LayeredCurvature)):
            return None
        first = curvature.layers[0]
        size = source.n_records * first.shape[1] * np.dtype(np.float64).itemsize
        if not isinstance(first, KroneckerLayer) or size > _MOST_BYTES:
            return None
        return cls(curvature)

    def whitened(self, blocks: Iterable[Sequence[Factors]]) -> Iterator[list[WhitenedFactors]]:
        """Whiten a round's blocks, which are cut alike in all rounds."""
        kept, fresh = self._inputs, []
        for i, factors in enumerate(blocks):
            first = None if kept is None else kept[i]
            block = self.curvature.whiten_factors(factors, first_inputs=first)
            if kept is None:
                fresh.append(block[0][1])
            yield block
        # A round that was broken off has not seen all records.
        self._inputs = fresh if kept is None else kept
