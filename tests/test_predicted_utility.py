"""What draws are predicted to lose, and how the experiment measures what they do lose."""

from dataclasses import asdict

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from small_task import small_task

from experiments import predicted_utility
from experiments.study.results import Store
from experiments.tasks import CREDENTIALED, TASKS
from qexp import Schedule
from qexp.subspace import DAMPING, learn_directions

SCHEDULE = Schedule(rounds=4, clipping_norm=0.5, step_size=0.7, damping=0.05)


@pytest.fixture
def store(tmp_path, monkeypatch):
    made = Store(tmp_path)
    monkeypatch.setattr(predicted_utility, "TASKS", {"small": small_task})
    monkeypatch.setattr(predicted_utility, "Store", lambda: made)
    monkeypatch.setattr(predicted_utility, "directions", directions)
    predicted_utility._made.cache_clear()
    yield made
    predicted_utility._made.cache_clear()


def directions(task):
    moves = [lambda X, y, rng, by=by: (X + np.float32(by), y) for by in (0.5, 1.0, 1.5)]
    return learn_directions(task.model, *task.public_records(), moves=moves)


def undamped(task):
    """Give H as a matrix, layer by layer the product of the factors' second moments."""
    source = task.model.curvature_blocks(task.public_records()[0], labels="sampled", seed=0)
    sums = [(np.zeros((out, out)), np.zeros((inp, inp))) for out, inp in source.layer_shapes]
    for factors in source.factor_blocks():
        for (inputs, deltas), (of_b, of_a) in zip(factors, sums, strict=True):
            of_b += deltas.T.astype(float) @ deltas / source.n_records
            of_a += inputs.T.astype(float) @ inputs / source.n_records
    blocks = [np.kron(of_b, of_a) for of_b, of_a in sums]
    h = np.zeros((task.model.n_parameters,) * 2)
    place = 0
    for block in blocks:
        end = place + len(block)
        h[place:end, place:end] = block
        place = end
    return h


@pytest.mark.parametrize("subspace", [None, 5])
def test_the_mean_loss_of_a_noise_is_that_of_the_undamped_quadratic(monkeypatch, subspace):
    monkeypatch.setattr(predicted_utility, "directions", directions)
    task = small_task(0)
    model = predicted_utility._Quadratic(task, DAMPING, subspace)
    noise = np.random.default_rng(1).normal(size=model.curvature.n_components)
    u = model.projection.adjoint(model.curvature.unwhiten(noise))
    assert model.mean_loss(noise) == pytest.approx(u @ undamped(task) @ u / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "rounds", "subspace"),
    [("one_round", 1, None), ("subspace", 1, 6), ("first_round", 4, None), ("first_round", 4, 5)],
)
def test_draws_lose_what_is_predicted(store, monkeypatch, kind, rounds, subspace):
    monkeypatch.setattr(predicted_utility, "_DIRECTIONS", 6)
    settings = asdict(SCHEDULE) | ({} if subspace is None else {"subspace": subspace})
    store.add(
        [
            {"task": "small", "method": "qexp", "epsilon": 1.0, "delta": 1e-5, "seed": 0}
            | {"hyperparameters": settings}
        ]
    )
    found = predicted_utility.measured("small", kind, 1.0, 1e-5, 400)
    assert (found["rounds"], found["subspace"]) == (rounds, subspace)
    for loss in (found["utility"], found["mean_loss"]):
        # Three times the half-width, and what "nearly" leaves of a subspace's curvature.
        most = 3 * loss["half_width"] / loss["predicted"] + (0.0 if subspace is None else 0.05)
        assert abs(loss["ratio"] - 1) < most < 0.5
        assert loss["ratio"] == loss["realised"] / loss["predicted"]


def test_a_first_round_has_its_share_of_the_budget(store):
    for t, budget in enumerate((None, [3.0, 1.0, 1.0, 1.0])):
        line = {"task": "small", "method": "qexp", "epsilon": float(t + 1), "delta": 1e-5}
        settings = {**asdict(SCHEDULE), "budget": budget}
        store.add([{**line, "seed": 0, "hyperparameters": settings}])
    even, first = (
        predicted_utility.measured("small", "first_round", epsilon, 1e-5, 2)["utility"]["predicted"]
        / predicted_utility.calibrate_mu(epsilon, 1e-5) ** -2
        for epsilon in (1.0, 2.0)
    )
    assert even / first == pytest.approx(2.0, rel=1e-5)  # shares of 1/4 and 1/2


def test_no_two_draws_share_a_seed():
    each = [
        seed
        for cell in predicted_utility.MEASUREMENT.cells
        for seed in predicted_utility.seeds(cell["task"], cell["kind"], cell["draws"])
    ]
    assert len(set(each)) == len(each)
    assert 0 not in each  # that of the sum without noise
    assert {cell["task"] for cell in predicted_utility.MEASUREMENT.cells} == set(
        TASKS
    ) - CREDENTIALED


def test_without_a_plan_there_is_no_first_round(store):
    with pytest.raises(ValueError, match="the study has no qexp for small at epsilon = 1"):
        predicted_utility.measured("small", "first_round", 1.0, 1e-5, 2)


def test_a_line_is_a_row_and_a_point(store, tmp_path):
    cell = {"task": "small", "kind": "one_round", "epsilon": 1.0, "delta": 1e-5, "draws": 3}
    lines = [{**cell, **predicted_utility.measured(**cell)}]
    [table] = predicted_utility._tables(lines).values()
    assert table.splitlines()[-1].startswith("| small | one round | 51 |")
    predicted_utility._figure(lines, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
