"""The noise of rivals against published figures, an independent RDP bound and exact integrals."""

import math
import sys

import numpy as np
import pytest
from scipy import integrate, special, stats

from qexp.privacy import calibrate_mu, compose_mu, epsilon
from qexp.rivals import AdaMixSettings
from qexp.rivals._accounting import Target, poisson_epsilon, poisson_noise_multiplier

pytest.importorskip("dp_accounting")

DELTA = 1e-5


# Those of the first accountants.
ORDERS = [*(1 + k / 10 for k in range(1, 100)), *range(12, 64)]


def sampled_rdp(rate, sigma, order):
    """Rényi divergence of the sampled Gaussian from the Gaussian, by the trapezoidal rule."""
    x = np.linspace(-12 * sigma, 12 * sigma + order, 4001)
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * sigma**2))
    log_mass = math.log((x[1] - x[0]) / (sigma * math.sqrt(2 * math.pi))) - (x / sigma) ** 2 / 2
    return special.logsumexp(order * log_ratio + log_mass) / (order - 1)


def classic_epsilon(rate, steps, sigma, orders=ORDERS):
    """ε by r + ln(1/δ)/(α - 1), the conversion of the first papers."""
    return min(
        steps * sampled_rdp(rate, sigma, order) + math.log(1 / DELTA) / (order - 1)
        for order in orders
    )


def improved_epsilon(rate, steps, sigma, orders=ORDERS):
    """ε by the conversion of Canonne, Kamath and Steinke (2020), proposition 12."""
    return min(
        steps * sampled_rdp(rate, sigma, order)
        + math.log1p(-1 / order)
        + (math.log(1 / DELTA) - math.log(order)) / (order - 1)
        for order in orders
    )


@pytest.mark.parametrize(
    ("lot", "sigma", "epochs", "published", "exact"),
    [
        # TensorFlow Privacy's tutorial: its first table, and its later one.
        (256, 1.3, 15, 1.19, 0.86),
        (256, 1.1, 60, 3.01, 2.38),
        (256, 0.7, 45, 7.10, 5.64),
        (256, 1.2, 10, 1.20, 0.79),
        (256, 1.12, 60, 2.92, 2.31),
        (256, 0.6, 30, 9.74, 7.69),
        # Opacus' MNIST example.
        (240, 1.3, 15, 1.16, 0.83),
        (240, 1.1, 60, 2.91, 2.30),
        (240, 0.7, 45, 6.86, 5.43),
        # Tramèr and Boneh's raw pixels.
        (512, 1.23, 40, 2.99, 2.36),
    ],
)
def test_published_mnist_figures(lot, sigma, epochs, published, exact):
    rate = lot / 60_000
    steps = round(epochs / rate)
    bound = classic_epsilon(rate, steps, sigma)
    assert bound == pytest.approx(published, abs=0.015)
    ours = poisson_epsilon(rate, steps, sigma, DELTA, "replace_special")
    assert ours == pytest.approx(exact, abs=0.01)
    # The old conversion is loose, but not by more than half.
    assert 0.6 * bound < ours < bound


@pytest.mark.parametrize(
    ("epochs", "published"),
    # The target, and what logs of the released code say after epochs 31 and 39, counted from 0.
    [(50, 4.0), (32, 3.14), (40, 3.54)],
)
def test_spartas_figures(epochs, published):
    ours = poisson_epsilon(0.01, 100 * epochs, 1.0278, DELTA, "replace_special")
    # Opacus' PRV accountant adds an allowance of 0.01 for its own error.
    assert published - 0.015 < ours < published + 0.005


def test_spartas_figure_by_rdp():
    arguments = (0.01, 5000, 1.0278)
    whole_orders = improved_epsilon(*arguments, orders=range(2, 64))
    assert whole_orders == pytest.approx(4.38, abs=0.005)
    assert poisson_epsilon(*arguments, DELTA, "replace_special") < improved_epsilon(*arguments)
    assert improved_epsilon(*arguments) < whole_orders


@pytest.mark.parametrize(
    ("lot", "sigma", "steps", "improved_rdp", "exact"),
    [(4096, 10, 875, 0.988, 0.90), (16384, 21.1, 250, 0.998, 0.91)],
)
def test_de_et_al(lot, sigma, steps, improved_rdp, exact):
    """Both are published as ε = 1."""
    rate = lot / 50_000
    assert improved_epsilon(rate, steps, sigma) == pytest.approx(improved_rdp, abs=5e-4)
    ours = poisson_epsilon(rate, steps, sigma, DELTA, "replace_special")
    assert ours == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(
    ("eps", "mu"),
    [(0.5, 0.1422), (1, 0.2681), (2, 0.5016), (3, 0.7191), (4, 0.9249), (8, 1.666)],
)
def test_full_batch_methods_have_the_whole_mu(eps, mu):
    ours = Target(eps, DELTA, "replace_special").mu
    assert ours == pytest.approx(mu, abs=5e-5 if mu < 1 else 5e-4)
    # Dong, Roth and Su (2022), corollary 1.
    delta = stats.norm.cdf(-eps / ours + ours / 2)
    delta -= math.exp(eps) * stats.norm.cdf(-eps / ours - ours / 2)
    assert delta == pytest.approx(DELTA, rel=1e-6)


