"""One job on many processes: MPI ranks that each hold a share of the records.

``mpiexec -n 64 python job.py``, with in job.py::

    ranks = qexp.distributed.world()
    with ranks.shared_fate():
        shards = open_shards("x-*.npy", "y-*.npy", rank=ranks.rank, size=ranks.size)
        result = qexp.fine_tune(model, shards.X, shards.y, ..., communicator=ranks)
        if ranks.rank == 0:
            result.release.save("release.npz")

The released weights have the same bits as those of one process with all the records. What crosses
between processes, and who has to trust whom, is told in :mod:`qexp.private_sum` and in SECURITY.md;
what it costs, in docs/scaling.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks, _core
from qexp._communicator import Communicator, MpiCommunicator, RankError, SingleProcess
from qexp._factor import new_gram
from qexp.curvature import Curvature, DenseCurvature
from qexp.layered import KroneckerCurvature, KroneckerLayer, new_layers
from qexp.projections import FactorProjection, Projection
from qexp.records import LazyRows

__all__ = [
    "Communicator",
    "MpiCommunicator",
    "RankError",
    "SingleProcess",
    "curvature",
    "world",
]

_world: list[MpiCommunicator] = []
# Of a public entry on the lattice of Gram sums: products of two then sum exactly in a double over
# 2¹¹ rows.
_MOST_BITS: Final = 21
_LEAST_EXPONENT: Final = -900
_MOST_ROWS_AT_ONCE: Final = 4096


def world() -> MpiCommunicator:
    """Give the communicator of all ranks of this MPI job; one rank, without a launcher.

    From then on an exception that nobody catches on one rank ends all of them, with its message.

    Returns
    -------
    MpiCommunicator
        The same one at every call.

    Raises
    ------
    ImportError
        If mpi4py is not installed, or finds no MPI library.
    """
    if not _world:
        try:
            from mpi4py import MPI
        # Without a library to load, mpi4py raises RuntimeError.
        except (ImportError, RuntimeError) as error:
            raise ImportError(
                "jobs of several processes need mpi4py and an MPI library; install them with "
                f'`pip install "qexp[mpi]" mpich` ({error})'
            ) from error
        _world.append(MpiCommunicator(MPI))
        sys.excepthook = _world[0].except_hook
    return _world[0]


def curvature(
    X: ArrayLike | LazyRows,
    *,
    communicator: Communicator,
    damping: float,
    kind: Literal["kronecker", "dense"] = "kronecker",
    projection: Projection | None = None,
    kinds: str | Sequence[str] | None = None,
    labels: str = "sampled",
    seed: int = 0,
) -> Callable[[Any], Curvature]:
    """Make the curvature of a model's loss from public records that are dealt to the ranks.

    Rows are rounded to multiples of one power of two, at most 2⁻²⁰ of the largest entry, and
    their products summed exactly, in integers. So the bits of the curvature do not depend on how
    the records are dealt, on the number of ranks, or on the threads of BLAS.

    Parameters
    ----------
    X : array (n, n_features) or LazyRows
        This rank's share of the public records, in the order of the ranks; it may be empty.
    communicator : Communicator
    damping : float
        λ, as in the ``from_model`` of the two curvatures.
    kind : {"kronecker", "dense"}
        "dense" sums k(k+1)/2 integers over the ranks, "kronecker" those of every layer's two
        factors.
    projection : Projection, optional
        For "dense".
    kinds : str or sequence of str, optional
        For "kronecker": "kronecker", "identity" or "frozen", for all layers or one each.
    labels : {"sampled", "expected"}
        As in ``from_model``. "sampled" needs a model whose ``curvature_blocks`` takes
        ``first_record``.
    seed : int
        Of the drawn labels; public.

    Returns
    -------
    callable
        A function of a model, for :func:`qexp.fine_tune`, or to be called by **all** ranks at
        once. It gives all of them the same curvature, and reads the records twice.

    Raises
    ------
    ValueError
        If an argument is out of its range, or, when it is called, a public record is not finite
        or the curvature cannot be factored.
    """
    if kind not in ("kronecker", "dense"):
        raise ValueError(f"kind is {kind!r}; it needs 'kronecker' or 'dense'")
    if kind == "kronecker" and projection is not None:
        raise ValueError("a Kronecker curvature takes no projection; use kind='dense' with one")
    if kind == "dense" and kinds is not None:
        raise ValueError("kinds are of layers; a dense curvature has none")
    return _ShardedCurvature(X, communicator, damping, kind, projection, kinds, labels, seed)


class _ShardedCurvature:
    """A function of a model that all ranks call."""

    collective: Final = True

    def __init__(
        self,
        X: ArrayLike | LazyRows,
        ranks: Communicator,
        damping: float,
        kind: str,
        projection: Projection | None,
        kinds: str | Sequence[str] | None,
        labels: str,
        seed: int,
    ) -> None:
        self._X: Any = X if isinstance(X, LazyRows) else np.asarray(X)
        self._ranks, self._damping, self._kind = ranks, damping, kind
        self._projection, self._kinds = projection, "kronecker" if kinds is None else kinds
        self._labels, self._seed = labels, seed

    def __call__(self, model: Any) -> Curvature:
        with self._ranks.shared_fate():
            lengths = self._ranks.gather(len(self._X))
            n = _checks.count(sum(lengths), "the number of public records")
            place: dict[str, int] = {}
            if self._labels == "sampled" and self._ranks.size > 1:
                place["first_record"] = sum(lengths[: self._ranks.rank])
            source = model.curvature_blocks(self._X, labels=self._labels, seed=self._seed, **place)
            dense = self._kind == "dense"
            made = self._dense(source, n) if dense else self._kronecker(source, n)
            shared: Curvature = self._ranks.broadcast_object(made)
            return shared

    def _dense(self, source: Any, n: int) -> Curvature | None:
        projection = self._projection

        def rows() -> Iterator[list[NDArray[Any]]]:
            if isinstance(projection, FactorProjection) and source.rows_per_record == 1:
                for factors in source.factor_blocks():
                    yield [projection.forward_factors(factors)]
            else:
                for block in source.blocks():
                    yield [block if projection is None else projection.forward(block)]

        k = source.n_parameters if projection is None else projection.n_components
        [gram] = self._grams(rows, [k])
        if gram is None:
            return None
        gram /= n
        return DenseCurvature._from_lower_triangle(gram, self._damping)

    def _kronecker(self, source: Any, n: int) -> Curvature | None:
        damping = _checks.positive(self._damping, "damping")
        layers = new_layers(self._kinds, source.layer_shapes, damping)
        odd = sorted({layer.kind for layer in layers} - {"kronecker", "identity", "frozen"})
        if odd:
            raise ValueError(
                f"kinds holds {odd}; over several ranks it needs 'kronecker', 'identity' or "
                "'frozen'"
            )
        chosen = [i for i, layer in enumerate(layers) if isinstance(layer, KroneckerLayer)]
        # Positions of a record, as in a convolution; every rank must know them.
        positions = [1] * len(layers)

        def rows() -> Iterator[list[NDArray[Any]]]:
            for factors in source.factor_blocks():
                parts = []
                for i in chosen:
                    inputs, deltas = factors[i]
                    positions[i] = inputs.shape[1] if inputs.ndim == 3 else 1
                    parts += [
                        inputs.reshape(-1, inputs.shape[-1]),
                        deltas.reshape(-1, deltas.shape[-1]),
                    ]
                yield parts

        sizes = [size for i in chosen for size in reversed(layers[i].shape)]
        grams = self._grams(rows, sizes)
        positions = [max(seen) for seen in zip(*self._ranks.gather(positions), strict=True)]
        if self._ranks.rank != 0:
            return None
        for place, i in enumerate(chosen):
            a, b = grams[2 * place : 2 * place + 2]
            assert a is not None
            assert b is not None
            layer = layers[i]
            assert isinstance(layer, KroneckerLayer)
            a /= positions[i]
            layer.put_grams(a, b)
        for layer in layers:
            layer.finish(n)
        return KroneckerCurvature(layers)

    def _grams(
        self, blocks: Callable[[], Iterator[list[NDArray[Any]]]], sizes: list[int]
    ) -> list[NDArray[np.float64] | None]:
        """Sum r rᵀ over all ranks' rows r of every part; lower triangles, on the root."""
        largest, counts = [0.0] * len(sizes), [0] * len(sizes)
        for parts in blocks():
            for i, rows in enumerate(parts):
                if rows.shape[1] != sizes[i]:
                    raise ValueError(
                        f"public rows have {rows.shape[1]} entries; they need {sizes[i]}: where "
                        "a layer has no factors, use 'identity' for it"
                    )
                # NaN stays: max would drop it in one order of the two.
                largest[i] = float(np.maximum(largest[i], np.abs(rows).max(initial=0.0)))
                counts[i] += len(rows)
        if not all(map(math.isfinite, largest)):
            raise ValueError("public rows hold NaN or infinite values; they need to be finite")
        said = self._ranks.gather((largest, counts))
        sums = [
            _ExactGram(
                size,
                max(there[i] for there, _ in said),
                sum(there[i] for _, there in said),
            )
            for i, size in enumerate(sizes)
        ]
        for parts in blocks():
            for exact, rows in zip(sums, parts, strict=True):
                exact.add(rows)
        return [exact.reduced(self._ranks) for exact in sums]


