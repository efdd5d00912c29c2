"""Time to accuracy: what a private fine-tune takes in seconds, and where that leads.

    python -m experiments.time_to_accuracy [--opacus] [--task …] [--epsilon 1] [--seeds 30]

Every method climbs a ladder of its own settings that trade time for accuracy at one fixed ε: qexp
more rounds, DP gradient descent more steps, DP-SGD more steps and larger samples. What else a rung
has to choose is chosen on shifted public records, from as many candidates on each rung; the
schedules that the study planned, out of the whole grids, are rungs as well. All runs are on one
thread, the methods in turn, seed by seed. Seconds are those of the private part: for
qexp with the curvature's making, for DP-SGD without finding its noise multiplier, which takes
longer than the run. Prints one JSON line a run, keeps them in
experiments/results/time_to_accuracy.jsonl and leaves out what is there. `--opacus` adds Opacus'
DP-SGD with the settings and noise of ours; it takes torch and Opacus in the same environment.
`python -m experiments report` makes page and figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from experiments.lines import Lines
from experiments.opacus_crosscheck import opacus_dp_sgd, torch_and_opacus
from experiments.study.cells import Cell, run_planned, task_at
from experiments.study.figures import axis_label, figure_file
from experiments.study.methods import METHODS, StudyMethod, Tuned, qexp_method, rival_method
from experiments.study.report import DOCS
from experiments.study.results import FOLDER, Store
from experiments.study.summaries import Summary, paired, shown_as, summarise
from experiments.study.variants import (
    Variant,
    lines_at,
    missing_runs,
    plan_variants,
    run_variants,
)
from experiments.tasks import TASKS, Task
from qexp._files import atomic_write_bytes
from qexp._threads import register_threadpool_controller
from qexp.finetune import Schedule
from qexp.rivals import GradientDescentSettings, SGDSettings, dp_gd, dp_sgd
from qexp.rivals._accounting import Target

RESULTS: Final = FOLDER / "time_to_accuracy.jsonl"
RELATION: Final = "replace_special"
# With ten, the best of DP-SGD's rungs could not be told from qexp's.
SEEDS: Final = 30
# Of the longest runs of Opacus, of half a minute and more.
LONG_SEEDS: Final = 10
_LONG_PASSES: Final = 40
ROUNDS: Final = (1, 2, 4, 8, 16)
GD_STEPS: Final = (8, 32, 128)
# Rates that Opacus' loader, which counts lots in an epoch, does not round.
SGD_RUNGS: Final = (
    *itertools.product((1 / 50,), (25, 100)),
    *itertools.product((1 / 16,), (50, 200)),
    # The last ones take ten times as long as qexp's best, to see whether they get there.
    *itertools.product((1 / 4,), (25, 50, 200, 400, 800, 2000)),
)
# Passes over the records; longer runs take Opacus minutes.
_MOST_PASSES_OF_OPACUS: Final = 100
_CLIPPING_NORMS: Final = (0.3, 1.0, 3.0)
# Rungs that are plans of the study's methods.
_STUDIED: Final = {
    "qexp/planned": "qexp_full_space",
    "qexp/planned, subspaces too": "qexp",
    "dp_sgd/planned": "dp_sgd",
    "dp_gd/planned": "dp_gd",
}


def schedules(rounds: int, dampings: Sequence[float] = (1e-3, 1e-2, 1e-1)) -> list[Schedule]:
    """Give the candidates of a rung of qexp."""
    return [
        Schedule(rounds=rounds, clipping_norm=c, step_size=eta, damping=damping)
        for damping, c, eta in itertools.product(dampings, (1.0, 3.0, 10.0), (1.0, 0.3))
    ]


def descents(steps: int) -> list[GradientDescentSettings]:
    """Give the candidates of a rung of gradient descent."""
    return [
        GradientDescentSettings(steps=steps, clipping_norm=c, learning_rate=eta, momentum=m)
        for c, (eta, m) in itertools.product(
            _CLIPPING_NORMS, ((1.0, 0.0), (3.0, 0.0), (10.0, 0.0), (0.3, 0.9), (1.0, 0.9), (3, 0.9))
        )
    ]


def stochastic_descents(rate: float, steps: int) -> list[SGDSettings]:
    """Give the candidates of a rung of DP-SGD: all of them such as Opacus can run."""
    moves: list[dict[str, Any]] = [{"learning_rate": eta} for eta in (0.3, 1.0, 3.0)]
    moves += [{"learning_rate": eta, "momentum": 0.9} for eta in (0.1, 0.3)]
    moves += [{"learning_rate": 4e-3, "optimizer": "adam"}]
    return [
        SGDSettings(steps=steps, sampling_rate=rate, clipping_norm=c, **move)
        for c, move in itertools.product(_CLIPPING_NORMS, moves)
    ]


def ladders() -> dict[str, Variant]:
    """Give all rungs, named "method/rung", but for those of Opacus."""
    rungs = {
        f"qexp/{rounds} round{'s' * (rounds > 1)}": qexp_method(rounds, schedules(rounds))
        for rounds in ROUNDS
    }
    for rate, steps in SGD_RUNGS:
        candidates = stochastic_descents(rate, steps)
        rungs[_sgd_name(rate, steps)] = rival_method(dp_sgd, candidates)
    for steps in GD_STEPS:
        rungs[f"dp_gd/{steps} steps"] = rival_method(dp_gd, descents(steps))
    planned = {rung: METHODS[name] for rung, name in _STUDIED.items()}
    return {name: Variant(method) for name, method in {**rungs, **planned}.items()}


def _sgd_name(rate: float, steps: int) -> str:
    return f"dp_sgd/q = {rate:g}, {steps} steps"


def with_opacus(rungs: dict[str, Variant]) -> dict[str, Variant]:
    """Add Opacus' DP-SGD at the settings of ours."""
    method = StudyMethod(_not_planned, _run_opacus)
    theirs = {
        name.replace("dp_sgd", "opacus", 1): Variant(method, settings_of=name)
        for name in rungs
        if name.startswith("dp_sgd/")
    }
    return {**rungs, **theirs}


