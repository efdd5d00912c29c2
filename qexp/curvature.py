"""Public curvature: the quadratic that shapes clipping and noise.

A curvature is the damped matrix A = H + λI = L Lᵀ. It whitens gradients on their way to the
boundary, s = L⁻¹ g, and unwhitens what comes out, u = L⁻ᵀ y. It is made from public data alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks, _core
from qexp._factor import InverseFactor, NotPositiveDefiniteError, new_gram
from qexp.projections import FactorProjection, Projection

if TYPE_CHECKING:
    from qexp.models.sources import CurvatureSource

__all__ = ["Curvature", "DenseCurvature", "IdentityCurvature", "NotPositiveDefiniteError"]


@runtime_checkable
class Curvature(Protocol):
    """What a public curvature offers.

    A curvature that knows layers may offer ``whiten_factors`` besides, see
    :class:`qexp.layered.LayeredCurvature`.
    """

    @property
    def n_components(self) -> int:
        """Dimension k of the whitened space, in which the draw is made."""
        ...

    @property
    def n_parameters(self) -> int:
        """Length of the gradients that it whitens: k, or more where some are left out."""
        ...

    @property
    def effective_dimension(self) -> float:
        """d_eff(λ) = tr(H A⁻¹), between 0 and k."""
        ...

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Turn gradients (m, n_parameters) into whitened rows s = L⁻¹ g, float64 (m, k).

        Bits of a row depend on that row alone.
        """
        ...

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn a whitened vector (k,) into u = L⁻ᵀ y."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Kind, sizes and digest, JSON-able, for certificates."""
        ...


class IdentityCurvature:
    """A = I: whitened units are the gradient's own, and the draw is one noisy gradient step.

    Parameters
    ----------
    k : int
        Dimension.
    """

    def __init__(self, k: int) -> None:
        self._k = _checks.count(k, "k")

    @property
    def n_components(self) -> int:
        """Dimension k."""
        return self._k

    @property
    def n_parameters(self) -> int:
        """Length of a gradient, k."""
        return self._k

    @property
    def effective_dimension(self) -> float:
        """k: nothing is damped."""
        return float(self._k)

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Give the rows in double precision."""
        return _checks.for_kernels(rows, np.float64)

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give y itself."""
        return y

    def describe(self) -> Mapping[str, Any]:
        """Describe the curvature for certificates."""
        return {"kind": "identity", "n_components": self._k}


