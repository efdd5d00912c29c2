"""The audit of many runs: its bounds hold and see what there is, SGD is caught, qexp passes.

Seeds are fixed, so the tests are repeatable.
"""

import json
import math

import numpy as np
import pytest
from scipy import stats

from qexp import epsilon
from qexp.models import mlp

pytest.importorskip("experiments", reason="a package without its experiments")

from experiments.attacks import many_run_audit as audit

pytestmark = pytest.mark.statistical


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(400, 12)).astype(np.float32)
    y = (X @ rng.normal(size=(12, 3))).argmax(axis=1)
    y_private = y[300:340].copy()
    y_private[-1] = (y_private[-1] + 1) % 3
    return audit.Scene(
        head=mlp((12, 3), seed=0).fit(X[:200], y[:200], epochs=1),
        X=X[300:340],
        y=y_private,
        X_public=X[200:300],
        X_test=X[340:],
        y_test=y[340:],
    )


# ------------------------------------------------------------------------------------ the bounds


def test_bounds_are_clopper_and_pearsons():
    eps, mu = audit.lower_bounds(60, 7, 100, 200, delta=1e-3)
    tpr = stats.binomtest(60, 100).proportion_ci(0.95, "exact").low
    fpr = stats.binomtest(7, 200).proportion_ci(0.95, "exact").high
    assert eps == pytest.approx(math.log((tpr - 1e-3) / fpr))
    assert mu == pytest.approx(stats.norm.ppf(tpr) - stats.norm.ppf(fpr))


@pytest.mark.parametrize(("hits", "alarms"), [(0, 0), (0, 50), (50, 50), (1, 100), (100, 100)])
def test_guesses_that_tell_nothing_bound_nothing(hits, alarms):
    eps, mu = audit.lower_bounds(hits, alarms, 100, 100, delta=1e-5)
    assert eps == mu == 0


def test_without_noise_the_most_is_reached_and_100_000_runs_show_more_than_10():
    for n in (10, 1000):
        found = audit.judge(np.ones((2 * n, 1)), np.zeros((2 * n, 1)), delta=1e-5)
        # No alarm in n: the rate is below 1 - 0.025^(1/n), and so for hits.
        rate = -math.expm1(math.log(0.025) / n)
        assert found["epsilon_lo"] == found["epsilon_lo_most"]
        assert found["epsilon_lo"] == pytest.approx(math.log((1 - rate - 1e-5) / rate), abs=1e-3)
        assert found["mu_lo"] == found["mu_lo_most"]
        assert found["mu_lo"] == pytest.approx(-2 * stats.norm.ppf(rate), abs=1e-3)
        assert found["judged_runs"] == [n, n]
    assert audit.lower_bounds(100_000, 0, 100_000, 100_000, delta=1e-5)[0] > 10


@pytest.mark.parametrize(("mu", "least"), [(0.5, 0.35), (1.5, 1.3), (3.0, 2.5)])
def test_a_gaussian_of_known_mu_is_not_over_claimed(mu, least):
    rng = np.random.default_rng(3)
    found = []
    for _ in range(20):
        inside, outside = mu + rng.normal(size=(8000, 1)), rng.normal(size=(8000, 1))
        found.append(audit.judge(inside, outside, delta=1e-5))
    # At exactly 95 %, more than 4 of 20 failures have a probability of 0.26 %.
    assert sum(f["mu_lo"] > mu for f in found) <= 4
    assert sum(f["epsilon_lo"] > epsilon(1e-5, mu) for f in found) <= 4
    assert np.mean([f["mu_lo"] for f in found]) > least


def test_randomised_response_is_not_over_claimed():
    """No Gaussian: the output tells the world with odds of e^ε."""
    rng = np.random.default_rng(4)
    right = math.e**2 / (1 + math.e**2)
    found = []
    for _ in range(20):
        inside, outside = rng.random((8000, 1)) < right, rng.random((8000, 1)) > right
        found.append(audit.judge(inside.astype(float), outside.astype(float), delta=1e-12))
    assert sum(f["epsilon_lo"] > 2 for f in found) <= 4
    assert np.mean([f["epsilon_lo"] for f in found]) > 1.8


