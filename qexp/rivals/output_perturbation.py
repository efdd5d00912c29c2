"""Output perturbation: noise on the weights of a strongly convex softmax regression.

Chaudhuri, Monteleoni and Sarwate, "Differentially private empirical risk minimization" (JMLR 2011);
Wu et al., "Bolt-on differential privacy for scalable stochastic gradient descent-based analytics"
(SIGMOD 2017), from which is that gradient descent need not have converged.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from qexp.rivals._boundary import Boundary
from qexp.rivals._heads import head_of
from qexp.rivals._method import Method, PublicData, Tuned
from qexp.rivals._settings import check_choice, check_count, check_positive
from qexp.rivals.linear_heads import STARTS, Start

__all__ = ["OutputPerturbationSettings", "output_perturbation", "sensitivity"]

# ‖p - e_y‖ ≤ √2, and the Hessian of softmax cross-entropy in the scores is at most 1/2.
_LIPSCHITZ: Final = math.sqrt(2)
_SMOOTHNESS: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class OutputPerturbationSettings:
    """Settings of `output_perturbation`.

    Attributes
    ----------
    regularisation : float
        λ of F(W) = mean loss + λ‖W - W₀‖²/2.
    steps : int
        Steps of gradient descent from W₀, of size 1/(1/2 + λ). Fewer steps move the weights less,
        and so less noise is needed.
    feature_norm : float
        What features are clipped to; then they are divided by it.
    centred : bool
        Subtract the public records' mean from features beforehand; needs public data.
    start : {"zero", "pretrained"}
        W₀.
    """

    regularisation: float = 1e-2
    steps: int = 300
    feature_norm: float = 6.0
    centred: bool = False
    start: Start = "pretrained"

    def __post_init__(self) -> None:
        check_positive(self, "regularisation", "feature_norm")
        check_count(self, "steps")
        check_choice(self, "start", STARTS)


def sensitivity(
    settings: OutputPerturbationSettings, n_records: int, n_features: int, start_norm: float
) -> float:
    """Give by how much one null record moves the weights after the steps.

    Parameters
    ----------
    settings : OutputPerturbationSettings
    n_records : int
    n_features : int
        d, for the allowance for rounding.
    start_norm : float
        ‖W₀‖, for the same.

    Returns
    -------
    float

    Notes
    -----
    With L the longest gradient of one record and a step size η of at most 1/(smoothness + λ), a
    step brings two runs nearer by 1 - ηλ and takes them apart by at most ηL/n; T steps leave them
    (L/(nλ)) (1 - (1 - ηλ)^T) apart. The limit is the classical L/(nλ) of exact minimisers, 2L/(nλ)
    where a record is exchanged. It holds at every T, so that nothing depends on whether the run has
    converged: stopping by a gradient's norm would make the number of steps depend on the records.
    Sums in double precision err by less than (n + d + 10³) units in the last place of L a step,
    weights by one of L/λ, and scores of records in the unit ball by less than d + 10 of the
    weights' norm, at most ‖W₀‖ + L/λ; that is allowed for.
    """
    lam = settings.regularisation
    eta = 1 / (_SMOOTHNESS + lam)
    if eta * lam >= 1:
        raise ValueError(
            f"regularisation is {lam:g}; beside it the loss vanishes in double precision: it needs "
            "to be far smaller, about 1e-4 to 1"
        )
    reach = -math.expm1(settings.steps * math.log1p(-eta * lam)) * _LIPSCHITZ / lam
    unit = 2.0**-52
    rounding = 4 * unit * (n_records + n_features + 1000 + 1 / (eta * lam)) * _LIPSCHITZ / lam
    rounding += 4 * unit * (n_features + 10) * (start_norm + _LIPSCHITZ / lam) / lam
    return reach / n_records * (1 + 2.0**-40) + rounding


def _tune(
    model: Any,
    boundary: Boundary,
    settings: OutputPerturbationSettings,
    public: PublicData | None,
) -> Tuned:
    head = head_of(model, settings, public, boundary.dtype)
    centre = head.pretrained if settings.start == "pretrained" else np.zeros_like(head.pretrained)
    lam = settings.regularisation

    def moved_by(X: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        """Give W - W₀ after the steps."""
        parts = list(head.blocks(X, y))
        features = np.concatenate([z for z, _ in parts])
        labels = np.concatenate([indicators for _, indicators in parts])
        # A null record: features of zero, hence a gradient of zero.
        features[~np.isfinite(features).all(axis=1)] = 0
        eta = 1 / (_SMOOTHNESS + lam)
        moved = np.zeros_like(centre)
        for _ in range(settings.steps):
            residuals = softmax(features @ (centre + moved).T, axis=1) - labels
            moved -= eta * (residuals.T @ features / len(features) + lam * moved)
        change: NDArray[np.float64] = moved.ravel()
        return change

    boundary.plan_full_batch([1.0])
    n = boundary.n_records
    values = boundary.noisy_vector(
        moved_by,
        # Every iterate is within L/λ of W₀.
        bound=1.01 * _LIPSCHITZ / lam,
        sensitivity=sensitivity(settings, n, head.n_features, float(np.linalg.norm(centre))),
        label="minimiser",
    )
    return Tuned(head.weights(centre + values.reshape(centre.shape)))


def _candidates() -> list[OutputPerturbationSettings]:
    features: tuple[dict[str, Any], ...] = (
        {"feature_norm": 1.0},
        {"feature_norm": 3.0},
        {"feature_norm": 3.0, "centred": True},
    )
    return [
        OutputPerturbationSettings(regularisation=lam, steps=steps, start=start, **chosen)
        for lam, steps, chosen, start in itertools.product(
            (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (10, 30, 100, 300), features, STARTS
        )
    ]


def _neighbours(settings: OutputPerturbationSettings) -> list[OutputPerturbationSettings]:
    return [
        *(replace(settings, regularisation=settings.regularisation * f) for f in (0.55, 1.8)),
        *(replace(settings, feature_norm=settings.feature_norm * f) for f in (0.6, 1.7)),
        *(replace(settings, steps=max(1, round(settings.steps * f))) for f in (0.55, 1.8)),
    ]


output_perturbation: Final = Method(
    name="output_perturbation",
    summary="Softmax regression with a quadratic regulariser, whose weights get noise once "
    "(Chaudhuri et al. 2011; Wu et al. 2017).",
    settings_type=OutputPerturbationSettings,
    algorithm=_tune,
    candidates=_candidates,
    neighbours=_neighbours,
)
