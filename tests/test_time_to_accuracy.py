"""Time to accuracy: variants are planned and run once, ladders compared, the page written."""

import builtins
import json
import math

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("dp_accounting")

from small_task import small_task

from experiments import opacus_crosscheck, time_to_accuracy
from experiments.study import cells, variants
from experiments.study.methods import StudyMethod, Tuned
from experiments.study.results import Store
from experiments.study.summaries import Summary
from experiments.study.variants import Variant, lines_at, plan_variants, run_variants
from qexp.rivals import SGDSettings

CELL = {"task": "small", "epsilon": 1.0, "delta": 1e-5}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cells, "TASKS", {"small": small_task})
    cells.task_at.cache_clear()
    yield
    cells.task_at.cache_clear()


class Counting:
    """A method that notes what it was asked for."""

    def __init__(self):
        self.plans, self.runs = [], []

    def method(self, name):
        def planned(task, epsilon, delta, effort):
            assert not isinstance(task.planned_on()[0].surrogate, str)
            self.plans.append(name)
            return {"of": name}

        def run(task, settings, epsilon, delta, seed):
            self.runs.append((name, settings["of"], seed))
            return Tuned(task.model, None, "replace_special", 1)

        return StudyMethod(planned, run)


def summary(method, mean, seconds, half_width=0.01):
    return Summary("a", method, 1.0, "accuracy", mean, half_width, {0: mean}, seconds)


def line(method, seed, value, seconds):
    made = {"task": "a", "epsilon": 1.0, "delta": 1e-5, "metric": "accuracy", "method": method}
    return {**made, "seed": seed, "value": value, "seconds": 2 * seconds, "cpu_seconds": seconds}


def some_lines(path, ladders):
    lines = lines_at(path)
    for method, (mean, seconds) in ladders.items():
        lines.add({**line(method, None, 0.0, 0.0), "hyperparameters": {}})
        sign = -1 if method.startswith("dp_gd") else 1
        for seed in range(3):
            lines.add(line(method, seed, mean + sign * (seed - 1) / 100, seconds))
    return lines


# ----------------------------------------------------------------------- planning and running


def test_what_is_there_is_neither_planned_nor_run_again(small, tmp_path):
    counting, lines = Counting(), lines_at(tmp_path / "lines.jsonl")
    some = {
        "a/1": Variant(counting.method("a/1")),
        "b/1": Variant(counting.method("b/1"), settings_of="a/1"),
    }
    for seeds in (range(1), range(2), range(2)):
        settings = plan_variants(some, lines, **CELL)
        run_variants(some, settings, lines, seeds=seeds, **CELL)
    assert settings == {"a/1": {"of": "a/1"}, "b/1": {"of": "a/1"}}
    assert counting.plans == ["a/1"]
    # In turn, seed by seed.
    assert counting.runs == [(name, "a/1", seed) for seed in range(2) for name in some]
    plan, *runs = sorted(lines.read(), key=lambda made: made["seed"] is not None)
    assert plan["seed"] is None
    assert len(runs) == 4
    assert all(run["seconds"] >= 0 and run["cpu_seconds"] >= 0 for run in runs)


def test_a_stop_keeps_what_was_done(small, tmp_path):
    counting, lines = Counting(), lines_at(tmp_path / "lines.jsonl")

    def stop(*arguments):
        raise KeyboardInterrupt

    some = {
        "a/1": Variant(counting.method("a/1")),
        "b/1": Variant(StudyMethod(stop, counting.method("b/1").run)),
    }
    with pytest.raises(KeyboardInterrupt):
        plan_variants(some, lines, **CELL)
    assert [made["method"] for made in lines.read()] == ["a/1"]
    some["b/1"] = Variant(counting.method("b/1"))
    settings = plan_variants(some, lines, **CELL)
    assert counting.plans == ["a/1", "b/1"]
    assert settings["b/1"] == {"of": "b/1"}
    # Another budget is another cell.
    plan_variants(some, lines, task="small", epsilon=2.0, delta=1e-5)
    assert len(counting.plans) == 4


