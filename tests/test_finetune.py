"""Fine-tuning in rounds: accounting, bits, early stops, interruptions and resumption."""

import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from fractions import Fraction

import bad_records
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qexp
from qexp._files import DamagedFileError
from qexp.bits import insecure_test_generator
from qexp.finetune import FineTuneInterrupted, Schedule, _job, fine_tune
from qexp.finetune._checkpoint import FineTuneState, load_state, save_state
from qexp.job.exit_codes import ExitCode, exit_code
from qexp.models import mlp

TARGET = {"target_epsilon": 2.0, "target_delta": 1e-5}


@pytest.fixture(scope="module")
def task():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(300, 6)).astype(np.float32)
    y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)
    model = mlp((6, 4, 2), seed=1)
    return model, X, y, qexp.KroneckerCurvature.from_model(model, X[:100], damping=1e-2)


def plan(rounds=3, **changes):
    settings = {"rounds": rounds, "clipping_norm": 3.0, "step_size": 0.5, "damping": 1e-2}
    return Schedule(**{**settings, **changes})


def tune(task, schedule=None, **changes):
    model, X, y, curvature = task
    arguments = {"curvature": curvature, "rng": insecure_test_generator(5), **TARGET, **changes}
    return fine_tune(model, X, y, schedule=schedule or plan(), **arguments)


# ------------------------------------------------------------------------------- one round


def test_one_round_gives_the_bits_of_a_single_draw(task):
    model, X, y, curvature = task
    release = qexp.sample_private_weights(
        model.weights,
        model.gradient_blocks(X, y),
        curvature=curvature,
        clipping_norm=3.0,
        step_size=0.5,
        rng=insecure_test_generator(5).spawn(1),
        **TARGET,
    )
    result = tune(task, plan(1))
    assert np.array_equal(result.release.weights, release.weights)
    assert result.release.mu == release.mu
    assert result.release.epsilon == 2.0


# ------------------------------------------------------------------------------ accounting


@settings(max_examples=60)
@given(
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=20),
    mu=st.floats(0.01, 5),
)
def test_the_rounds_claims_compose_to_at_most_mu_and_hardly_less(shares, mu):
    lattices = _job._lattices(plan(len(shares), budget=tuple(shares)), mu, 1000)
    squares = sum(Fraction(lattice.mu) ** 2 for lattice in lattices)
    assert squares <= Fraction(mu) ** 2
    assert math.sqrt(squares) >= mu * (1 - 1e-6)
    for share, lattice in zip(shares, lattices, strict=True):
        assert lattice.mu == pytest.approx(mu * math.sqrt(share / sum(shares)), rel=1e-6)


def test_a_share_whose_root_is_rounded_up_to_the_lattice_does_not_overspend():
    mu = float.fromhex("0x1.6a09e667f3bccp-2")  # The largest number below √2/4.
    assert mu * math.sqrt(0.5) == 0.25
    assert 2 * Fraction(1, 16) > Fraction(mu) ** 2
    lattices = _job._lattices(plan(2), mu, 1000)
    assert lattices[0].mu < 0.25
    assert sum(Fraction(lattice.mu) ** 2 for lattice in lattices) <= Fraction(mu) ** 2


@pytest.mark.parametrize("relation", ["replace_special", "replace_one"])
def test_all_rounds_together_cost_the_target(task, relation):
    ledger = qexp.PrivacyLedger(**TARGET, neighboring_relation=relation)
    result = tune(task, ledger=ledger, neighboring_relation=relation)
    target = qexp.calibrate_mu(2.0, 1e-5)
    assert result.release.mu <= target
    assert result.release.mu == pytest.approx(target, rel=1e-6)
    assert ledger.mu_spent == result.release.mu
    assert len(ledger.entries) == result.rounds_done == 3
    assert result.stopped_because == "finished"
    assert [numbers["round"] for numbers in result.history] == [1, 2, 3]


def test_an_empty_ledger_stops_the_job_which_releases_what_was_paid_for(task):
    whole = qexp.calibrate_mu(2.0, 1e-5)
    ledger = qexp.PrivacyLedger(mu_budget=whole * 0.75)
    result = tune(task, plan(4), ledger=ledger)
    assert result.stopped_because == "ledger empty"
    assert result.rounds_done == len(ledger.entries) == 2
    assert result.release.mu == ledger.mu_spent
    assert result.release.epsilon == qexp.epsilon(1e-5, ledger.mu_spent) < 2.0
    assert np.array_equal(result.release.weights, result.model.weights)


def test_a_ledger_without_room_for_one_round_refuses(task):
    ledger = qexp.PrivacyLedger(mu_budget=1e-3)
    with pytest.raises(qexp.BudgetExceededError, match="does not fit"):
        tune(task, ledger=ledger)
    assert ledger.entries == ()


