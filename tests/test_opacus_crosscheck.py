"""What is concluded from runs of DP-SGD here and in Opacus."""

import numpy as np
import pytest
from scipy import stats

from experiments import opacus_crosscheck as crosscheck
from qexp.models import mlp


def side(mean, n, epsilon=2.62, first_seed=0):
    values = np.random.default_rng(n).normal(size=n)
    values = mean + 0.02 * (values - values.mean()) / values.std(ddof=1)
    return {
        "epsilon": epsilon,
        "first_seed": first_seed,
        "accuracies": values.tolist(),
        "seconds": 1.0,
    }


@pytest.mark.parametrize(("gap", "agree"), [(0.0, True), (0.003, True), (0.03, False)])
def test_the_interval_is_welchs(gap, agree):
    found = crosscheck.compare(side(0.7 + gap, 60), side(0.7, 40))
    error = np.hypot(0.02 / np.sqrt(60), 0.02 / np.sqrt(40))
    freedom = error**4 / ((0.02**2 / 60) ** 2 / 59 + (0.02**2 / 40) ** 2 / 39)
    half = stats.t.ppf(0.975, freedom) * error
    assert found["difference"] == pytest.approx(gap)
    assert found["interval_of_difference"] == pytest.approx([gap - half, gap + half], abs=1e-4)
    assert found["accuracies_agree"] is agree
    assert found["runs"] == [60, 40]


@pytest.mark.parametrize(("other", "agree"), [(2.6205, True), (2.6215, False)])
def test_epsilons_agree_to_a_thousandth(other, agree):
    found = crosscheck.compare(side(0.7, 20, epsilon=2.62), side(0.7, 20, epsilon=other))
    assert found["epsilons_agree"] is agree


def test_the_noise_of_the_comparison_is_nobody_else_s(tmp_path, monkeypatch):
    from qexp.rivals._accounting import Target

    pytest.importorskip("dp_accounting")
    monkeypatch.setattr(crosscheck, "STEPS", 2)
    before = Target.sampled_noise
    found = crosscheck.run_qexp(tmp_path / "task.json", range(3, 5))
    assert Target.sampled_noise is before
    assert len(found["accuracies"]) == 2
    assert found["first_seed"] == 3
    assert set(np.load(tmp_path / "task.npz")) == {"weights", "X", "y", "X_test", "y_test"}


@pytest.mark.filterwarnings("ignore")  # of Opacus and torch about themselves
def test_weights_of_opacus_are_averaged_as_ours_are():
    pytest.importorskip("opacus")
    chance = np.random.default_rng(0)
    X = chance.normal(size=(40, 5)).astype(np.float32)
    y = chance.integers(3, size=40)
    start = mlp((5, 4, 3), seed=1).weights

    def tuned(steps, averaging):
        module = crosscheck.opacus_dp_sgd(
            start,
            (5, 4, 3),
            X,
            y,
            rate=1.0,
            steps=steps,
            sigma=1e-9,
            clipping_norm=1.0,
            learning_rate=0.5,
            averaging=averaging,
            seed=0,
        )
        parts = [parameter.detach().numpy() for parameter in module.parameters()]
        return np.concatenate([part.ravel() for part in parts])

    path = [tuned(steps, 0.0) for steps in (1, 2, 3)]
    layers = start[:24].reshape(4, 6), start[24:].reshape(3, 5)
    average = np.concatenate([part.ravel() for x in layers for part in (x[:, :-1], x[:, -1])])
    for step, weights in enumerate(path, start=1):
        decay = min(0.25, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
    np.testing.assert_allclose(tuned(3, 0.25), average, atol=1e-6)
    assert np.abs(average - path[-1]).max() > 1e-4
