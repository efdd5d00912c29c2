"""Settings of rivals chosen on public records."""

import json
from dataclasses import replace

import numpy as np
import pytest

from qexp.bits import insecure_test_generator
from qexp.datasets import load_digits
from qexp.models import mlp
from qexp.planning import Rehearsal
from qexp.planning._halving import EFFORTS
from qexp.rivals import (
    METHODS,
    AdaMixSettings,
    FeatureCovarianceSettings,
    GradientDescentSettings,
    LeastSquaresSettings,
    NewtonSettings,
    OutputPerturbationSettings,
    SGDSettings,
    SpartaSettings,
    dp_gd,
    plan_rival,
)
from qexp.rivals._accounting import Target
from qexp.rivals._boundary import PrivateBoundary, SimulatedBoundary
from qexp.rivals._method import PublicData

pytest.importorskip("sklearn")

GOOD = GradientDescentSettings(steps=16, learning_rate=1.0)
USELESS = GradientDescentSettings(steps=1, learning_rate=1e-4)
WILD = GradientDescentSettings(steps=8, learning_rate=50.0)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    X = (data.images.reshape(len(data.images), -1) / 4).astype(np.float32)
    y = np.asarray(data.labels)
    return mlp((64, 24, 10)).fit(X[:500], y[:500], epochs=15), X[500:], y[500:]


def planned(digits, method=dp_gd, **changes):
    arguments = {"n_records": 600, "target_epsilon": 8.0, "target_delta": 1e-5}
    return plan_rival(
        method, *digits, **{**arguments, "candidates": [USELESS, GOOD, WILD], **changes}
    )


def test_the_plan_is_the_best_on_surrogates(digits):
    made = planned(digits)
    assert made.settings == GOOD
    assert made.predicted_accuracy > made.accuracy_before + 0.05
    assert made.table[0]["settings"] == GOOD
    assert {row["surrogates"] for row in made.table} == {3}
    assert (made.method, made.n_records, len(made.surrogates)) == ("dp_gd", 600, 3)
    means = [row["accuracy_mean"] for row in made.table]
    assert means == sorted(means, reverse=True)
    assert json.loads(json.dumps(made.describe()))["settings"]["steps"] == 16
    assert planned(digits).table == made.table


def stays(X, y, rng):
    return X, y


def test_rehearsals_have_models_and_public_records_of_their_own(digits, monkeypatch):
    model, X, y = digits
    other = model.with_weights(model.weights / 2)
    algorithm, seen = dp_gd.algorithm, set()

    def watched(model, boundary, settings, public):
        seen.add((float(np.abs(model.weights).max()), float(public.X.min()) < 0))
        return algorithm(model, boundary, settings, public)

    monkeypatch.setitem(dp_gd.__dict__, "algorithm", watched)
    made = planned(digits, rehearsals=[Rehearsal(other, -X, y, [stays] * 3)])
    most = float(np.abs(model.weights).max())
    assert seen == {(most, False), (most / 2, True)}
    assert [name.split("(")[0] for name in made.surrogates[::2]] == ["ImageShift"] * 3
    assert {row["surrogates"] for row in made.table} == {6}


def test_the_best_is_refined(digits, monkeypatch):
    grid = [USELESS, GOOD]
    monkeypatch.setitem(dp_gd.__dict__, "candidates", lambda: grid)
    made = planned(digits, candidates=None)
    tried = {row["settings"] for row in made.table}
    first = {USELESS, GOOD, *dp_gd.neighbours(GOOD)}
    assert first < tried
    reached, later = first, tried - first
    while later:
        found = {s for best in reached for s in dp_gd.neighbours(best)} & later
        assert found, "something was tried that is near nothing that was"
        reached, later = reached | found, later - found


def test_trials_are_as_many_as_qexp_has(digits):
    many = [replace(GOOD, steps=1, learning_rate=0.5 + i / 200) for i in range(70)]
    made = planned(digits, candidates=many, target_epsilon=2.0)
    stages = EFFORTS["quick"].stages
    most = [count for count, _, _ in stages[1:]]
    # 600 records are fewer than the second stage's, so that the last three are alike in size.
    assert sum(row["surrogates"] == 3 for row in made.table) == most[0]
    fewer = planned(digits, candidates=many, trials=5)
    assert len(fewer.table) == 5


@pytest.mark.parametrize("wrong", [{"target_epsilon": "1"}, {"target_delta": None}])
def test_a_target_is_checked_as_everywhere(digits, wrong):
    [name] = wrong
    with pytest.raises(TypeError, match=f"{name} must be a real number"):
        planned(digits, **wrong)


SHORT = {
    "dp_gd": GradientDescentSettings(steps=3),
    "dp_sgd": SGDSettings(steps=4, sampling_rate=0.5),
    "adamix": AdaMixSettings(steps=3, rank=4),
    "sparta": SpartaSettings(epochs=4, warm_up_epochs=1, sampling_rate=0.5, kept=0.9),
    "dp_ls": LeastSquaresSettings(ridge=30.0),
    "dp_newton": NewtonSettings(ridge=30.0, start="pretrained"),
    "dp_fc": FeatureCovarianceSettings(steps=2, start="pretrained"),
    "output_perturbation": OutputPerturbationSettings(steps=30),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", sorted(SHORT))
def test_simulation_and_job_agree(digits, name, monkeypatch):
    monkeypatch.setattr(Target, "sampled_noise", lambda *_: 1.0)
    model, X, y = digits
    target = Target(4.0, 1e-5, "replace_special")
    public = PublicData(X[:100], y[:100])
    X_private, y_private = X[300:700], y[300:700]
    draws = 40

    def weights(boundary):
        tuned = METHODS[name].algorithm(model, boundary, SHORT[name], public)
        assert not tuned.diverged
        return tuned.theta

    ours = np.stack(
        [
            weights(PrivateBoundary(X_private, y_private, target, insecure_test_generator(seed)))
            for seed in range(draws)
        ]
    )
    theirs = np.stack(
        [
            weights(
                SimulatedBoundary(X_private, y_private, target, 400, np.random.default_rng(seed))
            )
            for seed in range(draws)
        ]
    )
    # Pixels that are empty everywhere hardly move.
    moved = ours.var(axis=0) > 1e-3 * ours.var(axis=0).mean()
    spread = np.sqrt((ours.var(axis=0) + theirs.var(axis=0))[moved] / draws)
    z = (ours.mean(axis=0) - theirs.mean(axis=0))[moved] / spread
    # Means of 40 are near enough to normal, entries of one run are not independent.
    assert np.abs(z).max() < 5.5
    assert 0.7 < np.mean(z**2) < 1.45
    assert 0.85 < ours[:, moved].var(axis=0).sum() / theirs[:, moved].var(axis=0).sum() < 1.18


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": print}, TypeError, "one of qexp.rivals.METHODS"),
        ({"candidates": []}, TypeError, "at least one"),
        ({"candidates": [SGDSettings()]}, TypeError, "GradientDescentSettings"),
        ({"effort": "more"}, ValueError, "'quick' or 'full'"),
        ({"n_records": 0}, ValueError, "n_records is 0"),
        ({"trials": 0}, ValueError, "trials is 0"),
        ({"target_epsilon": 0.0}, ValueError, "epsilon"),
        ({"surrogate": "sounds"}, ValueError, "surrogate is 'sounds'"),
    ],
)
def test_bad_arguments(digits, changes, error, message):
    with pytest.raises(error, match=message):
        planned(digits, **changes)


def test_too_few_public_records(digits):
    model, X, y = digits
    with pytest.raises(ValueError, match="at least 50"):
        planned((model, X[:20], y[:20]))
