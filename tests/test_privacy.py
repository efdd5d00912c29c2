from __future__ import annotations

import math
from decimal import Decimal, Inexact, getcontext, localcontext
from fractions import Fraction
from typing import Any

import dp_accounting
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp import privacy
from qexp.ledger import PrivacyLedger, to_dp_event
from qexp.privacy import calibrate_mu, compose_mu, delta, epsilon, log_delta, noise_multiplier


def reference_delta(eps: float, mu: float, extra_digits: int = 25) -> mpmath.mpf:
    """δ(ε; μ) by its definition, with that many digits more than the subtraction can lose."""
    reach = eps / mu + mu + 2
    digits = extra_digits + max(0, math.ceil(math.log10(reach**3 / mu)))
    with mpmath.workdps(digits):
        e, m = mpmath.mpf(eps), mpmath.mpf(mu)
        root2 = mpmath.sqrt(2)
        below = mpmath.erfc((e / m - m / 2) / root2)
        above = mpmath.erfc((e / m + m / 2) / root2)
        return (below - mpmath.exp(e) * above) / 2


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(
        lambda value: min(high, max(low, math.exp(value)))
    )


epsilons = log_uniform(1e-4, 200.0)
deltas = log_uniform(1e-300, 0.5)
mus = log_uniform(1e-5, 30.0)


# --- Conversions ------------------------------------------------------------------------------


def test_known_values() -> None:
    assert 1 / calibrate_mu(1, 1e-5) == pytest.approx(3.730631634815942, rel=1e-14)
    assert delta(1, 1) == pytest.approx(0.126936737507, abs=1e-12)
    assert delta(2, 0.5) == pytest.approx(9.43916863e-6, rel=1e-9)
    assert epsilon(1e-5, 1) == pytest.approx(4.3771781, abs=1e-7)


def test_private_side_and_tightness_on_ten_thousand_pairs() -> None:
    """The reference decides; the mechanism never gets more than asked, nor 1e-9 less."""
    rng = np.random.default_rng(20180605)
    eps_values = np.exp(rng.uniform(math.log(1e-4), math.log(200.0), 10_000))
    delta_values = np.exp(rng.uniform(math.log(1e-300), math.log(0.5), 10_000))
    for number, (eps, target) in enumerate(
        zip(eps_values.tolist(), delta_values.tolist(), strict=True)
    ):
        mu = calibrate_mu(eps, target)
        true = reference_delta(eps, mu)
        assert target * (1 - 1e-9) <= true <= target, (eps, target)
        # δ is rounded up to the very next float.
        rounded = delta(eps, mu)
        assert math.nextafter(rounded, 0.0) < true <= rounded <= target, (eps, target)
        # The sharper questions cost more time, so every fourth pair answers them.
        if number % 4 == 0:
            found = epsilon(target, mu)
            assert reference_delta(found, mu) <= target, (eps, target)
            assert found <= eps, (eps, target)
            assert reference_delta(eps, math.nextafter(mu, 1e3)) > target, (eps, target)
            if found > 0:
                assert reference_delta(math.nextafter(found, 0), mu) > target, (eps, target)


def test_error_of_log_delta_is_below_its_bound() -> None:
    """The bound derived in the source, 1e-28, against the definition with many digits."""
    rng = np.random.default_rng(7)
    for _ in range(500):
        mu = 10.0 ** rng.uniform(-12, 1.5)
        eps = max(1e-9, mu * (rng.uniform(-12, 45) + mu / 2))
        found = privacy._profile(Decimal(eps), Decimal(mu)).upper_log_delta
        with mpmath.workdps(100):
            true = mpmath.log(reference_delta(eps, mu, 100))
            error = mpmath.mpf(str(found)) - mpmath.mpf("1e-25") - true
            assert abs(error) < mpmath.mpf("1e-28"), (eps, mu)


@pytest.mark.parametrize("digits", [50, 400, 1000])
def test_pi(digits: int) -> None:
    with mpmath.workdps(digits + 20):
        error = abs(mpmath.mpf(str(privacy._pi(digits))) - mpmath.pi)
        assert error < mpmath.mpf(10) ** -digits


def test_derivatives_used_by_newton() -> None:
    """∂ log δ/∂μ = 1/D and ∂ log δ/∂ε = −M(t2)/D, against central differences."""
    eps, mu, h = Decimal("1.5"), Decimal("0.8"), Decimal("1e-9")
    at = privacy._profile(eps, mu)

    def log_of(eps: Decimal, mu: Decimal) -> Decimal:
        return privacy._profile(eps, mu).upper_log_delta

    by_mu = log_of(eps, mu + h) - log_of(eps, mu - h)
    by_eps = log_of(eps + h, mu) - log_of(eps - h, mu)
    assert float(by_mu / (2 * h)) == pytest.approx(float(1 / at.difference), rel=1e-14)
    assert float(by_eps / (2 * h)) == pytest.approx(float(-at.mills / at.difference), rel=1e-14)


