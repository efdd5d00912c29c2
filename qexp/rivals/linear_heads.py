"""Linear heads on fixed features: least squares, Newton's method and shared covariance.

Mehta, Krichene, Thakurta, Kurakin and Cutkosky, "Differentially private image classification from
features" (TMLR 2023, arXiv 2211.13403), DP-LS, DP-Newton and DP-FC. All sums are over all records
and their noise is accounted for exactly (the paper's conversion allows a quarter less μ at ε = 1).
Every class has noise of its own. Features are in the unit ball, the paper's divided by C; ridges
are in these units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from qexp._bounds import within_bounds
from qexp._factor import row_product
from qexp.rivals._boundary import Boundary, Pairs
from qexp.rivals._heads import Head, head_of
from qexp.rivals._method import Method, PublicData, Tuned
from qexp.rivals._settings import (
    check_choice,
    check_count,
    check_flag,
    check_not_negative,
    check_positive,
    check_rate,
)

__all__ = [
    "FeatureCovarianceSettings",
    "LeastSquaresSettings",
    "NewtonSettings",
    "dp_fc",
    "dp_ls",
    "dp_newton",
]

Start = Literal["zero", "pretrained"]
STARTS: Final[tuple[Start, ...]] = ("zero", "pretrained")
_BIAS: Final = -10.0


@dataclass(frozen=True, kw_only=True)
class LeastSquaresSettings:
    """Settings of `dp_ls` (Mehta et al. 2023).

    Attributes
    ----------
    global_weight : float
        α, what all classes' second moments count for beside a class's own.
    ridge : float
        λ in θ_c = (A_c + αG + λI)⁻¹ b_c, for sums over records in the unit ball.
    feature_norm : float
        C.
    centred : bool
        Subtract the public records' mean from features beforehand, which the paper does not; needs
        public data.
    """

    global_weight: float = 2.0
    ridge: float = 12.0
    feature_norm: float = 1.0
    centred: bool = False

    def __post_init__(self) -> None:
        check_flag(self, "centred")
        check_not_negative(self, "global_weight")
        check_positive(self, "ridge", "feature_norm")


@dataclass(frozen=True, kw_only=True)
class NewtonSettings:
    """Settings of `dp_newton` (Mehta et al. 2023).

    Attributes
    ----------
    steps : int
        T.
    learning_rate : float
    ridge : float
        λ in w_c ← w_c - η (H_c + λI)⁻¹ g_c, for sums over records in the unit ball.
    feature_norm : float
        C.
    centred : bool
        As in :class:`LeastSquaresSettings`.
    clipping : float
        Share in (0, 1] of the bounds of a record's Hessian and gradient that these are clipped to,
        which the paper does not: most are far shorter.
    start : {"zero", "pretrained"}
        The paper starts at zero.
    """

    steps: int = 1
    learning_rate: float = 0.625
    ridge: float = 10.0
    feature_norm: float = 1.0
    centred: bool = False
    clipping: float = 1.0
    start: Start = "zero"

    def __post_init__(self) -> None:
        check_count(self, "steps")
        check_positive(self, "learning_rate", "ridge", "feature_norm")
        check_rate(self, "clipping")
        check_flag(self, "centred")
        check_choice(self, "start", STARTS)


@dataclass(frozen=True, kw_only=True)
class FeatureCovarianceSettings:
    """Settings of `dp_fc` (Mehta et al. 2023).

    Attributes
    ----------
    steps : int
        T.
    learning_rate : float
    ridge : float
        λ in w ← w - η (G + λI)⁻¹ g.
    feature_norm : float
        C of the features.
    centred : bool
        As in :class:`LeastSquaresSettings`.
    clipping_norm : float
        Of a record's gradient, which is at most 1/√K.
    start : {"zero", "pretrained"}
        The paper starts at zero.
    """

    steps: int = 10
    learning_rate: float = 0.2
    ridge: float = 100.0
    feature_norm: float = 1.0
    centred: bool = False
    clipping_norm: float = 1.0
    start: Start = "zero"

    def __post_init__(self) -> None:
        check_count(self, "steps")
        check_positive(self, "learning_rate", "ridge", "feature_norm", "clipping_norm")
        check_flag(self, "centred")
        check_choice(self, "start", STARTS)


def _positive_semidefinite(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetrise, which halves the noise's variance off the diagonal, and project."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    projected: NDArray[np.float64] = (vectors * np.maximum(values, 0)) @ vectors.T
    return projected


def _ridged(matrix: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    return matrix + ridge * np.eye(len(matrix))


def _second_moments(boundary: Boundary, head: Head) -> NDArray[np.float64]:
    """G = Σ z zᵀ, noisy: ‖z zᵀ‖ ≤ 1."""
    d = head.n_features
    values = boundary.noisy_sum(
        head.pairs(lambda z, labels: [(z, z)]),
        n_components=d * d,
        clipping_norm=1.0,
        label="second moments",
    )
    return _positive_semidefinite(values.reshape(d, d))


def _outer(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give a_i ⊗ b_i of every record as a row."""
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