class _ExactGram:
    """Σ z zᵀ of integer rows z = round(r / unit), exact: its packed lower triangle in int64."""

    def __init__(self, k: int, largest: float, n_rows: int) -> None:
        bits = min(_MOST_BITS, (62 - max(n_rows - 1, 1).bit_length()) // 2)
        exponent = max(math.frexp(largest)[1], _LEAST_EXPONENT)
        self._scale = math.ldexp(1.0, bits - exponent)
        # Sums of so many products of two `bits`-bit integers are below 2⁵³.
        self._room = min(2 ** (53 - 2 * bits), _MOST_ROWS_AT_ONCE)
        self._recent, self._rows = new_gram(k), 0
        self._total = np.zeros(k * (k + 1) // 2, dtype=np.int64)

    def add(self, rows: NDArray[Any]) -> None:
        start = 0
        while start < len(rows):
            stop = min(len(rows), start + self._room - self._rows)
            integers = np.rint(rows[start:stop].astype(np.float64) * self._scale)
            _core.gram_accumulate(self._recent, integers, 1.0)
            self._rows += stop - start
            if self._rows == self._room:
                self._flush()
            start = stop

    def reduced(self, ranks: Communicator) -> NDArray[np.float64] | None:
        self._flush()
        ranks.sum_int64(self._total)
        if ranks.rank != 0:
            return None
        unit = 1.0 / self._scale
        for i, packed in enumerate(self._triangle()):
            self._recent[i, : i + 1] = packed
            self._recent[i, : i + 1] *= unit * unit
        return self._recent

    def _flush(self) -> None:
        for i, packed in enumerate(self._triangle()):
            packed += self._recent[i, : i + 1].astype(np.int64)
        self._recent[:] = 0
        self._rows = 0

    def _triangle(self) -> Iterator[NDArray[np.int64]]:
        start = 0
        for i in range(len(self._recent)):
            yield self._total[start : start + i + 1]
            start += i + 1
