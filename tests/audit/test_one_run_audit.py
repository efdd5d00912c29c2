"""The attacks of experiments/attacks: bounds hold, attacks see what there is, and qexp passes.

Seeds are fixed, so the tests are repeatable.
"""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
from helpers import all_rows
from scipy import stats

from qexp.models import mlp

pytest.importorskip("experiments", reason="a package without its experiments")

from small_task import small_task

from experiments.attacks import bounds, membership, one_run_audit, pipelines, scenes
from experiments.study.results import Store
from qexp import Schedule
from qexp.subspace import learn_directions

pytestmark = pytest.mark.statistical


def small_scene(n_canaries):
    rng = np.random.default_rng(5)
    X = rng.normal(size=(400, 36)) * np.geomspace(0.05, 2, 36)
    y = (X @ rng.normal(size=(36, 4))).argmax(axis=1)
    model = mlp((36, 24, 4), seed=0).fit(X[:300], y[:300], epochs=5)
    return scenes.make_scene(model, X[:300], X[300:], y[300:], n_canaries=n_canaries, seed=1)


# ------------------------------------------------------------------------------------ the bounds


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(("m", "level"), [(1, 0.5), (10, 0.05), (200, 0.05), (1000, 0.3)])
def test_independent_gaussians_are_never_refuted_above_the_level(mu, m, level):
    """For m Gaussian mechanisms side by side, the number of right guesses is exactly binomial."""
    loss = bounds.gaussian_loss(mu)
    refuted = [v for v in range(m + 1) if bounds.is_refuted(loss, m, m, v, level=level)]
    if refuted:
        assert refuted == list(range(refuted[0], m + 1))
        assert stats.binom.sf(refuted[0] - 1, m, stats.norm.cdf(mu / 2)) <= level


@pytest.mark.parametrize("q", [0.02, 0.3, 0.8])
def test_a_mechanism_that_tells_all_or_nothing_is_not_refuted_above_the_level(q):
    """With probability q all coins are told, else fresh ones: right guesses depend on each other.

    That is (0, q)-DP, of which 1 - f is x + q.
    """
    m, level = 50, 0.05
    for v in range(m + 1):
        if bounds.is_refuted(lambda x: max(0.0, x - q), m, m, v, level=level):
            assert q + (1 - q) * stats.binom.sf(v - 1, m, 0.5) <= level


def test_one_canary_is_judged_by_its_trade_off():
    # A right guess of a coin has probability Φ(μ/2) at most: what is refuted at level 0.7 is all
    # with less.
    assert bounds.mu_lower_bound(1, 1, 1, confidence=0.3) == pytest.approx(
        2 * stats.norm.ppf(0.7), abs=2e-4
    )


def test_randomised_response_gives_the_binomial():
    q = np.exp(1.5) / (1 + np.exp(1.5))
    for v in (500, 818, 900, 1000):
        exact = stats.binom.sf(v - 1, 1000, q)
        assert bounds.epsilon_p_value(1000, 1000, v, 1.5, 0.0) == pytest.approx(exact, rel=1e-12)
        assert bounds.epsilon_p_value(1000, 1000, v, 1.5, 1e-4) >= exact
    # All right: q^m is the level.
    eps = bounds.epsilon_lower_bound(1000, 1000, 1000, delta=0.0)
    assert 1 / (1 + np.exp(-eps)) == pytest.approx(0.05 ** (1 / 1000), abs=1e-6)


def test_the_part_of_delta_is_the_one_of_the_theorem():
    m, r, v, eps, delta = 40, 30, 26, 1.0, 1e-3
    q = 1 / (1 + np.exp(-eps))
    b = [stats.binom.pmf(i, r, q) for i in range(r + 1)]
    most = max(sum(b[v - i : v]) / i for i in range(1, v + 1))
    expected = sum(b[v:]) + 2 * m * delta * most
    assert bounds.epsilon_p_value(m, r, v, eps, delta) == pytest.approx(expected, rel=1e-10)


def test_bounds_grow_with_right_guesses():
    for bound in (
        lambda v: bounds.mu_lower_bound(500, 400, v),
        lambda v: bounds.epsilon_lower_bound(500, 400, v, delta=1e-5),
        lambda v: bounds.mu_if_independent(400, v),
    ):
        values = [bound(v) for v in (0, 200, 230, 300, 399, 400)]
        assert values[:2] == [0, 0]
        assert all(a < b for a, b in itertools.pairwise(values[2:]))


def test_a_bound_is_written_so_that_it_stays_one():
    assert bounds.bound_text(7.8739, 3) == "7.873"
    assert bounds.bound_text(0.5, 3) == "0.500"
    assert bounds.bound_text(0.149, 3) == "0.149"


