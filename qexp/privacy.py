"""Privacy arithmetic: what a Gaussian mechanism costs, and who has spent how much.

The privacy of every release of this package is stated as μ-Gaussian differential privacy
(μ-GDP): telling two neighbouring data sets apart is as hard as telling N(0, 1) from N(μ, 1).
A Gaussian mechanism with L2 sensitivity Δ and noise of standard deviation s is μ-GDP with
μ = Δ/s, exactly, and a mechanism is μ-GDP if and only if it is (ε, δ(ε; μ))-differentially
private for every ε ≥ 0, with

    δ(ε; μ) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2).

Sources: Balle & Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018,
Theorem 8; Dong, Roth & Su, "Gaussian differential privacy", JRSS-B 2022, Corollary 1 (conversion)
and Corollary 2 (composition: μ = √Σ μ_i²).

Every result is rounded to the private side: `delta` and `epsilon` up, `calibrate_mu` down.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, getcontext, localcontext
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from qexp._files import atomic_write

__all__ = [
    "BudgetExceededError",
    "LedgerEntry",
    "NeighboringRelation",
    "PrivacyLedger",
    "Reservation",
    "calibrate_mu",
    "compose_mu",
    "delta",
    "epsilon",
    "log_delta",
    "to_dp_event",
]

NeighboringRelation = Literal["replace_special", "replace_one"]


# --- Checks of arguments ---------------------------------------------------------------------


def _real(value: object, name: str, allowed: str, advice: str) -> float:
    """Return ``value`` as a finite float that equals it, or raise."""
    message = f"{name} must be {allowed}, got {value!r}: {advice}"
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise TypeError(
            f"{name} must be a real number (float or int), {allowed}, got {value!r} of type "
            f"{type(value).__name__}: {advice}"
        )
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(message) from None
    if not math.isfinite(number):
        raise ValueError(message)
    if number != value:
        raise ValueError(
            f"{name} must be exactly representable as a 64-bit float, got {value!r}: rounding it "
            "could weaken the guarantee, so round it yourself to the side that you want"
        )
    return number


def _check_epsilon(value: object, name: str = "epsilon", *, zero_allowed: bool = False) -> float:
    allowed = "finite and " + (">= 0" if zero_allowed else "> 0")
    advice = "choose the privacy loss that you accept, for example 1.0"
    number = _real(value, name, allowed, advice)
    if number < 0 or (number == 0 and not zero_allowed):
        raise ValueError(f"{name} must be {allowed}, got {value!r}: {advice}")
    return number


def _check_delta(value: object, name: str = "delta") -> float:
    allowed = "strictly between 0 and 1"
    advice = "choose a value well below 1 / (number of records), for example 1e-6"
    number = _real(value, name, allowed, advice)
    if not 0 < number < 1:
        raise ValueError(f"{name} must be {allowed}, got {value!r}: {advice}")
    return number


def _check_mu(value: object, name: str = "mu", *, zero_allowed: bool = False) -> float:
    allowed = "finite and " + (">= 0" if zero_allowed else "> 0")
    advice = "mu is (bound on one record) / (noise standard deviation); see calibrate_mu"
    number = _real(value, name, allowed, advice)
    if number < 0 or (number == 0 and not zero_allowed):
        raise ValueError(f"{name} must be {allowed}, got {value!r}: {advice}")
    return number


def _check_relation(value: object) -> NeighboringRelation:
    name = value if isinstance(value, str) else ""
    if name == "replace_special":
        return "replace_special"
    if name == "replace_one":
        return "replace_one"
    if name == "add_or_remove_one":
        raise ValueError(
            "neighboring_relation 'add_or_remove_one' is not supported: the number of records is "
            "public here, so the guarantee cannot hide it; use 'replace_special' (one record "
            "replaced by a null record) or 'replace_one'"
        )
    raise ValueError(
        "neighboring_relation must be 'replace_special' (one record replaced by a null record) or "
        f"'replace_one' (one record replaced by any other), got {value!r}"
    )


# --- δ(ε; μ) to thirty digits ----------------------------------------------------------------
#
# Method. With t1 = ε/μ − μ/2 and t2 = ε/μ + μ/2, φ(t1) = e^ε φ(t2), so
#     δ = φ(t1) D,   D = M(t1) − M(t2),   M(t) = Φ(−t)/φ(t)   (Mills ratio),
# and with D in hand both derivatives are free: ∂ log δ/∂μ = 1/D, ∂ log δ/∂ε = −M(t2)/D.
# Everything is evaluated in decimal arithmetic with as many digits p as the cancellation in D
# asks for: floats convert to it exactly, and it neither overflows nor underflows.
#
# Error bound. Let u = 10^(1−p) and T = t2 + μ, which is at least |t1|, t2 and μ.
# (a) M is computed to a relative n·u, n < 20 p, from sums of positive terms (and one subtraction
#     whose loss of digits is made up by working with more of them): see _mills.
# (b) For t ≥ 0, M(t) ≤ √(π/2), and −M'(t) = 1 − t M(t) ≥ 1/(t² + 3) and decreases; hence
#     D ≥ μ/(T² + 3), and the subtraction magnifies relative errors at most 1.26 (T² + 3)/μ times.
#     For t1 < 0 the loss is smaller, since M(t)/M(t + μ) decreases in t.
# (c) t1 and t2 carry an absolute error of 2 T u. It reaches D through |M'| ≤ 1 + |t| M, and
#     t1²/2 directly: relative errors of at most 6 T (T + 1) (T² + 3) u/μ, and 2 T² u.
# Together at most 40 p (T + 2)⁴ u max(1, 1/μ). With p = 36 + log10((T + 2)⁴ max(1, 1/μ)) that is
# below 1e-28 for all floats (p < 4000). _MARGIN is a thousand times larger, and far below the
# 1.1e-16 of a float: for δ ≤ 1/2 results are the exact ones, correctly rounded to the private
# side; for δ → 1 they are still on it, but the margin counts against 1 − δ.
_DIGITS = 36
_MARGIN = Decimal("1e-25")

# A context of our own: the caller's may trap, round or cut exponents differently.
_CONTEXT = Context(prec=_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)


@lru_cache(maxsize=16)
def _pi(digits: int) -> Decimal:
    """Return π to ``digits`` digits by Machin's formula, 16 arctan(1/5) − 4 arctan(1/239)."""
    one = 10 ** (digits + 10)

    def arctan_of_inverse(n: int) -> int:
        total, power, k = 0, one // n, 1
        while power:
            total += power // k if k % 4 == 1 else -(power // k)
            power //= n * n
            k += 2
        return total

    scaled = 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))
    return Decimal(scaled).scaleb(-(digits + 10), Context(digits + 12, Emin=MIN_EMIN))