def test_shifts_are_drawn_once_for_all_variants(small, tmp_path, monkeypatch):
    drawn, real = [], variants._with_shifts
    monkeypatch.setattr(variants, "_with_shifts", lambda *a: drawn.append(a) or real(*a))
    counting = Counting()
    some = {name: Variant(counting.method(name)) for name in ("a/1", "a/2")}
    plan_variants(some, lines_at(tmp_path / "lines.jsonl"), **CELL)
    assert len(drawn) == 1


def test_plans_of_the_study_are_taken_over_once(tmp_path):
    store, lines = Store(tmp_path), lines_at(tmp_path / "lines.jsonl")
    kept = {"hyperparameters": {"steps": 3}, "chosen_on": "x"}
    store.add([{**line("dp_gd", seed, 0.5, 1.0), **kept} for seed in range(2)])
    for epsilon in (1.0, 1.0, 4.0):
        time_to_accuracy.adopt_plans(lines, store, task="a", epsilon=epsilon, delta=1e-5)
    [made] = lines.read()
    assert (made["method"], made["seed"]) == ("dp_gd/planned", None)
    assert made["hyperparameters"] == {"steps": 3}


def test_every_rung_is_planned_from_as_many_candidates():
    counts = [
        len(time_to_accuracy.schedules(4)),
        len(time_to_accuracy.descents(4)),
        len(time_to_accuracy.stochastic_descents(0.1, 4)),
    ]
    assert counts == [18, 18, 18]
    rungs = time_to_accuracy.with_opacus(time_to_accuracy.ladders())
    theirs = {name: rung for name, rung in rungs.items() if name.startswith("opacus/")}
    assert theirs
    assert all(
        rung.settings_of == name.replace("opacus", "dp_sgd") for name, rung in theirs.items()
    )


def test_opacus_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_opacus(name, *arguments, **keywords):
        if name in ("torch", "opacus"):
            raise ImportError(name, name=name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_opacus)
    with pytest.raises(ImportError, match=r"pip install torch.* opacus"):
        opacus_crosscheck.torch_and_opacus()


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ({}, True),
        ({"sampling_rate": 1 / 16, "steps": 800}, True),
        ({"sampling_rate": 1 / 16, "steps": 1601}, False),  # more than 100 passes
        ({"sampling_rate": 0.4}, False),  # three batches, which would be a rate of 1/3
        ({"sampling_rate": 1.0}, False),
        ({"clipping": "automatic"}, False),
    ],
)
def test_opacus_runs_nothing_but_our_settings(changes, can):
    settings = vars(SGDSettings(**{"sampling_rate": 0.25, "steps": 200} | changes))
    assert time_to_accuracy.opacus_can_run(settings, 7291) is can


def test_what_opacus_cannot_run_is_left_out(small, tmp_path, capsys):
    ours = {"sampling_rate": 1.0, "steps": 10, "clipping": "abadi"}
    method = StudyMethod(
        lambda *_: ours, lambda task, *_: Tuned(task.model, None, "replace_special", 10)
    )
    rungs = time_to_accuracy.with_opacus({"dp_sgd/planned": Variant(method)})
    assert set(rungs) == {"dp_sgd/planned", "opacus/planned"}
    lines = lines_at(tmp_path / "lines.jsonl")
    time_to_accuracy.run(rungs, lines, seeds=range(2), **CELL)
    assert "opacus/planned: left out" in capsys.readouterr().err
    runs = [line["method"] for line in lines.read() if line["seed"] is not None]
    assert runs == ["dp_sgd/planned"] * 2


