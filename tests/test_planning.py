import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp import SRHT, DenseCurvature, IdentityCurvature, KroneckerCurvature
from qexp.bits import insecure_test_generator
from qexp.datasets import load_digits
from qexp.finetune import Schedule, fine_tune
from qexp.models import mlp, softmax_regression
from qexp.planning import Rehearsal, candidate_schedules, plan
from qexp.planning._domains import public_domains
from qexp.planning._grid import MOST_ROUNDS, neighbours
from qexp.planning._halving import EFFORTS, Halving
from qexp.planning._kronecker_trial import KroneckerTrial, eigen_factors
from qexp.planning._planner import _hopeful, _lengthen
from qexp.planning._simulation import Simulation, noise_loss
from qexp.planning._subspace_trial import SubspaceTrial, rehearsed_directions
from qexp.planning._trials import GeneralTrial
from qexp.privacy import calibrate_mu, epsilon
from qexp.subspace import DAMPING, image_moves, learn_directions
from qexp.surrogates import IMAGE_KINDS, OtherRecords

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5)).astype(np.float32)
Y = RNG.integers(3, size=60)
X_PUBLIC = RNG.normal(size=(80, 5)).astype(np.float32)
MODEL = mlp((5, 4, 3), seed=1)
EPSILON, DELTA = 1e9, 1e-5
BASE = Schedule(rounds=5, clipping_norm=0.7, step_size=0.5, damping=1e-2)
GOOD = Schedule(rounds=8, clipping_norm=3, step_size=1, damping=1e-2)
USELESS = Schedule(rounds=1, clipping_norm=0.01, step_size=0.01, damping=1e-2)
NOISY = Schedule(rounds=12, clipping_norm=50, step_size=3, damping=1e-4)


def kronecker_trial(model=MODEL, X=X, y=Y, X_public=X_PUBLIC):
    return KroneckerTrial(model, X, y, X_public, eigen_factors(model, X_public))


def make(model, damping):
    return KroneckerCurvature.from_model(model, X_PUBLIC, damping=damping)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    data = load_digits()
    X = data.images.reshape(len(data.images), -1)
    y = np.asarray(data.labels)
    model = mlp((64, 24, 10)).fit(X[:500], y[:500], epochs=15)
    return model, X[500:], y[500:]


def planned(digits, **settings):
    arguments = {"n_records": 600, "target_epsilon": 4.0, "target_delta": 1e-5}
    return plan(*digits, **{**arguments, "candidates": [USELESS, GOOD, NOISY], **settings})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clipping_norm": 100.0},
        {"momentum": 0.8},
        {"averaging": 0.5},
        {"refresh_curvature": True},
        {"damping": 0.1, "rounds": 1},
        {"curvature_share": 0.3},
    ],
)
def test_a_trial_without_noise_is_fine_tune(changes):
    schedule = Schedule(**{**BASE.describe(), **changes})
    expected = fine_tune(
        MODEL,
        X,
        Y,
        schedule=schedule,
        curvature=lambda model: make(model, schedule.damping),
        target_epsilon=EPSILON,
        target_delta=DELTA,
        rng=insecure_test_generator(0),
    ).model.weights
    noise = 1 / (len(X) * calibrate_mu(EPSILON, DELTA))
    got = kronecker_trial().tune(schedule, noise, np.random.default_rng(0)).weights
    moved = np.linalg.norm(expected - MODEL.weights)
    assert moved > 0.02
    # Both have noise, of a thousandth or so.
    assert np.linalg.norm(got - expected) < 0.02 * moved