def _current_pi() -> Decimal:
    """Return π to at least the digits of the current context."""
    return _pi(50 * (1 + getcontext().prec // 50))


def _mills_fraction(t: Decimal) -> Decimal:
    """Return M(t), t > 0, from Laplace's continued fraction 1/(t+1/(t+2/(t+3/(t+…)))).

    Convergents lie in turn below and above the limit, so the distance of two neighbours,
    n!/(B_n B_{n+1}), bounds the error. The recurrences have only positive terms.
    """
    smallest = Decimal(10) ** -getcontext().prec
    a_old, a = Decimal(0), Decimal(1)
    b_old, b = Decimal(1), t
    n, factorial = 1, Decimal(1)
    while True:
        a_old, a = a, t * a + n * a_old
        b_old, b = b, t * b + n * b_old
        factorial *= n
        if factorial <= smallest * a * b_old:
            return a / b
        n += 1


def _mills(t: Decimal) -> Decimal:
    """Return the Mills ratio M(t) = Φ(−t)/φ(t) in the precision of the current context."""
    digits = getcontext().prec
    square = t * t
    if square > digits:
        tail = _mills_fraction(abs(t))
        return tail if t > 0 else (2 * _current_pi()).sqrt() * (square / 2).exp() - tail
    with localcontext() as context:
        # M(t) = √(π/2) e^(t²/2) − Σ t^(2j+1)/(2j+1)!!; for t > 0 the difference is smaller than
        # its terms by e^(t²/2) (t + 1) or less.
        context.prec = digits + int(square * Decimal("0.22")) + 6
        square = t * t
        leading = (_current_pi() / 2).sqrt() * (square / 2).exp()
        smallest = leading.scaleb(-context.prec)
        term = total = t
        k = 1
        # Where the terms become this small, each is less than half of the one before.
        while abs(term) > smallest:
            k += 2
            term = term * square / k
            total += term
        return leading - total


class _Profile(NamedTuple):
    """log δ(ε; μ) plus _MARGIN, with D and M(t2), from which its derivatives follow."""

    upper_log_delta: Decimal
    difference: Decimal
    mills: Decimal


def _profile(eps: Decimal, mu: Decimal) -> _Profile:
    """Evaluate δ(ε; μ) for ε ≥ 0, μ > 0; without the margin, log δ is within 1e-28."""
    with localcontext(_CONTEXT) as context:
        reach = eps / mu + mu * 2 + 2
        context.prec = _DIGITS + 4 * (reach.adjusted() + 1) + max(0, -mu.adjusted())
        t1 = eps / mu - mu / 2
        t2 = eps / mu + mu / 2
        if t1 < -40:
            # 1 − δ < 2 Φ(t1) < 1e-340.
            return _Profile(Decimal(0), Decimal("Infinity"), Decimal(0))
        mills = _mills(t2)
        difference = _mills(t1) - mills
        log_value = (difference / (2 * _current_pi()).sqrt()).ln() - t1 * t1 / 2
        return _Profile(log_value + _MARGIN, difference, mills)


def _log(value: float) -> Decimal:
    with localcontext(_CONTEXT) as context:
        context.prec = _DIGITS + 4
        return Decimal(value).ln()


def _round_up(value: Decimal) -> float:
    """Return the smallest float that is not below ``value``."""
    nearest = float(value)
    return nearest if Decimal(nearest) >= value else math.nextafter(nearest, math.inf)


def _round_down(value: Decimal) -> float:
    """Return the largest float that is not above ``value``."""
    nearest = float(value)
    return nearest if Decimal(nearest) <= value else math.nextafter(nearest, -math.inf)


def _settle(start: float, towards: float, is_private: Callable[[float], bool]) -> float:
    """Return ``start``, or the first float after it, in growing steps, that is private."""
    value, step = start, math.ulp(start)
    while not is_private(value):
        value += math.copysign(step, towards - value)
        step *= 2
    return value


def _newton(start: Decimal, digits: int, step: Callable[[Decimal], Decimal]) -> Decimal:
    """Add Newton steps to ``start`` until they are below 1e-15 of the value.

    Both functions solved here are concave, and started where they are below zero, so the
    iteration runs to the root from one side and the last step leaves far less than 1e-15.
    """
    value = start
    for _ in range(200):
        change = step(value)
        with localcontext(_CONTEXT) as context:
            context.prec = digits
            value = value + change
            if abs(change) <= abs(value).scaleb(-15):
                return value
    raise ArithmeticError("the privacy parameter did not converge; please report the arguments")


def log_delta(epsilon: float, mu: float) -> float:
    """Return log δ(ε; μ), for values of δ too small for a float.

    Parameters
    ----------
    epsilon : float
        ε ≥ 0.
    mu : float
        μ ≥ 0, the parameter of Gaussian differential privacy.

    Returns
    -------
    float
        Natural logarithm of δ, rounded up, with an error below 1e-24 before that; ``-inf`` for
        μ = 0.

    Raises
    ------
    TypeError, ValueError
        An argument is not a finite real number in its range.

    See Also
    --------
    delta : the same, not as a logarithm.
    """
    eps = _check_epsilon(epsilon, zero_allowed=True)
    number = _check_mu(mu, zero_allowed=True)
    if number == 0:
        return -math.inf
    return min(0.0, _round_up(_profile(Decimal(eps), Decimal(number)).upper_log_delta))


def delta(epsilon: float, mu: float) -> float:
    """Return the smallest δ for which μ-GDP implies (ε, δ)-differential privacy.

    δ(ε; μ) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2), the exact privacy of the Gaussian mechanism.

    Parameters
    ----------
    epsilon : float
        ε ≥ 0. At ε = 0, δ is the total variation distance.
    mu : float
        μ ≥ 0, the parameter of Gaussian differential privacy: the bound on one record divided by
        the standard deviation of the noise.

    Returns
    -------
    float
        δ, rounded up: the smallest float that is not below the true value.

    Raises
    ------
    TypeError, ValueError
        An argument is not a finite real number in its range.

    References
    ----------
    Balle & Wang, ICML 2018, Theorem 8; Dong, Roth & Su, JRSS-B 2022, Corollary 1.

    Examples
    --------
    >>> delta(1.0, 1.0)
    0.1269367375066...
    """
    eps = _check_epsilon(epsilon, zero_allowed=True)
    number = _check_mu(mu, zero_allowed=True)
    if number == 0:
        return 0.0
    value = _profile(Decimal(eps), Decimal(number)).upper_log_delta
    if value < -800:
        return math.ulp(0.0)
    with localcontext(_CONTEXT):
        return min(1.0, _round_up(value.exp()))


def epsilon(delta: float, mu: float) -> float:
    """Return the smallest ε for which μ-GDP implies (ε, δ)-differential privacy.

    Parameters
    ----------
    delta : float
        δ, strictly between 0 and 1.
    mu : float
        μ ≥ 0, the parameter of Gaussian differential privacy.

    Returns
    -------
    float
        ε, rounded up; 0.0 when δ(0; μ) ≤ δ.

    Raises
    ------
    TypeError, ValueError
        An argument is not a finite real number in its range, or ε is above the largest float.

    References
    ----------
    Dong, Roth & Su, JRSS-B 2022, Corollary 1.

    Examples
    --------
    >>> epsilon(1e-5, 1.0)
    4.377178...
    """
    target = _check_delta(delta)
    number = _check_mu(mu, zero_allowed=True)
    if number == 0:
        return 0.0
    scale, log_target = Decimal(number), _log(target)

    def is_private(value: float) -> bool:
        return _profile(Decimal(value), scale).upper_log_delta <= log_target

    if is_private(0.0):
        return 0.0

    def step(value: Decimal) -> Decimal:
        profile = _profile(value, scale)
        with localcontext(_CONTEXT):
            excess = profile.upper_log_delta - log_target
            return excess * profile.difference / profile.mills

    # δ(ε; μ) < Φ(−t1): the ε at which that is δ lies above the root, where log δ, which is
    # concave in ε (M(t)/M(t + μ) decreases in t), is below its target.
    digits = _DIGITS + 2 * abs(scale.adjusted()) + 8
    with localcontext(_CONTEXT) as context:
        context.prec = digits
        start = scale * (scale / 2 - Decimal(NormalDist().inv_cdf(target)))
    root = _newton(start, digits, step)
    if root > Decimal(math.nextafter(math.inf, 0.0)):
        raise ValueError(
            f"mu = {mu!r} gives an epsilon above the largest float: no useful privacy is left; "
            "mu must be below 1e154 here"
        )
    return _settle(_round_up(root), math.inf, is_private)


def calibrate_mu(target_epsilon: float, target_delta: float) -> float:
    """Return the largest μ for which μ-GDP implies (ε, δ)-differential privacy.

    Parameters
    ----------
    target_epsilon : float
        ε > 0.
    target_delta : float
        δ, strictly between 0 and 1.

    Returns
    -------
    float
        μ, rounded down. The noise multiplier (noise standard deviation over the bound on one
        record) is 1/μ.

    Raises
    ------
    TypeError, ValueError
        An argument is not a finite real number in its range.

    References
    ----------
    Balle & Wang, ICML 2018, Algorithm 1 (the same problem, solved there in floating point).

    Examples
    --------
    >>> calibrate_mu(1.0, 1e-5)
    0.2680511232...
    """
    eps = Decimal(_check_epsilon(target_epsilon, "target_epsilon"))
    target = _check_delta(target_delta, "target_delta")
    log_target = _log(target)

    def is_private(value: float) -> bool:
        return _profile(eps, Decimal(value)).upper_log_delta <= log_target

    digits = _DIGITS + abs(eps.adjusted()) + 8

    def step(value: Decimal) -> Decimal:
        # In log μ, where log δ is concave too: D/μ = ∫ exp(−εs/μ − s²/2) 2 sinh(μs/2)/μ ds
        # increases in μ, and ∂ log δ/∂ log μ is its inverse.
        profile = _profile(eps, value)
        with localcontext(_CONTEXT) as context:
            context.prec = digits
            change = (log_target - profile.upper_log_delta) * profile.difference / value
            return value * (change.exp() - 1)

    # δ(ε; μ) < Φ(−t1): the μ at which that is δ lies below the root.
    with localcontext(_CONTEXT) as context:
        context.prec = digits
        quantile = -Decimal(NormalDist().inv_cdf(target))
        root_term = (quantile * quantile + 2 * eps).sqrt()
        start = root_term - quantile if quantile < 0 else 2 * eps / (root_term + quantile)
    # Never 0: δ(ε; μ) ≤ δ(0; μ) ≤ μ/√(2π), so μ ≥ √(2π) δ, which is a float above 0.
    return _settle(_round_down(_newton(start, digits, step)), 0.0, is_private)


# --- Composition, exactly ---------------------------------------------------------------------


def _square(mu: float) -> Fraction:
    return Fraction(mu) ** 2


def _sqrt_bounds(value: Fraction) -> tuple[float, float]:
    """Return the largest float ≤ √value and the smallest float ≥ √value, for value ≥ 0."""
    if value == 0:
        return 0.0, 0.0
    # ⌊√value · 2^shift⌋, on a grid finer than the floats there: 60 bits, or below the smallest.
    length = value.numerator.bit_length() - value.denominator.bit_length()
    shift = min(1100, max(0, 64 - length // 2))
    scaled = (value.numerator << (2 * shift)) // value.denominator
    floor = math.isqrt(scaled)
    exact = floor * floor * value.denominator == value.numerator << (2 * shift)

    def as_float(number: Fraction) -> float:
        try:
            return float(number)
        except OverflowError:
            return math.inf

    below, above = (Fraction(n, 1 << shift) for n in (floor, floor if exact else floor + 1))
    low, high = as_float(below), as_float(above)
    if low > below:
        low = math.nextafter(low, 0.0)
    if high < above:
        high = math.nextafter(high, math.inf)
    return low, high


def compose_mu(mus: Iterable[float]) -> float:
    """Return the μ of several releases together, √Σ μ_i².

    Parameters
    ----------
    mus : iterable of float
        The μ ≥ 0 of each release. Each may have been chosen after seeing the ones before.

    Returns
    -------
    float
        The composed μ, rounded up; 0.0 for no release.

    Raises
    ------
    TypeError, ValueError
        A μ is not a finite real number ≥ 0, or the sum is above the largest float.

    References
    ----------
    Dong, Roth & Su, JRSS-B 2022, Corollary 2.

    Examples
    --------
    >>> compose_mu([3.0, 4.0])
    5.0
    """
    if isinstance(mus, str | bytes) or not isinstance(mus, Iterable):
        raise TypeError(f"mus must be an iterable of numbers, got {mus!r}")
    total = sum((_square(_check_mu(mu, "each mu", zero_allowed=True)) for mu in mus), Fraction(0))
    composed = _sqrt_bounds(total)[1]
    if math.isinf(composed):
        raise ValueError("the composed mu is above the largest float: no privacy is left")
    return composed


# --- The ledger -------------------------------------------------------------------------------

_FORMAT = "qexp privacy ledger"
_VERSION = 1


class BudgetExceededError(ValueError):
    """A release would cost more than the privacy budget has left."""


@dataclass(frozen=True)
class LedgerEntry:
    """One charge.

    Attributes
    ----------
    mu : float
        What it cost, as μ-GDP under the neighbouring relation of the ledger.
    label : str
        What it was for.
    time : str
        When it was charged, in UTC, ISO 8601.
    """

    mu: float
    label: str
    time: str


class Reservation:
    """A part of a budget that is held while a release is made; see `PrivacyLedger.reserve`."""

    def __init__(self, ledger: PrivacyLedger, mu: float, label: str, *, resume: bool) -> None:
        self._ledger = ledger
        self._mu = mu
        self._label = label
        self._resume = resume
        self._number = 0
        self._state: Literal["new", "held", "committed", "returned"] = "new"

    @property
    def mu(self) -> float:
        """What is held, as μ-GDP under the neighbouring relation of the ledger."""
        return self._mu

    def __enter__(self) -> Self:
        with self._ledger._lock:
            if self._state != "new":
                raise RuntimeError(
                    "a reservation can be entered once only: call reserve() for each release"
                )
            self._number = self._ledger._hold(self._mu, self._label, resume=self._resume)
            self._state = "held"
        return self

    def commit(self) -> None:
        """Turn the reservation into a charge. Do it before anything of the release gets out.

        Raises
        ------
        RuntimeError
            The reservation is not held: committed before, or outside its ``with`` block.
        """
        with self._ledger._lock:
            if self._state != "held":
                raise RuntimeError(
                    "only a reservation that is held can be committed, once, inside its with "
                    f"block; this one is {self._state}"
                )
            # In this order, an interrupt in between leaves too much counted as spent, never too
            # little.
            self._state = "committed"
            self._ledger._pay(self._mu, self._label, self._number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._state == "held":
            self._state = "returned"
            self._ledger._give_back(self._mu, self._number, error)


class PrivacyLedger:
    """A privacy budget and what has been spent of it.

    The budget is one μ; charges compose as √Σ μ_i². Squares are kept as exact fractions, so
    whether a charge fits is decided exactly, and a budget can be used up to the last bit.

    Parameters
    ----------
    mu_budget : float, optional
        The budget as μ-GDP under ``neighboring_relation``.
    target_epsilon, target_delta : float, optional
        The budget as (ε, δ)-differential privacy; both, instead of ``mu_budget``.
    neighboring_relation : {"replace_special", "replace_one"}
        Which data sets are neighbours, with the names of dp_accounting: one record replaced by a
        null record that contributes nothing, or by any other record. The number of records is
        public under both. A bounded sum that is μ-GDP under the first is 2μ-GDP under the second.

    Raises
    ------
    TypeError, ValueError
        A wrong or missing argument.

    Notes
    -----
    All properties are stated under the relation of the ledger. The μ handed to `check`, `charge`
    and `reserve` is stated under "replace_special", as mechanisms have it (bound on one record
    over noise standard deviation), and is doubled here for a "replace_one" ledger; pass
    ``neighboring_relation`` there if it is stated otherwise.

    Safe to use from many threads. It cannot be copied or pickled, because a copy could spend the
    same budget again: hand the ledger itself around, or save it.

    Examples
    --------
    >>> ledger = PrivacyLedger(mu_budget=5.0)
    >>> ledger.charge(3.0, "first release")
    >>> ledger.mu_remaining
    4.0
    """

    def __init__(
        self,
        *,
        mu_budget: float | None = None,
        target_epsilon: float | None = None,
        target_delta: float | None = None,
        neighboring_relation: NeighboringRelation = "replace_special",
    ) -> None:
        has_pair = target_epsilon is not None and target_delta is not None
        has_either = target_epsilon is not None or target_delta is not None
        if has_pair != has_either or has_pair == (mu_budget is not None):
            raise ValueError(
                "give either mu_budget, or both target_epsilon and target_delta; got "
                f"mu_budget={mu_budget!r}, target_epsilon={target_epsilon!r}, "
                f"target_delta={target_delta!r}"
            )
        self._relation = _check_relation(neighboring_relation)
        self._target: tuple[float, float] | None = None
        if mu_budget is not None:
            self._budget = _check_mu(mu_budget, "mu_budget")
        else:
            self._target = (
                _check_epsilon(target_epsilon, "target_epsilon"),
                _check_delta(target_delta, "target_delta"),
            )
            self._budget = calibrate_mu(*self._target)
        self._lock: AbstractContextManager[Any] = threading.RLock()
        self._entries: list[LedgerEntry] = []
        self._spent = Fraction(0)
        self._reserved = Fraction(0)

    def __repr__(self) -> str:
        return (
            f"PrivacyLedger(mu_spent={self.mu_spent!r}, mu_budget={self.mu_budget!r}, "
            f"neighboring_relation={self._relation!r}, entries={len(self.entries)})"
        )

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            "a PrivacyLedger cannot be copied or pickled, because a copy could spend the same "
            "budget again: hand the ledger itself around, or use save() and load()"
        )

    @property
    def neighboring_relation(self) -> NeighboringRelation:
        """The relation under which everything in the ledger is stated."""
        return self._relation

    @property
    def target_epsilon(self) -> float | None:
        """The ε of the budget, or None if it was given as μ."""
        return self._target[0] if self._target else None

    @property
    def target_delta(self) -> float | None:
        """The δ of the budget, or None if it was given as μ."""
        return self._target[1] if self._target else None

    @property
    def mu_budget(self) -> float:
        """The whole budget."""
        return self._budget

    @property
    def mu_spent(self) -> float:
        """What the charges cost together, rounded up. Reservations do not count."""
        with self._lock:
            return _sqrt_bounds(self._spent)[1]

    @property
    def mu_remaining(self) -> float:
        """The largest μ that can still be charged, rounded down. Reservations are not in it."""
        with self._lock:
            return _sqrt_bounds(self._left())[0]

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """The charges, oldest first."""
        with self._lock:
            return tuple(self._entries)

    def epsilon_spent(self, delta: float) -> float:
        """Return the ε of all charges together at this δ, rounded up.

        Parameters
        ----------
        delta : float
            δ, strictly between 0 and 1.

        Returns
        -------
        float
            The smallest ε for which the charges are (ε, δ)-differentially private.
        """
        return epsilon(delta, self.mu_spent)

    def check(
        self, mu: float, *, neighboring_relation: NeighboringRelation = "replace_special"
    ) -> None:
        """Raise if a charge of ``mu`` would not fit now.

        Parameters
        ----------
        mu : float
            μ > 0 of the release.
        neighboring_relation : {"replace_special", "replace_one"}
            The relation under which ``mu`` is stated.

        Raises
        ------
        BudgetExceededError
            It does not fit beside the charges and reservations.
        """
        cost = self._cost(mu, neighboring_relation)
        with self._lock:
            self._require(cost)

    def charge(
        self,
        mu: float,
        label: str = "",
        *,
        neighboring_relation: NeighboringRelation = "replace_special",
        resume: bool = False,
    ) -> None:
        """Charge the budget at once.

        Parameters
        ----------
        mu : float
            μ > 0 of the release.
        label : str
            What it is for.
        neighboring_relation : {"replace_special", "replace_one"}
            The relation under which ``mu`` is stated.
        resume : bool
            The label belongs to this one release and to no other. A ledger that outlives its
            process (:class:`qexp.SharedLedger`) then takes up what was left reserved under it.

        Raises
        ------
        BudgetExceededError
            It does not fit; nothing is charged.
        """
        with self.reserve(
            mu, label, neighboring_relation=neighboring_relation, resume=resume
        ) as reservation:
            reservation.commit()

    def reserve(
        self,
        mu: float,
        label: str = "",
        *,
        neighboring_relation: NeighboringRelation = "replace_special",
        resume: bool = False,
    ) -> Reservation:
        """Hold a part of the budget while a release is made, for use in a ``with`` statement.

        No other thread can have that part meanwhile. ``commit()`` makes it a charge; leaving the
        block without it, also by an exception, gives it back.

        Parameters
        ----------
        mu : float
            μ > 0 of the release.
        label : str
            What it is for.
        neighboring_relation : {"replace_special", "replace_one"}
            The relation under which ``mu`` is stated.
        resume : bool
            The label belongs to this one release and to no other. A ledger that outlives its
            process (:class:`qexp.SharedLedger`) then takes up what was left reserved under it.

        Returns
        -------
        Reservation
            Entering it raises `BudgetExceededError` if the budget does not suffice.

        Examples
        --------
        >>> ledger = PrivacyLedger(mu_budget=1.0)
        >>> with ledger.reserve(0.5, "round 1") as reservation:
        ...     reservation.commit()  # as soon as noise has met data
        """
        if not isinstance(label, str):
            raise TypeError(f"label must be a str, got {label!r} of type {type(label).__name__}")
        return Reservation(self, self._cost(mu, neighboring_relation), label, resume=resume)

    def to_dp_event(self) -> Any:
        """Return the charges as a dp_accounting event; see the function `to_dp_event`."""
        return to_dp_event(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ledger to a JSON file, atomically. Open reservations are not in it.

        Parameters
        ----------
        path : str or os.PathLike
            The file; one that exists is replaced.

        Raises
        ------
        OSError
            The file cannot be written; the one before is whole.
        """
        with self._lock:
            content = {
                "neighboring_relation": self._relation,
                "mu_budget": self._budget.hex(),
                "target": [value.hex() for value in self._target] if self._target else None,
                "entries": [
                    {"mu": entry.mu.hex(), "label": entry.label, "time": entry.time}
                    for entry in self._entries
                ],
            }
            document = {
                "format": _FORMAT,
                "version": _VERSION,
                "sha256": _checksum(content),
                "content": content,
            }
            data = json.dumps(document, indent=1).encode("ascii") + b"\n"
            # Inside the lock, so that of two threads that save, the later state stays.
            atomic_write(path, lambda file: _write_all(file, data))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrivacyLedger:
        """Read a ledger that `save` wrote.

        Parameters
        ----------
        path : str or os.PathLike
            The file.

        Returns
        -------
        PrivacyLedger
            The ledger, every number bit for bit as it was.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is damaged, not a ledger, or of a version that is not known here.
        """
        name = os.fspath(path)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no privacy ledger at {name!r}: correct the path, or start a new one with "
                "PrivacyLedger(...) and save() it there"
            ) from None
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(
                f"{name!r} is not a privacy ledger, or is damaged: give a file that "
                "PrivacyLedger.save wrote, or restore it from a backup"
            )
        if document.get("version") != _VERSION:
            raise ValueError(
                f"{name!r} is a privacy ledger of format version {document.get('version')!r}; this "
                f"release reads version {_VERSION}: use the release of qexp that wrote it"
            )
        content = document.get("content")
        damaged = (
            f"the privacy ledger {name!r} is damaged or was edited: restore it from a backup; do "
            "not start a new one for the same data, or what was spent is forgotten"
        )
        if _checksum(content) != document.get("sha256"):
            raise ValueError(damaged)
        try:
            return cls._from_content(content)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{damaged} ({error})") from error

    @classmethod
    def _from_content(cls, content: Any) -> PrivacyLedger:
        ledger = cls(
            mu_budget=float.fromhex(content["mu_budget"]),
            neighboring_relation=content["neighboring_relation"],
        )
        if content["target"] is not None:
            eps, target = (float.fromhex(value) for value in content["target"])
            # Not calibrated again: the stored budget is what the charges were checked against.
            if delta(_check_epsilon(eps), ledger._budget) > _check_delta(target):
                raise ValueError("its budget does not fit its target")
            ledger._target = (eps, target)
        for item in content["entries"]:
            mu, label, time = _check_mu(float.fromhex(item["mu"])), item["label"], item["time"]
            if not isinstance(label, str) or not isinstance(time, str):
                raise ValueError("an entry has a label or time that is not text")
            ledger._entries.append(LedgerEntry(mu, label, time))
            ledger._spent += _square(mu)
        if ledger._left() < 0:
            raise ValueError("it holds more charges than its budget allows")
        return ledger

    # The methods below are called with the lock held.

    def _left(self) -> Fraction:
        return _square(self._budget) - self._spent - self._reserved

    def _require(self, cost: float) -> None:
        if _square(cost) <= self._left():
            return
        held = f" ({_sqrt_bounds(self._reserved)[1]!r} is reserved)" if self._reserved else ""
        level = self._target[1] if self._target else 1e-6
        asked = _sqrt_bounds(self._spent + self._reserved + _square(cost))[1]

        def epsilon_text(mu: float) -> str:
            try:
                return f"epsilon = {epsilon(level, mu):.6g}"
            except ValueError:
                return "no finite epsilon"

        raise BudgetExceededError(
            f"a release of mu = {cost!r} does not fit: mu = {_sqrt_bounds(self._left())[0]!r} "
            f"remains of mu_budget = {self._budget!r}{held}. With it, mu would be {asked!r} in "
            f"all, that is {epsilon_text(asked)} at delta = {level:.6g}, where the budget is "
            f"{epsilon_text(self._budget)} (neighboring_relation {self._relation!r}). Ask for "
            "less, or stop: a larger budget is a weaker promise to the people in the data"
        )

    def _hold(self, cost: float, label: str, *, resume: bool) -> int:
        """Hold a part of the budget; the number tells the reservation from others."""
        self._require(cost)
        self._reserved += _square(cost)
        return 0

    def _pay(self, cost: float, label: str, number: int) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._spent += _square(cost)
        self._entries.append(LedgerEntry(cost, label, now))
        self._reserved -= _square(cost)

    # Without the lock held: a file's lock may fail, and then `error` must not be lost.

    def _give_back(self, cost: float, number: int, error: BaseException | None) -> None:
        with self._lock:
            self._reserved -= _square(cost)

    def _cost(self, mu: float, stated_under: NeighboringRelation) -> float:
        """Return μ under the relation of the ledger.

        From "replace_one" to "replace_special" μ is kept: the null record is one of the records.
        """
        number = _check_mu(mu)
        if _check_relation(stated_under) == "replace_special" and self._relation == "replace_one":
            return _check_mu(2 * number, "mu (doubled for 'replace_one')")
        return number


def _write_all(file: Any, data: bytes) -> None:
    file.write(data)


def _checksum(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


# --- dp_accounting ----------------------------------------------------------------------------


def to_dp_event(mu_or_ledger: float | PrivacyLedger) -> Any:
    """Return a release, or all charges of a ledger, as an event of dp_accounting.

    Parameters
    ----------
    mu_or_ledger : float or PrivacyLedger
        μ > 0 of one release under "replace_special", or a ledger.

    Returns
    -------
    dp_accounting.GaussianDpEvent or dp_accounting.ComposedDpEvent
        For a number, a Gaussian event with noise multiplier 1/μ (noise standard deviation over
        the bound on one record), rounded down. For a ledger, the composition of its charges.

    Raises
    ------
    ImportError
        dp_accounting is not installed.
    TypeError, ValueError
        The argument is neither a ledger nor a finite real number > 0.

    Notes
    -----
    The event does not say who is a neighbour; the accountant does. Give it
    ``NeighboringRelation.REPLACE_SPECIAL``, or ``REPLACE_ONE`` for a ledger with "replace_one":
    dp_accounting's PLD accountant then doubles the sensitivity itself, so noise multipliers here
    are always those of one record. (Its RDP accountant does not double it.)
    """
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            'to_dp_event needs dp_accounting: pip install "qexp[accounting]"'
        ) from error

    def gaussian(mu: float, changed_records: int) -> Any:
        exact = changed_records / Fraction(mu)
        try:
            multiplier = float(exact)
        except OverflowError:
            multiplier = math.nextafter(math.inf, 0.0)
        if multiplier > exact:
            multiplier = math.nextafter(multiplier, 0.0)
        return dp_accounting.GaussianDpEvent(multiplier)

    if isinstance(mu_or_ledger, PrivacyLedger):
        changed_records = 2 if mu_or_ledger.neighboring_relation == "replace_one" else 1
        return dp_accounting.ComposedDpEvent(
            [gaussian(entry.mu, changed_records) for entry in mu_or_ledger.entries]
        )
    return gaussian(_check_mu(mu_or_ledger), 1)
