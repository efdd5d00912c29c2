"""Curvature of layered models: one block a layer, over the full weight space.

A layer's weights are a matrix (out, in + 1), its gradient for one record an outer product δ ⊗ a of
the derivative in the layer's sums and its input (with a trailing 1 for the bias). A Kronecker block
A ⊗ B keeps that form: whitened factors are δ̃ = L_B⁻¹ δ and ã = L_A⁻¹ a, and the gradient itself is
never formed. (Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
curvature", ICML 2015.)

A layer's factors for m records come as a pair (inputs, deltas) in one of three forms:

- (m, in + 1) and (m, out): a record's gradient is δ ⊗ a;
- (m, T, in + 1) and (m, T, out): it is Σ_t δ_t ⊗ a_t over T positions, as in a convolution;
- (m, out·(in + 1)) and (m, 1): it is the row itself, where a layer has no factors.

Public deltas may have r rows a record, one after another: m·r in place of m.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks, _core
from qexp._factor import InverseFactor, new_gram

__all__ = [
    "DiagonalCurvature",
    "KroneckerCurvature",
    "LayerCurvature",
    "LayeredCurvature",
]

Factors = tuple[NDArray[Any], NDArray[Any]]
WhitenedFactors = tuple[NDArray[np.float64], NDArray[np.float64]]
_BLOCK_BYTES: Final = 8 * 2**20


class LayerCurvature(ABC):
    """Curvature of one layer's matrix (out, in + 1).

    Built up by :meth:`add` from public records, then closed by :meth:`finish`.

    Parameters
    ----------
    shape : tuple of int
        (out, in + 1).
    damping : float
        λ.
    """

    kind: ClassVar[str]

    def __init__(self, shape: tuple[int, int], damping: float) -> None:
        self.shape = shape
        self.damping = damping
        self.effective_dimension = 0.0

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def n_components(self) -> int:
        """Number of weights that are tuned."""
        return self.n_parameters

    @abstractmethod
    def add(self, inputs: NDArray[Any], deltas: NDArray[Any]) -> None:
        """Accumulate public factors of m records, with r rows of deltas a record."""

    @abstractmethod
    def finish(self, n_records: int) -> None:
        """Damp and factor what :meth:`add` accumulated over `n_records` public records."""

    @abstractmethod
    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Whiten dense gradients (m, out·(in + 1))."""

    def whiten_factors(self, inputs: NDArray[Any], deltas: NDArray[Any]) -> WhitenedFactors:
        """Whiten the gradients of m records into factors (left, right)."""
        rows = self.whiten(_outer_rows(inputs, deltas))
        return np.ones((len(rows), 1)), rows

    @abstractmethod
    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn whitened components into a step (out·(in + 1),)."""

    @abstractmethod
    def arrays(self) -> Sequence[NDArray[np.float64]]:
        """Give the arrays that define the curvature, for its digest."""


class KroneckerLayer(LayerCurvature):
    """A ⊗ B with A = E[a aᵀ] and B = E[δ δᵀ], each damped in proportion to its mean eigenvalue."""

    kind = "kronecker"

    def __init__(self, shape: tuple[int, int], damping: float) -> None:
        super().__init__(shape, damping)
        self._input_gram = new_gram(shape[1])
        self._delta_gram = new_gram(shape[0])

    def add(self, inputs: NDArray[Any], deltas: NDArray[Any]) -> None:
        (out, inp), weight = self.shape, 1.0
        if (inputs.shape[-1], deltas.shape[-1]) != (inp, out):
            raise ValueError(
                f"a Kronecker layer of shape {self.shape} needs factors of {inp} inputs and {out} "
                f"derivatives; got {inputs.shape[-1]} and {deltas.shape[-1]}. Where a layer has "
                "no factors, use 'diagonal' or 'identity' for it"
            )
        if inputs.ndim == 3:
            # Positions taken as independent of each other: E[Σ_t a aᵀ]/T and E[Σ_t δ δᵀ] (Grosse
            # and Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers",
            # ICML 2016).
            weight = 1.0 / inputs.shape[1]
            inputs, deltas = inputs.reshape(-1, inp), deltas.reshape(-1, out)
        _core.gram_accumulate(self._input_gram, _checks.for_kernels(inputs), weight)
        _core.gram_accumulate(self._delta_gram, _checks.for_kernels(deltas), 1.0)

    def put_grams(self, input_gram: NDArray[np.float64], delta_gram: NDArray[np.float64]) -> None:
        """Take sums (lower triangles) that were accumulated elsewhere, in place of :meth:`add`."""
        self._input_gram, self._delta_gram = input_gram, delta_gram

    def finish(self, n_records: int) -> None:
        a, b = self._input_gram, self._delta_gram
        del self._input_gram, self._delta_gram
        a /= n_records
        b /= n_records
        mean_a, mean_b = float(np.trace(a)) / len(a), float(np.trace(b)) / len(b)
        if not (mean_a > 0 and mean_b > 0 and self.damping > 0):
            raise ValueError(
                f"a Kronecker layer of shape {self.shape} has damping {self.damping:g}, mean "
                f"squared input {mean_a:g} and mean squared derivative {mean_b:g}; all need to be "
                "above 0 (freeze a layer that the public records do not reach)"
            )
        # π of Martens and Grosse: both factors are damped alike, relative to their size.
        pi = math.sqrt(mean_a / mean_b)
        damping_a, damping_b = pi * math.sqrt(self.damping), math.sqrt(self.damping) / pi
        self._inverse_a = InverseFactor.of(a, damping_a, "a layer's input curvature")
        self._inverse_b = InverseFactor.of(b, damping_b, "a layer's output curvature")
        self._count_dimensions()

    def _count_dimensions(self) -> None:
        self.input_dimension = self._inverse_a.effective_dimension
        self.effective_dimension = self.input_dimension * self._inverse_b.effective_dimension

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        # Every gradient as a matrix G: L_B⁻¹ G L_A⁻ᵀ, by two products whose rows are independent.
        m, (out, inp) = len(rows), self.shape
        half = self._inverse_a.whiten(rows.reshape(m * out, inp))
        turned = half.reshape(m, out, inp).transpose(0, 2, 1)
        whole = self._inverse_b.whiten(turned.reshape(m * inp, out))
        return np.ascontiguousarray(whole.reshape(m, inp, out).transpose(0, 2, 1)).reshape(m, -1)

    def whiten_factors(self, inputs: NDArray[Any], deltas: NDArray[Any]) -> WhitenedFactors:
        if inputs.ndim == 3 or inputs.shape[1] != self.shape[1]:
            return super().whiten_factors(inputs, deltas)
        return self.whiten_deltas(deltas), self.whiten_inputs(inputs)

    def whiten_deltas(self, deltas: NDArray[Any]) -> NDArray[np.float64]:
        """Whiten the derivatives (m, out) alone, δ̃ = L_B⁻¹ δ."""
        return self._inverse_b.whiten(deltas)

    def whiten_inputs(self, inputs: NDArray[Any]) -> NDArray[np.float64]:
        """Whiten the inputs (m, in + 1) alone, ã = L_A⁻¹ a."""
        return self._inverse_a.whiten(inputs)

    def expected_moments(self) -> NDArray[np.float64]:
        """Give E[ã ãᵀ] over public records: the identity less the damping."""
        return self._inverse_a.whitened_moments()

    def expected_output_moments(self) -> NDArray[np.float64]:
        """Give E[δ̃ δ̃ᵀ] over public records."""
        return self._inverse_b.whitened_moments()

    def with_inputs_beyond(
        self, values: NDArray[np.float64], vectors: NDArray[np.float64]
    ) -> KroneckerLayer:
        """Give the layer with L_A (I + V diag(values) Vᵀ) L_Aᵀ for the damped A."""
        from scipy.linalg import solve_triangular

        beyond = (vectors * values) @ vectors.T
        beyond[np.diag_indices_from(beyond)] += 1.0
        other = copy.copy(self)
        damped = self._inverse_a
        factor = solve_triangular(np.linalg.cholesky(beyond), damped.matrix, lower=True)
        other._inverse_a = InverseFactor(np.tril(factor), damped.damping)
        other._count_dimensions()
        return other

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        u: NDArray[np.float64] = (
            self._inverse_b.matrix.T @ y.reshape(self.shape) @ self._inverse_a.matrix
        )
        return u.ravel()

    def arrays(self) -> Sequence[NDArray[np.float64]]:
        return self._inverse_a.matrix, self._inverse_b.matrix


class DenseLayer(LayerCurvature):
    """The layer's full curvature matrix, for small layers."""

    kind = "dense"

    def __init__(self, shape: tuple[int, int], damping: float) -> None:
        super().__init__(shape, damping)
        self._gram = new_gram(self.n_parameters)

    def add(self, inputs: NDArray[Any], deltas: NDArray[Any]) -> None:
        _core.gram_accumulate(self._gram, _outer_rows(inputs, deltas), 1.0)

    def finish(self, n_records: int) -> None:
        h = self._gram
        del self._gram
        h /= n_records
        self._inverse = InverseFactor.of(h, self.damping, "a layer's curvature")
        self.effective_dimension = self._inverse.effective_dimension

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        return self._inverse.whiten(rows)

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        u: NDArray[np.float64] = self._inverse.matrix.T @ y
        return u

    def arrays(self) -> Sequence[NDArray[np.float64]]:
        return (self._inverse.matrix,)