def test_what_chooses_is_not_judged():
    """Statistics without any meaning, among which one looks best on the first half."""
    rng = np.random.default_rng(6)
    found = [
        audit.judge(rng.normal(size=(200, 40)), rng.normal(size=(200, 40)), delta=1e-5)
        for _ in range(40)
    ]
    # At exactly 95 %, more than 6 of 40 failures have a probability of 0.3 %.
    assert sum(f["mu_lo"] > 0 for f in found) <= 6
    assert sum(f["epsilon_lo"] > 0 for f in found) <= 6


# -------------------------------------------------------------------------------- the mechanisms


def slow_sgd(scene, included, order):
    """Give one run's weights in float64, record by record."""
    W = scene.head.weights.astype(np.float64).reshape(3, -1)
    n = len(scene.y)
    for epoch in order:
        for start in range(0, n, audit.BATCH_SIZE):
            batch = epoch[start : start + audit.BATCH_SIZE]
            step = np.zeros_like(W)
            for i in batch:
                if i == n - 1 and not included:
                    continue
                x = np.append(scene.X[i], 1.0)
                p = np.exp(W @ x - np.logaddexp.reduce(W @ x))
                p[scene.y[i]] -= 1
                step += np.outer(p, x)
            W -= audit.LEARNING_RATE * step / len(batch)
    return W.ravel()


@pytest.mark.parametrize("included", [True, False])
def test_sgd_is_that_of_the_book(scene, included):
    weights = audit.sgd(scene, included, 3, (1, 2))
    rng, n = np.random.default_rng((1, 2)), len(scene.y)
    orders = [rng.permuted(np.tile(np.arange(n), (3, 1)), axis=1) for _ in range(audit.EPOCHS)]
    for run in range(3):
        expected = slow_sgd(scene, included, [order[run] for order in orders])
        assert weights[run] == pytest.approx(expected, abs=1e-4)


def test_statistics_are_those_of_the_canary(scene):
    weights = scene.head.weights + np.float32(0.1) * np.arange(39, dtype=np.float32) / 39
    [[projection, logit]] = scene.statistics(weights[None])
    x = np.append(scene.X[-1], 1.0)
    p = scene.head.predict_proba(scene.X[-1:])[0] - np.eye(3)[scene.y[-1]]
    step = (weights - scene.head.weights).astype(np.float64)
    assert projection == pytest.approx(-np.outer(p, x).ravel() @ step, rel=1e-4)
    q = scene.head.with_weights(weights).predict_proba(scene.X[-1:])[0, scene.y[-1]]
    assert logit == pytest.approx(math.log(q / (1 - q)), abs=1e-4)


def test_sgd_is_caught(scene):
    found = audit.audit("sgd", scene, runs=2000, seed=0, target_epsilon=8.0, rounds=4)
    # 1,000 runs show 5.6 at most.
    assert found["epsilon_lo"] > 4
    assert found["holds"] is None


@pytest.mark.parametrize("rounds", [1, 3])
def test_qexp_stays_below_its_claim(scene, rounds):
    found = audit.audit("qexp", scene, runs=600, seed=0, target_epsilon=8.0, rounds=rounds)
    assert found["mu_claimed"] == pytest.approx(1.666, abs=1e-3)
    assert found["clipped"] > 1
    assert found["holds"]
    # It is an attack: it would not pass for a claim of ε = 1.
    assert found["mu_lo"] > 0.8


# ------------------------------------------------------------------------------- what is kept


def test_an_audit_is_kept_and_not_run_again(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit, "digits_scene", lambda: scene)
    path = tmp_path / "results" / "audit.jsonl"
    for runs in ("40", "60"):
        audit.main(["sgd", "--runs", runs, "--results", str(path)])
    kept = audit.lines_at(path).read()
    assert [result["runs"] for result in kept] == [40, 60]
    monkeypatch.setattr(audit, "audit", lambda *_, **__: pytest.fail("run again"))
    capsys.readouterr()
    audit.main(["sgd", "--runs", "60", "--results", str(path)])
    assert json.loads(capsys.readouterr().out) == kept[1]
    assert audit.lines_at(path).read() == kept


def test_too_few_runs_are_refused(capsys):
    with pytest.raises(SystemExit):
        audit.main(["sgd", "--runs", "3"])
    assert "--runs is 3; it needs at least 4" in capsys.readouterr().err
