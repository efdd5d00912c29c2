"""Softmax regression and multilayer perceptrons, compiled, exact per record.

A model is an architecture and one flat weight vector, and never changes: every method that alters
weights returns a new model.

Layout of the weights: layer after layer, each a matrix (out, in + 1), row-major, whose last column
is the bias. A layer maps its input a to W [a, 1], so that a record's gradient in W is the outer
product of delta (out,) and [a, 1] (in + 1,).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from qexp import _checks, _core
from qexp.models._records import (
    as_features,
    as_label_rows,
    as_labels,
    record_blocks,
    require_classes,
    require_finite,
    with_dtype,
)
from qexp.models.sources import CurvatureSource, GradientSource
from qexp.records import LazyRows

Activation = Literal["tanh", "relu"]

_PREDICTION_BLOCK = 1024


class MultilayerPerceptron:
    """A classifier with fully connected layers and the softmax cross-entropy as its loss.

    Made by `mlp`. Two classes are two outputs.

    Parameters
    ----------
    layer_sizes : sequence of int
        Number of features, sizes of the hidden layers (any number, also none), number of classes.
    weights : array_like of shape (p,)
        Weights in the layout of the module's docstring. float32 weights make a model that computes
        in float32, float64 weights one that computes in float64.
    activation : {"tanh", "relu"}
        What follows each hidden layer.
    """

    def __init__(
        self, layer_sizes: Sequence[int], weights: ArrayLike, *, activation: Activation = "tanh"
    ) -> None:
        self._layer_sizes = _checked_layer_sizes(layer_sizes)
        if activation not in ("tanh", "relu"):
            raise ValueError(f"activation is {activation!r}; it must be 'tanh' or 'relu'")
        self._activation: Activation = activation
        dtype = np.asarray(weights).dtype
        self._set_weights(weights, _checked_dtype(dtype, "weights"))

    def _set_weights(self, weights: ArrayLike, dtype: np.dtype[Any]) -> None:
        given = np.asarray(weights)
        if given.dtype.kind not in "iuf":
            raise TypeError(f"weights is {given.dtype}; it must hold real numbers")
        if given.shape != (self.n_parameters,):
            raise ValueError(
                f"weights has the shape {given.shape}; {self.layer_sizes} needs "
                f"({self.n_parameters},)"
            )
        with np.errstate(over="ignore"):
            flat = given.astype(dtype)
        if not np.isfinite(flat).all():
            raise ValueError(f"weights holds a NaN, an infinity, or a number too large for {dtype}")
        flat.flags.writeable = False
        self._weights: NDArray[Any] = flat
        self._network = _core.Network(self._layer_sizes, self._activation, flat)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_network"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_weights(self._weights, self._weights.dtype)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(layer_sizes={self.layer_sizes}, "
            f"activation={self.activation!r}, dtype={self.dtype})"
        )

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Number of features, sizes of the hidden layers, number of classes."""
        return self._layer_sizes

    @property
    def activation(self) -> Activation:
        """What follows each hidden layer."""
        return self._activation

    @property
    def weights(self) -> NDArray[Any]:
        """The flat weight vector (p,), read-only."""
        return self._weights

    @property
    def dtype(self) -> np.dtype[Any]:
        """The weights' dtype, in which the model computes."""
        return self._weights.dtype

    @property
    def n_features(self) -> int:
        """Length of a record."""
        return self._layer_sizes[0]

    @property
    def n_classes(self) -> int:
        """Number of outputs."""
        return self._layer_sizes[-1]

    @property
    def layer_shapes(self) -> tuple[tuple[int, int], ...]:
        """Shape (out, in + 1) of each layer's matrix in the weight vector."""
        sizes = self._layer_sizes
        return tuple((sizes[i + 1], sizes[i] + 1) for i in range(len(sizes) - 1))

    @property
    def n_parameters(self) -> int:
        """Length p of the weight vector."""
        return sum(rows * columns for rows, columns in self.layer_shapes)

    def describe(self) -> dict[str, Any]:
        """Return the architecture as a dictionary that JSON can hold."""
        return {
            "model": type(self).__name__,
            "layer_sizes": list(self.layer_sizes),
            "activation": self.activation,
            "dtype": self.dtype.name,
            "n_parameters": self.n_parameters,
        }

    def with_weights(self, weights: ArrayLike) -> Self:
        """Return the model of the same architecture and dtype at other weights.

        Parameters
        ----------
        weights : array_like of shape (p,)
            Finite; rounded to the model's dtype.

        Raises
        ------
        ValueError
            If the shape is wrong or a weight is not finite.
        """
        other = type(self).__new__(type(self))
        other._layer_sizes, other._activation = self._layer_sizes, self._activation
        other._set_weights(weights, self.dtype)
        return other

    # ------------------------------------------------------------------------------ prediction

    def predict_log_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return the logarithms (n, K) of the class probabilities.

        A record that is not finite has a row of NaN.
        """
        features = as_features(X, self.n_features)
        out = np.empty((len(features), self.n_classes), self.dtype)
        for rows, block in record_blocks(features, _PREDICTION_BLOCK, self.dtype):
            self._network.log_probabilities(block, out[rows])
        return out

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class probabilities (n, K); a record that is not finite has a row of NaN."""
        return np.asarray(np.exp(self.predict_log_proba(X)))

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the likeliest classes (n,); -1 for a record that is not finite."""
        scores = self.predict_log_proba(X)
        return np.where(np.isnan(scores[:, 0]), -1, scores.argmax(axis=1)).astype(np.int64)

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the share of records whose likeliest class is their label.

        A record that is not finite, or whose label is no class, counts as wrong.
        """
        predicted = self.predict(X)
        labels = as_labels(y, len(predicted), self.n_classes)
        _require_some(len(labels))
        return float(np.mean((predicted == labels) & (labels >= 0)))

    def loss(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the mean cross-entropy in nats; NaN where a record cannot be used."""
        scores = self.predict_log_proba(X)
        labels = as_labels(y, len(scores), self.n_classes)
        _require_some(len(labels))
        losses = -scores[np.arange(len(labels)), labels].astype(np.float64)
        return float(np.mean(np.where(labels >= 0, losses, np.nan)))

    # --------------------------------------------------------------------------------- sources

    def gradient_blocks(
        self, X: ArrayLike | LazyRows, y: ArrayLike | LazyRows, *, block_size: int | None = None
    ) -> GradientSource:
        """Return the source of per-record gradients of the cross-entropy at the weights.

        This is the way of private records: nothing is raised, warned or logged on account of one
        record's values. A record with a NaN or an infinity in its features, or a label other than
        0..K-1, has a gradient row of NaN, which the private sum replaces by zero.

        Parameters
        ----------
        X : array_like of shape (n, n_features), or LazyRows
            Real numbers of any dtype; a memory map or lazy rows are read block by block. In lists,
            what is no number counts as NaN, and so does every number of a row of another length:
            only the shape of an array is checked.
        y : array_like of shape (n,), or LazyRows
            Classes 0..K-1, as integers or as floating-point numbers; read block by block as well.
        block_size : int, optional
            Most rows in a block; by default as many as fit into a few megabytes. Without influence
            on any row's bits.

        Raises
        ------
        TypeError, ValueError
            If the dtype or the shape of a whole array is wrong.
        """
        features = as_features(with_dtype(X, self.n_features), self.n_features)
        return GradientSource(
            self._network,
            features,
            as_label_rows(with_dtype(y), len(features), self.n_classes),
            n_classes=self.n_classes,
            layer_shapes=self.layer_shapes,
            dtype=self.dtype,
            block_size=_checked_block_size(block_size),
        )

    def curvature_blocks(
        self,
        X: ArrayLike | LazyRows,
        *,
        labels: Literal["sampled", "expected", "given"] = "sampled",
        y: ArrayLike | None = None,
        seed: int = 0,
        block_size: int | None = None,
        first_record: int = 0,
    ) -> CurvatureSource:
        """Return a source of rows r with Σ r rᵀ / n the curvature of the mean loss on public X.

        Parameters
        ----------
        X : array_like of shape (n, n_features)
            Public records, finite.
        labels : {"sampled", "expected", "given"}
            "sampled": one gradient row a record, its label drawn from the model's own
            probabilities: the Monte-Carlo Fisher matrix. "expected": K rows a record, √p_c times
            the gradient at class c: exactly the generalised Gauss-Newton matrix JᵀΛJ, which for
            this loss is the Fisher matrix (Martens, "New insights and perspectives on the natural
            gradient method", JMLR 2020). "given": one gradient row a record at the label in y: the
            empirical Fisher matrix.
        y : array_like of shape (n,), optional
            Labels for "given".
        seed : int
            Public seed for "sampled". The labels do not depend on the block size.
        block_size : int, optional
            Most rows in a block; "expected" keeps the rows of a record together.
        first_record : int
            Number of the first record where X is a part of the public records: a record has the
            same "sampled" label in a part as in the whole.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong; while rows are read, if a record is not finite.
        """
        features = as_features(X, self.n_features)
        if labels not in ("sampled", "expected", "given"):
            raise ValueError(f"labels is {labels!r}; it must be 'sampled', 'expected' or 'given'")
        if (y is not None) != (labels == "given"):
            raise ValueError("y goes with labels='given', and only with it")
        kind: Literal["sampled", "expected"] | NDArray[np.int64]
        if labels == "given":
            assert y is not None
            kind = as_labels(y, len(features), self.n_classes)
            require_classes(kind, self.n_classes)
        else:
            kind = labels
        return CurvatureSource(
            self._network,
            features,
            labels=kind,
            seed=seed,
            first_record=_checks.count(first_record, "first_record", least=0),
            n_classes=self.n_classes,
            layer_shapes=self.layer_shapes,
            dtype=self.dtype,
            block_size=_checked_block_size(block_size),
        )

    # ------------------------------------------------------------------------------ pretraining

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int = 20,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-4,
        schedule: Literal["cosine", "constant"] = "cosine",
        seed: int = 0,
        callback: Callable[[int, float], object] | None = None,
    ) -> Self:
        """Return this model trained further on PUBLIC data. It protects nobody's privacy.

        Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019) on shuffled
        minibatches, in the model's dtype.

        Parameters
        ----------
        X : array_like of shape (n, n_features)
            Public records, finite.
        y : array_like of shape (n,)
            Classes 0..K-1.
        epochs : int
            Passes over the data.
        batch_size : int
            Records a step.
        learning_rate : float
            Adam's step size, at its largest.
        weight_decay : float
            Share of a weight taken off per unit of step size; biases are left alone.
        schedule : {"cosine", "constant"}
            "cosine" lowers the step size to zero over all steps.
        seed : int
            Seed of the shuffles.
        callback : callable, optional
            Called after each epoch with its number, counted from 1, and its mean loss.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong, a record is not finite or a label is no class.
        """
        features = np.asarray(as_features(X, self.n_features))
        labels = as_labels(y, len(features), self.n_classes)
        _require_some(len(labels))
        require_classes(labels, self.n_classes)
        for rows, block in record_blocks(features, _PREDICTION_BLOCK, self.dtype):
            require_finite(block, rows.start)
        epochs = _checks.count(epochs, "epochs")
        batch_size = min(_checks.count(batch_size, "batch_size"), len(labels))
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ValueError(f"learning_rate is {learning_rate}; it must be positive and finite")
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise ValueError(f"weight_decay is {weight_decay}; it must be finite and not negative")
        if schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule is {schedule!r}; it must be 'cosine' or 'constant'")

        weights = self._weights.copy()
        layers = self._matrices(weights)
        gradient = np.empty_like(weights)
        gradients = self._matrices(gradient)
        mean, square = np.zeros_like(weights), np.zeros_like(weights)
        beta_mean, beta_square = 0.9, 0.999
        generator = np.random.default_rng(_checks.seed(seed))
        steps = epochs * math.ceil(len(labels) / batch_size)
        step = 0
        for epoch in range(1, epochs + 1):
            order = generator.permutation(len(labels))
            total = 0.0
            for begin in range(0, len(labels), batch_size):
                chosen = order[begin : begin + batch_size]
                batch = features[chosen].astype(self.dtype, copy=False)
                total += _mean_gradient(layers, batch, labels[chosen], self._activation, gradients)
                step += 1
                mean += (1 - beta_mean) * (gradient - mean)
                square += (1 - beta_square) * (gradient * gradient - square)
                rate = learning_rate
                if schedule == "cosine":
                    rate *= 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
                for layer in layers:
                    layer[:, :-1] *= 1 - rate * weight_decay
                size = np.sqrt(square / (1 - beta_square**step)) + 1e-8
                weights -= (rate / (1 - beta_mean**step)) * mean / size
            if callback is not None:
                callback(epoch, total / len(labels))
        return self.with_weights(weights)

    def _matrices(self, flat: NDArray[Any]) -> list[NDArray[Any]]:
        matrices = []
        for rows, columns in self.layer_shapes:
            matrices.append(flat[: rows * columns].reshape(rows, columns))
            flat = flat[rows * columns :]
        return matrices


class SoftmaxRegression(MultilayerPerceptron):
    """Softmax (multinomial logistic) regression: a perceptron without hidden layers.

    Made by `softmax_regression`. The loss is convex in the weights.

    Parameters
    ----------
    n_features, n_classes : int
        Length of a record, number of classes.
    weights : array_like of shape (n_classes * (n_features + 1),)
        A matrix (n_classes, n_features + 1), row-major, its last column the bias.
    """

    def __init__(self, n_features: int, n_classes: int, weights: ArrayLike) -> None:
        super().__init__((n_features, n_classes), weights)

    def __repr__(self) -> str:
        return (
            f"SoftmaxRegression(n_features={self.n_features}, n_classes={self.n_classes}, "
            f"dtype={self.dtype})"
        )


def mlp(
    layer_sizes: Sequence[int],
    *,
    activation: Activation = "tanh",
    dtype: DTypeLike = np.float32,
    seed: int = 0,
) -> MultilayerPerceptron:
    """Return a multilayer perceptron with random initial weights and zero biases.

    Weights are normal with variance 2 / (in + out) for tanh (Glorot and Bengio, AISTATS 2010) and
    2 / in for relu (He et al., ICCV 2015).

    Parameters
    ----------
    layer_sizes : sequence of int
        Number of features, sizes of the hidden layers, number of classes (at least 2).
    activation : {"tanh", "relu"}
        What follows each hidden layer. Curvature models fit tanh better: it is smooth.
    dtype : {float32, float64}
        What the model computes in.
    seed : int
        Seed of the initial weights.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    sizes = _checked_layer_sizes(layer_sizes)
    generator = np.random.default_rng(_checks.seed(seed))
    parts = []
    for inputs, outputs in itertools.pairwise(sizes):
        variance = 2 / inputs if activation == "relu" else 2 / (inputs + outputs)
        layer = np.zeros((outputs, inputs + 1))
        layer[:, :-1] = math.sqrt(variance) * generator.standard_normal((outputs, inputs))
        parts.append(layer.ravel())
    weights = np.concatenate(parts).astype(_checked_dtype(dtype, "dtype"))
    return MultilayerPerceptron(sizes, weights, activation=activation)


def softmax_regression(
    n_features: int, n_classes: int, *, dtype: DTypeLike = np.float32
) -> SoftmaxRegression:
    """Return a softmax regression with zero weights.

    Parameters
    ----------
    n_features, n_classes : int
        Length of a record, number of classes (at least 2).
    dtype : {float32, float64}
        What the model computes in.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    _checked_layer_sizes((n_features, n_classes))
    weights = np.zeros(n_classes * (n_features + 1), _checked_dtype(dtype, "dtype"))
    return SoftmaxRegression(n_features, n_classes, weights)


def _checked_layer_sizes(layer_sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(_checks.count(size, "a layer size") for size in layer_sizes)
    if len(sizes) < 2:
        raise ValueError(
            f"layer_sizes is {sizes}; it needs the number of features and that of classes"
        )
    if sizes[-1] < 2:
        raise ValueError(f"there is {sizes[-1]} class; there must be at least 2")
    return sizes


def _checked_dtype(dtype: DTypeLike, name: str) -> np.dtype[Any]:
    checked = np.dtype(dtype)
    if checked not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{name} is {checked}; it must be float32 or float64")
    return checked


def _checked_block_size(block_size: int | None) -> int | None:
    return None if block_size is None else _checks.count(block_size, "block_size")


def _require_some(n_records: int) -> None:
    if n_records == 0:
        raise ValueError("X has no records; it needs at least one")


def _mean_gradient(
    layers: Sequence[NDArray[Any]],
    X: NDArray[Any],
    labels: NDArray[np.int64],
    activation: Activation,
    gradients: Sequence[NDArray[Any]],
) -> float:
    """Write the mean gradient of a batch of public records and return its summed loss."""
    inputs = [X]
    for layer in layers[:-1]:
        sums = inputs[-1] @ layer[:, :-1].T + layer[:, -1]
        inputs.append(np.tanh(sums) if activation == "tanh" else np.maximum(sums, 0))
    scores = inputs[-1] @ layers[-1][:, :-1].T + layers[-1][:, -1]
    scores -= scores.max(axis=1, keepdims=True)
    exponentials = np.exp(scores)
    totals = exponentials.sum(axis=1, keepdims=True)
    each = np.arange(len(labels))
    loss = float((np.log(totals[:, 0]) - scores[each, labels]).sum())
    deltas = exponentials / totals
    deltas[each, labels] -= 1
    deltas /= len(labels)
    for i in range(len(layers) - 1, -1, -1):
        a = inputs[i]
        gradients[i][:, :-1] = deltas.T @ a
        gradients[i][:, -1] = deltas.sum(axis=0)
        if i > 0:
            deltas = deltas @ layers[i][:, :-1]
            deltas *= 1 - a * a if activation == "tanh" else a > 0
    return loss