def opacus_can_run(settings: Mapping[str, Any], n_records: int) -> bool:
    """Tell whether Opacus can run settings of ours as they are, and in reasonable time.

    Its sampling rate is 1 over the number of batches, and of it the noise is to be.
    """
    rate, steps = settings["sampling_rate"], settings["steps"]
    if rate >= 1 or settings["clipping"] != "abadi" or rate * steps > _MOST_PASSES_OF_OPACUS:
        return False
    batches = math.ceil(n_records / round(rate * n_records))
    return math.isclose(1 / batches, rate, rel_tol=1e-9)


def _is_long(name: str, settings: Mapping[str, Any]) -> bool:
    if method_of(name) != "opacus":
        return False
    passes: float = settings["sampling_rate"] * settings["steps"]
    return passes > _LONG_PASSES


def _not_planned(task: Task, epsilon: float, delta: float, effort: Any) -> dict[str, Any]:
    raise NotImplementedError("Opacus runs at the settings of dp_sgd")


def _run_opacus(
    task: Task, settings: dict[str, Any], epsilon: float, delta: float, seed: int
) -> Tuned:
    rate, steps = settings["sampling_rate"], settings["steps"]
    module = opacus_dp_sgd(
        task.model.weights,
        task.model.layer_sizes,
        task.X_private,
        task.y_private,
        rate=rate,
        steps=steps,
        sigma=Target(epsilon, delta, RELATION).sampled_noise(rate, steps),
        clipping_norm=settings["clipping_norm"],
        learning_rate=settings["learning_rate"],
        momentum=settings["momentum"],
        optimizer=settings["optimizer"],
        averaging=settings["averaging"],
        seed=seed,
    )
    parts = [parameter.detach().numpy() for parameter in module.parameters()]
    layers = zip(parts[::2], parts[1::2], strict=True)
    weights = np.concatenate([np.column_stack([w, b]).ravel() for w, b in layers])
    return Tuned(task.model.with_weights(weights), None, RELATION, steps)


# ---------------------------------------------------------------------------------- running


