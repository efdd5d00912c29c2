"""How much noise a rival's releases need, by exact Gaussian or by numerical accounting."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from qexp import _checks
from qexp._privacy_checks import sensitivity_factor
from qexp.privacy import calibrate_mu

__all__ = ["Target", "poisson_epsilon", "poisson_noise_multiplier"]

# More than the three roundings on the way from mu to a noise multiplier and back.
_MARGIN: Final = 1 + 2.0**-48
_DISCRETIZATION: Final = 1e-4
# Relative accuracy of a calibrated noise multiplier, always on the private side.
_TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class Target:
    """The privacy of a whole job, to reach and not to exceed.

    Attributes
    ----------
    epsilon, delta : float
    neighboring_relation : {"replace_special", "replace_one"}
    """

    epsilon: float
    delta: float
    neighboring_relation: str

    def __post_init__(self) -> None:
        sensitivity_factor(self.neighboring_relation)
        calibrate_mu(self.epsilon, self.delta)

    @property
    def factor(self) -> int:
        """By how many clipping norms a sum moves between neighbours."""
        return sensitivity_factor(self.neighboring_relation)

    @functools.cached_property
    def mu(self) -> float:
        """The largest μ under "replace_special" that the target allows."""
        return calibrate_mu(self.epsilon, self.delta) / self.factor

    def full_batch_noise(self, shares: Sequence[float]) -> list[float]:
        """Give the noise multiplier of each of several sums over all records.

        They compose to √Σ σ⁻² = μ (Dong, Roth and Su 2022, Corollary 2); `shares` of μ² need not
        sum to 1.
        """
        total = math.fsum(shares)
        return [math.sqrt(total / share) / self.mu * _MARGIN for share in shares]

    def sampled_noise(self, rate: float, steps: int, coarseness: float = 1.0) -> float:
        """Give the noise multiplier of `steps` sums over Poisson samples of the records."""
        return poisson_noise_multiplier(
            rate, steps, self.epsilon, self.delta, self.neighboring_relation, coarseness
        )


def _accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
    except ImportError as error:
        raise ImportError(
            "accounting for Poisson samples takes dp-accounting: pip install 'qexp[accounting]'",
            name="dp_accounting",
        ) from error
    return dp_accounting


def poisson_epsilon(
    rate: float,
    steps: int,
    noise_multiplier: float,
    delta: float,
    neighboring_relation: str,
    *,
    discretization: float = _DISCRETIZATION,
) -> float:
    """Give the ε of Gaussian sums over Poisson samples, by privacy loss distributions.

    Parameters
    ----------
    rate : float
        Probability q in (0, 1] with which a record is in a sample.
    steps : int
        T.
    noise_multiplier : float
        σ, standard deviation of the noise over the clipping norm.
    delta : float
    neighboring_relation : {"replace_special", "replace_one", "add_or_remove_one"}
        Under "replace_special" a null record takes part in the sampling and adds zero, so that the
        two laws of a sum, (1-q) N(0,σ²) + q N(1,σ²) and N(0,σ²), are those under
        "add_or_remove_one", and so is ε.
    discretization : float
        Of the privacy losses.

    Returns
    -------
    float
        An upper bound, tight to about 1e-3: dp_accounting rounds its discretised privacy losses
        pessimistically.

    Notes
    -----
    Koskela, Jälkö and Honkela, "Computing tight differential privacy guarantees using FFT",
    AISTATS 2020; Doroshenko et al., "Connect the dots", PoPETs 2022.
    """
    package = _accounting()
    relation = package.NeighboringRelation[neighboring_relation.upper()]
    accountant = package.pld.PLDAccountant(relation, value_discretization_interval=discretization)
    event = package.GaussianDpEvent(noise_multiplier)
    accountant.compose(package.PoissonSampledDpEvent(rate, event) if rate < 1 else event, steps)
    return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=1024)
def poisson_noise_multiplier(
    rate: float,
    steps: int,
    epsilon: float,
    delta: float,
    neighboring_relation: str,
    coarseness: float = 1.0,
) -> float:
    """Give a noise multiplier at which :func:`poisson_epsilon` is at most ε, within 0.01 %.

    Coarser privacy losses are as safe, and faster; the noise is a little larger.
    """
    if not 0 < rate < 1:
        raise ValueError(f"the sampling rate is {rate}; it needs a number in (0, 1)")
    steps = _checks.count(steps, "steps")

    ever = -math.expm1(steps * math.log1p(-rate))
    if ever <= delta:
        raise ValueError(
            f"delta is {delta}, not below the probability {ever:g} that {steps} samples of a share "
            f"of {rate} hold a given record at all, so that no noise is needed; give a smaller "
            "delta"
        )
    spent: dict[float, float] = {}
    discretization = _DISCRETIZATION * max(1.0, epsilon) * coarseness

    def is_private(sigma: float) -> bool:
        spent[sigma] = poisson_epsilon(
            rate, steps, sigma, delta, neighboring_relation, discretization=discretization
        )
        return spent[sigma] <= epsilon

    # The central limit theorem of Bu, Dong, Long and Su (2020): μ ≈ q √(T (exp(σ⁻²) - 1)).
    mu = calibrate_mu(epsilon, delta)
    low = high = 1 / math.sqrt(math.log1p(mu * mu / (rate * rate * steps)))
    step = 1.02
    if is_private(high):
        while is_private(low := high / step):
            high, step = low, step * step
    else:
        while not is_private(high := low * step):
            low, step = high, step * step
    while high > low * (1 + _TOLERANCE):
        # Log ε is nearly linear in log σ: look on both sides of where it should be.
        part = math.log(spent[low] / epsilon) / math.log(spent[low] / spent[high])
        crossing = low * (high / low) ** min(max(part, 0.02), 0.98)
        for sigma in (crossing * (1 + _TOLERANCE / 3), crossing / (1 + _TOLERANCE / 3)):
            if low < sigma < high:
                if is_private(sigma):
                    high = sigma
                else:
                    low = sigma
    return high
