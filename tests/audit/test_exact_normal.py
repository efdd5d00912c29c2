"""Goodness of fit of the exact normal sampler, on ten million draws.

Seeds are fixed, so the tests are repeatable; levels are what a fresh seed would fail with.
"""

import numpy as np
import pytest
from scipy import stats

from qexp import private_sum
from qexp.bits import insecure_test_generator

COUNT = 10_000_000
BITS = 32

pytestmark = pytest.mark.statistical


@pytest.fixture(scope="module")
def draws():
    integers = private_sum._noise(COUNT, BITS, insecure_test_generator(2026))
    return np.sort(integers + 0.5) / 2.0**BITS


def test_kolmogorov_smirnov(draws):
    cdf = stats.norm.cdf(draws)
    ranks = np.arange(COUNT + 1) / COUNT
    distance = max(np.max(ranks[1:] - cdf), np.max(cdf - ranks[:-1]))
    # The asymptotic law is exact to well below the level at this size.
    assert stats.kstwobign.sf(distance * np.sqrt(COUNT)) > 1e-3


def test_chi_square_in_equal_cells(draws):
    cells = 4096
    counts = np.histogram(stats.norm.cdf(draws), bins=cells, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_chi_square_of_low_bits():
    # A float sampler betrays itself in the last bits; here every residue is as likely as another.
    integers = private_sum._noise(COUNT // 10, BITS, insecure_test_generator(11))
    assert stats.chisquare(np.bincount(integers & 1023, minlength=1024)).pvalue > 1e-3


@pytest.mark.parametrize("sigmas", [3, 4, 4.5, 5, 5.5, 6])
def test_tails_within_poisson_error(draws, sigmas):
    expected = COUNT * stats.norm.sf(sigmas)
    for count in (np.count_nonzero(draws > sigmas), np.count_nonzero(draws < -sigmas)):
        tail = min(stats.poisson.cdf(count, expected), stats.poisson.sf(count - 1, expected))
        assert tail > 1e-3 / 2


def test_moments(draws):
    # Variances of the k-th sample moment of a standard normal.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        z = (np.mean(draws**power) - mean) / np.sqrt(variance / COUNT)
        assert abs(z) < 3.3


def test_neighbouring_draws_are_uncorrelated():
    x = private_sum._noise(COUNT // 10, BITS, insecure_test_generator(12)) / 2.0**BITS
    for lag in (1, 2, 7):
        z = np.mean(x[lag:] * x[:-lag]) * np.sqrt(len(x) - lag)
        assert abs(z) < 3.5
