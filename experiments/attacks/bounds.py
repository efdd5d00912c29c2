"""What a number of right guesses proves: lower bounds on a mechanism's privacy loss.

The game: m canaries, each in the data with probability 1/2 and null otherwise, all coins
independent. Of the released output, r of the canaries are guessed in or out, r chosen beforehand;
v guesses are right. One run of the mechanism plays for all canaries at once (Steinke, Nasr and
Jagielski 2023, "Privacy auditing with one (1) training run").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_FLOOR, Decimal
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qexp import epsilon

# Shares of the canaries that are guessed: few canaries of extreme scores are guessed better. Each
# is a test of its own, at a quarter of the level.
GUESS_SHARES = (1.0, 0.5, 0.25, 1 / 16)

_NORMAL = NormalDist()
_SMALLEST = 1e-300


def clopper_pearson(successes: Any, trials: int, confidence: float = 0.95) -> tuple[Any, Any]:
    """Return the two-sided exact interval of a binomial probability, element by element.

    Each end alone is a one-sided bound at half of the level.
    """
    tail = (1 - confidence) / 2
    k = np.asarray(successes)
    low = np.where(k > 0, stats.beta.ppf(tail, np.maximum(k, 1), trials - k + 1), 0.0)
    high = np.where(k < trials, stats.beta.isf(tail, k + 1, np.maximum(trials - k, 1)), 1.0)
    return low[()], high[()]


def is_refuted(
    lost: Callable[[float], float],
    n_canaries: int,
    n_guesses: int,
    n_correct: int,
    *,
    level: float = 0.05,
) -> bool:
    """Say whether so many right guesses have a probability below `level` if the claim holds.

    Mahloujifar, Melis and Chaudhuri 2024, "Auditing f-differential privacy in one run", for a
    claim by its trade-off function f: `lost` is φ, the inverse of x ↦ 1 - f(x).

    Let p_i be the probability of i right guesses, R_j = Σ_{i≥j} i p_i/m, W_j = Σ_{i≥j} (r-i) p_i/m.
    Turn one canary's coin: where its guess was right among i right ones, it is now wrong among
    i - 1. Averaged over canaries, and since 1 - f is concave, R_j ≤ (1 - f)(W_{j-1}), that is
    W_{j-1} ≥ φ(R_j). From p_j ≥ 0 also W_{j-1} ≥ W_j; and (r-j)(R_j - R_{j+1}) = j (W_j - W_{j+1}).
    Suppose P[at least v] ≥ level. Then R_v and W_v are no less than where all that mass is at v,
    and going down from v by the least steps that both inequalities allow gives the least possible
    R_0 + W_0, which is r/m. Is it larger, then the supposition is wrong.
    """
    m, r, v = n_canaries, n_guesses, n_correct
    right, wrong = level * v / m, level * (r - v) / m
    for i in range(v - 1, -1, -1):
        grown = max(wrong, lost(right))
        right += i / (r - i) * (grown - wrong)
        wrong = grown
        if right + wrong > r / m:
            return True
    return False


def gaussian_loss(mu: float) -> Callable[[float], float]:
    """Return φ of μ-GDP: Φ(Φ⁻¹(x) - μ)."""

    def lost(x: float) -> float:
        if x <= _SMALLEST:
            return 0.0
        return _NORMAL.cdf(_NORMAL.inv_cdf(x) - mu) if x < 1 else 1.0

    return lost


def mu_lower_bound(
    n_canaries: int, n_guesses: int, n_correct: int, *, confidence: float = 0.95
) -> float:
    """Return μ_lo: μ-GDP is refuted for every smaller μ."""

    def refuted(mu: float) -> bool:
        return is_refuted(gaussian_loss(mu), n_canaries, n_guesses, n_correct, level=1 - confidence)

    return _largest(refuted, 32.0)


def epsilon_p_value(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """Return the probability of so many right guesses, at most, under (ε, δ).

    Steinke, Nasr and Jagielski 2023, Theorem 5.2: the binomial tail of randomised response, and
    what δ may add to it.
    """
    q = 1 / (1 + math.exp(-eps))
    tail = float(stats.binom.sf(v - 1, r, q))
    if delta == 0:
        return tail
    # P[v - i ≤ B < v] / i for all i.
    below = np.cumsum(stats.binom.pmf(np.arange(v - 1, -1, -1), r, q))
    most = float(np.max(below / np.arange(1, v + 1))) if v else 0.0
    return min(1.0, tail + 2 * m * delta * most)


def epsilon_lower_bound(
    n_canaries: int, n_guesses: int, n_correct: int, *, delta: float, confidence: float = 0.95
) -> float:
    """Return ε_lo: (ε, δ)-DP is refuted for every smaller ε, whatever the mechanism."""
    return _largest(
        lambda eps: epsilon_p_value(n_canaries, n_guesses, n_correct, eps, delta) < 1 - confidence,
        64.0,
    )


def mu_if_independent(n_guesses: int, n_correct: int, *, confidence: float = 0.95) -> float:
    """Return μ_lo of a mechanism whose right guesses are independent of each other.

    A guess is then right with probability Φ(μ/2) at most, and right ones are counted by a binomial:
    so it is for Gaussian noise and canaries with orthogonal gradients. In general it is no bound.
    """
    # One-sided: the lower end of the two-sided interval at twice the level.
    low, _ = clopper_pearson(n_correct, n_guesses, 1 - 2 * (1 - confidence))
    return 2 * _NORMAL.inv_cdf(float(low)) if low > 0.5 else 0.0


def _largest(refuted: Callable[[float], bool], top: float) -> float:
    """Bisect for the edge of what is refuted; from below, so that the bound stays one."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, top
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def bound_text(value: float, decimals: int) -> str:
    """Write a lower bound rounded down, so that it stays one."""
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_FLOOR))