def test_the_certificate_tells_of_every_round(task):
    result = tune(task, plan(3, budget=(1.0, 2.0, 1.0), momentum=0.5))
    certificate = result.release.certificate()
    assert [e["type"] for e in certificate["event"]["events"]] == ["GaussianDpEvent"] * 3
    claims = [numbers["mu"] for numbers in certificate["rounds"]]
    assert claims[1] == pytest.approx(claims[0] * math.sqrt(2), rel=1e-6)
    assert qexp.compose_mu(claims) == certificate["mu"] == result.release.mu
    assert certificate["public_inputs"]["schedule"]["budget"] == [1.0, 2.0, 1.0]
    assert certificate["stopped_because"] == "finished"


# ---------------------------------------------------------------------- rounds, step by step


def by_hand(task, schedule, curvatures=None):
    """Do the rounds again in plain NumPy around the package's draws; gives all iterates."""
    model, X, y, curvature = task
    rng = insecure_test_generator(5)
    mu = qexp.calibrate_mu(**TARGET)
    theta, velocity, iterates = model.weights.astype(np.float64), 0.0, []
    for t in range(1, schedule.rounds + 1):
        current = model if t == 1 else model.with_weights(theta.astype(np.float32))
        source = current.gradient_blocks(X, y)
        step, _ = _job.private_step(
            source,
            projection=qexp.Identity(len(theta)),
            curvature=curvature if curvatures is None else curvatures(current),
            lattice=_job.lattice_for(mu / math.sqrt(schedule.rounds), 3.0, len(X)),
            step_size=schedule.step_size,
            bits=rng.spawn(t),
            ledger=None,
            label="",
        )
        velocity = schedule.momentum * velocity + step
        theta = theta + velocity
        iterates.append(theta)
    return iterates


def test_momentum_adds_to_the_last_velocity(task):
    schedule = plan(4, momentum=0.8)
    expected = by_hand(task, schedule)[-1]
    assert np.array_equal(tune(task, schedule).release.weights, expected.astype(np.float32))


@pytest.mark.parametrize(("averaging", "count"), [(0.5, 2), (0.1, 1), (0.7, 3), (1.0, 4)])
def test_averaging_averages_the_last_iterates(task, averaging, count):
    schedule = plan(4, averaging=averaging)
    expected = np.mean(by_hand(task, schedule)[-count:], axis=0)
    weights = tune(task, schedule).release.weights
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_refreshed_curvature_is_made_at_every_rounds_weights(task):
    X, seen = task[1], []

    def curvature(model):
        seen.append(model.weights.copy())
        return qexp.KroneckerCurvature.from_model(model, X[:100], damping=1e-2)

    schedule = plan(3, refresh_curvature=True)
    expected = by_hand(task, schedule, curvature)[-1]
    by_hand_saw = seen.copy()
    seen.clear()
    result = tune(task, schedule, curvature=curvature)
    assert np.array_equal(result.release.weights, expected.astype(np.float32))
    assert len(seen) == 3
    assert all(map(np.array_equal, seen, by_hand_saw))


def test_without_refreshing_a_curvature_function_is_called_once(task):
    seen = []
    tune(task, curvature=lambda model: seen.append(model) or task[3])
    assert seen == [task[0]]


def test_shrinkage_changes_only_the_last_step(task):
    plain, shrunk = [], []
    tune(task, on_round=lambda report: plain.append(report.model.weights))
    tune(task, shrinkage="last", on_round=lambda report: shrunk.append(report.model.weights))
    assert np.array_equal(plain[:2], shrunk[:2])
    first = np.linalg.norm(plain[2].astype(float) - plain[1])
    assert np.linalg.norm(shrunk[2].astype(float) - shrunk[1]) < first


def test_shrinkage_as_a_whole_scales_the_step(task):
    plain = tune(task, plan(1)).model.weights.astype(float) - task[0].weights
    result = tune(task, plan(1), shrinkage="last_whole")
    scaled = result.model.weights.astype(float) - task[0].weights
    ratio = result.history[0]["noise_to_signal"] ** 2
    k = len(plain)
    np.testing.assert_allclose(scaled, (1 - ratio * (k - 2) / k) * plain, atol=1e-6)


def test_a_projection_keeps_the_weights_it_leaves_out(task):
    model = task[0]
    kept = np.arange(5)
    result = tune(
        task,
        curvature=qexp.IdentityCurvature(5),
        projection=qexp.CoordinateMask(model.n_parameters, kept),
    )
    assert np.array_equal(result.release.weights[5:], model.weights[5:])
    assert not np.array_equal(result.release.weights[:5], model.weights[:5])


def test_rounds_work_behind_a_random_projection(task):
    model = task[0]
    projection = qexp.KroneckerSRHT(model.layer_shapes, 12, seed=0)
    result = tune(task, curvature=qexp.IdentityCurvature(12), projection=projection)
    moved = result.release.weights.astype(float) - model.weights
    basis = np.array([projection.adjoint(unit) for unit in np.eye(12)])
    inside = np.linalg.lstsq(basis.T, moved, rcond=None)[0] @ basis
    np.testing.assert_allclose(inside, moved, atol=1e-5)
    assert np.abs(moved).max() > 1e-3


