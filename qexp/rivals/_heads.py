"""Linear heads: the last layer's inputs as features, within the unit ball."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qexp.rivals._boundary import Pairs, PairsOf
from qexp.rivals._method import PublicData
from qexp.rivals._parts import layer_shapes

__all__ = ["Head", "head_of"]


class Head:
    """A model's last layer on the features that the others make of records.

    A feature vector is the last layer's input, with the trailing 1 of the bias, clipped to a norm
    and divided by it. Scores that are linear in it have the same largest class as those of the
    unclipped features, on which the released model is: a head trained on one serves the other for
    the classes. Probabilities are more extreme for records that were clipped, and so their order
    is another one; settings planned for such a score are planned with that.

    Parameters
    ----------
    model
    feature_norm : float
        What features are clipped to.
    public : PublicData, optional
        Where given, features are centred: less the mean of the public records' ones, but for the
        trailing 1. Noise on weights of features with a large mean in common favours single classes.
    dtype : dtype
        Of the features.

    Raises
    ------
    ValueError
        If the model has no linear last layer.
    """

    def __init__(
        self,
        model: Any,
        feature_norm: float,
        public: PublicData | None = None,
        *,
        dtype: DTypeLike = np.float64,
    ) -> None:
        shapes = layer_shapes(model)
        if not hasattr(model, "layer_shapes") or not hasattr(model, "n_classes"):
            raise ValueError(
                f"a {type(model).__name__} has no known last layer; linear heads need a model "
                "such as qexp.models.mlp or softmax_regression"
            )
        self._model, self._norm, self._dtype = model, feature_norm, dtype
        self.n_classes, self.n_features = shapes[-1]
        size = self.n_classes * self.n_features
        self._body = model.weights[:-size].astype(np.float64)
        self._centre = np.zeros(self.n_features)
        if public is not None:
            self._centre[:-1] = self._public_mean(public)[:-1]
        head = model.weights[-size:].astype(np.float64).reshape(shapes[-1])
        head[:, -1] += head @ self._centre
        #: The pretrained head (K, d), for centred features in the unit ball.
        self.pretrained: NDArray[Any] = (head * feature_norm).astype(dtype)

    def weights(self, head: NDArray[Any]) -> NDArray[Any]:
        """Give all weights of the model with the head (K, d) on it."""
        scaled = head / self._norm
        scaled[:, -1] -= scaled @ self._centre
        return np.concatenate([self._body, scaled.ravel()])

    def _public_mean(self, public: PublicData) -> NDArray[Any]:
        total = np.zeros(self.n_features)
        for factors in self._model.gradient_blocks(public.X, public.y).factor_blocks():
            total += factors[-1][0].sum(axis=0, dtype=np.float64)
        return total / len(public.y)

    def blocks(
        self, X: NDArray[Any], y: NDArray[Any]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield features z (m, d) and labels as indicators (m, K).

        A row's bits depend on its record alone. A record that cannot be used has a row of NaN.
        """
        start, centre = 0, self._centre.astype(self._dtype)
        for factors in self._model.gradient_blocks(X, y).factor_blocks():
            inputs, deltas = (np.asarray(part, self._dtype) for part in factors[-1])
            labels = np.asarray(y[start : start + len(inputs)])
            start += len(inputs)
            with np.errstate(all="ignore"):
                centred = inputs - centre
                norms = np.sqrt(np.square(centred).sum(axis=1, keepdims=True))
                features = centred / np.maximum(norms, self._norm)
            usable = np.isfinite(deltas).all(axis=1) & np.isfinite(features).all(axis=1)
            features[~usable] = np.nan
            yield features, (labels[:, None] == np.arange(self.n_classes)).astype(self._dtype)

    def pairs(
        self,
        of_block: Callable[[NDArray[Any], NDArray[Any]], Pairs],
    ) -> PairsOf:
        """Give what makes vectors of records out of their features and indicators."""

        def pairs_of(X: NDArray[Any], y: NDArray[Any]) -> Iterator[Pairs]:
            for features, indicators in self.blocks(X, y):
                with np.errstate(all="ignore"):
                    yield of_block(features, indicators)

        return pairs_of


def head_of(model: Any, settings: Any, public: PublicData | None, dtype: np.dtype[Any]) -> Head:
    """Make the head that settings with `feature_norm` and `centred` ask for."""
    if settings.centred and public is None:
        raise ValueError(
            "centred features take a public mean; give public_data=(X_public, y_public)"
        )
    return Head(model, settings.feature_norm, public if settings.centred else None, dtype=dtype)
