"""Privacy arithmetic: what a Gaussian mechanism costs.

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

import math
from collections.abc import Callable, Iterable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, getcontext, localcontext
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

from qexp._privacy_checks import check_delta, check_epsilon, check_mu

__all__ = [
    "calibrate_mu",
    "compose_mu",
    "delta",
    "epsilon",
    "log_delta",
    "noise_multiplier",
]


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
    eps = check_epsilon(epsilon, zero_allowed=True)
    number = check_mu(mu, zero_allowed=True)
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
    eps = check_epsilon(epsilon, zero_allowed=True)
    number = check_mu(mu, zero_allowed=True)
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
    target = check_delta(delta)
    number = check_mu(mu, zero_allowed=True)
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
    eps = Decimal(check_epsilon(target_epsilon, "target_epsilon"))
    target = check_delta(target_delta, "target_delta")
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


def square(mu: float) -> Fraction:
    """Return μ² exactly: what charges add up."""
    return Fraction(mu) ** 2


def sqrt_bounds(value: Fraction) -> tuple[float, float]:
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
    total = sum((square(check_mu(mu, "each mu", zero_allowed=True)) for mu in mus), Fraction(0))
    composed = sqrt_bounds(total)[1]
    if math.isinf(composed):
        raise ValueError("the composed mu is above the largest float: no privacy is left")
    return composed


def noise_multiplier(mu: float, changed_records: int = 1) -> float:
    """Return the standard deviation of noise that gives μ, in terms of the bound on one record.

    Parameters
    ----------
    mu : float
        μ > 0.
    changed_records : int
        In how many bounded terms neighbouring data sets differ: 2 for "replace_one".

    Returns
    -------
    float
        `changed_records`/μ rounded down, so that nobody who starts from it claims more privacy.

    Examples
    --------
    >>> noise_multiplier(0.25)
    4.0
    """
    exact = changed_records / Fraction(check_mu(mu))
    try:
        multiplier = float(exact)
    except OverflowError:
        return math.nextafter(math.inf, 0.0)
    return math.nextafter(multiplier, 0.0) if multiplier > exact else multiplier