def test_clopper_pearson_is_exact():
    low, high = bounds.clopper_pearson(7, 100)
    assert stats.binom.sf(6, 100, low) == pytest.approx(0.025)
    assert stats.binom.cdf(7, 100, high) == pytest.approx(0.025)
    assert bounds.clopper_pearson(0, 10)[0] == 0
    assert bounds.clopper_pearson(10, 10)[1] == 1


@pytest.mark.parametrize(("mu", "least"), [(0.5, 0.15), (1.5, 0.7)])
def test_on_gaussians_of_known_mu_bounds_cover_and_see(mu, least):
    rng = np.random.default_rng(3)
    found = []
    for _ in range(25):
        included = rng.random(2000) < 0.5
        scores = mu * (included - 0.5) + rng.normal(size=2000)
        found.append(bounds.judge(scores, included, delta=1e-5))
    assert max(f["mu_lo"] for f in found) <= mu
    assert np.mean([f["mu_lo"] for f in found]) >= least
    # At exactly 95 %, more than 5 of 25 failures have a probability of 0.12 %.
    assert sum(f["mu_lo_independent"] > mu for f in found) <= 5
    assert np.mean([f["mu_lo_independent"] for f in found]) >= 0.75 * mu


# -------------------------------------------------------------------------------- the pipelines


@pytest.mark.parametrize(
    "pipeline",
    ["kronecker", "srht", "subspace", "subspace_by_turns", "rounds", "momentum", "estimator"],
)
def test_no_pipeline_exceeds_its_claim(pipeline):
    if pipeline == "estimator":
        pytest.importorskip("sklearn")
    m = 600
    scene = small_scene(m)
    included = np.random.default_rng(2).random(m) < 0.5
    trial = pipelines.Trial(included=included, epsilon=8.0, delta=1e-5, seed=11)
    more = {
        "srht": {"n_components": 400},
        "subspace": {"n_components": 400, "n_moves": 10},
        "subspace_by_turns": {"n_components": 200, "n_moves": 10, "at_once": 40},
    }.get(pipeline, {})
    attacked = pipelines.PIPELINES[pipeline](scene, trial, **more)
    found = bounds.judge(attacked.scores, included, delta=1e-5)
    assert attacked.mu == pytest.approx(1.666, abs=1e-3)
    assert max(found["mu_lo"], found["mu_lo_independent"]) <= attacked.mu
    assert max(found["epsilon_lo"], found["epsilon_lo_gdp"]) <= 8
    # It is an attack: it would not pass for a claim ten times as strong.
    assert found["epsilon_lo_gdp"] > 0.8


def test_dp_sgd_keeps_its_claim():
    pytest.importorskip("dp_accounting")
    scene, included = small_scene(600), np.random.default_rng(2).random(600) < 0.5
    trial = pipelines.Trial(included=included, epsilon=8.0, delta=1e-5, seed=11)
    attacked = pipelines.dp_sgd(scene, trial)
    found = bounds.judge(attacked.scores, included, delta=1e-5)
    assert not attacked.is_gaussian
    # That of its steps together without the gain of sampling, which is more than of the ε.
    assert attacked.mu > 1.67
    assert 0.4 < found["epsilon_lo"] <= 8
    assert max(found["mu_lo"], found["mu_lo_independent"]) <= attacked.mu


def test_by_turns_canaries_hide_each_other_less():
    """At the same claim, in a subspace that has fewer directions than there are canaries."""
    scene, included = small_scene(600), np.random.default_rng(3).random(600) < 0.5
    trial = pipelines.Trial(included=included, epsilon=8.0, delta=1e-5, seed=14)
    sizes = {"n_components": 60, "n_moves": 20}
    found = [
        bounds.judge(attack(scene, trial, **sizes, **more).scores, included, delta=1e-5)
        for attack, more in (
            (pipelines.subspace, {}),
            (pipelines.subspace_by_turns, {"at_once": 12}),
        )
    ]
    all_at_once, by_turns = (one["mu_lo_independent"] for one in found)
    assert all_at_once < 0.7 * by_turns