class DenseCurvature:
    """A full k × k curvature, for small models and for any model through a projection.

    Make one by :meth:`from_rows`, :meth:`from_matrix` or :meth:`from_model`.
    """

    def __init__(self, inverse_factor: InverseFactor) -> None:
        self._inverse_factor = inverse_factor
        self._effective_dimension = inverse_factor.effective_dimension

    @classmethod
    def from_rows(
        cls,
        blocks: Iterable[NDArray[Any]],
        *,
        n_records: int,
        damping: float,
        weights: Iterable[NDArray[Any]] | None = None,
    ) -> DenseCurvature:
        """Accumulate H = Σ w r rᵀ / n_records over the rows r of all blocks.

        Parameters
        ----------
        blocks : iterable of arrays of float32 or float64, each of shape (m, k)
            Public curvature rows, for example projected Jacobian rows times a square root of the
            loss's Hessian in the outputs. A block may be overwritten once the next is asked for.
        n_records : int
            Number of public records that the rows come from (a record may give several rows).
        damping : float
            λ ≥ 0, in the units of H.
        weights : iterable of arrays, each of shape (m,), optional
            One array a block: public weights w ≥ 0 of its rows, for example the second derivatives
            of the loss of a generalised linear model. Default: 1.

        Returns
        -------
        DenseCurvature

        Raises
        ------
        ValueError
            If there are no rows, their lengths differ, they hold a NaN or an infinity, or the
            weights do not match the rows or are negative.
        NotPositiveDefiniteError
            If H + λI is not positive definite.
        """
        n_records = _checks.count(n_records, "n_records")
        h: NDArray[np.float64] | None = None
        for block, row_weights in _with_weights(blocks, weights):
            rows = _checks.for_kernels(_checks.real_array(block, "a block of curvature rows", 2))
            if h is None:
                h = new_gram(rows.shape[1])
            if rows.shape[1] != len(h):
                raise ValueError(
                    f"a block of curvature rows has {rows.shape[1]} columns, the first one had "
                    f"{len(h)}; all need the same number"
                )
            _core.gram_accumulate(h, rows, 1.0 / n_records, row_weights=row_weights)
        if h is None or len(h) == 0:
            raise ValueError("blocks are empty; a curvature needs at least one row")
        return cls._from_lower_triangle(h, damping)

    @classmethod
    def from_matrix(cls, matrix: ArrayLike, *, damping: float) -> DenseCurvature:
        """Take a symmetric positive semi-definite H as it is.

        Parameters
        ----------
        matrix : array of float32 or float64, shape (k, k)
            H. It is copied.
        damping : float
            λ ≥ 0, in the units of H.

        Returns
        -------
        DenseCurvature

        Raises
        ------
        ValueError
            If the matrix is not square, symmetric and finite.
        NotPositiveDefiniteError
            If H + λI is not positive definite.
        """
        h = _checks.finite_array(matrix, "matrix", 2)
        if h.shape[0] != h.shape[1] or h.size == 0:
            raise ValueError(f"matrix has shape {h.shape}; it needs to be square and not empty")
        asymmetry = float(np.max(np.abs(h - h.T)))
        scale = float(np.max(np.abs(h)))
        if asymmetry > np.sqrt(np.finfo(h.dtype).eps) * scale:
            raise ValueError(
                f"matrix differs from its transpose by up to {asymmetry:g}; it needs to be "
                "symmetric"
            )
        return cls._from_lower_triangle(h.astype(np.float64), damping)

    @classmethod
    def from_model(
        cls,
        model: Any,
        X: ArrayLike,
        *,
        projection: Projection | None = None,
        damping: float,
        labels: str = "sampled",
        seed: int = 0,
    ) -> DenseCurvature:
        """Accumulate the curvature of a model's loss over public records.

        Parameters
        ----------
        model : qexp.models.MultilayerPerceptron or alike
            Gives blocks of curvature rows by ``curvature_blocks``.
        X : array, shape (n, n_features)
            Public records.
        projection : Projection, optional
            Applied to every row. Default: none, k = p.
        damping : float
            λ ≥ 0, in the units of H.
        labels : {"sampled", "expected"}
            "sampled": one row a record, its label drawn from the model (Monte-Carlo Fisher).
            "expected": one row a class, weighted (generalised Gauss-Newton, exactly). For a
            softmax regression without projection the rows, K times as long as the features, are
            never formed: see the notes.
        seed : int
            Of the drawn labels; public.

        Returns
        -------
        DenseCurvature

        Notes
        -----
        The expected curvature of a softmax regression with class probabilities π is a K × K array
        of d × d blocks, Σ Λ_ab x xᵀ / n with Λ = diag(π) - π πᵀ. The K (K - 1) / 2 blocks with
        a > b are accumulated, each a Gram matrix of x with weights π_a π_b; as the rows of Λ add up
        to zero, they make up the blocks with a = b. That is 2 K² / (K - 1) times less work than the
        Gram matrix of K rows a record.
        """
        source = model.curvature_blocks(X, labels=labels, seed=seed)
        if projection is None and _is_softmax_regression(source):
            return cls._from_lower_triangle(_softmax_curvature(source), damping)
        if projection is None:
            blocks = source.blocks()
        elif isinstance(projection, FactorProjection) and source.rows_per_record == 1:
            blocks = _sketches(projection, source)
        else:
            blocks = (projection.forward(rows) for rows in source.blocks())
        return cls.from_rows(blocks, n_records=source.n_records, damping=damping)

    @classmethod
    def _from_lower_triangle(cls, h: NDArray[np.float64], damping: float) -> DenseCurvature:
        damping = _checks.positive(damping, "damping", zero_allowed=True)
        return cls(InverseFactor.of(h, damping, "the curvature"))

    @property
    def n_components(self) -> int:
        """Dimension k."""
        return len(self._inverse_factor.matrix)

    @property
    def n_parameters(self) -> int:
        """Length of a gradient, k."""
        return len(self._inverse_factor.matrix)

    @property
    def damping(self) -> float:
        """λ, in the units of H."""
        return self._inverse_factor.damping

    @property
    def effective_dimension(self) -> float:
        """d_eff(λ) = tr(H A⁻¹), between 0 and k."""
        return self._effective_dimension

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Turn gradients (m, k) into whitened rows s = L⁻¹ g, float64 (m, k)."""
        return self._inverse_factor.whiten(rows)

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn a whitened vector (k,) into u = L⁻ᵀ y."""
        u: NDArray[np.float64] = self._inverse_factor.matrix.T @ y
        return u

    def describe(self) -> Mapping[str, Any]:
        """Describe the curvature for certificates."""
        return {
            "kind": "dense",
            "n_components": self.n_components,
            "damping": self.damping,
            "effective_dimension": self._effective_dimension,
            "digest": _checks.array_digest(self._inverse_factor.matrix),
        }