@pytest.mark.parametrize(("steps", "n_seeds"), [(100, 3), (200, 1)])
def test_long_rungs_of_opacus_run_the_first_seeds_alone(
    small, tmp_path, monkeypatch, steps, n_seeds
):
    monkeypatch.setattr(time_to_accuracy, "LONG_SEEDS", 1)
    ours = vars(SGDSettings(sampling_rate=0.25, steps=steps))
    method = StudyMethod(
        lambda *_: ours, lambda task, *_: Tuned(task.model, None, "replace_special", 10)
    )
    rungs = {name: Variant(method) for name in ("dp_sgd/short", "opacus/short")}
    lines = lines_at(tmp_path / "lines.jsonl")
    for _ in range(2):  # the second time there is nothing to do
        time_to_accuracy.run(rungs, lines, seeds=range(3), **CELL)
    runs = [(line["method"], line["seed"]) for line in lines.read() if line["seed"] is not None]
    ours, theirs = "dp_sgd/short", "opacus/short"
    of_theirs = [(theirs, seed) for seed in range(n_seeds)]
    assert sorted(runs) == [(ours, 0), (ours, 1), (ours, 2), *of_theirs]


# ---------------------------------------------------------------------------------- reporting


def test_the_quickest_rung_that_is_good_enough_counts():
    ladder = [summary("b/1", 0.8, 1.0), summary("b/2", 0.92, 3.0), summary("b/3", 0.91, 2.0)]
    answer = time_to_accuracy.quickest(ladder, summary("a/1", 0.9, 1.0))
    assert (answer.rung.method, answer.reached) == ("b/3", True)
    answer = time_to_accuracy.quickest(ladder, summary("a/1", 0.95, 1.0))
    assert (answer.rung.method, answer.reached) == ("b/2", False)


def test_methods_of_fewer_seeds_are_compared_on_those(tmp_path):
    lines = lines_at(tmp_path / "lines.jsonl")
    for seed, value in enumerate((0.8, 0.7)):
        lines.add(line("qexp/1 round", seed, value, 0.1))
    lines.add(line("opacus/short", 0, 0.76, 2.0))
    page, _ = time_to_accuracy.write(lines, tmp_path)
    text = page.read_text("utf-8")
    assert "2 seeds (but 1 of opacus, short). For every rung" in text
    assert "never, tied: 76.0 in 2.00 s" in text
    assert "1 of qexp's accuracies it does not reach" in text


def test_the_page_tells_ratios_and_what_was_not_reached(tmp_path):
    ladders = {
        "qexp/1 round": (0.8, 0.1),
        "qexp/8 rounds": (0.9, 0.5),
        "dp_sgd/short": (0.85, 2.0),
        "opacus/short": (0.7, 20.0),
        "dp_gd/long": (0.89, 4.0),
    }
    lines = some_lines(tmp_path / "lines.jsonl", ladders)
    page, figure = time_to_accuracy.write(lines, tmp_path)
    text = page.read_text("utf-8")
    row = next(row for row in text.splitlines() if row.startswith("| 1 round |"))
    assert "2.00 s, **20.0 ×**" in row
    assert "never: 70.0" in row
    assert "never: 85.0" in next(r for r in text.splitlines() if r.startswith("| 8 rounds |"))
    assert "never, tied: 89.0" in text
    assert "so at 1 of 1 accuracies that it reaches, 20.0 to 20.0 times as long; 1 of" in text
    assert (
        "does not reach, even in 4.0 to 4.0 times as long; to 0 of them its best rung is tied"
        in text
    )
    assert "does not reach, even in 40.0 to 200.0 times as long; to 0 of them its best" in text
    assert "so at 0 of 0 accuracies that it reaches; 2 of" in text
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_written_of_nothing(tmp_path):
    assert time_to_accuracy.write(lines_at(tmp_path / "none.jsonl"), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_one_seed_has_no_interval(tmp_path):
    lines = lines_at(tmp_path / "lines.jsonl")
    lines.add(line("qexp/1 round", 0, 0.8, 0.1))
    page, _ = time_to_accuracy.write(lines, tmp_path)
    assert "| 80.0 | 0.10 |" in page.read_text("utf-8")
    assert math.isfinite(json.loads(lines.path.read_text())["value"])