class DiagonalLayer(LayerCurvature):
    """The diagonal of the layer's curvature."""

    kind = "diagonal"

    def __init__(self, shape: tuple[int, int], damping: float) -> None:
        super().__init__(shape, damping)
        self._squares = np.zeros(shape)

    def add(self, inputs: NDArray[Any], deltas: NDArray[Any]) -> None:
        rows_per_record = len(deltas) // max(len(inputs), 1)
        if inputs.ndim == 3:
            inputs = _outer_rows(inputs, deltas)
            deltas, rows_per_record = np.ones((len(inputs), 1)), 1
        squares = deltas.astype(np.float64) ** 2
        per_record = squares.reshape(len(inputs), rows_per_record, -1).sum(axis=1)
        total = per_record.T @ inputs.astype(np.float64) ** 2
        self._squares += total.reshape(self.shape)

    def finish(self, n_records: int) -> None:
        diagonal = self._squares.ravel() / n_records
        del self._squares
        if not np.all(np.isfinite(diagonal)) or np.any(diagonal + self.damping <= 0):
            raise ValueError(
                "a layer's diagonal curvature with damping "
                f"{self.damping:g} is not positive and finite; use a larger damping"
            )
        self._scale = 1.0 / np.sqrt(diagonal + self.damping)
        self.effective_dimension = float(np.sum(diagonal / (diagonal + self.damping)))

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        # A warning about one record's overflow would tell of it.
        with np.errstate(all="ignore"):
            whitened: NDArray[np.float64] = rows * self._scale
        return whitened

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return y * self._scale

    def arrays(self) -> Sequence[NDArray[np.float64]]:
        return (self._scale,)


