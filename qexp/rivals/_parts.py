"""Parts of weight space: which of a gradient's components are summed, and how they come back.

A layer's gradient for one record is an outer product of deltas (out,) and inputs (in + 1,), with a
trailing 1 for the bias, and is never formed unless single entries of it are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qexp._factor import row_product
from qexp.layered import Factors, _outer_rows
from qexp.rivals._boundary import Pairs, PairsOf, row_norms

__all__ = [
    "AUTOMATIC",
    "InputSubspace",
    "Part",
    "SomeEntries",
    "SomeRowsAndColumns",
    "WholeSpace",
    "gradients",
    "layer_factors",
    "layer_shapes",
    "require_outer_products",
    "scaled",
]

# γ of automatic clipping (Bu et al., "Automatic clipping", NeurIPS 2023).
AUTOMATIC = 0.01


class Part(Protocol):
    """Some components of the gradient."""

    @property
    def n_components(self) -> int:
        """How many."""
        ...

    def pairs(self, factors: Sequence[Factors]) -> Pairs:
        """Give the components of m records as outer products."""
        ...

    def embed(self, values: NDArray[Any]) -> NDArray[Any]:
        """Put a vector of components back into weight space (p,), zero elsewhere."""
        ...


def layer_shapes(model: Any) -> list[tuple[int, int]]:
    """Give the (out, in + 1) of the layers; one row of all weights where there are no layers."""
    shapes = getattr(model, "layer_shapes", None)
    if shapes is None:
        return [(1, len(model.weights))]
    return [(int(rows), int(columns)) for rows, columns in shapes]


def layer_factors(model: Any, X: NDArray[Any], y: NDArray[Any]) -> Iterator[Sequence[Factors]]:
    """Yield blocks of per-record gradients as (inputs, deltas) a layer.

    Where a layer's gradient is no outer product, or a sum of several, its rows stand for the
    inputs, with deltas of 1.
    """
    source = model.gradient_blocks(X, y)
    if not hasattr(source, "factor_blocks"):
        for rows in source.blocks():
            yield [(rows, np.ones((len(rows), 1), rows.dtype))]
        return
    for factors in source.factor_blocks():
        yield [
            (_outer_rows(inputs, deltas), np.ones((len(deltas), 1), deltas.dtype))
            if inputs.ndim == 3
            else (inputs, deltas)
            for inputs, deltas in factors
        ]


def require_outer_products(
    shapes: Sequence[tuple[int, int]], factors: Sequence[Factors], what: str
) -> None:
    """Raise where a layer's gradient is no single outer product, as of a convolution."""
    for number, ((out, inp), (inputs, deltas)) in enumerate(zip(shapes, factors, strict=True)):
        if (deltas.shape[1], inputs.shape[1]) != (out, inp):
            raise ValueError(
                f"layer {number} of the model has gradients that are no outer product of {out} "
                f"derivatives and {inp} inputs (a convolution, or a layer over several places); "
                f"{what} cannot take it apart"
            )


def scaled(pairs: Pairs, factors: NDArray[Any]) -> Pairs:
    """Scale every record's vector."""
    with np.errstate(all="ignore"):
        return [(left * factors[:, None], right) for left, right in pairs]


def gradients(
    model: Any, part: Part, *, automatic: bool = False, magnitudes: bool = False
) -> PairsOf:
    """Give what makes a part's gradients of records.

    Parameters
    ----------
    model
    part : Part
    automatic : bool
        Divide each by its norm + 0.01, so that it is shorter than 1.
    magnitudes : bool
        The absolute values of the components.
    """

    def pairs_of(X: NDArray[Any], y: NDArray[Any]) -> Iterator[Pairs]:
        for factors in layer_factors(model, X, y):
            pairs = part.pairs(factors)
            if magnitudes:
                pairs = [(np.abs(left), np.abs(right)) for left, right in pairs]
            if automatic:
                norms = row_norms(pairs)
                pairs = scaled(pairs, 1 / (norms + norms.dtype.type(AUTOMATIC)))
            yield pairs

    return pairs_of


class WholeSpace:
    """All weights."""

    def __init__(self, model: Any) -> None:
        self.n_components = len(model.weights)

    def pairs(self, factors: Sequence[Factors]) -> Pairs:
        return [(deltas, inputs) for inputs, deltas in factors]

    def embed(self, values: NDArray[Any]) -> NDArray[Any]:
        return values


