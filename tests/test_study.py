"""The study's runner and report: what is kept, what is left to do, what is concluded."""

import json
import math
import multiprocessing
import queue
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("matplotlib")
pytest.importorskip("dp_accounting")

from experiments import __main__ as command_line
from experiments import everything, fine_tuning, public_moves
from experiments.lines import Lines
from experiments.study import (
    cells,
    drops,
    methods,
    reasons,
    repeat,
    report,
    results,
    runner,
    sampling,
    summaries,
)
from experiments.study.cells import Cell, run_planned
from experiments.study.methods import METHODS, NO_BUDGET
from experiments.study.results import Store
from experiments.study.verdicts import verdicts
from experiments.tasks import TASKS, Task
from qexp import CoordinateMask
from qexp.finetune import Schedule
from qexp.measures import area_under_roc
from qexp.models import mlp
from qexp.rivals import GradientDescentSettings

GD = json.loads(json.dumps(vars(GradientDescentSettings())))
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
    cells.task_at.cache_clear()
    yield
    cells.task_at.cache_clear()


def line(task="a", method="qexp", epsilon=1.0, seed=0, value=0.5, **changes):
    made = dict.fromkeys(KEYS)
    made.update(task=task, method=method, epsilon=epsilon, delta=1e-5, seed=seed, value=value)
    made.update(metric="accuracy", before=0.4, seconds=1.0, hyperparameters=SCHEDULE)
    return {**made, **changes}


# ---------------------------------------------------------------------------------- one cell


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("qexp", SCHEDULE),
        ("dp_gd", GD),
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


def test_lines_are_repeated_to_the_last_digit(small, tmp_path, monkeypatch, capsys):
    store = Store(tmp_path)
    for method, settings in (("qexp", SCHEDULE), ("dp_gd", GD), ("public_only", {})):
        store.add([run_planned(Cell("small", method, 2.0, 1e-5, s), settings) for s in (0, 1)])
    monkeypatch.setattr(results, "Store", lambda: store)
    command_line.again(["--lines", "4"])
    assert "4 of 4 are the same" in capsys.readouterr().out
    [wrong, *_] = store.lines("small", "dp_gd")
    store.add([{**wrong, "value": wrong["value"] + 0.03}])
    with pytest.raises(SystemExit, match="some differ"):
        command_line.again(["--lines", "100", "--tolerance", "0.01"])
    assert "5 of 6 are the same; the largest difference is 0.03" in capsys.readouterr().out
    command_line.again(["--lines", "100", "--tolerance", "0.05"])
    with pytest.raises(SystemExit, match="nothing to repeat"):
        command_line.again(["--lines", "0"])


def test_lines_that_took_long_are_not_repeated():
    some = [line(seed=s, seconds=10.0 * s) for s in range(10)]
    assert {made["seed"] for made in repeat.drawn(some, 20, seconds=25.0)} == {0, 1, 2}
    assert len(repeat.drawn(some, 2, seconds=25.0)) == 2


def test_settings_survive_json_for_every_method():
    from experiments.study.methods import settings_from_json
    from qexp.rivals import METHODS as RIVALS

    for method in RIVALS.values():
        for candidate in method.candidates()[:3]:
            values = json.loads(json.dumps(vars(candidate)))
            assert settings_from_json(method.settings_type, values) == candidate


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
        ("public_only", [(NO_BUDGET, (0, 1, 2))]),
        ("qexp", [(1.0, (1,)), (4.0, (0, 1, 2))]),
    ]
    # What was planned for a cell serves the others of its budget.
    assert missing[1].budgets[0].settings == SCHEDULE
    assert missing[1].budgets[1].settings is None