def run(
    rungs: dict[str, Variant],
    lines: Lines,
    *,
    task: str,
    epsilon: float,
    delta: float,
    seeds: Sequence[int],
) -> None:
    """Plan, warm up, and run what is missing."""
    settings = plan_variants(rungs, lines, task=task, epsilon=epsilon, delta=delta)
    n_records = len(task_at(task, 0).y_private)
    for name in [name for name in settings if method_of(name) == "opacus"]:
        if not opacus_can_run(settings[name], n_records):
            print(f"{name}: left out, Opacus cannot run {settings[name]}", file=sys.stderr)
            del settings[name]
    short = {name: values for name, values in settings.items() if not _is_long(name, values)}
    parts = [(settings, seeds[:LONG_SEEDS]), (short, seeds)]
    cell: dict[str, Any] = {"task": task, "epsilon": epsilon, "delta": delta}
    if not any(missing_runs(some, lines, **cell, seeds=of_these) for some, of_these in parts):
        return
    first: dict[str, str] = {}
    for name, values in settings.items():
        if values.get("sampling_rate", 1.0) < 1:
            # Kept by the accountant from here on.
            Target(epsilon, delta, RELATION).sampled_noise(values["sampling_rate"], values["steps"])
        first.setdefault(method_of(name), name)
    for name in first.values():
        run_planned(Cell(task, name, epsilon, delta, seeds[0]), settings[name], rungs[name].method)
    for some, of_these in parts:
        run_variants(
            {name: rungs[name] for name in some},
            settings,
            lines,
            **cell,
            seeds=of_these,
            each=lambda line: print(json.dumps(line), flush=True),
        )


def adopt_plans(lines: Lines, store: Store, *, task: str, epsilon: float, delta: float) -> None:
    """Take the plans of the study, where it has them and there are none yet."""
    known = {
        (line["task"], line["method"], line["epsilon"], line["delta"]) for line in lines.read()
    }
    for rung, name in _STUDIED.items():
        for line in store.lines(task, name):
            key = (task, rung, epsilon, delta)
            if (line["epsilon"], line["delta"]) == key[2:] and key not in known:
                kept = ("task", "epsilon", "delta", "hyperparameters", "chosen_on")
                plan = {field: line[field] for field in kept}
                lines.add({**plan, "method": key[1], "seed": None, "seconds": None})
                known.add(key)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit qexp, BLAS and torch to one thread."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError(
            "timing on one thread takes threadpoolctl: pip install 'qexp[bench]'",
            name="threadpoolctl",
        ) from error
    # Where threadpoolctl came after qexp, it does not know of qexp's threads yet.
    register_threadpool_controller()
    with threadpool_limits(1):
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        yield


# --------------------------------------------------------------------------------- reporting


@dataclass(frozen=True)
class Reached:
    """How long a ladder takes to an accuracy; `rung` is its best one where it does not get there.

    Attributes
    ----------
    rung : Summary
    reached : bool
    """

    rung: Summary
    reached: bool


def method_of(name: str) -> str:
    """Give the method of a rung's name."""
    return name.partition("/")[0]


def quickest(ladder: Sequence[Summary], ours: Summary) -> Reached:
    """Find the quickest rung whose mean is that of `ours`, over the same seeds, or more."""
    enough = [rung for rung in ladder if not _is_above(ours, rung)]
    if enough:
        return Reached(min(enough, key=lambda rung: rung.seconds), True)
    return Reached(max(ladder, key=lambda rung: rung.mean), False)


def write(lines: Lines | None = None, docs: Path = DOCS) -> list[Path]:
    """Write docs/time-to-accuracy.md and its figures; give their paths."""
    lines = lines_at(RESULTS) if lines is None else lines
    # One thread's CPU time is the wall-clock of a quiet machine, on a busy one as well.
    runs = [
        {**line, "seconds": line["cpu_seconds"]}
        for line in lines.read()
        if line["seed"] is not None
    ]
    if not runs:
        return []
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    parts, written = [_HEAD], []
    cells = sorted({(line["task"], line["epsilon"], line["delta"]) for line in runs})
    for number, (task, epsilon, delta) in enumerate(cells):
        of_cell = [r for r in runs if (r["task"], r["epsilon"], r["delta"]) == cells[number]]
        found = summarise(of_cell, delta)
        name = "time-to-accuracy" + ("" if number == 0 else f"-{task}-{epsilon:g}")
        path = docs / "figures" / f"{name.replace('_', '-')}.png"
        _plot(found, path)
        written.append(path)
        parts.append(_section(found, f"{task}, ε = {epsilon:g}, δ = {delta:g}", path.name))
    page = docs / "time-to-accuracy.md"
    atomic_write_bytes(page, "\n\n".join(parts).encode() + b"\n")
    return [page, *written]