@pytest.mark.statistical
@pytest.mark.parametrize("budget", [None, (1.0, 3.0)])
def test_the_noise_of_a_trial_has_the_covariance_of_a_draw(budget):
    schedule = Schedule(
        rounds=2, clipping_norm=1e-3, step_size=0.5, damping=0.1, momentum=0.5, budget=budget
    )
    noise = 40.0
    trial, curvature = kronecker_trial(), make(MODEL, 0.1)
    k = curvature.n_components
    inverse_root = np.stack([curvature.unwhiten(row) for row in np.eye(k)], axis=1)
    rng = np.random.default_rng(0)
    steps = np.stack(
        [trial.tune(schedule, noise, rng).weights - MODEL.weights for _ in range(2000)]
    ).astype(float)
    whitened = np.linalg.solve(inverse_root, steps.T).T
    # The first step counts 1 + m = 1.5 times; a round's μ² is its share of the whole.
    shares = np.array([0.5, 0.5] if budget is None else [0.25, 0.75])
    deviation = 0.5 * 1e-3 * noise * math.sqrt(np.sum(np.array([1.5, 1.0]) ** 2 / shares))
    covariance = whitened.T @ whitened / len(steps) / deviation**2
    # Entries have a standard deviation of √2/2000 = 0.032 at most; five of them, and the clip's
    # own small share.
    np.testing.assert_allclose(covariance, np.eye(k), atol=0.16)


def test_fewer_simulated_records_meet_the_noise_of_all():
    # What is summed and noised depends on c/(nμ) alone: records doubled, the same mean.
    schedule = Schedule(**{**BASE.describe(), "rounds": 2})
    once = kronecker_trial().tune(schedule, 1e-3, np.random.default_rng(3)).weights
    twice = kronecker_trial(X=np.tile(X, (2, 1)), y=np.tile(Y, 2))
    doubled = twice.tune(schedule, 1e-3, np.random.default_rng(3)).weights
    np.testing.assert_allclose(once, doubled, rtol=1e-3, atol=1e-4)


def test_the_general_trial_agrees_with_the_fast_one():
    noise = 1e-7
    general = GeneralTrial(MODEL, X, Y, make, None, DELTA)
    got = general.tune(BASE, noise, np.random.default_rng(0)).weights
    expected = kronecker_trial().tune(BASE, noise, np.random.default_rng(0)).weights
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        general.first_draw(1e-2, 0.7), kronecker_trial().first_draw(1e-2, 0.7), rtol=1e-3
    )
    assert general.kept(1e-2).sum() == pytest.approx(kronecker_trial().kept(1e-2).sum(), rel=1e-3)


def test_the_head_of_a_trial_is_a_trial_on_the_first_records():
    for trial in (kronecker_trial(), GeneralTrial(MODEL, X, Y, make, None, DELTA)):
        head = trial.head(20).tune(BASE, 1e-7, np.random.default_rng(0)).weights
        alone = kronecker_trial(X=X[:20], y=Y[:20]).tune(BASE, 1e-7, np.random.default_rng(0))
        np.testing.assert_allclose(head, alone.weights, rtol=1e-3, atol=1e-3)


def test_a_diverging_trial_says_so():
    schedule = Schedule(rounds=3, clipping_norm=1e9, step_size=1e9, damping=1e-4)
    assert kronecker_trial().tune(schedule, 1.0, np.random.default_rng(0)) is None