def test_every_turn_has_coins_and_noise_of_its_own(monkeypatch):
    scene, included = small_scene(50), np.random.default_rng(4).random(50) < 0.5
    seen = []
    one_round = pipelines._one_round

    def watched(scene, trial, *arguments):
        seen.append((trial.seed, trial.included, scene.y_canaries, scene.n_records))
        return one_round(scene, trial, *arguments)

    monkeypatch.setattr(pipelines, "_one_round", watched)
    for seed in (0, 1):
        trial = pipelines.Trial(included=included, epsilon=8.0, delta=1e-5, seed=seed)
        sizes = {"n_components": 40, "n_moves": 5, "at_once": 20}
        assert len(pipelines.subspace_by_turns(scene, trial, **sizes).scores) == 50
    assert [len(coins) for _, coins, *_ in seen] == [20, 20, 10] * 2
    assert [seed for seed, *_ in seen] == list(range(6))
    np.testing.assert_array_equal(np.concatenate([coins for _, coins, *_ in seen[:3]]), included)
    np.testing.assert_array_equal(seen[0][2], seen[1][2])
    assert [n for *_, n in seen[:3]] == [120, 120, 110]


def test_orthogonal_gradients_are_audited_nearly_to_the_claim():
    included = np.random.default_rng(4).random(3000) < 0.5
    attacked = pipelines.orthogonal(
        pipelines.Trial(included=included, epsilon=4.0, delta=1e-5, seed=12)
    )
    found = bounds.judge(attacked.scores, included, delta=1e-5)
    assert 0.85 * attacked.mu <= found["mu_lo_independent"] <= attacked.mu
    assert found["mu_lo"] <= attacked.mu


def test_a_step_without_noise_is_caught():
    m = 600
    scene = small_scene(m)
    included = np.random.default_rng(6).random(m) < 0.5
    attacked = pipelines.noiseless(
        scene, pipelines.Trial(included=included, epsilon=8.0, delta=1e-5, seed=13)
    )
    found = bounds.judge(attacked.scores, included, delta=1e-5)
    assert attacked.mu is None
    assert found["accuracy"] == 1
    assert found["epsilon_lo_gdp"] == found["epsilon_lo_gdp_most"] > 9
    assert found["epsilon_lo"] == found["epsilon_lo_most"] > 4.5