def test_sigma_agrees_with_dp_accounting() -> None:
    for eps in (0.1, 1.0, 8.0, 50.0):
        for target in (1e-3, 1e-5, 1e-12, 1e-100):
            sigma = dp_accounting.get_sigma_gaussian(eps, target, tol=1e-15)
            assert 1 / calibrate_mu(eps, target) == pytest.approx(sigma, rel=1e-11)


@settings(max_examples=200)
@given(epsilons, deltas)
def test_round_trips(eps: float, target: float) -> None:
    mu = calibrate_mu(eps, target)
    assert delta(eps, mu) <= target < delta(eps, mu * (1 + 1e-12))
    assert epsilon(target, mu) <= eps
    assert epsilon(delta(eps, mu), mu) <= eps
    assert log_delta(eps, mu) == pytest.approx(math.log(delta(eps, mu)), rel=1e-14, abs=1e-15)


@settings(max_examples=200)
@given(epsilons, epsilons, mus, mus, deltas, deltas)
def test_monotone(e1: float, e2: float, m1: float, m2: float, d1: float, d2: float) -> None:
    e1, e2, m1, m2, d1, d2 = *sorted((e1, e2)), *sorted((m1, m2)), *sorted((d1, d2))
    assert delta(e1, m1) >= delta(e2, m1)
    assert delta(e1, m1) <= delta(e1, m2)
    assert log_delta(e1, m1) >= log_delta(e2, m1)
    assert epsilon(d1, m1) >= epsilon(d2, m1)
    assert epsilon(d1, m1) <= epsilon(d1, m2)
    assert calibrate_mu(e1, d1) <= calibrate_mu(e2, d1)
    assert calibrate_mu(e1, d1) <= calibrate_mu(e1, d2)


def test_edges() -> None:
    assert delta(1.0, 0.0) == 0.0
    assert log_delta(1.0, 0.0) == -math.inf
    assert epsilon(1e-5, 0.0) == 0.0
    # δ(0; μ) = 2 Φ(μ/2) − 1 = erf(μ / √8).
    assert delta(0.0, 1.0) == pytest.approx(math.erf(1 / math.sqrt(8)), rel=1e-14)
    total_variation = delta(0.0, 1.0)
    assert epsilon(total_variation, 1.0) == 0.0
    assert epsilon(0.5, 1.0) == 0.0
    assert 0 < epsilon(math.nextafter(total_variation, 0.0), 1.0) < 1e-15
    # Too small for a float, but never stated as nothing at all.
    assert delta(1.0, 1e-3) == 5e-324
    assert -500_100 < log_delta(1.0, 1e-3) < -499_500
    assert delta(1.0, 100.0) == 1.0
    assert log_delta(1.0, 1e10) == 0.0


EXTREMES = [5e-324, 1e-310, 1e-200, 1e-20, 1e-4, 1.0, 60.0, 1e6, 1e50, 1e153, 1e308]


@pytest.mark.parametrize("value", EXTREMES)
def test_extremes_are_right_or_refused(value: float) -> None:
    for other in (5e-324, 1e-20, 1.0, 1e6, 1e153, 1e308):
        assert 5e-324 <= delta(value, other) <= 1.0
        assert -math.inf < log_delta(value, other) <= 0.0
    for target in (5e-324, 1e-320, 1e-300, 1e-9, 0.5, 0.999, 1 - 2**-53):
        mu = calibrate_mu(value, target)
        assert delta(value, mu) <= target
        if target < 0.9999:
            assert delta(value, math.nextafter(mu, math.inf)) > target
        if value > 1e154:
            with pytest.raises(ValueError, match="mu must be below 1e154"):
                epsilon(target, value)
        else:
            assert delta(epsilon(target, value), value) <= target


def test_the_decimal_context_of_the_caller_is_neither_used_nor_changed() -> None:
    expected = (delta(1, 1), epsilon(1e-5, 1), calibrate_mu(1, 1e-5), log_delta(1, 1))
    with localcontext() as context:
        context.prec = 3
        context.traps[Inexact] = True
        found = (delta(1, 1), epsilon(1e-5, 1), calibrate_mu(1, 1e-5), log_delta(1, 1))
        assert getcontext().prec == 3
    assert found == expected


