"""Public subspaces: fine-tuning in the few directions that moves of public records call for.

Noise grows with the number of coordinates, and most of them a new domain hardly asks for. Which
ones it may ask for can be learnt without a private record: move public records elsewhere, in as
many ways as come to mind, and see where the gradients point. In a layer's whitened coordinates
their leading directions, some hundred of the many thousand, hold most of what moves alike will
call for, and a good part of what a real domain does.

The map is a projection P like any other: public, fixed before the first private record is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks, _core
from qexp._progress import progress_bar
from qexp.layered import KroneckerCurvature
from qexp.projections import FactorProjection, Real, _digest, _frozen
from qexp.surrogates import Surrogate, image_surrogates

__all__ = ["Directions", "PublicSubspace", "SubspaceLayer", "image_moves", "learn_directions"]

DAMPING: Final = 1e-2
"""λ of the curvature that a subspace is whitened by."""

_MOVES: Final = 200
# Weaker ones as well: directions are the same, and less of the gradient is clipped.
_KEEPS: Final = (0.4, 0.9)
_SEED_OF_MOVES: Final = 2000
_RECORDS: Final = 2000
# The path that the gradients are taken along: a few whitened steps of clipped gradients.
_STEPS: Final = 4
_STEP_SIZE: Final = 0.5
_CLIPPING_NORM: Final = 3.0
# Entries of the layers' turned matrices that the directions are made of.
_ENTRIES: Final = 2048
# Of the gradients' energy, what directions are scaled by. Settled, as all above, on moves from
# MNIST to the digits of scikit-learn.
_TAPER: Final = 0.1
# What is turned of so many records stays close to the processor.
_ROWS_AT_ONCE: Final = 128


@dataclass(frozen=True, eq=False)
class SubspaceLayer:
    """Which combinations of one layer's weights take part.

    A gradient G of shape (out, in + 1) is turned to Lᵀ G R, of which some entries are kept.

    Attributes
    ----------
    left : ndarray of float64, shape (out, a)
        L.
    right : ndarray of float64, shape (in + 1, b)
        R.
    rows, columns : ndarray of int, shape (r,)
        The entries: row below a, column below b.
    """

    left: NDArray[np.float64]
    right: NDArray[np.float64]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Give the arrays that define it, for a digest."""
        return self.left, self.right, self.rows, self.columns