def _sketches(projection: FactorProjection, source: Any) -> Iterator[NDArray[Any]]:
    """Project blocks of factors into one buffer: a block lasts until the next one is asked for."""
    buffer: NDArray[Any] | None = None
    for factors in source.factor_blocks():
        if buffer is None or len(factors[0][0]) > len(buffer):
            buffer = np.empty((len(factors[0][0]), projection.n_components), source.dtype)
        yield projection.forward_factors(factors, out=buffer)


def _with_weights(
    blocks: Iterable[NDArray[Any]], weights: Iterable[NDArray[Any]] | None
) -> Iterator[tuple[NDArray[Any], NDArray[np.float64] | None]]:
    if weights is None:
        for block in blocks:
            yield block, None
        return
    for block, of_block in zip(blocks, weights, strict=True):
        checked = _checks.finite_array(of_block, "the weights of a block of curvature rows", 1)
        yield block, _checks.for_kernels(checked, np.float64)


def _is_softmax_regression(source: Any) -> bool:
    """Whether the rows are every class's gradients of one softmax layer."""
    # Here, as who has a source has imported the models already, and others need not.
    from qexp.models.sources import CurvatureSource

    return (
        isinstance(source, CurvatureSource)
        and source.rows_per_record > 1
        and len(source.layer_shapes) == 1
    )


def _softmax_curvature(source: CurvatureSource) -> NDArray[np.float64]:
    """Give the lower triangle of the expected curvature of a softmax layer."""
    ((n_classes, d),) = source.layer_shapes
    h = new_gram(n_classes * d)

    def block(a: int, b: int) -> NDArray[np.float64]:
        return h[a * d : (a + 1) * d, b * d : (b + 1) * d]

    pairs = [(a, b) for a in range(n_classes) for b in range(a)]
    for ((inputs, deltas),) in source.factor_blocks():
        # Λ of each record, from its K rows; what follows needs -Λ_ab = π_a π_b ≥ 0.
        rows = deltas.reshape(len(inputs), source.rows_per_record, n_classes).astype(np.float64)
        products = np.maximum(-(rows.transpose(0, 2, 1) @ rows), 0.0)
        for a, b in pairs:
            weights = np.ascontiguousarray(products[:, a, b])
            _core.gram_accumulate(block(a, b), inputs, 1.0 / source.n_records, row_weights=weights)
    for a, b in pairs:
        gram = block(a, b)
        gram += np.tril(gram, -1).T
        block(a, a)[...] += gram
        block(b, b)[...] += gram
        np.negative(gram, out=gram)
    return h