def test_reports_carry_released_numbers(task):
    reports = []
    result = tune(task, on_round=reports.append)
    assert [report.round for report in reports] == [1, 2, 3]
    assert np.array_equal(reports[-1].model.weights, result.release.weights)
    assert reports[-1].mu_so_far == result.release.mu
    assert [dict(n)["noise_to_signal"] for n in result.history] == [
        report.noise_to_signal for report in reports
    ]
    assert result.release.noise_to_signal == reports[-1].noise_to_signal


# With the larger one the expected losses overflow as well, which must not lose a paid round.
@pytest.mark.parametrize("step_size", [1e60, 1e250])
def test_a_step_out_of_range_ends_the_job_with_the_weights_before_it(task, step_size):
    seen = []
    with np.errstate(over="ignore"):
        result = tune(
            task, plan(3, step_size=step_size), on_round=lambda report: seen.append(report.round)
        )
    assert result.stopped_because == "diverged"
    assert result.rounds_done == 1
    assert np.array_equal(result.release.weights, task[0].weights)
    # That it diverged here is an outcome, too: the whole job's privacy is claimed.
    assert result.release.epsilon == 2.0
    assert result.release.mu == pytest.approx(qexp.calibrate_mu(2.0, 1e-5), rel=1e-6)
    assert result.release.certificate()["mu_drawn"] == result.history[0]["mu"]


class Foreign:
    """A model of another library: three methods, dense rows, float64 weights."""

    def __init__(self, weights):
        self.weights = weights

    def with_weights(self, weights):
        return Foreign(np.asarray(weights))

    def gradient_blocks(self, X, y):
        return qexp.ArrayRecords((X @ self.weights - y)[:, None] * X)


def test_any_object_with_three_methods_is_a_model(task):
    X = task[1].astype(np.float64)
    result = fine_tune(
        Foreign(np.zeros(6)),
        X,
        X @ np.arange(6.0),
        schedule=plan(10, step_size=0.3, clipping_norm=30.0),
        curvature=qexp.IdentityCurvature(6),
        target_epsilon=20.0,
        target_delta=1e-5,
        rng=insecure_test_generator(0),
    )
    assert isinstance(result.model, Foreign)
    assert result.release.weights.dtype == np.float64
    assert np.abs(result.model.weights - np.arange(6.0)).max() < 0.5


def test_values_of_records_raise_nothing(task):
    model, X, y, curvature = task
    bad_X, bad_y = X.copy(), y.copy()
    bad_X[3], bad_X[7, 2], bad_y[11] = np.nan, np.inf, 99
    kept = np.ones(len(X), dtype=bool)
    kept[[3, 7, 11]] = False
    nulled = tune((model, bad_X, bad_y, curvature), plan(1))
    bad_X[~kept] = np.nan
    assert np.array_equal(
        nulled.release.weights, tune((model, bad_X, bad_y, curvature), plan(1)).release.weights
    )


def nulled_by(task, record):
    model, X, y, curvature = task
    nulled = X.copy()
    nulled[record] = np.nan
    return tune((model, nulled, y, curvature), plan(1)).release.weights


@pytest.mark.parametrize("kind", bad_records.ROWS)
def test_a_bad_row_of_a_list_is_a_null_record(task, kind):
    model, X, y, curvature = task
    rows = X.tolist()
    rows[7] = bad_records.ROWS[kind](rows[7])
    bad = tune((model, rows, y.tolist(), curvature), plan(1)).release.weights
    assert np.array_equal(bad, nulled_by(task, 7))


