"""The study's runner and report: what is kept, what is left to do, what is concluded."""

import json
import math
import queue
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("matplotlib")
pytest.importorskip("dp_accounting")

# Appended, so that qexp comes from where it is installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from experiments.study import cells, report, runner
from experiments.study.cells import Cell, run_planned
from experiments.study.methods import METHODS, NO_BUDGET
from experiments.study.results import Store
from experiments.tasks import Task
from qexp.finetune import Schedule
from qexp.models import mlp
from qexp.rivals import GradientDescentSettings

SCHEDULE = Schedule(rounds=2, clipping_norm=3.0, step_size=0.3, damping=0.1).describe()
KEYS = {
    "task",
    "method",
    "epsilon",
    "delta",
    "mu",
    "relation",
    "seed",
    "metric",
    "value",
    "measures",
    "before",
    "non_private",
    "rounds",
    "seconds",
    "cpu_seconds",
    "peak_mib",
    "hyperparameters",
    "chosen_on",
}


def small_task(seed):
    rng = np.random.default_rng(0)

    def domain(n, shift):
        y = rng.integers(0, 3, n)
        centres = 3 * np.eye(3, 4) + shift
        return (centres[y] + rng.normal(size=(n, 4))).astype(np.float32), y.astype(np.uint8)

    X, y = domain(400, 0.0)
    X_private, y_private = domain(300, [0, 1, 0, 1])
    X_test, y_test = domain(200, [0, 1, 0, 1])
    return Task(
        name="small",
        model=mlp((4, 6, 3), seed=seed).fit(X[:200], y[:200], epochs=5),
        X_public=X[:200],
        y_public=y[:200],
        X_held_out=X[200:],
        y_held_out=y[200:],
        X_private=X_private,
        y_private=y_private,
        X_test=X_test,
        y_test=y_test,
        surrogate="tabular",
    )


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cells, "TASKS", {"small": small_task})
    cells._task.cache_clear()
    yield
    cells._task.cache_clear()


def line(task="a", method="qexp", epsilon=1.0, seed=0, value=0.5, **changes):
    made = dict.fromkeys(KEYS)
    made.update(task=task, method=method, epsilon=epsilon, delta=1e-5, seed=seed, value=value)
    made.update(metric="accuracy", seconds=1.0, hyperparameters=SCHEDULE)
    return {**made, **changes}


# ---------------------------------------------------------------------------------- one cell


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("qexp", SCHEDULE),
        ("dp_gd", json.loads(json.dumps(vars(GradientDescentSettings())))),
        ("public_only", {}),
    ],
)
def test_a_cell_gives_a_line_that_json_holds(small, method, settings):
    made = run_planned(Cell("small", method, 1.0, 1e-5, 0), settings)
    assert set(made) == KEYS
    assert json.loads(json.dumps(made)) == made
    assert 0 <= made["value"] <= 1
    again = run_planned(Cell("small", method, 1.0, 1e-5, 0), settings)
    assert again["value"] == made["value"]


def test_settings_survive_json_for_every_method():
    from experiments.study.methods import _settings
    from qexp.rivals import METHODS as RIVALS

    for method in RIVALS.values():
        for candidate in method.candidates()[:3]:
            values = json.loads(json.dumps(vars(candidate)))
            assert _settings(method.settings_type, values) == candidate


def test_planning_gives_settings_that_json_holds(small):
    settings = cells.plan_settings("small", "qexp_one_round", 4.0, 1e-5, "quick")
    assert Schedule(**json.loads(json.dumps(settings))).rounds == 1


# ------------------------------------------------------------------------------ what is kept


def test_a_cell_stands_once_and_lines_are_sorted(tmp_path):
    store = Store(tmp_path)
    store.add([line(seed=1), line(seed=0), line(seed=1, value=0.7), line(epsilon=None)])
    lines = store.lines("a", "qexp")
    assert [(made["epsilon"], made["seed"]) for made in lines] == [(1.0, 0), (1.0, 1), (None, 0)]
    assert lines[1]["value"] == 0.7
    assert store.all_lines() == lines
    assert store.lines("a", "other") == []


