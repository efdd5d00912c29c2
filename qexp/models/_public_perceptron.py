"""A perceptron on public records, in single precision and by large matrix products.

Private records go through a kernel in which no record depends on its neighbours, bit for bit.
Simulations on public records need no such thing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from qexp.layered import Factors
from qexp.models._records import as_classes
from qexp.models.perceptron import MultilayerPerceptron

__all__ = ["PublicPerceptron", "for_public_records"]

# Enough rows for a matrix product, few enough to stay close to the processor.
_ROWS: Final = 1024


def for_public_records(model: Any) -> Any:
    """Give the quick counterpart of a perceptron; other models as they are."""
    return PublicPerceptron(model) if isinstance(model, MultilayerPerceptron) else model


class PublicPerceptron:
    """The part of a perceptron that simulations ask for, without checks, for public records.

    Parameters
    ----------
    model : MultilayerPerceptron
    """

    def __init__(self, model: MultilayerPerceptron) -> None:
        self.layer_shapes, self.n_classes = model.layer_shapes, model.n_classes
        self.weights: NDArray[np.float32] = model.weights.astype(np.float32)
        self.fit = model.fit
        self._checked = model
        self._is_tanh = model.activation == "tanh"
        self._kept: dict[int, tuple[NDArray[Any], list[list[Factors]]]] = {}

    def with_weights(self, weights: NDArray[Any]) -> Self:
        """Return the perceptron at other weights."""
        other = copy.copy(self)
        other.weights, other._kept = weights.astype(np.float32, copy=False), {}
        return other

    def curvature_blocks(self, X: NDArray[Any], **settings: Any) -> Any:
        """Return the source of curvature of the perceptron at these weights."""
        return self._checked.with_weights(self.weights).curvature_blocks(X, **settings)

    def predict_log_proba(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logarithms (n, K) of the class probabilities."""
        layers = self._layers()
        scores = [self._forward(layers, X[i : i + _ROWS])[1] for i in range(0, len(X), _ROWS)]
        joined = np.concatenate(scores)
        joined -= np.log(np.exp(joined).sum(axis=1, keepdims=True))
        return joined

    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return the class probabilities (n, K)."""
        return np.exp(self.predict_log_proba(X))

    def score(self, X: NDArray[Any], y: NDArray[Any]) -> float:
        """Return the share of records whose likeliest class is their label."""
        return float(np.mean(self.predict_log_proba(X).argmax(axis=1) == y))

    def loss(self, X: NDArray[Any], y: NDArray[Any]) -> float:
        """Return the mean cross-entropy in nats; NaN where a label is no class."""
        classes = as_classes(y, self.n_classes)
        losses = -self.predict_log_proba(X)[np.arange(len(y)), classes].astype(np.float64)
        return float(np.mean(np.where(classes >= 0, losses, np.nan)))

    def keep(self, X: NDArray[Any], y: NDArray[Any]) -> None:
        """Compute the gradients of these very arrays once, for all who ask at these weights."""
        self._kept[id(X)] = X, list(self._factors(X, y))

    def gradient_blocks(self, X: NDArray[Any], y: NDArray[Any]) -> _Gradients:
        """Give per-record gradients; those of a label that is no class are NaN."""
        kept = self._kept.get(id(X))
        return _Gradients(self._factors(X, y) if kept is None else iter(kept[1]))

    def _layers(self) -> list[NDArray[np.float32]]:
        layers, start = [], 0
        for rows, columns in self.layer_shapes:
            layers.append(self.weights[start : start + rows * columns].reshape(rows, columns))
            start += rows * columns
        return layers

    def _factors(self, X: NDArray[Any], y: NDArray[Any]) -> Iterator[list[Factors]]:
        layers, classes = self._layers(), as_classes(y, self.n_classes)
        for first in range(0, len(X), _ROWS):
            block = slice(first, first + _ROWS)
            with np.errstate(all="ignore"):
                yield self._block(layers, X[block], classes[block])

    def _forward(
        self, layers: list[NDArray[np.float32]], X: NDArray[Any]
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
        """Give the layers' inputs, with a trailing 1, and the scores of classes, 0 at most."""
        inputs = [_with_ones(X)]
        for layer in layers[:-1]:
            sums = inputs[-1] @ layer.T
            inputs.append(_with_ones(np.tanh(sums) if self._is_tanh else np.maximum(sums, 0)))
        scores = inputs[-1] @ layers[-1].T
        scores -= scores.max(axis=1, keepdims=True)
        return inputs, scores

    def _block(
        self, layers: list[NDArray[np.float32]], X: NDArray[Any], classes: NDArray[np.int64]
    ) -> list[Factors]:
        inputs, delta = self._forward(layers, X)
        np.exp(delta, out=delta)
        delta /= delta.sum(axis=1, keepdims=True)
        delta -= classes[:, None] == np.arange(self.n_classes)
        if classes.min() < 0:
            delta[classes < 0] = np.nan
        deltas = [delta]
        for layer, a in zip(layers[:0:-1], inputs[:0:-1], strict=True):
            outputs = a[:, :-1]
            delta = delta @ layer[:, :-1]
            delta *= 1 - outputs * outputs if self._is_tanh else outputs > 0
            deltas.append(delta)
        return list(zip(inputs, deltas[::-1], strict=True))


@dataclass(frozen=True)
class _Gradients:
    """What :class:`qexp.models.sources.GradientSource` is to private records."""

    blocks: Iterator[list[Factors]]

    def factor_blocks(self) -> Iterator[list[Factors]]:
        return self.blocks


def _with_ones(rows: NDArray[Any]) -> NDArray[np.float32]:
    out = np.empty((len(rows), rows.shape[1] + 1), np.float32)
    out[:, :-1], out[:, -1] = rows, 1
    return out