@settings(max_examples=30)
@given(st.integers(1, 12), st.floats(0.05, 1.8), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_noise_loss_is_that_of_a_linear_recursion(rounds, step_size, kept):
    schedule = Schedule(rounds=rounds, clipping_norm=2.0, step_size=step_size, damping=1.0)
    rho = np.array(kept)
    variance = np.zeros_like(rho)
    for _ in range(rounds):
        variance = (1 - step_size * rho) ** 2 * variance + (step_size * 2.0 * 0.1) ** 2 * rounds
    assert noise_loss(schedule, rho, 0.1) == pytest.approx(
        0.5 * float(np.sum(rho * variance)), rel=1e-6, abs=1e-12
    )


def test_the_grid_spans_what_it_should():
    grid = candidate_schedules()
    assert {s.rounds for s in grid} == {1, 2, 4, 8, 16, 32, 64}
    assert {s.damping for s in grid} == {1e-3, 1e-2, 1e-1, 1.0, 10.0}
    assert {s.averaging for s in grid} == {0.0, 0.25}
    assert (min(s.clipping_norm for s in grid), max(s.clipping_norm for s in grid)) == (0.3, 10)
    assert {s.momentum for s in grid} == {0.0, 0.8, 0.9}
    assert len(set(grid)) == len(grid)
    assert {s.rounds for s in candidate_schedules(rounds=3)} == {3}


@pytest.mark.parametrize("schedule", candidate_schedules()[::7])
def test_nothing_is_tried_twice(schedule):
    near = neighbours(schedule, None)
    for there in near:
        # Other damping and back again is the same candidate, to the last bit.
        back = [s for s in neighbours(there, None) if s.damping == schedule.damping]
        if there.damping != schedule.damping:
            assert schedule in back
    # An average over one round is none.
    assert all(s.averaged_rounds != 1 for s in near if not schedule.averaging)
    assert schedule.averaged_rounds != 1


@pytest.mark.parametrize("damping", [1e-3, 1e-2, 1e-1, 1.0, 10.0])
def test_damping_shortens_no_step_along_a_curvature_of_one(damping):
    steps = {s.step_size / (1 + damping) for s in candidate_schedules() if s.damping == damping}
    np.testing.assert_allclose(sorted(steps), [0.03, 0.1, 0.3, 1.0])
    schedule = Schedule(rounds=4, clipping_norm=1.0, step_size=2.0, damping=damping)
    for near in neighbours(schedule, None):
        if near.damping != damping:
            assert near.step_size / (1 + near.damping) == pytest.approx(
                2.0 / (1 + damping), rel=1e-5
            )


@pytest.fixture(scope="module")
def made(digits):
    return planned(digits)


def test_the_good_candidate_is_planned(made):
    assert made.schedule == GOOD
    assert made.predicted_accuracy > made.accuracy_before + 0.05
    assert 0.4 < made.accuracy_before < 0.85
    assert len(made.surrogates) == 3
    rows = {row["schedule"]: row for row in made.table}
    assert set(rows) == {USELESS, GOOD, NOISY}
    assert rows[NOISY]["noise_loss"] > 100 * rows[GOOD]["noise_loss"]
    assert made.table[0]["accuracy_mean"] == made.predicted_accuracy
    assert (made.score, made.predicted_score) == ("accuracy", made.predicted_accuracy)
    assert made.score_before == made.accuracy_before
    means = [point["accuracy_mean"] for point in made.curve]
    assert [point["epsilon"] for point in made.curve] == [1, 2, 4, 8, 16]
    assert means[-1] > means[0]


def test_a_plan_is_reproducible(digits, made):
    assert planned(digits).describe() == made.describe()
    assert planned(digits, seed=1).describe() != made.describe()


def test_full_effort_takes_more_surrogates_and_several_trials_of_the_best(digits):
    made = planned(digits, effort="full")
    assert made.schedule == GOOD
    assert len(made.surrogates) == made.table[0]["surrogates"] == 5
    # A mean of five trials' accuracies is no multiple of 1/m.
    n_test = len(digits[1]) - 600
    right = made.predicted_accuracy * 5 * n_test
    assert right != pytest.approx(round(right), abs=1e-6)
    assert right * 5 == pytest.approx(round(right * 5), abs=1e-6)


def test_a_plan_describes_itself_in_json(made):
    described = json.loads(json.dumps(made.describe()))
    assert described["schedule"]["rounds"] == 8
    assert len(described["table"]) == 3


def test_a_plan_reports_text_and_a_picture(made, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.png"
    text = made.report(path)
    assert text == made.report()
    assert "accuracy" in text
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_names_the_extra(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"qexp\[demo\]"):
        made.report(tmp_path / "plan.png")
    assert list(tmp_path.iterdir()) == []


def test_the_grid_is_searched_and_refined(digits):
    def half(X, y, rng):
        return X[:, ::-1].copy(), y

    made = planned(digits, candidates=None, rounds=1, surrogate=half)
    assert made.schedule.rounds == 1
    assert {row["schedule"].rounds for row in made.table} == {1}
    assert len(made.table) > len(candidate_schedules(rounds=1))
    assert made.predicted_accuracy > made.accuracy_before


def searched(score, noise_to_signal=0.5):
    """Try the grid where a schedule's score is known, and lengthen its best."""

    def tried(candidate, surrogate, seed):
        return score(candidate[0]), 0.0

    search = Halving(lambda *_: tried, EFFORTS["quick"], n_surrogates=3, n_records=100, seed=0)
    search.run([(schedule, None) for schedule in candidate_schedules()])
    before = len(search.outcomes)
    _lengthen(search, lambda candidate: noise_to_signal, [None])
    return search.ranked()[0][0], len(search.outcomes) - before


def test_rounds_are_doubled_while_the_longest_schedules_are_best():
    longest, tried = searched(lambda s: s.rounds - s.step_size)
    assert longest.rounds == 4 * MOST_ROUNDS
    assert 0 < tried <= 24

    # Steps may become half as long.
    best, _ = searched(
        lambda s: (
            -abs(s.rounds - 2 * MOST_ROUNDS) - abs(s.rounds * s.step_size - 1.001 * MOST_ROUNDS)
        )
    )
    assert (best.rounds, best.step_size) == (2 * MOST_ROUNDS, 1.001 / 2)


def test_rounds_are_doubled_where_few_records_favoured_half_of_the_most():
    on_few = EFFORTS["quick"].stages[0][2]

    def prepared(surrogates, records):
        most = MOST_ROUNDS / 2 if records == on_few else math.inf
        return lambda c, i, seed: (c[0].rounds if c[0].rounds <= most else -c[0].rounds, 0.0)

    search = Halving(prepared, EFFORTS["quick"], n_surrogates=3, n_records=10_000, seed=0)
    search.run([(schedule, None) for schedule in candidate_schedules()])
    assert search.ranked()[0][0].rounds == MOST_ROUNDS / 2
    _lengthen(search, lambda candidate: 0.5, [None])
    assert search.ranked()[0][0].rounds == 4 * MOST_ROUNDS


def test_rounds_stay_where_shorter_schedules_are_best():
    best, tried = searched(lambda s: -abs(s.rounds - MOST_ROUNDS / 4))
    assert (best.rounds, tried) == (MOST_ROUNDS / 4, 0)
    best, tried = searched(lambda s: -abs(s.rounds - MOST_ROUNDS / 2))
    assert best.rounds == MOST_ROUNDS / 2
    assert 0 < tried <= 8


def test_rounds_stay_where_noise_is_more_than_signal():
    best, tried = searched(lambda s: s.rounds, noise_to_signal=1.5)
    assert (best.rounds, tried) == (MOST_ROUNDS, 0)


def test_more_private_than_public_records(digits):
    few = planned(digits, n_records=300, candidates=[GOOD])
    many = planned(digits, n_records=30_000, candidates=[GOOD])
    assert many.predicted_accuracy > few.predicted_accuracy
    assert all(row["records"] <= 30_000 for row in many.table)


def test_dense_curvature_behind_a_projection_chooses_its_size(digits):
    made = planned(
        digits,
        curvature="dense",
        n_components=(20, 400),
        candidates=[GOOD],
        surrogate=lambda X, y, rng: (1 - X, y),
    )
    assert made.n_components == 400
    assert {row["n_components"] for row in made.table} == {20, 400}
    srht = SRHT(len(digits[0].weights), 400, seed=0)
    assert made.projection(*digits).describe() == srht.describe()


def test_a_curvature_of_ones_own(digits):
    _, X, y = digits
    head = mlp((64, 10)).fit(X[:500], y[:500], epochs=5)

    def own(at, damping):
        return DenseCurvature.from_model(at, X[:200], damping=damping)

    made = planned(
        (head, X, y), curvature=own, candidates=[GOOD], surrogate=lambda X, y, rng: (1 - X, y)
    )
    assert made.n_components is None
    assert made.schedule == GOOD


@pytest.fixture(scope="module")
def rare(digits):
    """Is it an eight? One digit in ten is."""
    _, X, y = digits
    eight = (y == 8).astype(np.int64)
    return mlp((64, 2)).fit(X[:400], eight[:400], epochs=10), X[400:], eight[400:]


def transposed(X, y, rng):
    return np.ascontiguousarray(X.reshape(-1, 8, 8).transpose(0, 2, 1)).reshape(-1, 64), y


@pytest.mark.parametrize("score", ["auroc", "loss"])
def test_plans_may_rank_by_another_score(rare, score):
    made = planned(rare, surrogate=transposed, score=score, target_epsilon=8.0)
    assert (made.schedule, made.score) == (GOOD, score)
    assert made.table[0]["score_mean"] == made.predicted_score > made.score_before + 0.01
    low, high = (0, 0.6) if score == "auroc" else (-0.5, 0)
    assert low < made.score_before < high
    assert made.describe()["score"] == score
    assert f"{score} before {made.score_before:.3f}" in made.report()
    # Never to say eight is right nine times in ten: accuracy would have taken noise for better.
    assert made.table[0]["accuracy_mean"] == made.predicted_accuracy
    assert made.accuracy_before == pytest.approx(0.9, abs=0.02)


def test_a_score_of_ones_own_may_be_anything(rare):
    def smallness(model, X, y):
        return -float(np.abs(model.weights).sum())

    made = planned(rare, surrogate=transposed, score=smallness)
    assert (made.schedule, made.score) == (USELESS, "smallness")


@pytest.mark.parametrize("score", ["auroc", "loss", lambda model, X, y: math.nan])
def test_runs_that_diverge_and_scores_that_are_no_numbers_rank_last(rare, score):
    wild = Schedule(rounds=3, clipping_norm=1e9, step_size=1e9, damping=1e-4)
    made = planned(rare, surrogate=transposed, score=score, candidates=[wild, GOOD])
    assert made.schedule == GOOD
    assert made.score == ("<lambda>" if callable(score) else score)
    json.dumps(made.describe(), allow_nan=False)


def test_public_records_of_another_domain_may_stand_for_private_ones(rare):
    model, X, y = rare
    others = [OtherRecords(*transposed(X, y, None), keep=keep) for keep in (None, {1: 0.5})]
    made = planned((model, X[:200], y[:200]), surrogate=others, score="auroc", target_epsilon=8.0)
    assert made.schedule == GOOD
    assert made.predicted_score > made.score_before + 0.2
    assert made.surrogates[1] == f"OtherRecords({len(X)} records, keep={{1: 0.5}})"


def test_surrogates_of_tables_are_as_hard_by_auroc(rare):
    made = planned(rare, surrogate="tabular", score="auroc", candidates=[GOOD])
    assert 0.55 < made.score_before < 0.92


def stays(X, y, rng):
    return X, y


def test_rehearsals_count_as_much_as_the_move_of_ones_own(digits):
    model, X, y = digits
    other = model.with_weights(model.weights / 2)
    judged = []

    def score(tuned, X_test, y_test):
        """On the rehearsal's records, which are negative, whatever moves is bad."""
        rehearsed = X_test.min() < 0
        judged.append(rehearsed)
        if rehearsed:
            return -float(np.abs(tuned.weights - other.weights).max())
        return 1e-3 * float(tuned.score(X_test, y_test))

    rehearsal = Rehearsal(other, -X, y, [stays, stays])
    many = [replace(GOOD, clipping_norm=1 + i / 100) for i in range(70)]
    arguments = {"surrogate": [transposed, transposed], "score": score}
    alone = planned(digits, **arguments)
    assert alone.schedule == GOOD
    assert not any(judged)
    made = planned(digits, **arguments, rehearsals=[rehearsal])
    assert made.schedule == USELESS
    assert [name.split()[1] for name in made.surrogates] == ["transposed", "stays"] * 2
    first = planned(digits, **arguments, rehearsals=[rehearsal], candidates=[*many, USELESS])
    # The first stage, that of one surrogate, has one of each.
    assert {row["surrogates"] for row in first.table} == {2, 4}
    assert first.schedule == USELESS


def test_paths_need_to_save_a_part_of_what_can_be_saved_only():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 6)).astype(np.float32)
    # Coins that hardly know the features: no weights save much of the loss.
    y = (rng.random(2000) < 0.5 + 0.1 * np.tanh(X[:, 0])).astype(np.uint8)
    model = softmax_regression(6, 2)
    public = public_domains(
        model,
        X,
        y,
        surrogate=stays,
        image_shape=None,
        public_group=None,
        score="accuracy",
        effort="quick",
    )
    simulation = Simulation(public, 1200, lambda _: 1e-4, 1.0, 1e-5, "kronecker", (), seed=0)
    full = Schedule(rounds=16, clipping_norm=10.0, step_size=0.3, damping=1e-3)
    tiny = replace(full, rounds=1, step_size=0.01)
    assert simulation.hopeful([(full, None), (tiny, None)]) == [(full, None)]
    assert simulation.loss_before == pytest.approx(math.log(2))
    # What the better one saves is far from a quarter of the loss.
    score, _ = simulation.tries(1, 1200)((full, None), 0, 0)
    assert score > simulation.score_before
    tuned = simulation.domains[None][0].trial.tune(full, 0.0, rng)
    assert tuned.loss(X, y) > 0.9 * math.log(2)