def judge(
    scores: NDArray[np.floating], included: NDArray[np.bool_], *, delta: float
) -> dict[str, float]:
    """Guess by the scores' signs, the largest first, and return what the right ones prove.

    All bounds hold with 95 % confidence, the choice among GUESS_SHARES included. `epsilon_lo` is
    that of any (ε, δ) mechanism, `epsilon_lo_gdp` that of μ_lo: of a mechanism that is μ-GDP for
    some μ, which is what qexp claims. `…_most` are what the audit gave if all guesses were right.
    `mu_lo_independent` is of all guesses, and holds where they are independent.
    """
    m = len(scores)
    confidence = 1 - 0.05 / len(GUESS_SHARES)
    right = (scores > 0) == included
    order = np.argsort(-np.abs(scores), kind="stable")
    counts = [max(1, round(share * m)) for share in GUESS_SHARES]
    mus, epsilons = [], []
    for r in counts:
        v = int(np.count_nonzero(right[order[:r]]))
        mus.append(mu_lower_bound(m, r, v, confidence=confidence))
        epsilons.append(epsilon_lower_bound(m, r, v, delta=delta, confidence=confidence))
    mu_lo = max(mus)
    mu_most = max(mu_lower_bound(m, r, r, confidence=confidence) for r in counts)
    return {
        "canaries": m,
        "accuracy": float(np.mean(right)),
        "mu_lo": round(mu_lo, 4),
        "mu_lo_most": round(mu_most, 4),
        "mu_lo_independent": round(mu_if_independent(m, int(np.count_nonzero(right))), 4),
        "epsilon_lo_gdp": round(epsilon(delta, mu_lo), 3) if mu_lo > 0 else 0.0,
        "epsilon_lo_gdp_most": round(epsilon(delta, mu_most), 3),
        "epsilon_lo": round(max(epsilons), 4),
        "epsilon_lo_most": round(
            max(epsilon_lower_bound(m, r, r, delta=delta, confidence=confidence) for r in counts),
            4,
        ),
    }
