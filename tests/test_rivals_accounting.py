"""The noise of rivals against published figures, an independent RDP bound and exact integrals."""

import math
import sys

import numpy as np
import pytest
from scipy import integrate, special, stats

from qexp.privacy import calibrate_mu, compose_mu, epsilon
from qexp.rivals._accounting import Target, poisson_epsilon, poisson_noise_multiplier

pytest.importorskip("dp_accounting")

DELTA = 1e-5


def sampled_rdp(rate, sigma, order):
    """Rényi divergence of the sampled Gaussian at an integer order (Mironov et al. 2019)."""
    k = np.arange(order + 1)
    terms = (
        np.log(special.comb(order, k))
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + (k * k - k) / (2 * sigma**2)
    )
    return special.logsumexp(terms) / (order - 1)


def classic_rdp_epsilon(rate, steps, sigma):
    """ε by r + ln(1/δ)/(α - 1), the conversion of the first papers."""
    return min(
        steps * sampled_rdp(rate, sigma, order) + math.log(1 / DELTA) / (order - 1)
        for order in range(2, 128)
    )


@pytest.mark.parametrize(
    ("lot", "sigma", "epochs", "published"),
    [
        (256, 1.3, 15, 1.19),
        (256, 1.1, 60, 3.01),
        (256, 0.7, 45, 7.12),
        (240, 1.3, 15, 1.16),
        (240, 1.1, 60, 2.91),
        (512, 1.23, 40, 2.99),
    ],
)
def test_published_mnist_figures(lot, sigma, epochs, published):
    rate = lot / 60_000
    steps = round(epochs / rate)
    bound = classic_rdp_epsilon(rate, steps, sigma)
    # Integer orders alone lose a little.
    assert published - 0.01 <= bound <= 1.02 * published
    ours = poisson_epsilon(rate, steps, sigma, DELTA, "replace_special")
    # The old conversion is loose, but not by more than half.
    assert 0.6 * bound < ours < bound


def test_spartas_figure():
    # Calibrated by a PRV accountant to ε = 4 from above.
    assert poisson_epsilon(0.01, 5000, 1.0278, DELTA, "replace_special") == pytest.approx(
        4.0, abs=0.02
    )


@pytest.mark.parametrize(
    ("lot", "sigma", "steps", "improved_rdp"), [(4096, 10, 875, 0.988), (16384, 21.1, 250, 0.998)]
)
def test_de_et_al(lot, sigma, steps, improved_rdp):
    ours = poisson_epsilon(lot / 50_000, steps, sigma, DELTA, "replace_special")
    assert 0.88 * improved_rdp < ours < improved_rdp


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