def test_mehta_et_als_conversion_is_loose():
    """ε = β/2 + √(2β ln(1/δ)) allows √β = 0.204 where 0.268 is private."""
    twice_log = 2 * math.log(1 / DELTA)
    root = math.sqrt(twice_log + 2 * 1.0) - math.sqrt(twice_log)
    assert root**2 / 2 + root * math.sqrt(twice_log) == pytest.approx(1.0)
    assert root == pytest.approx(0.204, abs=5e-4)
    assert Target(1.0, DELTA, "replace_special").mu == pytest.approx(0.268, abs=5e-4)


# 28 steps, the default, and 206.
@pytest.mark.parametrize(("eps", "steps"), [(1.0, AdaMixSettings().steps), (3.0, 206)])
def test_adamix_steps_at_a_noise_multiplier_of_20(eps, steps):
    target = Target(eps, DELTA, "replace_special")
    assert target.full_batch_noise([1.0] * steps)[0] <= 20
    assert target.full_batch_noise([1.0] * (steps + 1))[0] > 20
    assert 0.98 * eps < epsilon(DELTA, math.sqrt(steps) / 20) <= eps


@pytest.mark.parametrize(("rate", "sigma"), [(0.1, 0.8), (0.5, 2.0), (0.01, 0.5)])
def test_one_step_against_the_integral(rate, sigma):
    eps = poisson_epsilon(rate, 1, sigma, 1e-3, "replace_special")

    def hockey_stick(p, q):
        return integrate.quad(
            lambda x: max(p(x) - math.exp(eps) * q(x), 0.0), -30, 30, limit=2000, epsabs=1e-10
        )[0]

    def null(x):
        return stats.norm.pdf(x, 0, sigma)

    def mixture(x):
        return (1 - rate) * null(x) + rate * stats.norm.pdf(x, 1, sigma)

    exact = max(hockey_stick(mixture, null), hockey_stick(null, mixture))
    assert exact <= 1e-3 * (1 + 1e-6)
    assert exact >= 0.99e-3


@pytest.mark.parametrize("relation", ["replace_special", "replace_one"])
def test_calibration_is_private_and_tight(relation):
    sigma = poisson_noise_multiplier(0.1, 50, 1.0, DELTA, relation)
    assert poisson_epsilon(0.1, 50, sigma, DELTA, relation) <= 1.0
    assert poisson_epsilon(0.1, 50, sigma / 1.0003, DELTA, relation) > 1.0


def test_null_records_are_as_if_added_or_removed():
    arguments = (0.2, 30, 3.0, DELTA)
    assert poisson_epsilon(*arguments, "replace_special") == poisson_epsilon(
        *arguments, "add_or_remove_one"
    )


def test_without_sampling_it_is_gaussian():
    mu = 4 / 5.0
    assert poisson_epsilon(1.0, 16, 5.0, DELTA, "replace_special") == pytest.approx(
        epsilon(DELTA, mu), rel=1e-3
    )


@pytest.mark.parametrize("relation", ["replace_special", "replace_one"])
@pytest.mark.parametrize("shares", [[1.0], [1.0] * 128, [1.0, 2.0, 0.5]])
def test_full_batch_composes_to_the_target(relation, shares):
    target = Target(2.0, DELTA, relation)
    sigmas = target.full_batch_noise(shares)
    mu = target.factor * compose_mu(1 / sigma for sigma in sigmas)
    best = calibrate_mu(2.0, DELTA)
    assert best * (1 - 1e-12) < mu <= best
    assert (sigmas[0] / sigmas[-1]) ** 2 == pytest.approx(shares[-1] / shares[0])


def test_relation_is_checked():
    with pytest.raises(ValueError, match="the number of records is public here"):
        Target(1.0, DELTA, "add_or_remove_one")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0])
def test_rate_is_checked(rate):
    with pytest.raises(ValueError, match="it needs a number in"):
        poisson_noise_multiplier(rate, 10, 1.0, DELTA, "replace_special")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"qexp\[accounting\]"):
        poisson_epsilon(0.1, 10, 1.0, DELTA, "replace_special")


def test_coarse_accounting_is_private_and_near():
    fine, coarse = (
        poisson_noise_multiplier(0.1, 50, 2.0, 1e-5, "replace_special", coarseness)
        for coarseness in (1.0, 5.0)
    )
    assert fine <= coarse < fine * 1.001


def test_a_delta_that_takes_no_noise_is_refused():
    with pytest.raises(ValueError, match="not below the probability"):
        poisson_noise_multiplier(0.01, 1, 0.05, 1e-2, "replace_special")


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_exchanging_a_record_moves_a_sum_by_twice_as_much(sigma):
    """Apart from dp_accounting's convention: two clipping norms, one to either side."""
    found = poisson_epsilon(1.0, 1, sigma, DELTA, "replace_one")
    assert found == pytest.approx(epsilon(DELTA, 2 / sigma), rel=1e-3)


def test_exchanging_a_record_of_a_sample_is_the_antipodal_pair():
    rate, sigma = 0.3, 1.5
    found = poisson_epsilon(rate, 1, sigma, 1e-3, "replace_one")
    grid = np.linspace(-25, 25, 2_000_001)
    none = (1 - rate) * stats.norm.pdf(grid, 0, sigma)
    one, other = (none + rate * stats.norm.pdf(grid, at, sigma) for at in (1, -1))
    exact = np.trapezoid(np.maximum(one - math.exp(found) * other, 0), grid)
    assert 0.99e-3 <= exact <= 1e-3 * (1 + 1e-6)