def _solved(matrix: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve; NaN where noise and rounding left the matrix singular, so that the run diverges."""
    try:
        solution: NDArray[Any] = np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return np.full_like(right, np.nan)
    return solution


def _tune_ls(
    model: Any, boundary: Boundary, settings: LeastSquaresSettings, public: PublicData | None
) -> Tuned:
    head = head_of(model, settings, public, boundary.dtype)
    d, classes = head.n_features, head.n_classes
    boundary.plan_full_batch([1.0, 1.0, 1.0])
    shared = _second_moments(boundary, head)
    # One record is in one class: ‖⊕_c 1[y = c] z zᵀ‖ ≤ 1, and so is ‖⊕_c 1[y = c] z‖.
    own = boundary.noisy_sum(
        head.pairs(lambda z, labels: [(_outer(labels, z), z)]),
        n_components=classes * d * d,
        clipping_norm=1.0,
        label="classes' second moments",
    ).reshape(classes, d, d)
    sums = boundary.noisy_sum(
        head.pairs(lambda z, labels: [(labels, z)]),
        n_components=classes * d,
        clipping_norm=1.0,
        label="classes' sums",
    ).reshape(classes, d)
    theta = np.stack(
        [
            _solved(
                _ridged(
                    _positive_semidefinite(own[c]) + settings.global_weight * shared,
                    settings.ridge,
                ),
                sums[c],
            )
            for c in range(classes)
        ]
    )
    if not within_bounds(theta):
        return Tuned(head.weights(head.pretrained), diverged=True)
    return Tuned(head.weights(theta))


def _descended(
    head: Head,
    settings: NewtonSettings | FeatureCovarianceSettings,
    step: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> Tuned:
    """Go θ ← θ - step(θ), and no further than within bounds."""
    pretrained = settings.start == "pretrained"
    theta = head.pretrained if pretrained else np.zeros_like(head.pretrained)
    for _ in range(settings.steps):
        before, theta = theta, theta - step(theta)
        if not within_bounds(theta):
            return Tuned(head.weights(before), diverged=True)
    return Tuned(head.weights(theta))


def _tune_newton(
    model: Any, boundary: Boundary, settings: NewtonSettings, public: PublicData | None
) -> Tuned:
    head = head_of(model, settings, public, boundary.dtype)
    d, classes = head.n_features, head.n_classes
    boundary.plan_full_batch([1.0] * (2 * settings.steps))

    def step(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = row_product(theta.T)

        def hessians(z: NDArray[np.float64], labels: NDArray[np.float64]) -> Pairs:
            p = expit(scores(z))
            return [(_outer(p * (1 - p), z), z)]

        # K weights of at most 1/4, K residuals of at most 1, times features in the unit ball.
        hessian = boundary.noisy_sum(
            head.pairs(hessians),
            n_components=classes * d * d,
            clipping_norm=settings.clipping * math.sqrt(classes) / 4,
            label="Hessians",
        ).reshape(classes, d, d)
        gradient = boundary.noisy_sum(
            head.pairs(lambda z, labels: [(expit(scores(z)) - labels, z)]),
            n_components=classes * d,
            clipping_norm=settings.clipping * math.sqrt(classes),
            label="gradient",
        ).reshape(classes, d)
        change = [
            _solved(_ridged(_positive_semidefinite(hessian[c]), settings.ridge), gradient[c])
            for c in range(classes)
        ]
        return settings.learning_rate * np.stack(change)

    return _descended(head, settings, step)


def _tune_fc(
    model: Any, boundary: Boundary, settings: FeatureCovarianceSettings, public: PublicData | None
) -> Tuned:
    head = head_of(model, settings, public, boundary.dtype)
    d, classes = head.n_features, head.n_classes
    boundary.plan_full_batch([1.0] * (1 + settings.steps))
    preconditioner = _solved(_ridged(_second_moments(boundary, head), settings.ridge), np.eye(d))
    # The gradient of a mean of K logistic losses is at most √K/K long.
    clipping_norm = min(settings.clipping_norm, 1 / math.sqrt(classes))

    def step(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = row_product(theta.T)
        gradient = boundary.noisy_sum(
            head.pairs(lambda z, labels: [((expit(scores(z) + _BIAS) - labels) / classes, z)]),
            n_components=classes * d,
            clipping_norm=clipping_norm,
            label="gradient",
        ).reshape(classes, d)
        return settings.learning_rate * gradient @ preconditioner

    return _descended(head, settings, step)


_FEATURES: Final[tuple[dict[str, Any], ...]] = (
    {"feature_norm": 1.0},
    {"feature_norm": 6.0},
    {"feature_norm": 3.0, "centred": True},
)


def _ls_candidates() -> list[LeastSquaresSettings]:
    return [
        LeastSquaresSettings(ridge=ridge, global_weight=alpha, **features)
        for ridge, alpha, features in itertools.product(
            (1.0, 3.0, 12.0, 30.0, 100.0, 300.0), (0.0, 0.3, 1.0, 2.0, 6.0), _FEATURES
        )
    ]


def _ls_neighbours(settings: LeastSquaresSettings) -> list[LeastSquaresSettings]:
    return [
        *(replace(settings, ridge=settings.ridge * f) for f in (0.55, 1.8)),
        *(replace(settings, global_weight=settings.global_weight * f) for f in (0.5, 2.0)),
        *(replace(settings, feature_norm=settings.feature_norm * f) for f in (0.5, 2.0)),
    ]


def _newton_candidates() -> list[NewtonSettings]:
    return [
        NewtonSettings(steps=steps, learning_rate=eta, ridge=ridge, start=start, **features)
        for steps, eta, ridge, features, start in itertools.product(
            (1, 3, 8), (0.3, 0.625, 1.0), (3.0, 10.0, 50.0, 200.0), _FEATURES, STARTS
        )
    ]


def _fc_candidates() -> list[FeatureCovarianceSettings]:
    return [
        FeatureCovarianceSettings(
            steps=steps, learning_rate=eta, ridge=ridge, start=start, **features
        )
        for steps, eta, ridge, features, start in itertools.product(
            # The published 0.2 for a gradient that is a mean over classes, and steps that make up
            # for that mean.
            (1, 10, 40),
            (0.2, 5.0, 20.0, 60.0),
            (10.0, 50.0, 200.0),
            _FEATURES,
            STARTS,
        )
    ]


def _newton_neighbours(settings: NewtonSettings) -> list[NewtonSettings]:
    clips = (settings.clipping * f for f in (0.3, 0.55, 1.8))
    return [
        *_neighbours(settings),
        *(replace(settings, clipping=min(clip, 1.0)) for clip in clips),
    ]


def _fc_neighbours(settings: FeatureCovarianceSettings) -> list[FeatureCovarianceSettings]:
    # From the published 1, which is above any gradient, far enough to clip some.
    clips = (settings.clipping_norm * f for f in (0.15, 0.55, 1.8))
    return [*_neighbours(settings), *(replace(settings, clipping_norm=clip) for clip in clips)]


def _neighbours(settings: Any) -> list[Any]:
    return [
        *(replace(settings, ridge=settings.ridge * f) for f in (0.55, 1.8)),
        *(replace(settings, learning_rate=settings.learning_rate * f) for f in (0.55, 1.8)),
        *(replace(settings, steps=max(1, round(settings.steps * f))) for f in (0.6, 1.6)),
        *(replace(settings, feature_norm=settings.feature_norm * f) for f in (0.5, 2.0)),
    ]


dp_ls: Final = Method(
    name="dp_ls",
    summary="Private least squares for a linear head, with second moments of all records and of "
    "each class (Mehta et al. 2023).",
    settings_type=LeastSquaresSettings,
    algorithm=_tune_ls,
    candidates=_ls_candidates,
    neighbours=_ls_neighbours,
)

dp_newton: Final = Method(
    name="dp_newton",
    summary="Newton's method for a linear head's logistic losses, with noisy Hessians (Mehta et "
    "al. 2023).",
    settings_type=NewtonSettings,
    algorithm=_tune_newton,
    candidates=_newton_candidates,
    neighbours=_newton_neighbours,
)

dp_fc: Final = Method(
    name="dp_fc",
    summary="Gradient descent for a linear head, preconditioned by noisy second moments of the "
    "features (Mehta et al. 2023).",
    settings_type=FeatureCovarianceSettings,
    algorithm=_tune_fc,
    candidates=_fc_candidates,
    neighbours=_fc_neighbours,
)