def test_numpy_and_integer_arguments() -> None:
    assert delta(np.float64(1), np.int64(1)) == delta(1, 1) == delta(np.float32(1), 1.0)
    assert type(delta(np.float64(1), np.float64(1))) is float


BAD_NUMBERS: list[tuple[Any, type[Exception]]] = [
    (-1.0, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (10**400, ValueError),
    (2**60 + 1, ValueError),
    (True, TypeError),
    (np.True_, TypeError),
    ("1", TypeError),
    (None, TypeError),
    (1j, TypeError),
    (np.array(1.0), TypeError),
    (np.array([1.0, 2.0]), TypeError),
    ([1.0], TypeError),
    (Fraction(1, 3), TypeError),
]


@pytest.mark.parametrize(("bad", "kind"), BAD_NUMBERS)
def test_bad_numbers(bad: Any, kind: type[Exception]) -> None:
    ledger = PrivacyLedger(mu_budget=1.0)
    with pytest.raises(kind, match="epsilon must be"):
        delta(bad, 1.0)
    with pytest.raises(kind, match="epsilon must be"):
        log_delta(bad, 1.0)
    with pytest.raises(kind, match="target_epsilon must be"):
        calibrate_mu(bad, 1e-5)
    with pytest.raises(kind, match="target_delta must be"):
        calibrate_mu(1.0, bad)
    with pytest.raises(kind, match="delta must be"):
        epsilon(bad, 1.0)
    for use in (
        lambda: delta(1.0, bad),
        lambda: epsilon(1e-5, bad),
        lambda: compose_mu([1.0, bad]),
        lambda: ledger.check(bad),
        lambda: ledger.charge(bad),
        lambda: ledger.reserve(bad),
        lambda: to_dp_event(bad),
    ):
        with pytest.raises(kind, match="mu must be"):
            use()
    assert ledger.entries == ()


@pytest.mark.parametrize("bad", [0.0, 1.0, 1.5])
def test_delta_outside_the_open_interval(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"strictly between 0 and 1, got {bad}: choose"):
        epsilon(bad, 1.0)
    with pytest.raises(ValueError, match=rf"strictly between 0 and 1, got {bad}: choose"):
        calibrate_mu(1.0, bad)


def test_zero_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(ValueError, match="target_epsilon must be finite and > 0, got 0"):
        calibrate_mu(0, 1e-5)
    with pytest.raises(ValueError, match="mu must be finite and > 0"):
        PrivacyLedger(mu_budget=1.0).charge(0.0)
    with pytest.raises(ValueError, match="mu must be finite and > 0"):
        to_dp_event(0.0)


# --- Composition ------------------------------------------------------------------------------


def test_compose_known_values() -> None:
    assert compose_mu([]) == 0.0
    assert compose_mu([3.0, 4.0]) == 5.0
    assert compose_mu(0.0 for _ in range(3)) == 0.0
    assert compose_mu([5e-324]) == 5e-324
    assert compose_mu([1e300, 1e-300]) == math.nextafter(1e300, math.inf)


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=8))
def test_compose_is_the_smallest_float_above(values: list[float]) -> None:
    total = sum((Fraction(value) ** 2 for value in values), Fraction(0))
    composed = compose_mu(values)
    assert Fraction(composed) ** 2 >= total
    assert composed == 0 or Fraction(math.nextafter(composed, 0.0)) ** 2 < total


@given(st.fractions(min_value=0, max_value=10**30))
def test_square_root_bounds(value: Fraction) -> None:
    low, high = privacy.sqrt_bounds(value)
    assert Fraction(low) ** 2 <= value <= Fraction(high) ** 2
    assert high == low or high == math.nextafter(low, math.inf)


def test_compose_bad_input() -> None:
    with pytest.raises(ValueError, match="above the largest float"):
        compose_mu([1.7e308, 1.7e308])
    for bad in (1.0, "12", None):
        with pytest.raises(TypeError, match="iterable of numbers"):
            compose_mu(bad)  # type: ignore[arg-type]


@given(st.floats(1e-300, 1e300), st.sampled_from([1, 2]))
def test_noise_multipliers_are_rounded_down(mu: float, changed_records: int) -> None:
    found = Fraction(noise_multiplier(mu, changed_records))
    exact = changed_records / Fraction(mu)
    assert found <= exact < Fraction(math.nextafter(float(found), math.inf))


def test_a_noise_multiplier_beyond_floats() -> None:
    assert noise_multiplier(5e-324) == math.nextafter(math.inf, 0.0)
    with pytest.raises(ValueError, match="mu must be"):
        noise_multiplier(0.0)