class FewHopeful:
    """Of 300 candidates the first 100 do not move; noise grows, and so many are hopeful."""

    def __init__(self, most_noise):
        self.most_noise = most_noise

    def noise_loss(self, candidate):
        return candidate[1]

    def moving(self, pool):
        return [c for c in pool if c[1] >= 100]

    def hopeful(self, pool):
        return [c for c in self.moving(pool) if c[1] <= self.most_noise]


@pytest.mark.parametrize("n_hopeful", [0, 5, 63])
def test_where_few_are_hopeful_others_are_tried_that_move_and_that_do_not(n_hopeful):
    pool = [(BASE, noise) for noise in np.random.default_rng(0).permutation(300)]
    kept = _hopeful(pool, FewHopeful(99 + n_hopeful), EFFORTS["quick"])
    assert [noise for _, noise in kept] == [*range(64), *range(100, 164)]


def test_many_hopeful_ones_are_tried_alone_and_of_a_small_pool_all():
    pool = [(BASE, noise) for noise in range(300)]
    simulation = FewHopeful(99 + 64)
    assert _hopeful(pool, simulation, EFFORTS["quick"]) == simulation.hopeful(pool)
    assert _hopeful(pool[70:130], FewHopeful(0), EFFORTS["quick"]) == pool[70:130]