def test_scores_are_the_posterior_of_the_coins():
    """Against the same estimate from the noisy sum itself, with the whitened gradients at hand."""
    m = 50
    scene = small_scene(m)
    rng = np.random.default_rng(7)
    included = rng.random(m) < 0.5
    model, c, sigma, eta = scene.model, pipelines.CLIPPING_NORM, 4.0, 0.3
    curvature = pipelines.KroneckerCurvature.from_model(model, scene.X_public, damping=1e-2)
    X = np.concatenate([scene.X_canaries, scene.X_honest])
    y = np.concatenate([scene.y_canaries, scene.y_honest])
    rows = all_rows(model.gradient_blocks(X, y))
    s = curvature.whiten(rows)
    s *= np.minimum(1, c / np.linalg.norm(s, axis=1))[:, None]
    coins = np.concatenate([included, np.ones(len(scene.y_honest))])
    noisy = coins @ s + sigma * rng.normal(size=s.shape[1])
    step = curvature.unwhiten(noisy) * (-eta / len(y))

    evidence = pipelines.Evidence(scene)
    evidence.add(
        model,
        step,
        curvature=curvature,
        clipping_norm=c,
        step_size=eta,
        noise_std=sigma,
    )
    # Not in the space of the canaries, but in that of the noisy sum.
    a = s[:m]
    residual = noisy - s[m:].sum(axis=0) - a.sum(axis=0) / 2
    covariance = a.T @ a / 4 + sigma**2 * np.eye(s.shape[1])
    expected = a @ np.linalg.solve(covariance, residual) / 4
    np.testing.assert_allclose(evidence.scores(), expected, rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------------------- membership


def test_likelihood_ratios_find_members():
    rng = np.random.default_rng(8)
    mu, members = 1.5, rng.random((300, 200)) < 0.5
    values = mu * members + rng.normal(size=members.shape) + rng.normal(size=200) * 5
    models = membership.Models(members=members, statistics={"confidence": values})
    shadow, target = models.part(slice(100)), models.part(slice(100, None))
    scores = membership.likelihood_ratios(shadow, target, "confidence")
    found = membership.rates(scores, target.members, mu)
    # A little is lost to what shadows do not tell of the normals.
    assert found["auc_most"] - 0.02 < found["auc"] <= found["auc_most"]
    at = found["fpr_0.01"]
    assert at["holds"]
    assert at["fpr"] == pytest.approx(0.01, abs=0.003)
    assert 0.7 * at["tpr_most"] < at["tpr"] <= at["tpr_most_at_fpr"]
    nothing = membership.rates(rng.normal(size=scores.shape), target.members, None)
    assert nothing["auc"] == pytest.approx(0.5, abs=0.01)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of the small task that planned four rounds, in a subspace of so many directions."""
    made = Store(tmp_path)
    monkeypatch.setattr(membership, "TASKS", {"mnist_few_300": small_task})
    monkeypatch.setattr(membership, "Store", lambda: made)
    moves = [lambda X, y, rng, by=by: (X + np.float32(by), y) for by in (0.5, 1.0)]
    monkeypatch.setattr(
        membership,
        "directions",
        lambda task: learn_directions(task.model, *task.public_records(), moves=moves),
    )

    def planned(subspace):
        schedule = Schedule(rounds=4, clipping_norm=0.5, step_size=0.7, damping=0.05)
        settings = asdict(schedule) | ({} if subspace is None else {"subspace": subspace})
        line = {"task": "mnist_few_300", "method": "qexp", "epsilon": 2.0, "delta": 1e-5}
        made.add([{**line, "seed": 0, "hyperparameters": settings}])
        return schedule

    return planned


@pytest.mark.parametrize("subspace", [None, 3])
def test_the_study_s_plan_is_attacked_as_it_is(study, subspace):
    schedule, task = study(subspace), small_task(0)
    inside = np.random.default_rng(1).random(300) < 0.5
    train = membership.planned_training(task.X_private, task.y_private, epsilon=2.0)
    found = train(inside, 5).weights
    if subspace is None:
        curvature, projection = (
            pipelines.KroneckerCurvature.from_model(task.model, task.X_held_out, damping=0.05),
            None,
        )
    else:
        curvature = pipelines.IdentityCurvature(subspace)
        projection = membership.directions(task).subspace(subspace)
    again = membership.fine_tune(
        task.model,
        np.where(inside[:, None], task.X_private, np.nan).astype(np.float32),
        task.y_private,
        schedule=schedule,
        curvature=curvature,
        projection=projection,
        target_epsilon=2.0,
        target_delta=1e-5,
        rng=membership.insecure_test_generator(5),
    )
    np.testing.assert_array_equal(found, again.model.weights)


def test_without_a_plan_nothing_is_attacked(study):
    study(None)
    for n, epsilon in ((300, 1.0), (20, 2.0)):
        with pytest.raises(ValueError, match=f"no qexp for mnist_few_{n} at epsilon = {epsilon:g}"):
            membership.planned_training(np.zeros((n, 4)), np.zeros(n, int), epsilon=epsilon)


def test_heart_learners_are_found_out_and_private_ones_are_not():
    scene = small_scene(0)
    rng = np.random.default_rng(9)
    X = scene.X_honest
    y = (scene.y_honest + rng.integers(0, 4, len(X)) * (rng.random(len(X)) < 0.4)) % 4
    found = {}
    for epsilon in (1.0, None):
        train = (
            membership.overfitting(scene.model, X, y)
            if epsilon is None
            else membership.private_training(scene.model, X, y, scene.X_public, epsilon=epsilon)
        )
        models = membership.train_models(scene.model, X, y, train, n_models=40, seed=10)
        shadow, target = models.part(slice(28)), models.part(slice(28, None))
        mu = None if epsilon is None else membership.calibrate_mu(epsilon, 1e-5)
        scores = membership.likelihood_ratios(shadow, target, "confidence")
        found[epsilon] = membership.rates(scores, target.members, mu)
    assert found[None]["auc"] > 0.65
    assert found[1.0]["auc"] < found[1.0]["auc_most"] + 0.04
    assert found[1.0]["fpr_0.01"]["holds"]


def test_what_a_claim_is_compared_with(monkeypatch):
    """With its own ε and μ; where no μ has the ε, μ's bound makes none of ε."""
    scores = np.where(np.random.default_rng([0, 1]).random(400) < 0.5, 1.0, -1.0)
    monkeypatch.setattr(one_run_audit, "digits_scene", lambda *_: None)
    for is_gaussian in (True, False):
        attacked = pipelines.Attacked(scores=scores, mu=9.0, is_gaussian=is_gaussian)
        monkeypatch.setitem(one_run_audit.PIPELINES, "kronecker", lambda *_, told=attacked: told)
        found = one_run_audit.audit("kronecker", epsilon=5.0, n_canaries=400, n_honest=1, seed=0)
        assert found["accuracy"] == 1
        assert found["epsilon_lo"] < 5
        assert found["mu_lo"] < 9
        assert (found["epsilon_lo_gdp"] is None) is not is_gaussian
        assert found["holds"] is not is_gaussian


def test_commands_print_one_line_of_json(capsys):
    one_run_audit.main(["orthogonal", "--canaries", "500", "--epsilon", "2"])
    line = json.loads(capsys.readouterr().out)
    assert line["pipeline"] == "orthogonal"
    assert line["holds"] is True
    assert 0 < line["mu_lo"] <= line["mu_claimed"]