class IdentityLayer(LayerCurvature):
    """A = I: Euclidean clipping of the layer's gradient."""

    kind = "identity"

    def add(self, inputs: NDArray[Any], deltas: NDArray[Any]) -> None:
        pass

    def finish(self, n_records: int) -> None:
        self.effective_dimension = float(self.n_parameters)

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        return _checks.for_kernels(rows, np.float64)

    def whiten_factors(self, inputs: NDArray[Any], deltas: NDArray[Any]) -> WhitenedFactors:
        if inputs.ndim == 3:
            return super().whiten_factors(inputs, deltas)
        return self.whiten(deltas), self.whiten(inputs)

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return y

    def arrays(self) -> Sequence[NDArray[np.float64]]:
        return ()


class FrozenLayer(LayerCurvature):
    """A layer that keeps its pretrained weights: no noise, no norm, no step."""

    kind = "frozen"

    @property
    def n_components(self) -> int:
        return 0

    def add(self, inputs: NDArray[Any], deltas: NDArray[Any]) -> None:
        pass

    def finish(self, n_records: int) -> None:
        pass

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        return np.empty((len(rows), 0))

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.zeros(self.n_parameters)

    def arrays(self) -> Sequence[NDArray[np.float64]]:
        return ()


_KINDS: Final[Mapping[str, type[LayerCurvature]]] = {
    layer.kind: layer
    for layer in (KroneckerLayer, DenseLayer, DiagonalLayer, IdentityLayer, FrozenLayer)
}