def test_all_surrogates_of_ones_own_are_used(digits):
    made = planned(digits, surrogate=[transposed] * 4)
    assert {row["surrogates"] for row in made.table} == {4}


def test_a_plan_has_the_noise_of_its_relation(digits):
    """Under replace_one the job's μ is halved, and so is the one that its plan is made with."""
    half = epsilon(1e-5, calibrate_mu(4.0, 1e-5) / 2)
    strict = planned(digits, neighboring_relation="replace_one")
    same = planned(digits, target_epsilon=half)
    looser = planned(digits)
    assert strict.target_epsilon == 4.0
    for one, other in zip(strict.table, same.table, strict=True):
        assert one["schedule"] == other["schedule"]
        assert one["noise_loss"] == pytest.approx(other["noise_loss"], rel=1e-9)
    assert strict.table[0]["noise_loss"] > 1.5 * looser.table[0]["noise_loss"]
    assert [point["epsilon"] for point in strict.curve] == [1, 2, 4, 8, 16]
    with pytest.raises(ValueError, match=r"use 'replace_special' .* or 'replace_one'"):
        planned(digits, neighboring_relation="add_or_remove_one")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"target_epsilon": None}, TypeError, "epsilon must be a real number"),
        ({"rounds": 0}, ValueError, "rounds is 0, and there is no candidate schedule of so many"),
        ({"seed": -1}, ValueError, "seed is -1; it needs to be from 0"),
    ],
)
def test_a_plan_of_nothing_is_refused(digits, changes, kind, words):
    with pytest.raises(kind, match=words):
        planned(digits, **changes)


