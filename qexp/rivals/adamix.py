"""AdaMix: gradient descent that learns its clipping norm and its subspace from public records.

Golatkar, Achille, Wang, Roth, Kearns and Soatto, "Mixed differential privacy in computer vision"
(CVPR 2022). Every step takes the clipping norm from public gradients' norms, projects private
gradients to where public ones lie, and adds the public gradient to the noisy private one. All
three are functions of public records and of weights already released, so that a step is a Gaussian
mechanism whatever they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qexp.rivals._boundary import Boundary, Pairs, PairsOf, row_norms
from qexp.rivals._descent import Descent, descend, model_at
from qexp.rivals._leading_vectors import (
    GramMatrix,
    KeptRows,
    quick_right_vectors,
    right_vectors,
)
from qexp.rivals._method import Method, PublicData, Tuned
from qexp.rivals._parts import (
    InputSubspace,
    Part,
    WholeSpace,
    layer_factors,
    layer_shapes,
    scaled,
)
from qexp.rivals._settings import (
    check_choice,
    check_count,
    check_not_negative,
    check_positive,
    check_share,
)

__all__ = ["AdaMixSettings", "adamix"]

Subspace = Literal["total", "per_example", "none"]
_SUBSPACES: Final = ("total", "per_example", "none")
_LEAST_NORM: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class AdaMixSettings:
    """Settings of `adamix` (Golatkar et al., CVPR 2022, arXiv 2203.11481).

    Attributes
    ----------
    steps : int
        T; the noise multiplier is √T/μ.
    learning_rate : float
        Of mean gradients in their own units.
    weight_decay : float
        λ of the regulariser λ‖W - W₀‖²/2 about the weights that the private stage starts at. The
        paper starts at a public model of its own with a regulariser about 0; about a pretrained
        network's weights it does what it is for.
    clipping_quantile : float
        Which quantile of the public gradients' norms is the clipping norm.
    clipping_norm : float, optional
        A fixed clipping norm in place of the adaptive one.
    subspace : {"total", "per_example", "none"}
        Where a layer's inputs are projected to, a matrix gradient's right-hand side: the leading
        singular vectors of the total public gradient, or of all public gradients side by side.
        The first loses its meaning once public training has converged.
    rank : int
        Most dimensions of a layer's subspace. "total" has at most as many as the layer has
        outputs.
    public_share : float
        Share in [0, 1) of the mixed gradient that is the mean of the public records' gradients,
        whatever the numbers of records are; 0 leaves it out.
    public_records : int
        At most so many public records are used, the first ones.
    public_steps : int
        Steps of gradient descent on the public records beforehand, for models not pretrained.
    public_learning_rate : float
    """

    steps: int = 28
    learning_rate: float = 1.0
    weight_decay: float = 0.0
    clipping_quantile: float = 0.9
    clipping_norm: float | None = None
    subspace: Subspace = "total"
    rank: int = 10
    public_share: float = 0.1
    public_records: int = 1000
    public_steps: int = 0
    public_learning_rate: float = 0.5

    def __post_init__(self) -> None:
        check_count(self, "steps", "rank", "public_records")
        check_count(self, "public_steps", least=0)
        check_positive(self, "learning_rate", "public_learning_rate")
        check_not_negative(self, "weight_decay")
        check_share(self, "clipping_quantile", "public_share")
        check_choice(self, "subspace", _SUBSPACES)
        if self.clipping_norm is not None:
            check_positive(self, "clipping_norm")


class _Public:
    """What public records say at given weights."""

    def __init__(
        self,
        model: Any,
        X: NDArray[Any],
        y: NDArray[Any],
        settings: AdaMixSettings,
        boundary: Boundary,
    ) -> None:
        shapes, dtype = layer_shapes(model), boundary.dtype
        # Of trials none depends on the last bits of a subspace.
        quick = boundary.records_are_public
        sums = [np.zeros(shape, dtype) for shape in shapes]
        rows: list[GramMatrix | KeptRows] = []
        if settings.subspace == "per_example":
            rows = [KeptRows() if quick else GramMatrix(n, dtype) for _, n in shapes]
        norms = []
        for factors in layer_factors(model, X, y):
            if settings.clipping_norm is None:
                norms.append(row_norms([(deltas, inputs) for inputs, deltas in factors]))
            for layer, (inputs, deltas) in enumerate(factors):
                sums[layer] += (deltas.T @ inputs).reshape(shapes[layer])
                if rows:
                    rows[layer].add(inputs, np.square(deltas).sum(axis=1, keepdims=True))
        self.clipping_norm = settings.clipping_norm or max(
            float(np.quantile(np.concatenate(norms), settings.clipping_quantile)), _LEAST_NORM
        )
        self.gradient: NDArray[Any] = np.concatenate([total.ravel() for total in sums])
        self.part: Part = WholeSpace(model)
        if settings.subspace != "none":
            if rows:
                bases = [layer.leading(settings.rank) for layer in rows]
            else:
                leading = quick_right_vectors if quick else right_vectors
                bases = [leading(total, settings.rank) for total in sums]
            self.part = InputSubspace(shapes, bases, public_rows=quick)


def _clipped_then_projected(model: Any, part: Part, clipping_norm: float) -> PairsOf:
    def pairs_of(X: NDArray[Any], y: NDArray[Any]) -> Iterator[Pairs]:
        for factors in layer_factors(model, X, y):
            norms = row_norms([(deltas, inputs) for inputs, deltas in factors])
            with np.errstate(all="ignore"):
                kept = np.minimum(1, norms.dtype.type(clipping_norm) / norms)
                # A gradient of zero stays one; a NaN stays one, and is nulled by the sum.
                kept = np.where(norms == 0, norms, kept)
            yield scaled(part.pairs(factors), kept)

    return pairs_of


def _tune(
    model: Any, boundary: Boundary, settings: AdaMixSettings, public: PublicData | None
) -> Tuned:
    assert public is not None
    X, y = public.X[: settings.public_records], public.y[: settings.public_records]
    boundary.plan_full_batch([1.0] * settings.steps)
    descent = Descent(model.weights.astype(boundary.dtype))

    def public_gradient(model: Any, t: int) -> NDArray[Any]:
        seen = _Public(model, X, y, replace(settings, subspace="none"), boundary)
        mean: NDArray[Any] = seen.gradient / len(y)
        return mean

    if not descend(
        descent,
        model,
        settings.public_steps,
        public_gradient,
        lambda t: settings.public_learning_rate,
    ):
        return Tuned(descent.theta, diverged=True)
    start: NDArray[Any] = model_at(model, descent.theta).weights.astype(boundary.dtype)
    private_share = (1 - settings.public_share) / boundary.n_records
    public_share = settings.public_share / len(y)

    def mixed(model: Any, t: int) -> NDArray[Any]:
        seen = _Public(model, X, y, settings, boundary)
        values = boundary.noisy_sum(
            _clipped_then_projected(model, seen.part, seen.clipping_norm),
            n_components=seen.part.n_components,
            clipping_norm=seen.clipping_norm,
            label="step",
        )
        gradient: NDArray[Any] = private_share * seen.part.embed(values)
        gradient += public_share * seen.gradient
        gradient += settings.weight_decay * (descent.theta - start)
        return gradient

    within = descend(descent, model, settings.steps, mixed, lambda t: settings.learning_rate)
    return Tuned(descent.released, diverged=not within)


def _candidates() -> list[AdaMixSettings]:
    subspaces: list[dict[str, Any]] = [
        {"subspace": "total", "rank": 10},
        {"subspace": "per_example", "rank": 40},
        {"subspace": "none"},
    ]
    return [
        AdaMixSettings(steps=steps, learning_rate=eta, public_share=share, **clipping, **subspace)
        # 28 steps at noise multiplier 20 are μ = 0.264, about ε = 1 at δ = 1e-5. Gradients of
        # records that pretraining fits are short, so that their quantiles may clip those of a new
        # domain too much: beside them stand the fixed norms of `dp_gd`.
        for steps, eta, share, clipping, subspace in itertools.product(
            (10, 28, 80),
            (1.0, 4.0, 12.0),
            (0.02, 0.2),
            ({"clipping_quantile": 0.9}, *({"clipping_norm": c} for c in (0.3, 1.0, 3.0))),
            subspaces,
        )
    ]


def _neighbours(settings: AdaMixSettings) -> list[AdaMixSettings]:
    changes: list[dict[str, Any]] = [
        {"learning_rate": settings.learning_rate * f} for f in (0.55, 1.8)
    ]
    changes += [{"steps": max(1, round(settings.steps * f))} for f in (0.6, 1.6)]
    changes += [{"public_share": min(settings.public_share * f, 0.9)} for f in (0.3, 3.0)]
    if settings.subspace != "none":
        changes += [{"rank": max(1, round(settings.rank * f))} for f in (0.5, 2.0)]
    changes += [{"weight_decay": value} for value in (1e-3, 1e-2)]
    if settings.clipping_norm is None:
        changes += [{"clipping_quantile": value} for value in (0.5, 0.99)]
    else:
        changes += [{"clipping_norm": settings.clipping_norm * f} for f in (0.55, 1.8)]
    changes += [{"public_records": 4 * settings.public_records}]
    return [replace(settings, **change) for change in changes]


adamix: Final = Method(
    name="adamix",
    summary="Full-batch gradient descent whose clipping norm, subspace and a part of whose "
    "gradient come from public records (Golatkar et al. 2022).",
    settings_type=AdaMixSettings,
    algorithm=_tune,
    candidates=_candidates,
    neighbours=_neighbours,
    needs_public_data=True,
)