class LayeredCurvature:
    """A block-diagonal curvature with one block a layer.

    Made by :meth:`from_model` or :meth:`from_factors`.

    Parameters
    ----------
    layers : sequence of LayerCurvature
        Finished, in the order of the weights.
    """

    _default_kind: ClassVar[str] = "kronecker"

    def __init__(self, layers: Sequence[LayerCurvature]) -> None:
        self._layers = tuple(layers)
        if self.n_components == 0:
            raise ValueError("every layer is frozen; at least one needs another kind of curvature")

    @classmethod
    def from_model(
        cls,
        model: Any,
        X: ArrayLike,
        *,
        damping: float,
        kinds: str | Sequence[str] | None = None,
        labels: str = "sampled",
        seed: int = 0,
    ) -> Self:
        """Accumulate the curvature of a layered model's loss over public records.

        Parameters
        ----------
        model : qexp.models.MultilayerPerceptron or alike
            Gives blocks of factors by ``curvature_blocks(X).factor_blocks()``.
        X : array, shape (n, n_features)
            Public records.
        damping : float
            λ > 0. A Kronecker block A ⊗ B has A + π√λ I and B + (√λ/π) I, with π² the mean
            eigenvalue of A over that of B.
        kinds : str or sequence of str, optional
            "kronecker", "dense", "diagonal", "identity" or "frozen", for all layers or one each.
            Default: what the class is named after.
        labels : {"sampled", "expected"}
            Labels drawn from the model (Monte-Carlo Fisher), or all of them, weighted.
        seed : int
            Of the drawn labels; public.

        Returns
        -------
        LayeredCurvature

        Raises
        ------
        ValueError
            If a public record is not finite, `damping` is not above 0, or `kinds` does not name a
            kind for each layer.
        NotPositiveDefiniteError
            If a damped factor is not positive definite in double precision.
        """
        source = model.curvature_blocks(X, labels=labels, seed=seed)
        return cls.from_factors(
            source.factor_blocks(),
            layer_shapes=source.layer_shapes,
            n_records=source.n_records,
            damping=damping,
            kinds=kinds,
        )

    @classmethod
    def from_factors(
        cls,
        blocks: Iterable[Sequence[Factors]],
        *,
        layer_shapes: Sequence[tuple[int, int]],
        n_records: int,
        damping: float,
        kinds: str | Sequence[str] | None = None,
    ) -> Self:
        """Accumulate the curvature from blocks of public factors.

        Parameters
        ----------
        blocks : iterable
            Each a list of pairs (inputs, deltas), one a layer, in a form of the module's docstring.
        layer_shapes : sequence of (out, in + 1)
        n_records : int
            Number of public records.
        damping, kinds
            As in :meth:`from_model`.

        Returns
        -------
        LayeredCurvature

        Raises
        ------
        ValueError
            If a layer's public curvature is not finite or cannot be factored.
        """
        damping = _checks.positive(damping, "damping")
        n_records = _checks.count(n_records, "n_records")
        layers = new_layers(cls._default_kind if kinds is None else kinds, layer_shapes, damping)
        for factors in blocks:
            for layer, (inputs, deltas) in zip(layers, factors, strict=True):
                for some_inputs, some_deltas in _slices(layer, inputs, deltas):
                    layer.add(some_inputs, some_deltas)
        for layer in layers:
            layer.finish(n_records)
        return cls(layers)

    @property
    def layers(self) -> tuple[LayerCurvature, ...]:
        """The layers' curvatures, in the order of the weights."""
        return self._layers

    @property
    def n_components(self) -> int:
        """Number of weights that are tuned."""
        return sum(layer.n_components for layer in self._layers)

    @property
    def n_parameters(self) -> int:
        """Number of weights p."""
        return sum(layer.n_parameters for layer in self._layers)

    @property
    def effective_dimension(self) -> float:
        """d_eff(λ), summed over the layers."""
        return sum(layer.effective_dimension for layer in self._layers)

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Turn gradients (m, p) into whitened rows, float64 (m, k)."""
        parts, start = [], 0
        for layer in self._layers:
            parts.append(layer.whiten(rows[:, start : start + layer.n_parameters]))
            start += layer.n_parameters
        return np.concatenate(parts, axis=1)

    def whiten_factors(
        self, factors: Sequence[Factors], *, first_inputs: NDArray[np.float64] | None = None
    ) -> list[WhitenedFactors]:
        """Whiten gradients that are given as one pair (inputs, deltas) a layer.

        Parameters
        ----------
        factors : sequence of (inputs, deltas)
            One pair a layer, in a form of the module's docstring.
        first_inputs : array of float64, shape (m, in + 1), optional
            The whitened inputs of the first layer, a Kronecker one, where they are known.

        Returns
        -------
        list of (left (m, a), right (m, b))
            One pair a tuned layer; its whitened gradient is left_i ⊗ right_i.
        """
        known: list[WhitenedFactors] = []
        layers: Sequence[LayerCurvature] = self._layers
        first = layers[0]
        if first_inputs is not None and isinstance(first, KroneckerLayer):
            known = [(first.whiten_deltas(factors[0][1]), first_inputs)]
            layers, factors = layers[1:], factors[1:]
        return known + [
            layer.whiten_factors(inputs, deltas)
            for layer, (inputs, deltas) in zip(layers, factors, strict=True)
            if layer.n_components
        ]

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn a whitened vector (k,) into a step (p,)."""
        u = np.empty(self.n_parameters)
        start = place = 0
        for layer in self._layers:
            u[place : place + layer.n_parameters] = layer.unwhiten(
                y[start : start + layer.n_components]
            )
            start += layer.n_components
            place += layer.n_parameters
        return u

    def layer_slices(self) -> list[slice]:
        """Give each layer's place in a whitened vector (k,)."""
        ends = np.cumsum([layer.n_components for layer in self._layers]).tolist()
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    def describe(self) -> Mapping[str, Any]:
        """Describe the curvature for certificates."""
        return {
            "kind": "layered",
            "n_components": self.n_components,
            "effective_dimension": self.effective_dimension,
            "layers": [
                {
                    "kind": layer.kind,
                    "shape": list(layer.shape),
                    "damping": layer.damping,
                    "digests": [_checks.array_digest(a) for a in layer.arrays()],
                }
                for layer in self._layers
            ],
        }


