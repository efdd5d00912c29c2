"""Covariance of the draws: neither narrower nor wider, in no direction, than s²A⁻¹.

Draws u of independent releases are whitened, w = Lᵀ(u - E u)/s, and must be standard normal:
E u = -η A⁻¹ ḡ is known, since the gradients are. Seeds are fixed, so the tests are repeatable;
levels are what a fresh seed would fail with.
"""

from functools import lru_cache

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import solve_triangular

import qexp
from qexp import _config, mechanism
from qexp.bits import insecure_test_generator

P, N, DRAWS = 300, 20, 2000
CLIP, ETA = 1.5, 0.8
LEVEL = 1e-3

pytestmark = pytest.mark.statistical


def projected(kind):
    """P, or its lack, with its matrix. SRHT pads 300 weights to 512 for the transform."""
    if kind == "none":
        return None, np.eye(P)
    projection = qexp.SRHT(P, int(kind), seed=4)
    return projection, projection.adjoint(np.eye(projection.n_components)).T


@pytest.fixture(scope="module", params=["none", "40"])
def whitened_draws(request):
    projection, p_matrix = projected(request.param)
    k = p_matrix.shape[1]
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2 * k, k)) * np.geomspace(0.05, 3, k)
    h, damping = rows.T @ rows / len(rows), 0.01
    curvature = qexp.DenseCurvature.from_matrix(h, damping=damping)
    factor = np.linalg.cholesky(h + damping * np.eye(k))
    gradients = rng.normal(size=(N, P)) * rng.uniform(0.001, 0.1, size=(N, 1))

    clipped = solve_triangular(factor, p_matrix.T @ gradients.T, lower=True).T
    norms = np.linalg.norm(clipped, axis=1, keepdims=True)
    clipped *= np.minimum(1, CLIP / norms)

    # θ = P u: Lᵀ P⁺ gives back what the noise was in, also where P has no orthonormal columns.
    assert np.linalg.cond(p_matrix) < 100
    unlift = factor.T @ np.linalg.pinv(p_matrix)
    draws = np.empty((DRAWS, k))
    with pytest.MonkeyPatch.context() as patch:
        # Public and the same for every draw; they would take longer than the draws themselves.
        software = _config.software()
        patch.setattr(_config, "software", lambda: dict(software))
        patch.setattr(mechanism, "calibrate_mu", lru_cache(mechanism.calibrate_mu))
        for seed in range(DRAWS):
            release = qexp.sample_private_weights(
                np.zeros(P),
                gradients,
                curvature=curvature,
                projection=projection,
                target_epsilon=2.0,
                target_delta=1e-5,
                clipping_norm=CLIP,
                step_size=ETA,
                rng=insecure_test_generator(seed),
            )
            draws[seed] = release.weights @ unlift.T
    s = ETA * CLIP / (N * release.mu)
    return (draws + ETA * clipped.mean(axis=0)) / s


def two_sided(statistic, degrees):
    return 2 * min(stats.chi2.sf(statistic, degrees), stats.chi2.cdf(statistic, degrees))


def test_the_mean_is_the_step(whitened_draws):
    z = whitened_draws.mean(axis=0) * np.sqrt(DRAWS)
    assert two_sided(np.sum(z**2), len(z)) > LEVEL
    assert np.max(np.abs(z)) < stats.norm.isf(LEVEL / (2 * len(z)))


def test_the_total_variance_is_the_one_claimed(whitened_draws):
    assert two_sided(np.sum(whitened_draws**2), whitened_draws.size) > LEVEL


def test_every_coordinate_has_the_variance_claimed(whitened_draws):
    k = whitened_draws.shape[1]
    tails = [two_sided(statistic, DRAWS) for statistic in np.sum(whitened_draws**2, axis=0)]
    assert min(tails) > LEVEL / k


def test_coordinates_are_uncorrelated(whitened_draws):
    # Products of independent standard normals, summed over draws, are normal to good accuracy.
    k = whitened_draws.shape[1]
    z = (whitened_draws.T @ whitened_draws / np.sqrt(DRAWS))[np.triu_indices(k, 1)]
    assert np.max(np.abs(z)) < stats.norm.isf(LEVEL / (2 * len(z))) * 1.1
    # E z⁴ = 3 + 6/DRAWS·…, so Σ z² has a variance of 2 a term, to a few in DRAWS.
    assert abs(np.sum(z**2 - 1)) < stats.norm.isf(LEVEL / 2) * np.sqrt(2.02 * len(z))


def test_the_principal_directions_have_the_variance_claimed(whitened_draws):
    """Extreme eigenvalues of the covariance stay within the Marchenko-Pastur edges."""
    k = whitened_draws.shape[1]
    eigenvalues = np.linalg.eigvalsh(whitened_draws.T @ whitened_draws / DRAWS)
    # Davidson and Szarek (2001), Theorem II.13: beyond √(k/m) + t with probability exp(-m t²/2).
    slack = np.sqrt(k / DRAWS) + np.sqrt(2 * np.log(2 / LEVEL) / DRAWS)
    assert eigenvalues[0] >= (1 - slack) ** 2
    assert eigenvalues[-1] <= (1 + slack) ** 2


def test_all_entries_are_standard_normal(whitened_draws):
    assert stats.kstest(whitened_draws.ravel(), "norm").pvalue > LEVEL


def test_successive_draws_are_uncorrelated(whitened_draws):
    products = whitened_draws[1:] * whitened_draws[:-1]
    assert abs(np.sum(products)) < stats.norm.isf(LEVEL / 2) * np.sqrt(products.size)