@pytest.mark.parametrize("kind", bad_records.LABELS)
def test_a_bad_label_of_a_list_is_a_null_record(task, kind):
    model, X, y, curvature = task
    labels = y.tolist()
    labels[7] = bad_records.LABELS[kind]
    bad = tune((model, X.tolist(), labels, curvature), plan(1)).release.weights
    assert np.array_equal(bad, nulled_by(task, 7))


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"clipping_norm": -1.0}, "clipping_norm is -1"),
        ({"step_size": math.nan}, "step_size is nan"),
        ({"damping": 0.0}, "damping is 0"),
        ({"momentum": 1.0}, r"momentum is 1.0; it needs a number in \[0, 1\)"),
        ({"averaging": 1.5}, r"averaging is 1.5; it needs a share in \[0, 1\]"),
        ({"budget": (1.0, 2.0)}, "budget has 2 share"),
        ({"budget": (1.0, 0.0, 1.0)}, "a share of budget is 0"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_arguments_that_make_no_sense_are_refused(task):
    with pytest.raises(TypeError, match="schedule is a int"):
        tune(task, 3)
    with pytest.raises(ValueError, match="refresh_curvature needs a curvature that is a function"):
        tune(task, plan(refresh_curvature=True))
    with pytest.raises(ValueError, match="curvature has dimension 5"):
        tune(task, curvature=qexp.IdentityCurvature(5))
    with pytest.raises(ValueError, match="shrinkage is 'always'"):
        tune(task, shrinkage="always")
    with pytest.raises(ValueError, match="add_or_remove_one"):
        tune(task, neighboring_relation="add_or_remove_one")
    with pytest.raises(TypeError, match="refresh_curvature is 1"):
        plan(refresh_curvature=1)
    with pytest.raises(ValueError, match=r"lattice overflows.*a smaller target_epsilon"):
        tune(task, target_epsilon=1e300)


# -------------------------------------------------------------------------- interruptions


def at_round(function, number, error, *, after=False):
    """Wrap a function so that its call of that number raises, before or after its work."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number and not after:
            raise error
        value = function(*args, **kwargs)
        if calls == number:
            raise error
        return value

    return wrapped


PLACES = {
    "before the draw": (_job, "private_step", False),
    "after the draw": (_job, "private_step", True),
    "before the charge": (qexp.ledger.Reservation, "commit", False),
    "after the charge": (qexp.ledger.Reservation, "commit", True),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_interruption_keeps_what_was_paid_for_and_nothing_else(task, monkeypatch, place):
    iterates = []
    tune(task, on_round=lambda report: iterates.append(report.model.weights))
    owner, name, after = PLACES[place]
    monkeypatch.setattr(
        owner, name, at_round(getattr(owner, name), 2, KeyboardInterrupt(), after=after)
    )
    ledger = qexp.PrivacyLedger(**TARGET)
    with pytest.raises(FineTuneInterrupted) as caught:
        tune(task, ledger=ledger)
    result = caught.value.result
    assert result.rounds_done == len(ledger.entries) == (2 if place == "after the charge" else 1)
    assert result.stopped_because == "interrupted"
    # Whoever interrupts it may have looked at the rounds' outcomes.
    assert result.release.epsilon == 2.0
    assert result.release.mu == pytest.approx(qexp.calibrate_mu(2.0, 1e-5), rel=1e-6)
    certificate = result.release.certificate()
    assert certificate["mu_drawn"] == ledger.mu_spent < result.release.mu
    assert len(certificate["event"]["events"]) == 3
    assert len(certificate["lattices"]) == result.rounds_done
    assert np.array_equal(result.release.weights, iterates[result.rounds_done - 1])
    assert isinstance(caught.value, KeyboardInterrupt)


def test_an_interruption_before_anything_was_paid_for_is_a_plain_one(task, monkeypatch):
    monkeypatch.setattr(_job, "private_step", at_round(_job.private_step, 1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt) as caught:
        tune(task)
    assert not isinstance(caught.value, FineTuneInterrupted)


def test_an_interruption_between_rounds_works_without_a_ledger(task):
    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(FineTuneInterrupted, match="after 1 round") as caught:
        tune(task, on_round=stop)
    assert caught.value.result.rounds_done == 1


def test_what_was_paid_for_comes_with_an_error_of_on_round(task):
    def full(report):
        if report.round == 2:
            raise OSError(28, "No space left on device")

    ledger = qexp.PrivacyLedger(**TARGET)
    with pytest.raises(OSError, match="No space left") as caught:
        tune(task, ledger=ledger, on_round=full)
    result = caught.value.result
    assert result.rounds_done == len(ledger.entries) == 2
    assert np.isfinite(result.release.weights).all()
    assert "2 round(s) of the fine-tuning are paid for" in caught.value.__notes__[0]


def test_an_error_before_anything_was_paid_for_has_no_result(task, monkeypatch):
    monkeypatch.setattr(_job, "private_step", at_round(_job.private_step, 1, OSError("early")))
    with pytest.raises(OSError, match="early") as caught:
        tune(task)
    assert not hasattr(caught.value, "result")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"on_round": "log"}, TypeError, "on_round is a str; it needs None or a function"),
        ({"ledger": "x"}, TypeError, "ledger is a str; it needs to be None or a qexp.Privacy"),
        ({"projection": "x"}, TypeError, "projection is a str; it needs to be None or a proj"),
        ({"curvature": None}, TypeError, "curvature is a NoneType; it needs to be a curvature"),
        ({"curvature": "kronecker"}, TypeError, "curvature is a str; it needs to be"),
        ({"curvature": lambda model: None}, TypeError, "curvature is a NoneType; it needs to"),
        (
            {"curvature": qexp.IdentityCurvature},
            TypeError,
            "curvature is the class IdentityCurvature; it needs to be a curvature such as",
        ),
        ({"target_epsilon": None}, TypeError, "epsilon must be a real number"),
        ({"target_delta": "small"}, TypeError, "delta must be a real number"),
        (
            {"max_records_per_user": 1},
            ValueError,
            "max_records_per_user is 1 without groups; say whose each record is, or leave it out",
        ),
    ],
)
def test_public_arguments_of_another_kind_are_found_before_a_draw(task, changes, kind, words):
    ledger = qexp.PrivacyLedger(**TARGET)
    with pytest.raises(kind, match=words):
        tune(task, **{"ledger": ledger, **changes})
    assert len(ledger.entries) == 0


@pytest.mark.parametrize("model", [None, np.zeros(3), "mlp"])
def test_what_is_no_model_is_told(task, model):
    with pytest.raises(TypeError, match=r"model is a \w+ without .*; it needs to be one of qexp"):
        tune((model, *task[1:]))


# ------------------------------------------------------------------- checkpoints and crashes


class Crash(BaseException):
    """Stands for the end of the process: nothing in memory survives it."""


class Owner:
    """Somebody who keeps a ledger on disk, and runs the job again until it is done."""

    def __init__(self, folder, schedule):
        self.ledger_path, self.checkpoint = folder / "ledger.json", folder / "job.npz"
        self.schedule = schedule
        self.published = []
        qexp.PrivacyLedger(**TARGET).save(self.ledger_path)

    def start(self, task):
        ledger = qexp.PrivacyLedger.load(self.ledger_path)

        def on_round(report):
            ledger.save(self.ledger_path)
            self.published.append((report.round, report.model.weights.tobytes()))

        result = tune(
            task, self.schedule, ledger=ledger, checkpoint=self.checkpoint, on_round=on_round
        )
        ledger.save(self.ledger_path)
        return result

    def labels(self):
        return [entry.label for entry in qexp.PrivacyLedger.load(self.ledger_path).entries]


CRASHES = {
    **PLACES,
    "before the save": (_job, "save_state", False),
    "after the save": (_job, "save_state", True),
    "before the file is replaced": (qexp._files.os, "replace", False),
    "after the file was replaced": (qexp._files.os, "replace", True),
    "before the ledger is saved": (qexp.PrivacyLedger, "save", False),
    "after the ledger was saved": (qexp.PrivacyLedger, "save", True),
    "while the checkpoint is read": (_job, "load_state", True),
    "while the curvature is checked": (_job, "check_dimensions", True),
}
FULL = {"momentum": 0.5, "averaging": 0.5}
# Both make four draws.
SCHEDULES = {"public": plan(4, **FULL), "private": plan(3, curvature_share=0.2, **FULL)}


@pytest.fixture(scope="module", params=SCHEDULES)
def uninterrupted(task, request):
    result = tune(task, SCHEDULES[request.param])
    return SCHEDULES[request.param], result


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("place", CRASHES)
def test_a_job_that_crashed_anywhere_ends_as_if_it_had_not(
    task, uninterrupted, tmp_path, place, number
):
    schedule, uninterrupted = uninterrupted
    owner = Owner(tmp_path, schedule)
    owns, name, after = CRASHES[place]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owns, name, at_round(getattr(owns, name), number, Crash(), after=after))
        try:
            owner.start(task)
        except Crash:
            # Whatever was published stands in the ledger on disk, or in the checkpoint.
            assert len(owner.labels()) >= len(owner.published)
    result = owner.start(task)
    assert np.array_equal(result.release.weights, uninterrupted.release.weights)
    assert result.history == uninterrupted.history
    assert result.release.mu == uninterrupted.release.mu
    labels = owner.labels()
    assert len(labels) == len(set(labels)) == 4
    assert qexp.PrivacyLedger.load(owner.ledger_path).mu_spent == result.release.mu
    assert len(dict(owner.published)) == len(set(owner.published)), "a round was published twice"


@pytest.mark.parametrize("seed", range(4))
def test_a_job_that_crashes_again_and_again_is_paid_for_once(task, uninterrupted, tmp_path, seed):
    chance = np.random.default_rng(seed)
    schedule, uninterrupted = uninterrupted
    owner = Owner(tmp_path, schedule)
    for _ in range(12):
        owns, name, after = CRASHES[list(CRASHES)[chance.integers(len(CRASHES))]]
        broken = at_round(getattr(owns, name), chance.integers(1, 4), Crash(), after=after)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owns, name, broken)
            try:
                owner.start(task)
            except Crash:
                continue
    result = owner.start(task)
    assert np.array_equal(result.release.weights, uninterrupted.release.weights)
    assert len(owner.labels()) == len(set(owner.labels())) == 4
    assert len(dict(owner.published)) == len(set(owner.published))


CHILD = """
import os, sys
import numpy as np
import qexp
from qexp import finetune
from qexp.bits import insecure_test_generator
from qexp.finetune import _job

checkpoint, ledger_path, rounds, dies_at, number = sys.argv[1:]
generator = np.random.default_rng(0)
X = generator.normal(size=(300, 6)).astype(np.float32)
y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)
model = qexp.models.mlp((6, 4, 2), seed=1)
curvature = qexp.KroneckerCurvature.from_model(model, X[:100], damping=1e-2)
ledger = (
    qexp.PrivacyLedger.load(ledger_path)
    if os.path.exists(ledger_path)
    else qexp.PrivacyLedger(target_epsilon=2.0, target_delta=1e-5)
)
owners = {"private_step": _job, "save_state": _job, "commit": qexp.ledger.Reservation}
if dies_at != "never":
    calls = 0
    function = getattr(owners[dies_at], dies_at)

    def dying(*args, **kwargs):
        global calls
        calls += 1
        value = function(*args, **kwargs)
        if calls == int(number):
            os._exit(9)
        return value

    setattr(owners[dies_at], dies_at, dying)