def test_what_is_there_is_not_run_again(tmp_path):
    store = Store(tmp_path)
    store.add([line(task="small", seed=0), line(task="small", seed=2)])
    missing = list(
        runner._missing(
            ["small"], ["qexp", "public_only"], [1.0, 4.0], 1e-5, (0, 1, 2), "quick", store
        )
    )
    assert [(group.method, [(b.epsilon, b.seeds) for b in group.budgets]) for group in missing] == [
        ("qexp", [(1.0, (1,)), (4.0, (0, 1, 2))]),
        ("public_only", [(NO_BUDGET, (0, 1, 2))]),
    ]
    # What was planned for a cell serves the others of its budget.
    assert missing[0].budgets[0].settings == SCHEDULE
    assert missing[0].budgets[1].settings is None


def test_a_stopped_group_keeps_its_cells_and_goes_on(small, tmp_path, monkeypatch):
    store, done = Store(tmp_path), queue.Queue()

    def groups():
        return list(runner._missing(["small"], ["qexp"], [1.0, 2.0], 1e-5, (0, 1), "quick", store))

    monkeypatch.setattr(runner, "plan_settings", lambda *_: SCHEDULE)
    stops = iter([None, None, KeyboardInterrupt()])
    real = runner.run_planned

    def stopped(*arguments):
        if (stop := next(stops)) is not None:
            raise stop
        return real(*arguments)

    monkeypatch.setattr(runner, "run_planned", stopped)
    with pytest.raises(KeyboardInterrupt):
        runner._run(groups()[0], store, done)
    assert done.qsize() == len(store.lines("small", "qexp")) == 2
    monkeypatch.setattr(runner, "run_planned", real)
    monkeypatch.setattr(runner, "plan_settings", lambda *_: pytest.fail("planned again"))
    runner._run(groups()[0], store, done)
    assert len(store.lines("small", "qexp")) == 4
    assert groups() == []


# -------------------------------------------------------------------------- what is concluded


def test_summaries_are_means_with_students_intervals():
    values = [0.5, 0.6, 0.8]
    [made] = report.summaries([line(seed=i, value=v) for i, v in enumerate(values)])
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert made.mean == pytest.approx(np.mean(values))
    assert made.half_width == pytest.approx((high - low) / 2)
    assert made.seeds == 3
    [alone] = report.summaries([line()])
    assert math.isinf(alone.half_width)


def test_the_report_tells_wins_ties_and_losses(tmp_path):
    def seeds(task, method, epsilon, mean):
        return [
            line(task=task, method=method, epsilon=epsilon, seed=i, value=mean + (i - 1) / 1000)
            for i in range(3)
        ]

    store = Store(tmp_path / "results")
    store.add(seeds("won", "qexp", 1.0, 0.9) + seeds("won", "dp_gd", 1.0, 0.8))
    store.add(seeds("tied", "qexp", 1.0, 0.9) + seeds("tied", "dp_gd", 1.0, 0.901))
    store.add(seeds("lost", "qexp", 1.0, 0.7) + seeds("lost", "dp_sgd", 1.0, 0.8))
    store.add(seeds("lost", "qexp", 0.1, 0.1) + seeds("lost", "dp_sgd", 0.1, 0.8))
    store.add(seeds("won", "non_private", None, 0.95))
    written = report.write(store, tmp_path / "docs")
    page = written[0].read_text("utf-8")
    assert "1 won, 1 tied (the difference is within its interval), 1 lost" in page
    assert "| lost | 1 | 70.0 | dp_sgd, 80.0 |" in page
    assert "| tied | 1 | 90.0 | dp_gd, 90.1 |" in page
    assert "without privacy 95.0" in page
    assert all(path.stat().st_size > 0 for path in written)
    # The others have one budget, which makes no curve.
    assert [path.name for path in written[1:]] == ["study-lost.png"]
    assert page.count("](figures/") == 1


def test_every_method_has_a_name_that_the_command_takes():
    assert set(METHODS) >= {"qexp", "dp_sgd", "dp_gd", "adamix", "sparta", "non_private"}