class PublicSubspace(FactorProjection):
    """A subspace of layered weights, whitened: combinations of entries of turned gradients.

    Made by :meth:`Directions.subspace`. Its coordinates are whitened by public curvature already,
    so it goes with :class:`qexp.IdentityCurvature` of k. A record with inputs a and derivatives δ
    has the entries (Lᵀδ)_i (Rᵀa)_j of its layers, r in all, and their k combinations: its gradient
    is not formed.

    Parameters
    ----------
    layers : sequence of SubspaceLayer
        In the order of the weights.
    core : array of float, shape (r, k), optional
        The combinations. Default: the entries themselves, k = r.
    scale : array of float, shape (k,), optional
        What the coordinates are multiplied by: one that is scaled down has less of a clipped
        record, and its part of the step, noise and all, is so much shorter. Default: 1.
    kept : array of float, shape (k,), optional
        What the damping leaves of the curvature of 1 that each coordinate has before it is scaled,
        in [0, 1]. Default: all.

    Raises
    ------
    ValueError
        If shapes do not fit or a number is not finite.
    """

    kind = "public_subspace"

    def __init__(
        self,
        layers: Sequence[SubspaceLayer],
        core: ArrayLike | None = None,
        *,
        scale: ArrayLike | None = None,
        kept: ArrayLike | None = None,
    ) -> None:
        self.layers = tuple(layers)
        n_entries = sum(len(layer.rows) for layer in self.layers)
        self.core = None
        if core is not None:
            given = _checks.finite_array(core, "core", 2)
            if len(given) != n_entries:
                raise ValueError(
                    f"core has shape {given.shape}; the layers have {n_entries} entries, one a row"
                )
            self.core = _frozen(np.array(given, np.float64, order="C"))
        k = n_entries if self.core is None else self.core.shape[1]
        super().__init__([(len(x.left), len(x.right)) for x in self.layers], k)
        for layer in self.layers:
            _checks.finite_array(layer.left, "left", 2)
            _checks.finite_array(layer.right, "right", 2)
        self.scale, self.kept = _vector(scale, k, "scale"), _vector(kept, k, "kept")
        self._packed: dict[np.dtype[Any], list[_PackedLayer]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.layers, self.core, self.scale, self.kept)

    def describe(self) -> dict[str, Any]:
        """Kind, sizes and the digest of all arrays, ready for JSON."""
        arrays = [self.scale, *(array for layer in self.layers for array in layer.arrays())]
        if self.core is not None:
            arrays.append(self.core)
        return {**super().describe(), "digest": _digest(*arrays)}

    def _forward_factors(
        self, factors: Sequence[tuple[NDArray[Real], NDArray[Real]]], sketch: NDArray[Real]
    ) -> None:
        packed = self._packed_for(sketch.dtype)
        for start in range(0, len(sketch), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            parts = (
                _turned(inputs[rows], deltas[rows], of_layer.left, of_layer.right)
                for (inputs, deltas), of_layer in zip(factors, packed, strict=True)
            )
            self._combine(parts, packed, sketch[rows])

    def _forward(self, rows: NDArray[Real], out: NDArray[Real]) -> None:
        packed = self._packed_for(rows.dtype)
        ends = np.cumsum([np.prod(shape) for shape in self.layer_shapes])
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            block = rows[start : start + _ROWS_AT_ONCE]
            parts = (
                _turned_rows(some.reshape(len(some), *shape), of_layer.left, of_layer.right)
                for some, shape, of_layer in zip(
                    np.split(block, ends[:-1], axis=1), self.layer_shapes, packed, strict=True
                )
            )
            self._combine(parts, packed, out[start : start + _ROWS_AT_ONCE])

    def _combine(
        self, parts: Iterable[NDArray[Any]], packed: Sequence[_PackedLayer], out: NDArray[Any]
    ) -> None:
        """Write what the layers' turned gradients (m, a, b) make up."""
        combined = np.zeros(out.shape, out.dtype)
        place = 0
        for whole, of_layer in zip(parts, packed, strict=True):
            if len(of_layer.entries) == 0:
                continue
            entries = np.empty((len(whole), len(of_layer.entries)), whole.dtype)
            # They are in range; any mode but "raise" writes to `out` without a buffer.
            np.take(
                whole.reshape(len(whole), -1), of_layer.entries, axis=1, out=entries, mode="clip"
            )
            if of_layer.core is None:
                combined[:, place : place + entries.shape[1]] = entries
                place += entries.shape[1]
            else:
                # Not a library's product: its rounding of a row may depend on those beside it.
                of_layer.core.multiply(entries, combined, accumulate=True)
        with np.errstate(all="ignore"):
            np.multiply(combined, self.scale.astype(out.dtype), out=out)

    def _adjoint(self, u: NDArray[Real], out: NDArray[Real]) -> None:
        scaled = u * self.scale
        entries = scaled if self.core is None else scaled @ self.core.T
        start = place = 0
        for layer in self.layers:
            some = entries[:, start : start + len(layer.rows)]
            turned = np.zeros((len(u), layer.left.shape[1], layer.right.shape[1]))
            turned[:, layer.rows, layer.columns] = some
            size = len(layer.left) * len(layer.right)
            whole = layer.left @ turned @ layer.right.T
            out[:, place : place + size] = whole.reshape(len(u), size)
            start, place = start + len(layer.rows), place + size

    def _packed_for(self, dtype: np.dtype[Any]) -> list[_PackedLayer]:
        if dtype not in self._packed:
            starts = np.cumsum([0, *(len(layer.rows) for layer in self.layers)])
            self._packed[dtype] = [
                _PackedLayer(
                    _product(layer.left, dtype),
                    _product(layer.right, dtype),
                    layer.rows * layer.right.shape[1] + layer.columns,
                    None
                    if self.core is None or start == end
                    else _product(self.core[start:end], dtype),
                )
                for layer, start, end in zip(self.layers, starts[:-1], starts[1:], strict=True)
            ]
        return self._packed[dtype]


@dataclass(frozen=True, eq=False)
class _PackedLayer:
    """A layer's matrices, packed for products whose rows are independent of each other.

    Attributes
    ----------
    left, right : PackedMatrix
    entries : ndarray of int, shape (r,)
        Numbers of the kept entries of a turned gradient, row by row.
    core : PackedMatrix or None
        The layer's rows of the core.
    """

    left: _core.PackedMatrix
    right: _core.PackedMatrix
    entries: NDArray[np.intp]
    core: _core.PackedMatrix | None


def _made(
    layers: Sequence[SubspaceLayer],
    core: NDArray[Any] | None,
    scale: NDArray[Any],
    kept: NDArray[Any],
) -> PublicSubspace:
    return PublicSubspace(layers, core, scale=scale, kept=kept)


def _vector(values: ArrayLike | None, k: int, name: str) -> NDArray[np.float64]:
    given = np.ones(k) if values is None else _checks.finite_array(values, name, 1)
    if given.shape != (k,):
        raise ValueError(f"{name} has shape {given.shape}; it needs ({k},)")
    return _frozen(np.array(given, np.float64))


def _scale(energy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale directions down that moves seldom call for, without leaving them out."""
    scale: NDArray[np.float64] = (energy / energy.max()) ** _TAPER
    return scale


def _product(matrix: NDArray[np.float64], dtype: np.dtype[Any]) -> _core.PackedMatrix:
    return _core.PackedMatrix(np.ascontiguousarray(matrix, dtype))


def _multiplied(rows: NDArray[Real], matrix: _core.PackedMatrix) -> NDArray[Real]:
    out = np.empty((len(rows), matrix.shape[1]), rows.dtype)
    matrix.multiply(np.ascontiguousarray(rows), out)
    return out


def _turned(
    inputs: NDArray[Real],
    deltas: NDArray[Real],
    left: _core.PackedMatrix,
    right: _core.PackedMatrix,
) -> NDArray[Real]:
    """Give Lᵀ G R (m, a, b) of each record, G the sum of its outer products."""
    m, positions = len(inputs), inputs.shape[1:-1]
    a = _multiplied(deltas.reshape(-1, deltas.shape[-1]), left).reshape(m, *positions, -1, 1)
    b = _multiplied(inputs.reshape(-1, inputs.shape[-1]), right).reshape(m, *positions, 1, -1)
    # A warning on one record's overflow would tell of it.
    with np.errstate(all="ignore"):
        if not positions:
            return a * b
        # One position after another, so that a record's sum has the same bits in any block.
        whole: NDArray[Real] = a[:, 0] * b[:, 0]
        for t in range(1, positions[0]):
            whole += a[:, t] * b[:, t]
    return whole


def _turned_rows(
    gradients: NDArray[Real], left: _core.PackedMatrix, right: _core.PackedMatrix
) -> NDArray[Real]:
    """Give the same of gradients (m, out, in + 1)."""
    m, out, inp = gradients.shape
    half = _multiplied(gradients.reshape(m * out, inp), right).reshape(m, out, -1)
    across = half.transpose(0, 2, 1).reshape(-1, out)
    whole = _multiplied(across, left).reshape(m, half.shape[2], -1)
    return np.ascontiguousarray(whole.transpose(0, 2, 1))


class Directions:
    """Where moves of public records take a pretrained model, in whitened coordinates.

    Made by :func:`learn_directions`; gives subspaces of any size.

    Attributes
    ----------
    gradients : list of ndarray of float32, shape (g, out, in + 1)
        One a layer: the whitened mean gradients of all moves and steps.
    """

    def __init__(self, curvature: KroneckerCurvature, gradients: list[NDArray[np.float32]]) -> None:
        self._curvature, self.gradients = curvature, gradients
        self._entries: tuple[list[SubspaceLayer], NDArray[np.float32], NDArray[Any]] | None = None

    def subspace(self, n_components: int) -> PublicSubspace:
        """Give the k leading directions.

        Where there are at least as many gradients as components, they are the principal ones of
        the gradients, made of the 2,048 entries of the layers' matrices, turned to the axes of
        their inputs' and outputs' second moments, that hold most of the gradients. For more
        components than gradients, it is so many of these entries themselves.

        Parameters
        ----------
        n_components : int
            k, at most p.

        Returns
        -------
        PublicSubspace
        """
        k = _checks.count(n_components, "n_components")
        p = sum(g[0].size for g in self.gradients)
        if k > p:
            raise ValueError(f"n_components is {k}; it can be at most the model's {p} weights")
        combined = k <= min(len(self.gradients[0]), _ENTRIES)
        sides, entries, curvature = self._turned()
        energy = np.square(entries, dtype=np.float64).mean(axis=0)
        chosen = np.sort(np.argsort(-energy, kind="stable")[: _ENTRIES if combined else k])
        layers, start = [], 0
        for layer in sides:
            end = start + len(layer.rows)
            layers.append(_some_entries(layer, chosen[(chosen >= start) & (chosen < end)] - start))
            start = end
        if not combined:
            return PublicSubspace(layers, scale=_scale(energy[chosen]), kept=curvature[chosen])
        some = entries[:, chosen].astype(np.float64)
        values, vectors = np.linalg.eigh(some @ some.T)
        energy = np.maximum(values[::-1][:k], 1e-300)
        core, _ = np.linalg.qr(some.T @ (vectors[:, ::-1][:, :k] / np.sqrt(energy)))
        kept = np.square(core).T @ curvature[chosen]
        return PublicSubspace(layers, core, scale=_scale(energy), kept=kept)

    def whitened(self, subspace: PublicSubspace) -> NDArray[np.float64]:
        """Give the columns of P in whitened coordinates, (p, k): orthogonal, as long as its scale.

        For small k: this is as large as P.
        """
        steps = subspace.adjoint(np.eye(subspace.n_components))
        parts, start = [], 0
        for layer in self._curvature.layers:
            inverse_a, inverse_b = layer.arrays()
            (out, inp), end = layer.shape, start + layer.n_parameters
            of_layer = steps[:, start:end].reshape(-1, out, inp)
            roots = np.linalg.inv(inverse_b).T, np.linalg.inv(inverse_a)
            parts.append((roots[0] @ of_layer @ roots[1]).reshape(len(steps), -1))
            start = end
        whole: NDArray[np.float64] = np.concatenate(parts, axis=1).T
        return whole

    def _turned(self) -> tuple[list[SubspaceLayer], NDArray[np.float32], NDArray[np.float64]]:
        """Give all entries of the turned layers, those of the gradients, and their curvature."""
        if self._entries is None:
            layers, entries, kept = [], [], []
            for of_layer, gradients in zip(self._curvature.layers, self.gradients, strict=True):
                g, out, inp = gradients.shape
                by_row = gradients.reshape(g * out, inp)
                by_column = gradients.transpose(0, 2, 1).reshape(g * inp, out)
                q_a = np.linalg.eigh((by_row.T @ by_row).astype(np.float64))[1]
                q_b = np.linalg.eigh((by_column.T @ by_column).astype(np.float64))[1]
                inverse_a, inverse_b = of_layer.arrays()
                rows, columns = np.divmod(np.arange(out * inp), inp)
                layers.append(SubspaceLayer(inverse_b.T @ q_b, inverse_a.T @ q_a, rows, columns))
                turned = q_b.T.astype(np.float32) @ gradients @ q_a.astype(np.float32)
                entries.append(turned.reshape(g, -1))
                moments: Any = of_layer
                of_a = np.einsum("ij,ik,kj->j", q_a, moments.expected_moments(), q_a, optimize=True)
                of_b = np.einsum(
                    "ij,ik,kj->j", q_b, moments.expected_output_moments(), q_b, optimize=True
                )
                kept.append(np.clip(np.outer(of_b, of_a), 0, 1).ravel())
            self._entries = layers, np.concatenate(entries, axis=1), np.concatenate(kept)
        return self._entries


def learn_directions(
    model: Any,
    X_public: ArrayLike,
    y_public: ArrayLike,
    *,
    moves: Sequence[Surrogate],
    seed: int = 0,
    progress: bool = False,
) -> Directions:
    """See where gradients point when public records are moved.

    Parameters
    ----------
    model : qexp.models.MultilayerPerceptron or alike
        Pretrained, layered: its gradients come as factors.
    X_public : array, shape (m, d)
        Public records, best such as pretraining has not seen.
    y_public : array, shape (m,)
        Their labels.
    moves : sequence of callables
        Functions ``move(X, y, rng) -> (X, y)`` that make other domains of public records, as
        :mod:`qexp.surrogates` has them; :func:`image_moves` draws some for images.
    seed : int
        Of the records that each move is tried on, at most 2,000, and of the moves' own chance.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Directions

    Raises
    ------
    ValueError, TypeError
        If there are no moves, records and labels do not fit, or a move gives what has no gradient.

    Notes
    -----
    Of each move, the mean of the whitened, clipped gradients at the pretrained weights and at the
    next three points of a descent along them is kept. All of it is public, so that it is computed
    as fast as may be; its last bits differ from machine to machine. Of the ranks of an MPI job let
    the root learn it, and broadcast the subspace, which can be pickled.

    References
    ----------
    Subspaces from public gradients, there of the pretrained domain itself: Y. Zhou, Z. S. Wu and
    A. Banerjee, "Bypassing the ambient dimension: private SGD with gradient subspace
    identification", ICLR 2021; D. Yu et al., "Do not let privacy overbill utility: gradient
    embedding perturbation for private learning", ICLR 2021.
    """
    X, y = np.asarray(X_public), np.asarray(y_public)
    if X.ndim != 2 or y.shape != (len(X),):
        raise ValueError(
            f"X_public has shape {X.shape} and y_public {y.shape}; they need (m, d) and (m,)"
        )
    given = list(moves)
    if not given or not all(callable(move) for move in given):
        raise TypeError("moves needs functions move(X, y, rng) -> (X, y), at least one")
    curvature = KroneckerCurvature.from_model(model, X, damping=DAMPING)
    rng = np.random.default_rng(seed)
    found: list[list[NDArray[np.float32]]] = []
    with progress_bar(len(given), "moves", show=progress) as advance:
        for move in given:
            chosen = np.sort(rng.permutation(len(X))[:_RECORDS])
            found.extend(_along_path(model, curvature, *move(X[chosen], y[chosen], rng)))
            advance(1)
    return Directions(curvature, [np.stack(of_layer) for of_layer in zip(*found, strict=True)])


def image_moves(
    model: Any,
    X_public: ArrayLike,
    y_public: ArrayLike,
    *,
    image_shape: tuple[int, int] | None = None,
    count: int = _MOVES,
    seed: int = _SEED_OF_MOVES,
) -> list[Surrogate]:
    """Draw moves of public images: turned, moved, stretched, blurred, more weakly or strongly.

    Parameters
    ----------
    model, X_public, y_public, image_shape
        As :func:`qexp.surrogates.image_surrogates` takes them.
    count : int
    seed : int
        Other than a planner's, so that it tries its schedules on other shifts.

    Returns
    -------
    list of ImageShift
    """
    return list(
        image_surrogates(
            model,
            X_public,
            y_public,
            image_shape=image_shape,
            count=count,
            keeps=_KEEPS,
            seed=seed,
        )
    )


def _some_entries(layer: SubspaceLayer, chosen: NDArray[np.intp]) -> SubspaceLayer:
    """Keep some entries, and only the columns of L and R that they need."""
    if len(chosen) == 0:
        return SubspaceLayer(layer.left[:, :1], layer.right[:, :1], chosen, chosen)
    left, rows = np.unique(layer.rows[chosen], return_inverse=True)
    right, columns = np.unique(layer.columns[chosen], return_inverse=True)
    return SubspaceLayer(
        np.ascontiguousarray(layer.left[:, left]),
        np.ascontiguousarray(layer.right[:, right]),
        rows,
        columns,
    )


def _along_path(
    model: Any, curvature: KroneckerCurvature, X: NDArray[Any], y: NDArray[Any]
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield the layers' whitened mean gradients at the start and along the way down."""
    whiteners = [
        tuple(inverse.T.astype(np.float32) for inverse in layer.arrays())
        for layer in curvature.layers
    ]
    weights = model.weights.astype(np.float64)
    for step in range(_STEPS):
        at = model if step == 0 else model.with_weights(weights)
        means = _clipped_mean(at, whiteners, X, y)
        if not all(np.isfinite(mean).all() for mean in means):
            raise ValueError(
                "a gradient of moved public records is not finite; moves need to give finite "
                "records, at least one, with labels that the model knows"
            )
        yield means
        whole = np.concatenate([mean.ravel() for mean in means]).astype(np.float64)
        weights = weights - _STEP_SIZE * curvature.unwhiten(whole)


def _clipped_mean(
    model: Any, whiteners: Sequence[Any], X: NDArray[Any], y: NDArray[Any]
) -> list[NDArray[np.float32]]:
    sums: list[NDArray[np.float32]] = [
        np.zeros((b.shape[1], a.shape[1]), np.float32)  # (out, in + 1)
        for a, b in whiteners
    ]
    for factors in model.gradient_blocks(X, y).factor_blocks():
        turned = [(d @ b, a @ of_a) for (a, d), (of_a, b) in zip(factors, whiteners, strict=True)]
        squares = sum(np.square(d).sum(axis=1) * np.square(a).sum(axis=1) for d, a in turned)
        shares = np.minimum(1, _CLIPPING_NORM / np.sqrt(np.maximum(squares, 1e-30)))
        for (d, a), total in zip(turned, sums, strict=True):
            total += (d * shares[:, None]).T @ a
    with np.errstate(invalid="ignore"):  # of no records
        for total in sums:
            total /= np.float32(len(X))
    return sums