def test_public_labels_that_are_no_classes_are_refused(digits):
    model, X, y = digits
    with pytest.raises(ValueError, match="is none of the classes 0"):
        planned((model, X, y + 1))


def test_rehearsals_have_curvature_of_their_own_records(digits):
    model, X, y = digits
    made = []

    def of(records):
        def make(at, damping):
            made.append(len(records))
            return KroneckerCurvature.from_model(at, records, damping=damping)

        return make

    arguments = {"surrogate": [stays], "curvature": of(X), "candidates": [GOOD]}
    planned(
        digits, **arguments, rehearsals=[Rehearsal(model, X[:300], y[:300], [stays], of(X[:300]))]
    )
    assert set(made) == {len(X), 300}
    with pytest.raises(ValueError, match="give every rehearsal a `curvature`"):
        planned(digits, **arguments, rehearsals=[Rehearsal(model, X[:300], y[:300], [stays])])


def test_wrong_rehearsals_are_refused(digits):
    model, X, y = digits
    with pytest.raises(TypeError, match=r"a tuple; they need to be qexp\.planning\.Rehearsal"):
        planned(digits, rehearsals=[(model, X, y)])
    with pytest.raises(ValueError, match="39 weights and the model to plan for 1810"):
        planned(digits, rehearsals=[Rehearsal(MODEL, X_PUBLIC, Y, stays)])
    with pytest.raises(ValueError, match="NaN"):
        planned(digits, rehearsals=[Rehearsal(model, X * np.nan, y, stays)])
    with pytest.raises(ValueError, match="'images', 'tabular'"):
        planned(digits, rehearsals=[Rehearsal(model, X, y, "sounds")])