print("ready", flush=True)
finetune.fine_tune(
    model, X, y,
    schedule=finetune.Schedule(
        rounds=int(rounds), clipping_norm=3.0, step_size=0.5, damping=1e-2,
        momentum=0.5, averaging=0.5,
    ),
    curvature=curvature, target_epsilon=2.0, target_delta=1e-5,
    rng=insecure_test_generator(5), checkpoint=checkpoint, ledger=ledger,
    on_round=lambda report: ledger.save(ledger_path),
)
ledger.save(ledger_path)
"""


def child(folder, rounds, dies_at="never", number=0):
    arguments = [folder / "job.npz", folder / "ledger.json", rounds, dies_at, number]
    return subprocess.Popen(
        [sys.executable, "-c", "import qexp.models\n" + CHILD, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def require_whole(task, folder, rounds):
    """Take up what the children left, and compare it with a job that nothing stopped."""
    expected = tune(task, plan(rounds, **FULL))
    path = folder / "ledger.json"
    ledger = qexp.PrivacyLedger.load(path) if path.exists() else qexp.PrivacyLedger(**TARGET)
    result = tune(task, plan(rounds, **FULL), ledger=ledger, checkpoint=folder / "job.npz")
    assert np.array_equal(result.release.weights, expected.release.weights)
    assert ledger.mu_spent == result.release.mu == expected.release.mu
    assert len({entry.label for entry in ledger.entries}) == len(ledger.entries) == rounds


@pytest.mark.parametrize("dies_at", ["private_step", "save_state", "commit"])
def test_a_process_that_ends_at_once_loses_nothing(task, tmp_path, dies_at):
    with child(tmp_path, 4, dies_at, 3) as process:
        process.communicate()
    assert process.returncode == 9
    require_whole(task, tmp_path, 4)


def test_a_process_killed_at_any_moment_loses_nothing(task, tmp_path):
    chance = np.random.default_rng(0)
    rounds = 60
    for _ in range(3):
        with child(tmp_path, rounds) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
    require_whole(task, tmp_path, rounds)


def test_nothing_is_left_of_a_draw_that_was_never_paid_for(task, tmp_path):
    path, replaced = tmp_path / "job.npz", os.replace
    ledger = qexp.PrivacyLedger(**TARGET)

    def killed(*paths):
        killed.calls += 1
        if killed.calls == 3:  # The first checkpoint has no round yet.
            os._exit(9)
        replaced(*paths)

    killed.calls = 0
    process = os.fork()
    if process == 0:
        os.replace = killed
        tune(task, plan(4, **FULL), checkpoint=path)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    (left,) = tmp_path.glob(".qexp-*")
    assert json.loads(np.load(left)["state"].tobytes())["rounds_done"] == 2
    assert json.loads(np.load(path)["state"].tobytes())["rounds_done"] == 1
    tune(task, plan(4, **FULL), ledger=ledger, checkpoint=path)
    assert not list(tmp_path.glob(".qexp-*"))
    assert len(ledger.entries) == 4


# -------------------------------------------------------------------- checkpoints, otherwise


def stopped_after(rounds_done):
    def stop(report):
        if report.round == rounds_done:
            raise KeyboardInterrupt

    return stop


def test_a_finished_job_gives_its_result_again_for_nothing(task, tmp_path, monkeypatch):
    ledger = qexp.PrivacyLedger(**TARGET)
    first = tune(task, checkpoint=tmp_path / "job.npz", ledger=ledger)
    monkeypatch.delattr(_job, "private_step")
    again = tune(task, checkpoint=tmp_path / "job.npz", ledger=ledger)
    assert again.stopped_because == "finished"
    assert np.array_equal(again.release.weights, first.release.weights)
    assert len(ledger.entries) == 3


def test_a_new_ledger_is_charged_for_the_rounds_in_the_checkpoint(task, tmp_path):
    tune(task, checkpoint=tmp_path / "job.npz")
    ledger = qexp.PrivacyLedger(**TARGET)
    result = tune(task, checkpoint=tmp_path / "job.npz", ledger=ledger)
    assert ledger.mu_spent == result.release.mu
    small = qexp.PrivacyLedger(mu_budget=result.release.mu / 2)
    with pytest.raises(qexp.BudgetExceededError, match="the checkpoint holds round 1, for which"):
        tune(task, checkpoint=tmp_path / "job.npz", ledger=small)


def test_an_interruption_while_the_ledger_catches_up_releases_nothing(task, tmp_path, monkeypatch):
    tune(task, checkpoint=tmp_path / "job.npz")
    ledger = qexp.PrivacyLedger(**TARGET)
    with monkeypatch.context() as patch:
        charge = at_round(qexp.PrivacyLedger.charge, 2, KeyboardInterrupt())
        patch.setattr(qexp.PrivacyLedger, "charge", charge)
        with pytest.raises(KeyboardInterrupt) as caught:
            tune(task, checkpoint=tmp_path / "job.npz", ledger=ledger)
    assert not isinstance(caught.value, FineTuneInterrupted)
    assert len(ledger.entries) == 1
    tune(task, checkpoint=tmp_path / "job.npz", ledger=ledger)
    assert len(ledger.entries) == 3


def test_an_older_copy_of_a_checkpoint_is_refused(task, tmp_path):
    path, ledger = tmp_path / "job.npz", qexp.PrivacyLedger(**TARGET)
    with pytest.raises(FineTuneInterrupted):
        tune(task, checkpoint=path, ledger=ledger, on_round=stopped_after(1))
    old = path.read_bytes()
    tune(task, checkpoint=path, ledger=ledger)
    path.write_bytes(old)
    with pytest.raises(ValueError, match=r"ends with round 1, but .* round 2 .* an older copy"):
        tune(task, checkpoint=path, ledger=ledger)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schedule": plan(4)}, "schedule"),
        ({"target_epsilon": 3.0}, "target_epsilon"),
        ({"target_delta": 1e-6}, "target_delta"),
        ({"neighboring_relation": "replace_one"}, "neighboring_relation"),
        ({"rng": None}, "rng"),
        ({"shrinkage": "last"}, "shrinkage"),
        ({"curvature": qexp.IdentityCurvature(38)}, "curvature"),
    ],
)
def test_a_checkpoint_of_another_job_is_refused(task, tmp_path, changes, named):
    tune(task, checkpoint=tmp_path / "job.npz")
    with pytest.raises(ValueError, match=f"of another job: it differs in {named}\\."):
        tune(task, checkpoint=tmp_path / "job.npz", **changes)


def test_a_checkpoint_of_another_model_or_number_of_records_is_refused(task, tmp_path):
    model, X, y, curvature = task
    tune(task, checkpoint=tmp_path / "job.npz")
    other = model.with_weights(model.weights + 1)
    with pytest.raises(ValueError, match="differs in pretrained"):
        tune((other, X, y, curvature), checkpoint=tmp_path / "job.npz")
    relu = mlp((6, 4, 2), activation="relu").with_weights(model.weights)
    with pytest.raises(ValueError, match="differs in model"):
        tune((relu, X, y, curvature), checkpoint=tmp_path / "job.npz")
    with pytest.raises(ValueError, match="differs in n_records"):
        tune((model, X[1:], y[1:], curvature), checkpoint=tmp_path / "job.npz")


def test_a_damaged_checkpoint_is_refused(task, tmp_path):
    path = tmp_path / "job.npz"
    tune(task, checkpoint=path)
    with np.load(path) as archive:
        number = archive["weights"][5].tobytes()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(number, number[::-1]))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        tune(task, checkpoint=path)
    path.write_bytes(whole.replace(b"weights", b"weightz"))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        tune(task, checkpoint=path)
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        tune(task, checkpoint=path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        tune(task, checkpoint=path)
    np.savez(path, state=np.frombuffer(b"{}", dtype=np.uint8))
    with pytest.raises(ValueError, match="not a checkpoint of a fine-tuning"):
        tune(task, checkpoint=path)
    np.savez(path, state=np.arange(3))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        tune(task, checkpoint=path)


def rewrite(path, **changes):
    """Change entries of the state in a checkpoint; None takes one away."""
    with np.load(path) as archive:
        arrays = dict(archive)
    state = {**json.loads(arrays.pop("state").tobytes()), **changes}
    state = {name: value for name, value in state.items() if value is not None}
    np.savez(path, state=np.frombuffer(json.dumps(state).encode(), dtype=np.uint8), **arrays)


def in_the_directory(offset, flags):
    """Set bits in the central directory of a checkpoint's archive, of every file in it."""

    def change(path):
        data = bytearray(path.read_bytes())
        places = [i for i in range(len(data)) if data.startswith(b"PK\x01\x02", i)]
        for place in places:
            data[place + offset] |= flags
        assert places
        path.write_bytes(data)

    return change