_HEAD: Final = """\
# Time to accuracy

How long a private fine-tune takes to an accuracy, at the same (ε, δ) under `replace_special`. Each
method climbs a ladder of settings that trade time for accuracy; what else a rung has to choose is
chosen on shifted public records, from 18 candidates a rung; "planned" is the study's choice out of
the method's whole grid. One machine, one thread, methods in turn; seconds are medians of a run's
private part in CPU time, which on one thread is the wall-clock of a quiet machine: with the
curvature's making, without planning and without the search for DP-SGD's noise multiplier (about a
second). Accuracies are means over seeds ± half of their 95 % interval. Opacus runs the settings and
the noise of our DP-SGD, but for rungs of more than 100 passes over the records, which would take it
minutes a run: its "never" is within 100 passes. Written by `python -m experiments report` from what
`python -m experiments.time_to_accuracy --opacus` measured."""


def _section(found: list[Summary], title: str, figure: str) -> str:
    factor, digits = shown_as(found[0].metric)
    by_method = {
        method: sorted((s for s in found if method_of(s.method) == method), key=lambda s: s.seconds)
        for method in sorted({method_of(s.method) for s in found}, key=_order)
    }
    others = [method for method in by_method if method != "qexp"]

    def shown(summary: Summary) -> str:
        half = f" ± {factor * summary.half_width:.{digits}f}"
        text = f"{factor * summary.mean:.{digits}f}"
        return text + (half if math.isfinite(summary.half_width) else "")

    rows = [
        f"## {title}",
        "",
        f"![{found[0].metric} against seconds](figures/{figure})",
        "",
        f"{_seeds(found)}. For every rung of qexp, the quickest rung of each "
        "other method whose mean is as high, and how many times as long as qexp it takes; where "
        "no rung of its ladder gets there, the best one, called tied where the 95 % "
        "interval of the differences, seed by seed, holds 0.",
        "",
        "| qexp | accuracy | seconds | " + " | ".join(others) + " |",
        "| --- | --- | --- |" + " --- |" * len(others),
    ]
    least: dict[str, list[float]] = {method: [] for method in others}
    for ours in by_method.get("qexp", []):
        cells = []
        for method in others:
            answer = quickest(by_method[method], ours)
            rung, ratio = answer.rung, answer.rung.seconds / ours.seconds
            if answer.reached:
                least[method].append(ratio)
                cells.append(f"{rung.seconds:.2f} s, **{ratio:.1f} ×**")
            else:
                never = "never, tied" if _is_tied(rung, ours) else "never"
                cells.append(f"{never}: {shown(rung)} in {rung.seconds:.2f} s")
        name = ours.method.partition("/")[2]
        rows.append(f"| {name} | {shown(ours)} | {ours.seconds:.2f} | " + " | ".join(cells) + " |")
    rows += ["", *_verdict(by_method, least), ""]
    rows += ["| rung | accuracy | seconds |", "| --- | --- | --- |"]
    for method, ladder in by_method.items():
        for rung in ladder:
            rows.append(
                f"| {method}, {rung.method.partition('/')[2]} | {shown(rung)} | "
                f"{rung.seconds:.2f} |"
            )
    return "\n".join(rows)


def _seeds(found: Sequence[Summary]) -> str:
    """Say how many seeds there are, and of which rungs there are fewer."""
    most = max(s.seeds for s in found)
    fewer = [f"{s.seeds} of {s.method.replace('/', ', ')}" for s in found if s.seeds < most]
    return f"{most} seeds" + (f" (but {'; '.join(fewer)})" if fewer else "")


_BARS: Final = {"dp_sgd": 10.0, "opacus": 50.0}