def test_tables_with_a_public_group(digits):
    y = digits[2]
    made = planned(digits, surrogate="tabular", public_group=y % 2)
    assert made.schedule == GOOD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surrogate": "sounds"}, "'images', 'tabular'"),
        ({"effort": "some"}, "'quick' or 'full'"),
        ({"score": "f1"}, "'accuracy', 'auroc', 'loss' or a function"),
        ({"score": "auroc"}, "two classes, 0 and 1"),
        ({"curvature": "diagonal"}, "make"),
        ({"n_records": 0}, "n_records"),
        ({"rounds": 7}, "no candidate"),
        ({"candidates": []}, "no candidate"),
        ({"target_epsilon": -1.0}, "epsilon"),
        ({"image_shape": (3, 3)}, "image_shape"),
    ],
)
def test_wrong_arguments_are_refused(digits, changes, message):
    with pytest.raises(ValueError, match=message):
        planned(digits, **changes)


def test_wrong_records_are_refused(digits):
    model, X, y = digits
    with pytest.raises(ValueError, match="y_public"):
        planned((model, X, y[:-1]))
    with pytest.raises(ValueError, match="at least 50"):
        planned((model, X[:10], y[:10]))
    with pytest.raises(ValueError, match="NaN"):
        planned((model, np.full_like(X, np.nan), y))
    with pytest.raises(TypeError, match="shift"):
        planned(digits, surrogate=[])


# ---------------------------------------------------------------------------- public subspaces


@pytest.fixture(scope="module")
def moved(digits):
    return image_moves(*digits, count=6)


# Combinations of entries, as there are 24 gradients; and more than those, entries themselves.
@pytest.mark.parametrize("k", [8, 40])
def test_a_trial_in_a_subspace_without_noise_is_fine_tune(digits, moved, k):
    model, X, y = digits
    subspace = learn_directions(model, X, y, moves=moved).subspace(k)
    assert (subspace.core is None) == (k == 40)
    shifted, labels = moved[-1](X, y, np.random.default_rng(0))
    for changes in ({}, {"momentum": 0.8}, {"averaging": 0.5}, {"rounds": 1}):
        schedule = replace(BASE, **changes)
        tuned = SubspaceTrial(model, shifted, labels, subspace).tune(
            schedule, 0.0, np.random.default_rng(0)
        )
        result = fine_tune(
            model,
            shifted,
            labels,
            schedule=schedule,
            curvature=IdentityCurvature(k),
            projection=subspace,
            target_epsilon=EPSILON,
            target_delta=DELTA,
            rng=insecure_test_generator(0),
        )
        assert np.allclose(tuned.weights, result.model.weights, atol=1e-4)