def test_lines_quote_fine_tuning_without_privacy(small, tmp_path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr(runner, "plan_settings", lambda _, method, *__: {"qexp": SCHEDULE}[method])
    [group] = runner._missing(["small"], ["qexp"], [1.0], 1e-5, (0, 1), "quick", store)
    store.add([line(task="small", method="non_private", epsilon=None, seed=1, value=0.875)])
    runner._run(group, store, queue.Queue())
    assert [made["non_private"] for made in store.lines("small", "qexp")] == [None, 0.875]


def test_plans_of_two_efforts_are_not_mixed(small, tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add([line(task="small", seed=0)])
    monkeypatch.setattr(runner, "plan_settings", lambda *_: {**SCHEDULE, "rounds": 3})

    def groups(effort):
        return list(runner._missing(["small"], ["qexp"], [1.0], 1e-5, (0, 1), effort, store))

    [full] = groups("full")
    assert full.budgets[0].seeds == (0, 1)
    assert full.budgets[0].settings is None
    runner._run(full, store, queue.Queue())
    assert {made["effort"] for made in store.lines("small", "qexp")} == {"full"}
    assert {made["hyperparameters"]["rounds"] for made in store.lines("small", "qexp")} == {3}
    assert groups("full") == []
    assert groups("quick")[0].budgets[0].seeds == (0, 1)


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


def test_what_another_plan_has_run_with_the_same_settings_is_not_run_again(
    small, tmp_path, monkeypatch
):
    store, done = Store(tmp_path), queue.Queue()
    real = runner.run_planned
    alone = real(Cell("small", "qexp_full_space", 1.0, 1e-5, 0), SCHEDULE)
    store.add([{**alone, "effort": "quick"}])
    [group] = runner._missing(["small"], ["qexp"], [1.0], 1e-5, (0, 1), "quick", store)
    ran = []

    def noted(cell, settings):
        ran.append(cell.seed)
        return real(cell, settings)

    monkeypatch.setattr(runner, "plan_settings", lambda *_: SCHEDULE)
    monkeypatch.setattr(runner, "run_planned", noted)
    runner._run(group, store, done)
    assert ran == [1]
    taken, own = store.lines("small", "qexp")
    assert taken == {**alone, "method": "qexp", "effort": "quick"}
    timed = {"seconds", "cpu_seconds", "peak_mib"}
    again = real(Cell("small", "qexp", 1.0, 1e-5, 0), SCHEDULE)
    assert {**again, **{k: alone[k] for k in timed}} == {**alone, "method": "qexp"}
    assert own["seed"] == 1


# -------------------------------------------------------------------------- what is concluded


def test_summaries_are_means_with_students_intervals():
    values = [0.5, 0.6, 0.8]
    [made] = summaries.summarise([line(seed=i, value=v) for i, v in enumerate(values)])
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert made.mean == pytest.approx(np.mean(values))
    assert made.half_width == pytest.approx((high - low) / 2)
    assert made.seeds == 3
    [alone] = summaries.summarise([line()])
    assert math.isinf(alone.half_width)


def seeds(task, method, epsilon, mean, spread=0.001, jitter=0.0, n=3):
    """Values that spread by seed alike for all methods, and by the method's own jitter."""
    return [
        line(
            task=task,
            method=method,
            epsilon=epsilon,
            seed=i,
            value=mean + spread * (i - (n - 1) / 2) + jitter * (-1) ** i,
        )
        for i in range(n)
    ]


def section(page, title):
    return page.split(f"## {title}")[1].split("\n## ")[0]


def test_the_report_tells_wins_ties_and_losses(tmp_path):
    store = Store(tmp_path / "results")
    store.add(seeds("won", "qexp", 1.0, 0.9) + seeds("won", "dp_gd", 1.0, 0.8))
    store.add(seeds("tied", "qexp", 1.0, 0.9))
    store.add(seeds("tied", "dp_gd", 1.0, 0.901, jitter=0.005))
    store.add(seeds("lost", "qexp", 1.0, 0.7) + seeds("lost", "dp_sgd", 1.0, 0.8))
    store.add(seeds("lost", "qexp", 0.1, 0.1) + seeds("lost", "dp_sgd", 0.1, 0.8))
    store.add(seeds("won", "non_private", None, 0.95))
    written = report.write(store, tmp_path / "docs")
    page = written[0].read_text("utf-8")
    assert "1 won, 1 tied, 1 lost" in page
    lost = "| lost | 1 | 70.0 ± 0.2 | dp_sgd, 80.0 ± 0.2 | -10.00 ± 0.00 | 3 |  | dp_sgd | "
    assert f"{lost}reason not found yet" in page
    assert "| won | 1 | 90.0 ± 0.2 | dp_gd, 80.0 ± 0.2 | +10.00 ± 0.00 | 3 |" in page
    assert "| tied | 1 | 90.0 ± 0.2 | dp_gd, 90.3 ± 1.5 | -0.27 ± 1.43 | 3 |  |" in page
    assert "the pretrained model 40.0 ± 0.0, without privacy 95.0" in page
    assert all(path.stat().st_size > 0 for path in written)
    # The others have one budget, which makes no curve.
    assert [path.name for path in written[1:]] == ["study-at-a-glance.png", "study-lost.png"]
    assert page.count("](figures/") == 2


def test_the_glance_is_of_one_budget_and_of_tasks_that_were_run_without_privacy(tmp_path):
    store = Store(tmp_path / "results")
    for n, ours in ((1000, 0.9), (250, 0.8)):
        task = f"few_{n}"
        store.add(seeds(task, "qexp", 1.0, ours) + seeds(task, "dp_gd", 1.0, 0.85))
        store.add(seeds(task, "qexp", 2.0, 0.5) + seeds(task, "non_private", None, 0.95))
    store.add(seeds("few_250", "dp_sgd", 1.0, 0.7))
    store.add(seeds("other", "qexp", 1.0, 0.9) + seeds("other", "dp_gd", 1.0, 0.8))
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    text = section(page, "At a glance")
    rows = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| few")]
    free, best = "95.0 ± 0.2", "dp_gd, 85.0 ± 0.2"
    assert rows == [
        ["few_250", "40.0 ± 0.0", "70.0 ± 0.2", best, "80.0 ± 0.2", "lost", free],
        ["few_1000", "40.0 ± 0.0", "", best, "90.0 ± 0.2", "won", free],
    ]
    assert "other" not in text


def test_pairs_tell_what_means_alone_do_not(tmp_path):
    """Seeds that differ by ten points hide a difference of a tenth of one, but not in pairs."""
    store = Store(tmp_path / "results")
    store.add(seeds("a", "qexp", 1.0, 0.801, spread=0.1) + seeds("a", "dp_gd", 1.0, 0.8, 0.1))
    # A seed that only one of them has is in no pair.
    store.add([line(method="dp_gd", seed=7, value=0.8)])
    ours, theirs = (s for s in summaries.summarise(store.all_lines()) if s.task == "a")
    ours, theirs = (ours, theirs) if ours.method == "qexp" else (theirs, ours)
    assert ours.half_width > 0.1
    gap = summaries.paired(ours, theirs)
    assert gap.seeds == 3
    assert gap.mean == pytest.approx(0.001)
    assert gap.is_clear
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    assert "1 won, 0 tied, 0 lost" in page


def test_a_rival_that_is_clearly_above_is_named_and_one_that_is_not_done_is_missing(tmp_path):
    store = Store(tmp_path / "results")
    store.add(seeds("a", "qexp", 1.0, 0.8) + seeds("a", "dp_gd", 1.0, 0.82, jitter=0.04))
    store.add([*seeds("a", "dp_sgd", 1.0, 0.81), line(method="sparta", value=0.99)])
    [verdict] = verdicts(summaries.summarise(store.all_lines()))
    assert (verdict.word, verdict.best.method) == ("Tied", "dp_gd")
    assert verdict.above == ("dp_sgd",)
    assert verdict.missing == ("sparta",)
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    assert "(without sparta)" in page
    assert "| 3 | dp_sgd |" in page


def test_a_clear_drop_with_more_budget_is_told():
    some = (
        seeds("a", "qexp", 1.0, 0.8) + seeds("a", "qexp", 2.0, 0.7) + seeds("a", "qexp", 4.0, 0.9)
    )
    some += seeds("a", "dp_gd", 1.0, 0.8) + seeds("a", "dp_gd", 2.0, 0.799, jitter=0.01)
    text = drops.section(summaries.summarise(some))
    assert "| a | qexp | 1 | 2 | -10.00 ± 0.00 |" in text
    assert text.count("| a |") == 1
    assert drops.section(summaries.summarise(seeds("a", "qexp", 1.0, 0.8))) is None


def test_a_paired_difference_is_students():
    one, other = [0.5, 0.6, 0.8, 0.7], [0.4, 0.65, 0.6, 0.6]
    [a] = summaries.summarise([line(seed=i, value=v) for i, v in enumerate(one)])
    [b] = summaries.summarise([line(seed=i, value=v) for i, v in enumerate(other)])
    gap = summaries.paired(a, b)
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (gap.mean - gap.half_width, gap.mean + gap.half_width) == pytest.approx((low, high))


def test_without_a_common_seed_or_with_one_alone_nothing_is_clear(tmp_path):
    [ours] = summaries.summarise([line(seed=0, value=0.9)])
    [theirs] = summaries.summarise([line(seed=0, value=0.1)])
    [elsewhere] = summaries.summarise([line(seed=1, value=0.1)])
    assert summaries.paired(ours, elsewhere) is None
    assert not summaries.paired(ours, theirs).is_clear
    store = Store(tmp_path / "results")
    store.add([line(seed=0, value=0.9), line(method="dp_gd", seed=1, value=0.1)])
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    assert "| a | 1 | 90.0 ± ? | dp_gd, 10.0 ± ? | no common seed | 0 |" in page


def test_a_reason_stands_beside_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "REASONS", {("a", 1.0): "measured: too few steps"})
    store = Store(tmp_path / "results")
    store.add(seeds("a", "qexp", 1.0, 0.7) + seeds("a", "dp_gd", 1.0, 0.8))
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    assert "| 3 |  | dp_gd | measured: too few steps |" in page
    assert reasons.NOT_FOUND not in page


def test_public_records_alone_are_a_rival_and_a_missing_one_is_named(tmp_path):
    store = Store(tmp_path / "results")
    free = [{**found, "epsilon": None} for found in seeds("a", "public_only", 1.0, 0.9)]
    store.add(seeds("a", "qexp", 1.0, 0.8) + seeds("a", "dp_gd", 1.0, 0.7) + free)
    store.add(seeds("a", "qexp", 0.1, 0.8) + seeds("a", "dp_gd", 0.1, 0.7))
    store.add(seeds("b", "qexp", 1.0, 0.8) + seeds("b", "adamix", 1.0, 0.7))
    store.add(seeds("b", "dp_gd", 2.0, 0.7))
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    assert "with ε ≥ 0.5 1 won, 0 tied, 1 lost; below" in page
    assert "; below, 0 won, 0 tied, 1 lost (not all were run of `a`, `b`)." in page
    assert "public_only, 90.0 ± " in page
    assert re.search(r"\| b \| 1 \| 80.0 ± .* \| adamix, 70.0 ± .* \(without dp_gd\) \|", page)


# --------------------------------------------------------------------- on other test records


def of_two_classes(n, seed):
    """Labels, and pairs of models' probabilities that err on much the same records."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.2).astype(np.uint8)
    shared = y + rng.normal(size=n)

    def probabilities(spread):
        share = 1 / (1 + np.exp(-shared - spread * rng.normal(size=n)))
        return np.stack([1 - share, share], axis=1)

    return y, [(probabilities(0.3), probabilities(0.6)) for _ in range(3)]


@pytest.mark.parametrize("metric", ["accuracy", "auroc"])
def test_standard_errors_over_records_are_those_of_resampling_them(metric):
    y, pairs = of_two_classes(400, 0)
    rng = np.random.default_rng(1)

    def value(rows, probabilities):
        if metric == "auroc":
            return area_under_roc(y[rows], probabilities[rows, 1])
        return np.mean(probabilities[rows].argmax(axis=1) == y[rows])

    def difference(rows):
        return np.mean([value(rows, one) - value(rows, other) for one, other in pairs])

    drawn = [difference(rng.integers(0, 400, 400)) for _ in range(2000)]
    error = sampling.standard_error(metric, y, pairs)
    assert error == pytest.approx(np.std(drawn), rel=0.1)
    # Less than that of either alone, since they err on the same records.
    alone = [(one, np.full_like(one, 0.5)) for one, _ in pairs]
    assert error < 0.8 * sampling.standard_error(metric, y, alone)


def test_equal_scores_are_half_in_order():
    y, [(one, _), *_] = of_two_classes(200, 2)
    rounded = one.round(1)
    shares = sampling._placements(y, rounded)
    for of_class in (0, 1):
        assert shares[y == of_class].mean() == pytest.approx(area_under_roc(y, rounded[:, 1]))


def test_what_is_won_or_lost_is_measured_once_a_plan(small, tmp_path, monkeypatch):
    store = Store(tmp_path / "results")
    store.add(seeds("small", "qexp", 1.0, 0.8) + seeds("small", "qexp", 2.0, 0.8))
    plain = [{**found, "hyperparameters": GD} for found in seeds("small", "dp_gd", 1.0, 0.7)]
    tied = [
        {**found, "hyperparameters": GD}
        for found in seeds("small", "dp_gd", 2.0, 0.801, jitter=0.01)
    ]
    store.add(plain + tied)
    sampling.measure(store)
    [found] = Lines(store.folder / "sampling.jsonl", dict).read()
    assert (found["task"], found["epsilon"], found["rival"]) == ("small", 1.0, "dp_gd")
    assert found["test_records"] == 200
    assert 0 < found["standard_error"] < 0.05
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    half = 100 * sampling.known_errors(store)["small", 1.0, "dp_gd"] * 1.96
    assert f"| +10.00 ± 0.00 | 3 | +10.00 ± {half:.2f} |" in page
    assert "1 won and 0 lost remain of the 1 cells" in page
    monkeypatch.setattr(sampling, "_measured", lambda *_: pytest.fail("it was measured"))
    sampling.measure(store)
    # Of another plan nothing is known, and nothing is shown.
    store.add([{**found, "hyperparameters": {**GD, "steps": 3}} for found in plain])
    assert sampling.known_errors(store) == {}
    [again] = [v for v in verdicts(summaries.summarise(store.all_lines())) if v.word == "Won"]
    monkeypatch.setattr(sampling, "_measured", lambda verdict, *_: {"cell": verdict.cell})
    monkeypatch.setattr(sampling.Lines, "add", lambda _, new: asked.append(new["cell"]))
    asked = []
    sampling.measure(store)
    assert asked == [again.cell]


def test_two_processes_that_add_lines_lose_none(tmp_path):
    def add(first):
        lines = Lines(tmp_path / "a.jsonl", lambda line: line["number"])
        for number in range(first, first + 30):
            lines.add({"number": number})

    processes = [
        multiprocessing.get_context("fork").Process(target=add, args=(f,)) for f in (0, 30)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(Lines(tmp_path / "a.jsonl", lambda line: line["number"]).read()) == 60


def test_plans_are_judged_on_fresh_public_moves(small, tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add([line(task="small"), line(task="small", method="dp_gd", hyperparameters=GD)])
    monkeypatch.setattr(public_moves, "Store", lambda: store)
    for method in ("qexp", "dp_gd"):
        settings = public_moves.settings_of("small", method, 1.0)
        tried, moves = public_moves.trial(small_task(0), method, settings, 1.0, seed=3)
        assert moves == 3
        assert all(0 <= tried(i, 5)[0] <= 1 for i in range(moves))
    with pytest.raises(ValueError, match="the study has no dp_sgd for small at epsilon = 1"):
        public_moves.settings_of("small", "dp_sgd", 1.0)


def test_public_moves_are_paired_draw_by_draw(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(public_moves, "TASKS", {"small": small_task})
    monkeypatch.setattr(public_moves, "settings_of", lambda task, method, epsilon: method)
    seen = []

    def trial(task, method, settings, epsilon, seed):
        seen.append((settings, seed))
        return lambda i, at: (0.1 * (method == "dp_gd") + seed / 1e4 + at % 5, 0.0), 1

    monkeypatch.setattr(public_moves, "trial", trial)
    command = ["public_moves", "small", "--methods", "qexp", "dp_gd", "--draws", "3"]
    monkeypatch.setattr(sys, "argv", command)
    public_moves.main()
    ours, theirs = (json.loads(text) for text in capsys.readouterr().out.splitlines())
    assert seen == [(m, s) for m in ("qexp", "dp_gd") for s in (7, 1007, 2007)]
    assert "difference" not in ours
    assert (theirs["difference"], theirs["its_standard_error"]) == (0.1, 0.0)
    assert theirs["standard_error"] == ours["standard_error"] > 0.05
    line = {"task": "small", "epsilon": 1.0, "rival": "dp_gd", "draws": 3, "seed": 7}
    line |= public_moves.measured(**line)
    np.testing.assert_allclose(np.subtract(line["rival_scores"], line["qexp"]), 0.1)
    row = public_moves._tables([line])["public moves"].splitlines()[-1]
    assert row.startswith("| small | 1 | ")
    assert "| -10.00 ± 0.00 | 3 |" in row


def test_reasons_are_of_tasks_that_there_are():
    assert {task for task, _ in reasons.REASONS} <= set(TASKS)


def test_gaps_are_told_with_their_ratio(tmp_path):
    store = Store(tmp_path / "results")
    store.add(seeds("a", "non_private", None, 0.95))
    store.add(seeds("a", "qexp", 1.0, 0.91) + seeds("a", "dp_sgd", 1.0, 0.85))
    store.add(seeds("a", "qexp", 4.0, 0.94) + seeds("a", "dp_sgd", 4.0, 0.95))
    store.add(seeds("b", "non_private", None, 0.95, n=2))
    store.add(seeds("b", "qexp", 1.0, 0.87, n=2) + seeds("b", "dp_sgd", 1.0, 0.85))
    # Where DP-SGD has no gap there is nothing to be met.
    store.add(seeds("d", "non_private", None, 0.95))
    store.add(seeds("d", "qexp", 1.0, 0.96) + seeds("d", "dp_sgd", 1.0, 0.955))
    # Without one of the three there is no row.
    store.add(seeds("c", "qexp", 1.0, 0.87) + seeds("c", "dp_sgd", 1.0, 0.85))
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    gaps = section(page, "What privacy costs")
    assert "| a | 1 | 4.00 ± 0.00 | 10.00 ± 0.00 | 0.40 | 3 |" in gaps
    assert "| a | 4 | 1.00 ± 0.00 | 0.00 ± 0.00 | – | 3 |" in gaps
    assert "| b | 1 | 8.00 ± 0.00 | 10.05 ± 0.00 | 0.80 | 2 |" in gaps
    assert "| d | 1 | -1.00 ± 0.00 | -0.50 ± 0.00 | – | 3 |" in gaps
    assert "| c |" not in gaps
    assert "met on 1 of these 2 tasks by the mean, and on 1 by the whole interval." in gaps


def test_the_schedules_of_the_study_are_shown(tmp_path):
    planned = {**SCHEDULE, "momentum": 0.9, "averaging": 0.25}
    store = Store(tmp_path / "results")
    store.add([line(hyperparameters=SCHEDULE), line(epsilon=4.0, hyperparameters=planned)])
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    shown = section(page, "What was planned for qexp")
    assert "| task | ε = 1 | ε = 4 |" in shown
    assert "| a | 2 × 0.3, c 3, λ 0.1 | 2 × 0.3, c 3, λ 0.1, m 0.9, a 0.25 |" in shown


def test_precision_and_calibration_stand_beside_the_roc(tmp_path):
    store = Store(tmp_path / "results")
    for epsilon in (None, 0.5, 4.0):
        for seed, precision in enumerate((0.4, 0.5)):
            measures = {"auroc": 0.8, "auprc": precision + (epsilon or 0.0) / 10}
            measures["calibration_error"] = 0.02
            method = "non_private" if epsilon is None else "qexp"
            store.add([line("a", method, epsilon, seed, 0.8, metric="auroc", measures=measures)])
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    shown = section(page, "a\n")
    half = stats.t.ppf(0.975, 1) * 0.05
    assert "at ε = 0.5:" in shown
    assert f"| non_private | 0.450 ± {half:.3f} | 0.020 ± 0.000 |" in shown
    assert f"| qexp | 0.500 ± {half:.3f} | 0.020 ± 0.000 |" in shown


@pytest.mark.parametrize(
    ("budgets", "shown"), [((0.5, 1.0), "ε = 1."), ((0.25, 2.0), "ε = 2."), ((), None)]
)
def test_accuracy_is_drawn_against_the_number_of_records(tmp_path, budgets, shown):
    store = Store(tmp_path / "results")
    for epsilon in budgets:
        for task in ("mnist_few_250", "mnist_to_usps"):
            store.add(seeds(task, "qexp", epsilon, 0.9) + seeds(task, "dp_gd", epsilon, 0.8))
    store.add(seeds("mnist_few_250", "non_private", None, 0.95))
    # One task alone makes no curve.
    store.add(seeds("mnist_few_500", "qexp", 1.0 if not budgets else budgets[-1], 0.9))
    written = report.write(store, tmp_path / "docs")
    page = written[0].read_text("utf-8")
    path = tmp_path / "docs" / "figures" / "study-number-of-records.png"
    assert (path in written) == path.exists() == (shown is not None)
    if shown:
        assert shown in section(page, "Accuracy against the number of private records")
        assert path.stat().st_size > 0


def test_every_method_has_a_name_that_the_command_takes():
    assert set(METHODS) >= {"qexp", "dp_sgd", "dp_gd", "adamix", "sparta", "non_private"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_the_study_in_good_order(monkeypatch, number):
    ended = []

    def run_all(**arguments):
        try:
            signal.raise_signal(number)
        finally:
            ended.append(True)

    monkeypatch.setattr(command_line, "run_all", run_all)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="the same command goes on"):
        command_line.fill(["--tasks", "adult_work"])
    assert ended == [True]
    assert signal.getsignal(signal.SIGTERM) is before


_FAMILY = """
import multiprocessing, sys, time
sys.path.append({root!r})
from experiments.study.runner import end_with_parent

def child():
    end_with_parent()
    print("child", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "family.py"
    script.write_text(_FAMILY.format(root=str(Path(__file__).resolve().parents[1])))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout as told:
        assert told.readline() == "child\n"
        parent.kill()
        started = time.monotonic()
        # The pipe is the child's, too: it ends when the child does, who sleeps for longer.
        assert told.read() == ""
    assert time.monotonic() - started < 300


def test_all_leaves_out_what_cannot_be_planned(monkeypatch):
    seen = []

    def run_all(**arguments):
        seen.append(arguments["tasks"])
        return 0

    monkeypatch.setattr(command_line, "run_all", run_all)
    monkeypatch.setattr(everything, "PARTS", {})
    command_line.fill([])
    command_line.fill(["--tasks", "mimic_mortality"])
    on_request = {"mimic_mortality", "mimic_mortality_full", "mnist_to_usps_augmented"}
    assert set(seen[0]) == set(TASKS) - on_request
    assert seen[1] == ["mimic_mortality"]


def test_the_kept_results_are_the_study_s():
    lines = Store().all_lines()
    assert {line["task"] for line in lines} <= set(TASKS)
    assert {line["method"] for line in lines} <= set(METHODS)
    assert summaries.summarise(lines)


# ----------------------------------------------------------------------- with subspaces and without


def test_a_plan_tells_its_subspace_and_is_read_back():
    subspace = {**SCHEDULE, "subspace": 200}
    made = fine_tuning.schedule_of(json.loads(json.dumps(subspace)))
    assert made == (Schedule(**SCHEDULE), 200)
    assert fine_tuning.schedule_of(SCHEDULE) == (Schedule(**SCHEDULE), None)

    class Planned:
        schedule, n_components, in_subspace = Schedule(**SCHEDULE), 200, True

    assert fine_tuning.described(Planned()) == subspace
    Planned.in_subspace = False
    assert fine_tuning.described(Planned()) == SCHEDULE


def test_a_cell_runs_in_the_subspace_that_was_planned(small, monkeypatch):
    asked = []

    class Learnt:
        def subspace(self, k):
            asked.append(k)
            return CoordinateMask(small_task(0).model.n_parameters, range(k))

    learning = iter(range(2))
    monkeypatch.setattr(methods, "directions", lambda task: next(learning))
    monkeypatch.setattr(fine_tuning, "directions", lambda task: Learnt())
    made = run_planned(Cell("small", "qexp", 1.0, 1e-5, 0), {**SCHEDULE, "subspace": 4})
    assert asked == [4]
    assert set(made) == KEYS
    assert next(learning) == 1  # what is learnt once a model was, before the clock ran


def test_images_alone_have_subspaces_to_choose_from(small):
    assert fine_tuning.subspace_arguments(small_task(0)) == {}
    only = METHODS["qexp_full_space"].tasks
    assert "mnist_few_500" in only
    assert "icu_cardiac" not in only
    store = Store(Path("nowhere"))
    missing = runner._missing(["small"], ["qexp", "qexp_full_space"], [1.0], 1e-5, (0,), "", store)
    assert [group.method for group in missing] == ["qexp"]


def test_where_there_is_no_plan_with_subspaces_that_of_the_whole_space_is_judged(tmp_path):
    store = Store(tmp_path / "results")
    store.add(seeds("a", "qexp_full_space", 1.0, 0.9) + seeds("a", "dp_gd", 1.0, 0.8))
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    assert "| a | 1 | 90.0 ± 0.2, whole space | dp_gd, 80.0 ± 0.2 |" in page
    store.add(seeds("a", "qexp", 1.0, 0.7))
    lost = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    assert "| a | 1 | 70.0 ± 0.2 | dp_gd, 80.0 ± 0.2 |" in lost
    assert [v.word for v in verdicts(summaries.summarise(store.all_lines()))] == ["Lost"]
    assert sampling._judged(store, "a", 1.0) == "qexp"