class SomeRowsAndColumns:
    """The chosen outputs and inputs of every layer, and all biases or none.

    Parameters
    ----------
    shapes : sequence of (out, in + 1)
    rows : sequence of ndarray of bool, shape (out,)
        One a layer.
    columns : sequence of ndarray of bool, shape (in,)
    biases : bool
        Whether all biases are in it, whatever rows are.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        rows: Sequence[NDArray[np.bool_]],
        columns: Sequence[NDArray[np.bool_]],
        *,
        biases: bool = True,
    ) -> None:
        self._shapes, self._biases = shapes, biases
        self._rows, self._columns, parts, start = [], [], [], 0
        for (out, inp), of_rows, of_columns in zip(shapes, rows, columns, strict=True):
            numbers = np.arange(start, start := start + out * inp).reshape(out, inp)
            parts.append(numbers[:, :-1][np.ix_(of_rows, of_columns)].ravel())
            parts.append(numbers[:, -1][: out * biases])
            self._rows.append(_index(of_rows))
            self._columns.append(_index(of_columns))
        self._chosen, self._n_parameters = np.concatenate(parts), start
        self._has_weights = [len(part) > 0 for part in parts[::2]]
        self.n_components = len(self._chosen)

    def pairs(self, factors: Sequence[Factors]) -> Pairs:
        require_outer_products(self._shapes, factors, "a choice of its rows and columns")
        pairs = []
        for (inputs, deltas), rows, columns, has_weights in zip(
            factors, self._rows, self._columns, self._has_weights, strict=True
        ):
            if has_weights:
                pairs.append((deltas[:, rows], inputs[:, columns]))
            if self._biases:
                pairs.append((deltas, inputs[:, -1:]))
        return pairs

    def embed(self, values: NDArray[Any]) -> NDArray[Any]:
        step = np.zeros(self._n_parameters, values.dtype)
        step[self._chosen] = values
        return step


def _index(chosen: NDArray[np.bool_]) -> slice | NDArray[np.intp]:
    """Give the index of what is chosen; that of everything needs no copy."""
    return slice(len(chosen)) if chosen.all() else np.flatnonzero(chosen)


class SomeEntries:
    """Single weights.

    Parameters
    ----------
    shapes : sequence of (out, in + 1)
    chosen : ndarray of bool, shape (p,)
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], chosen: NDArray[np.bool_]) -> None:
        self._chosen = np.flatnonzero(chosen)
        self.n_components, self._n_parameters = len(self._chosen), len(chosen)
        ends = np.cumsum([out * inp for out, inp in shapes])
        parts = np.split(np.asarray(chosen), ends[:-1])
        self._entries = [
            (inp, np.flatnonzero(part)) for part, (_, inp) in zip(parts, shapes, strict=True)
        ]

    def pairs(self, factors: Sequence[Factors]) -> Pairs:
        rows = []
        for (inputs, deltas), (columns, entries) in zip(factors, self._entries, strict=True):
            at_row, at_column = np.divmod(entries, columns)
            if inputs.shape[1] != columns:  # the layer's rows themselves
                at_row, at_column = np.zeros_like(entries), entries
            with np.errstate(all="ignore"):
                rows.append(deltas[:, at_row] * inputs[:, at_column])
        joined = np.concatenate(rows, axis=1)
        return [(np.ones((len(joined), 1), joined.dtype), joined)]

    def embed(self, values: NDArray[Any]) -> NDArray[Any]:
        step = np.zeros(self._n_parameters, values.dtype)
        step[self._chosen] = values
        return step


class InputSubspace:
    """Every layer's inputs in a subspace of their own: Σ δ ⊗ (Uᵀ a).

    Parameters
    ----------
    shapes : sequence of (out, in + 1)
    bases : sequence of ndarray, shape (in + 1, r)
        U, orthonormal columns, one a layer.
    public_rows : bool
        Project rows all at once, so that one's bits may depend on its neighbours: never for private
        records.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        bases: Sequence[NDArray[Any]],
        *,
        public_rows: bool = False,
    ) -> None:
        self._shapes = shapes
        self._bases = list(bases)
        self._products: list[Callable[[NDArray[Any]], NDArray[Any]]] = [
            basis.__rmatmul__ if public_rows else row_product(basis) for basis in bases
        ]
        self.n_components = sum(
            out * basis.shape[1] for (out, _), basis in zip(shapes, bases, strict=True)
        )

    def pairs(self, factors: Sequence[Factors]) -> Pairs:
        require_outer_products(self._shapes, factors, "a subspace of its inputs")
        return [
            (deltas, product(inputs))
            for (inputs, deltas), product in zip(factors, self._products, strict=True)
        ]

    def embed(self, values: NDArray[Any]) -> NDArray[Any]:
        layers, start = [], 0
        for (out, _), basis in zip(self._shapes, self._bases, strict=True):
            size = out * basis.shape[1]
            part = values[start : start + size].reshape(out, basis.shape[1])
            layers.append((part @ basis.T).ravel())
            start += size
        return np.concatenate(layers)