class KroneckerCurvature(LayeredCurvature):
    """A Kronecker block A ⊗ B for every layer: what to take for layered models.

    A is the mean of a aᵀ over public records, of a layer's inputs a with a trailing 1 for the bias,
    and B that of δ δᵀ, of the derivatives δ of the loss in the layer's sums. Each is damped in
    proportion to its mean eigenvalue. A gradient δ ⊗ a is whitened as its two factors, so that
    nothing of the size of a record's gradient is formed.

    Make one by :meth:`from_model`, whose ``kinds`` give single layers another curvature.

    References
    ----------
    Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature",
    ICML 2015 (section 6.3 for the damping).

    Examples
    --------
    >>> import numpy as np, qexp
    >>> from qexp.models import mlp
    >>> X_public = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    >>> curvature = qexp.KroneckerCurvature.from_model(mlp((4, 3, 2)), X_public, damping=0.01)
    >>> curvature.n_components
    23
    """


class DiagonalCurvature(LayeredCurvature):
    """The diagonal of every layer's curvature: a cheap baseline.

    Each weight is whitened by itself, by the root of its mean squared public gradient plus λ. Make
    one by :meth:`from_model`, whose ``kinds`` give single layers another curvature.
    """

    _default_kind = "diagonal"


def new_layers(
    kinds: str | Sequence[str], layer_shapes: Sequence[tuple[int, int]], damping: float
) -> list[LayerCurvature]:
    """Make the layers of a curvature, empty, of one kind or of one kind each."""
    names = [kinds] * len(layer_shapes) if isinstance(kinds, str) else list(kinds)
    if len(names) != len(layer_shapes):
        raise ValueError(
            f"kinds names {len(names)} layers, the model has {len(layer_shapes)}; it needs "
            "one name, or one a layer"
        )
    unknown = sorted(set(names) - set(_KINDS))
    if unknown:
        raise ValueError(f"kinds holds {unknown}; it needs names out of {sorted(_KINDS)}")
    return [
        _KINDS[name]((int(out), int(inp)), damping)
        for name, (out, inp) in zip(names, layer_shapes, strict=True)
    ]


def _outer_rows(inputs: NDArray[Any], deltas: NDArray[Any]) -> NDArray[Any]:
    """Form the gradients as rows, r rows a record."""
    rows_per_record = len(deltas) // max(len(inputs), 1)
    with np.errstate(all="ignore"):
        if inputs.ndim == 3:
            per_record = deltas.reshape(len(inputs), rows_per_record, *deltas.shape[1:])
            sums: NDArray[Any] = np.matmul(per_record.swapaxes(2, 3), inputs[:, None])
            return sums.reshape(len(deltas), -1)
        products: NDArray[Any] = (
            deltas.reshape(len(inputs), rows_per_record, -1, 1) * inputs[:, None, None, :]
        )
    return products.reshape(len(deltas), -1)


def _slices(layer: LayerCurvature, inputs: NDArray[Any], deltas: NDArray[Any]) -> Iterable[Factors]:
    """Cut a block so that rows which a dense layer forms stay near 8 MiB."""
    rows_per_record = len(deltas) // max(len(inputs), 1)
    step = len(inputs)
    if isinstance(layer, DenseLayer) or (isinstance(layer, DiagonalLayer) and inputs.ndim == 3):
        step = max(1, _BLOCK_BYTES // (8 * layer.n_parameters * max(rows_per_record, 1)))
    for start in range(0, len(inputs), max(step, 1)):
        stop = min(start + step, len(inputs))
        yield inputs[start:stop], deltas[start * rows_per_record : stop * rows_per_record]
