"""Directions that moves of public records call for, and subspaces of any size made of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks
from qexp._bounds import clip_shares
from qexp._parallel import several_at_once, threads_for
from qexp._progress import progress_bar
from qexp.layered import KroneckerCurvature
from qexp.models._public_perceptron import for_public_records
from qexp.models._records import require_labels_of
from qexp.subspace._projection import PublicSubspace, SubspaceLayer
from qexp.surrogates import Surrogate, image_surrogates

__all__ = ["DAMPING", "Directions", "image_moves", "learn_directions"]

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

    def whitened(self, subspace: PublicSubspace) -> PublicSubspace:
        """Give the same map, but of gradients that are whitened already.

        Its columns are orthogonal, each as long as its scale.
        """
        layers = []
        for layer, of_layer in zip(subspace.layers, self._curvature.layers, strict=True):
            inverse_a, inverse_b = of_layer.arrays()
            left = np.linalg.inv(inverse_b).T @ layer.left
            right = np.linalg.inv(inverse_a).T @ layer.right
            layers.append(SubspaceLayer(left, right, layer.rows, layer.columns))
        return PublicSubspace(layers, subspace.core, scale=subspace.scale)

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
    X, y = _checks.labelled(X_public, y_public)
    require_labels_of(model, y)
    given = list(moves)
    if not given or not all(callable(move) for move in given):
        raise TypeError("moves needs functions move(X, y, rng) -> (X, y), at least one")
    curvature = KroneckerCurvature.from_model(model, X, damping=DAMPING)
    rng = np.random.default_rng(_checks.seed(seed))
    found: list[list[NDArray[np.float32]]] = []
    threads = threads_for(model)

    def moved() -> Iterator[Any]:
        for move in given:
            chosen = np.sort(rng.permutation(len(X))[:_RECORDS])
            yield move(X[chosen], y[chosen], rng)

    records = moved()
    with (
        progress_bar(len(given), "moves", show=progress) as advance,
        several_at_once(threads) as each,
    ):
        # As many moves at a time as there are threads, so that few moved records are held.
        while some := list(itertools.islice(records, threads)):
            for means in each(lambda one: list(_along_path(model, curvature, *one)), some):
                found.extend(means)
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
    X, y = np.asarray(X), np.asarray(y)
    model.gradient_blocks(X, y)  # checks dtypes and shapes
    quick = for_public_records(model)
    # The first layer's inputs are the records, whatever the weights, so that they are turned once.
    turned: list[NDArray[np.float32]] | None = None if quick is model else []
    weights = model.weights.astype(np.float64)
    for step in range(_STEPS):
        at = quick if step == 0 else quick.with_weights(weights)
        means = _clipped_mean(at, whiteners, X, y, turned)
        if not all(np.isfinite(mean).all() for mean in means):
            raise ValueError(
                "a gradient of moved public records is not finite; moves need to give finite "
                "records, at least one, with labels that the model knows"
            )
        yield means
        whole = np.concatenate([mean.ravel() for mean in means]).astype(np.float64)
        weights = weights - _STEP_SIZE * curvature.unwhiten(whole)


def _clipped_mean(
    model: Any,
    whiteners: Sequence[Any],
    X: NDArray[Any],
    y: NDArray[Any],
    turned_records: list[NDArray[np.float32]] | None,
) -> list[NDArray[np.float32]]:
    sums: list[NDArray[np.float32]] = [
        np.zeros((b.shape[1], a.shape[1]), np.float32)  # (out, in + 1)
        for a, b in whiteners
    ]
    for i, factors in enumerate(model.gradient_blocks(X, y).factor_blocks()):
        if turned_records is not None and len(turned_records) == i:
            turned_records.append(factors[0][0] @ whiteners[0][0])
        turned = [
            (d @ b, a @ of_a if layer or turned_records is None else turned_records[i])
            for layer, ((a, d), (of_a, b)) in enumerate(zip(factors, whiteners, strict=True))
        ]
        squares = sum(np.square(d).sum(axis=1) * np.square(a).sum(axis=1) for d, a in turned)
        shares = clip_shares(np.sqrt(squares), _CLIPPING_NORM)
        for (d, a), total in zip(turned, sums, strict=True):
            total += (d * shares[:, None]).T @ a
    with np.errstate(invalid="ignore"):  # of no records
        for total in sums:
            total /= np.float32(len(X))
    return sums


def _scale(energy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale directions down that moves seldom call for, without leaving them out."""
    scale: NDArray[np.float64] = (energy / energy.max()) ** _TAPER
    return scale
