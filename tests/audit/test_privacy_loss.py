"""Two-sided audit of the boundary: neither less private than claimed, nor noisier than needed.

D against D with one record nulled whose clipped norm is c. The log-likelihood ratio of the two is
linear in the noisy sum, so the best attack is known: a threshold on <y, s>/‖s‖. It is chosen on
one half of the draws and judged on the other (Nasr et al. 2023); Clopper-Pearson bounds at 95 %
make μ_lo = Φ⁻¹(1 - FPR) - Φ⁻¹(FNR) a lower bound on the μ that the program has.
"""

import numpy as np
import pytest
from scipy import stats

from qexp.bits import insecure_test_generator
from qexp.private_sum import lattice_for, private_sum

K = 3
pytestmark = pytest.mark.statistical


def released_statistics(rows, direction, lattice, draws, seed):
    """<y, direction> of many independent releases of one data set."""
    bits = insecure_test_generator(seed)
    statistics = np.empty(draws)
    for i in range(draws):
        release = private_sum(
            [rows], n_components=K, n_records=len(rows), lattice=lattice, bits=bits
        )
        statistics[i] = release.values @ direction
    return statistics


def mu_lower_bound(without, with_record, alpha=0.05):
    half = len(without) // 2
    candidates = np.quantile(
        np.concatenate([without[:half], with_record[:half]]), np.linspace(0.01, 0.99, 99)
    )

    def bound(a, b, threshold):
        false_positives = np.count_nonzero(a > threshold)
        false_negatives = np.count_nonzero(b <= threshold)
        upper = [
            stats.beta.ppf(1 - alpha / 2, errors + 1, len(a) - errors)
            for errors in (false_positives, false_negatives)
        ]
        return stats.norm.isf(upper[0]) - stats.norm.ppf(upper[1])

    best = max(candidates, key=lambda t: bound(without[:half], with_record[:half], t))
    return bound(without[half:], with_record[half:], best)


# Close to no privacy loss, 10⁵ draws leave the bound an error of a tenth of μ; four times as many
# halve it.
@pytest.mark.parametrize(("mu", "draws"), [(0.25, 400_000), (1.0, 100_000), (4.0, 100_000)])
def test_the_claim_holds_and_is_tight(mu, draws):
    clipping_norm = 2.0
    lattice = lattice_for(mu, clipping_norm, 4)
    direction = np.array([2.0, -1.0, 2.0]) / 3
    with_record = np.array([[0.3, 0.1, -0.2], [-1.0, 1.0, 1.0], [0.0, 0.0, 0.0], 50 * direction])
    without = with_record.copy()
    without[3] = 0
    mu_lo = mu_lower_bound(
        released_statistics(without, direction, lattice, draws, seed=1),
        released_statistics(with_record, direction, lattice, draws, seed=2),
    )
    print(f"mu claimed {lattice.mu:.6f}, audited at least {mu_lo:.4f}")
    assert mu_lo <= lattice.mu
    assert mu_lo >= 0.9 * mu


def test_releases_lie_on_the_lattice_whatever_the_data():
    lattice = lattice_for(1.0, 1.0, 5)
    for seed, scale in ((3, 0.0), (4, 1e-9), (5, 1e9)):
        rows = np.random.default_rng(seed).normal(size=(5, 1000)) * scale
        y = private_sum(
            [rows],
            n_components=1000,
            n_records=5,
            lattice=lattice,
            bits=insecure_test_generator(seed),
        ).values
        units = y * lattice.units_per_norm - 0.5
        assert np.array_equal(units, np.rint(units))
        # All residues occur: the lattice carries no trace of the data's own grid.
        assert stats.chisquare(np.bincount(units.astype(np.int64) & 7, minlength=8)).pvalue > 1e-3