def as_a_bare_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def with_arrays(**changes):
    def change(path):
        with np.load(path) as archive:
            arrays = {**archive, **changes}
        np.savez(path, **arrays)

    return change


DAMAGES = {
    "an array": as_a_bare_array,
    "a compression that is not there": in_the_directory(10, 0x20),
    "encrypted": in_the_directory(8, 0x01),
    "deep JSON": lambda path: np.savez(path, state=np.frombuffer(b"[" * 200_000, dtype=np.uint8)),
    "integers for weights": with_arrays(weights=np.zeros(38, dtype=np.int64)),
    "a matrix of weights": with_arrays(weights=np.zeros((38, 1))),
    "an array too many": with_arrays(other=np.zeros(3)),
    "a sum of other weights": with_arrays(iterate_sum=np.zeros(3)),
    "no configuration": lambda path: rewrite(path, configuration=None),
    "a configuration of another type": lambda path: rewrite(path, configuration=[1]),
    "no name": lambda path: rewrite(path, job_id=None),
    "a number for a name": lambda path: rewrite(path, job_id=7),
    "a round too many": lambda path: rewrite(path, rounds_done=4),
    "history of another type": lambda path: rewrite(path, history=[1, 2, 3]),
    "history without numbers": lambda path: rewrite(path, history=[{}, {}, {}]),
    "iterates without a sum": lambda path: rewrite(path, iterates_summed=2),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_any_damage_of_a_checkpoint_is_called_so(task, tmp_path, damage):
    path, ledger = tmp_path / "job.npz", qexp.PrivacyLedger(**TARGET)
    tune(task, checkpoint=path)
    damage(path)
    with pytest.raises(DamagedFileError, match="restore it, or give another path") as caught:
        tune(task, checkpoint=path, ledger=ledger)
    assert str(path) in str(caught.value)
    assert exit_code(caught.value) == ExitCode.DAMAGED
    assert ledger.entries == ()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_a_checkpoint_is_refused_or_harmless(tmp_path, data):
    path, configuration = tmp_path / "flipped.npz", {"schedule": "any"}
    state = FineTuneState(job_id="0" * 16, weights=np.arange(5.0))
    save_state(path, state, configuration)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = load_state(path, configuration)
    except DamagedFileError:
        return
    # What passes is a change in a time stamp or the like.
    assert found.job_id == state.job_id
    assert np.array_equal(found.weights, state.weights)


def test_a_checkpoint_that_cannot_be_written_fails_before_the_first_draw(task, tmp_path):
    ledger = qexp.PrivacyLedger(**TARGET)
    path = tmp_path / "missing" / "job.npz"
    with pytest.raises(FileNotFoundError, match="create the folder first") as caught:
        tune(task, checkpoint=path, ledger=ledger)
    assert f"the checkpoint {str(path)!r} cannot be opened" in str(caught.value)
    assert ".lock" not in str(caught.value)
    assert ledger.entries == ()


def test_what_can_be_no_checkpoint_is_refused_and_gets_no_lock(task, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)
    for path in ("", f"{folder}/"):
        with pytest.raises(ValueError, match=r"needs the name of a file, such as 'job\.npz'"):
            tune(task, checkpoint=path)
    for path in (folder, "."):
        with pytest.raises(IsADirectoryError, match="the name of a file, not of a folder"):
            tune(task, checkpoint=path)
    with pytest.raises(OSError, match=r"a device, a pipe or a socket.*a file on a disk"):
        tune(task, checkpoint="pipe")
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "pipe"]