def _verdict(by_method: dict[str, list[Summary]], ratios: dict[str, list[float]]) -> Iterator[str]:
    """Say of each bar whether it is reached."""
    for method, bar in _BARS.items():
        if method not in by_method or "qexp" not in by_method:
            continue
        reached = ratios[method]
        best = max(by_method[method], key=lambda rung: rung.mean)
        above = [ours for ours in by_method["qexp"] if _is_above(ours, best)]
        tied = sum(_is_tied(best, ours) for ours in above)
        kept = sum(ratio >= bar for ratio in reached)
        between = f", {min(reached):.1f} to {max(reached):.1f} times as long" if reached else ""
        longest = max(rung.seconds for rung in by_method[method])
        spent = [longest / ours.seconds for ours in above]
        tried = f", even in {min(spent):.1f} to {max(spent):.1f} times as long" if spent else ""
        yield (
            f"- {method}, wanted {bar:g} times as long as qexp or more: so at {kept} of "
            f"{len(reached)} accuracies that it reaches{between}; "
            f"{len(above)} of qexp's accuracies it does not reach{tried}; to {tied} of them its "
            "best rung is tied."
        )


def _is_above(one: Summary, other: Summary) -> bool:
    gap = paired(one, other)
    return one.mean > other.mean if gap is None else gap.mean > 0


def _is_tied(one: Summary, other: Summary) -> bool:
    gap = paired(one, other)
    return gap is None or not gap.is_clear


def _order(method: str) -> tuple[int, str]:
    known = ("qexp", "dp_sgd", "dp_gd", "opacus")
    return (known.index(method) if method in known else len(known)), method


def _plot(found: list[Summary], path: Path) -> None:
    from matplotlib.figure import Figure

    factor, _ = shown_as(found[0].metric)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, method in enumerate(sorted({method_of(s.method) for s in found}, key=_order)):
        ladder = sorted(
            (s for s in found if method_of(s.method) == method), key=lambda s: s.seconds
        )
        bars = [s.bar for s in ladder]
        colour, seconds = f"C{number}", [s.seconds for s in ladder]
        axes.errorbar(
            seconds,
            [factor * s.mean for s in ladder],
            bars,
            linestyle="",
            marker="osDv"[number % 4],
            markersize=5,
            capsize=2,
            color=colour,
            label=method,
        )
        # The best that can be had in a time.
        best = np.maximum.accumulate([factor * s.mean for s in ladder])
        axes.step(seconds, best, where="post", color=colour, linewidth=1.5, alpha=0.7)
    axes.set_xscale("log")
    axes.set_xlabel("seconds of one thread")
    axes.set_ylabel(axis_label(found[0].metric))
    axes.legend()
    axes.grid(alpha=0.3)
    figure_file(figure, path)


def measure(
    *,
    task: str = "mnist_to_usps",
    epsilon: float = 1.0,
    delta: float = 1e-5,
    seeds: int = SEEDS,
    opacus: bool = True,
    plan: bool = False,
) -> None:
    """Measure what is missing of the ladders at one budget; `plan` does not take the study's plans.

    Raises
    ------
    ImportError
        If threadpoolctl is not installed; or, when everything else is measured, torch or Opacus,
        and nothing is known of Opacus yet.
    """
    lines, rungs = lines_at(RESULTS), ladders()
    if not plan:
        adopt_plans(lines, Store(), task=task, epsilon=epsilon, delta=delta)
    absent: ImportError | None = None
    if opacus:
        try:
            torch_and_opacus()  # before threads are limited
            rungs = with_opacus(rungs)
        except ImportError as error:
            if not any(method_of(line["method"]) == "opacus" for line in lines.read()):
                absent = error
    with one_thread():
        run(rungs, lines, task=task, epsilon=epsilon, delta=delta, seeds=range(seeds))
    if absent is not None:
        raise absent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.time_to_accuracy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--task", choices=sorted(TASKS), default="mnist_to_usps")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument(
        "--seeds",
        type=int,
        default=SEEDS,
        help="0 up to this number less one, of the longest rungs ten (default: %(default)s)",
    )
    parser.add_argument("--opacus", action="store_true", help="with Opacus' DP-SGD as well")
    parser.add_argument("--plan", action="store_true", help="do not take the study's plans")
    arguments = parser.parse_args()
    try:
        if arguments.opacus:
            torch_and_opacus()  # or say so before hours of work
        measure(**vars(arguments))
    except KeyboardInterrupt:
        sys.exit(f"stopped; what is done is in {RESULTS}, and the same command goes on")


if __name__ == "__main__":
    main()