def test_a_trial_in_a_subspace_has_the_noise_of_the_job(digits, moved):
    model, X, y = digits
    subspace = learn_directions(model, X, y, moves=moved).subspace(8)
    schedule = Schedule(rounds=2, clipping_norm=0.5, step_size=0.1, damping=DAMPING)
    trial = SubspaceTrial(model, X[:3], y[:3], subspace)
    free = trial.tune(schedule, 0.0, np.random.default_rng(0)).weights
    steps = np.array(
        [trial.tune(schedule, 2.0, np.random.default_rng(s)).weights - free for s in range(200)]
    )
    lengths = np.linalg.norm(np.linalg.lstsq(subspace.adjoint(np.eye(8)).T, steps.T)[0], axis=0)
    expected = 0.1 * 0.5 * 2.0 * math.sqrt(2) * math.sqrt(2 * 8)
    assert np.sqrt(np.mean(lengths**2)) == pytest.approx(expected, rel=0.1)


def test_a_plan_chooses_a_subspace_where_noise_is_much(digits, moved):
    made = planned(
        digits, target_epsilon=0.5, subspaces=(6,), moves=moved, candidates=[GOOD, USELESS]
    )
    assert made.in_subspace
    assert made.n_components == 6
    assert made.schedule.damping == DAMPING
    assert made.describe()["in_subspace"] is True
    assert {row["n_components"] for row in made.table} == {None, 6}
    learnt = learn_directions(*digits, moves=moved).subspace(6)
    assert made.projection(*digits).describe() == learnt.describe()
    whole = planned(digits, target_epsilon=0.5, candidates=[GOOD, USELESS])
    assert made.predicted_score > whole.predicted_score
    assert not whole.in_subspace
    assert whole.projection(*digits) is None
    assert whole.n_components is None


def test_subspaces_are_planned_for_a_number_of_rounds_too(digits, moved):
    made = planned(digits, subspaces=(4,), moves=moved, candidates=[USELESS], rounds=1)
    assert {row["schedule"].rounds for row in made.table} == {1}
    assert made.in_subspace


def test_subspaces_are_tried_on_what_they_were_not_learnt_from(digits, moved):
    model, X, y = digits
    of_first, of_second = rehearsed_directions(model, X, y, moved)
    parts = [[shift.only(kinds) for shift in moved] for kinds in IMAGE_KINDS]
    for found, part in zip((of_first, of_second), parts, strict=True):
        assert (
            found.subspace(4).describe()
            == learn_directions(model, X, y, moves=part).subspace(4).describe()
        )
    # Moves that have no kinds are parted one by one.
    plain = [lambda X, y, rng, f=f: (f * X, y) for f in (0.5, 0.8, 1.2)]
    of_first, _ = rehearsed_directions(model, X, y, plain)
    expected = learn_directions(model, X, y, moves=plain[0::2]).subspace(2)
    assert of_first.subspace(2).describe() == expected.describe()
    assert len(rehearsed_directions(model, X, y, plain[:1])) == 2


def test_what_is_near_a_subspaces_best_keeps_its_damping():
    near = neighbours(replace(GOOD, damping=DAMPING), None, in_subspace=True)
    assert {schedule.damping for schedule in near} == {DAMPING}
    assert len(near) == len(neighbours(GOOD, None)) - 2


def test_subspaces_that_cannot_be_are_refused(digits, moved):
    with pytest.raises(ValueError, match="subspaces go with curvature='kronecker'"):
        planned(digits, subspaces=(4,), moves=moved, curvature=make)
    with pytest.raises(ValueError, match="subspaces need moves to be learnt from"):
        planned(digits, subspaces=(4,), surrogate=stays)
    with pytest.raises(ValueError, match="a size of subspaces"):
        planned(digits, subspaces=(0,), moves=moved)