def test_a_round_that_could_not_be_saved_costs_nothing(task, tmp_path, monkeypatch):
    ledger, reports = qexp.PrivacyLedger(**TARGET), []
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(_job, "save_state", at_round(_job.save_state, 3, full))
    with pytest.raises(OSError, match="No space left"):
        tune(task, checkpoint=tmp_path / "job.npz", ledger=ledger, on_round=reports.append)
    assert len(ledger.entries) == len(reports) == 1
    result = tune(task, checkpoint=tmp_path / "job.npz", ledger=ledger)
    assert len(ledger.entries) == 3
    assert np.array_equal(result.release.weights, tune(task).release.weights)


def test_a_checkpoint_and_what_a_kill_leaves_of_it_are_their_owners(task, tmp_path, monkeypatch):
    """Until its round is charged, a checkpoint is as private as the data."""
    path, seen, replaced = tmp_path / "job.npz", [], os.replace

    def spying(temporary, target):
        seen.append(stat.S_IMODE(os.stat(temporary).st_mode))
        replaced(temporary, target)

    monkeypatch.setattr(os, "replace", spying)
    umask = os.umask(0o022)
    try:
        tune(task, checkpoint=path)
    finally:
        os.umask(umask)
    assert seen == 4 * [0o600]
    for name in ("job.npz", "job.npz.lock"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_two_jobs_cannot_work_on_one_checkpoint(task, tmp_path):
    def start_another(report):
        tune(task, checkpoint=tmp_path / "job.npz")

    with pytest.raises(BlockingIOError, match="another fine-tuning works on the checkpoint"):
        tune(task, checkpoint=tmp_path / "job.npz", on_round=start_another)
    assert tune(task, checkpoint=tmp_path / "job.npz").stopped_because == "finished"


def test_a_checkpoint_holds_nothing_of_the_records(task, tmp_path):
    model, X, y, curvature = task
    for name in ("a", "b"):
        with pytest.raises(FineTuneInterrupted):
            tune(
                (model, X if name == "a" else X[::-1], y if name == "a" else y[::-1], curvature),
                checkpoint=tmp_path / f"{name}.npz",
                on_round=stopped_after(1),
            )
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert set(a.files) == set(b.files) == {"state", "weights"}
        # The sum does not depend on the order of the records; a digest of them would.
        assert np.array_equal(a["weights"], b["weights"])
