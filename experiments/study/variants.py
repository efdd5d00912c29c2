"""Variants of methods on one task: planned once each, then run in turn, seed by seed.

What the study's whole methods are not enough for: rungs of a ladder, and methods with a part of
them replaced. All lines of an experiment are in one file. A plan stands in it as a line whose seed
is None, so that a stop loses one plan or one run at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from experiments.fine_tuning import planning_records, surrogate_arguments
from experiments.lines import Lines
from experiments.study.cells import CHOSEN_ON, Cell, run_planned, task_at
from experiments.study.methods import StudyMethod
from experiments.tasks import Task
from qexp._progress import progress_bar
from qexp.planning._domains import public_domains

__all__ = ["Variant", "lines_at", "missing_runs", "plan_variants", "run_variants"]


@dataclass(frozen=True, eq=False)
class Variant:
    """A variant of a method.

    Attributes
    ----------
    method : StudyMethod
    settings_of : str, optional
        Another variant, planned before, whose settings this one takes. Default: its own plan.
    """

    method: StudyMethod
    settings_of: str | None = None


def lines_at(path: Path) -> Lines:
    """Give the file of an experiment's lines."""
    return Lines(
        path,
        lambda line: (
            line["task"],
            line["epsilon"],
            line["delta"],
            line["method"],
            -1 if line["seed"] is None else line["seed"],
        ),
    )


def plan_variants(
    variants: Mapping[str, Variant],
    lines: Lines,
    *,
    task: str,
    epsilon: float,
    delta: float,
    effort: Literal["quick", "full"] = "quick",
) -> dict[str, dict[str, Any]]:
    """Plan what has no plan yet, on the public records of seed 0, and give all settings."""
    known = _of(lines, task, epsilon, delta, seeded=False)
    settings: dict[str, dict[str, Any]] = {}
    shifted: Task | None = None
    with progress_bar(len(variants), f"plans, {task}", show=True) as advance:
        for name, variant in variants.items():
            if variant.settings_of is not None:
                settings[name] = settings[variant.settings_of]
            elif name in known:
                settings[name] = known[name]["hyperparameters"]
            else:
                shifted = _with_shifts(task_at(task, 0), effort) if shifted is None else shifted
                started = time.perf_counter()
                settings[name] = variant.method.plan(shifted, epsilon, delta, effort)
                lines.add(
                    {
                        "task": task,
                        "method": name,
                        "epsilon": epsilon,
                        "delta": delta,
                        "seed": None,
                        "seconds": round(time.perf_counter() - started, 1),
                        "hyperparameters": settings[name],
                        "chosen_on": CHOSEN_ON,
                    }
                )
            advance(1)
    return settings


def run_variants(
    variants: Mapping[str, Variant],
    settings: Mapping[str, dict[str, Any]],
    lines: Lines,
    *,
    task: str,
    epsilon: float,
    delta: float,
    seeds: Iterable[int],
    each: Callable[[dict[str, Any]], object] = lambda line: None,
) -> None:
    """Run what is missing: all variants of a seed one after another, so that they share the load.

    `each` is called with every new line.
    """
    missing = missing_runs(variants, lines, task=task, epsilon=epsilon, delta=delta, seeds=seeds)
    with progress_bar(len(missing), f"runs, {task}", show=True) as advance:
        for seed, name in missing:
            cell = Cell(task, name, epsilon, delta, seed)
            line = run_planned(cell, settings[name], variants[name].method)
            lines.add(line)
            each(line)
            advance(1)


def missing_runs(
    variants: Iterable[str],
    lines: Lines,
    *,
    task: str,
    epsilon: float,
    delta: float,
    seeds: Iterable[int],
) -> list[tuple[int, str]]:
    """Give what is missing as seeds and names: all variants of a seed one after another."""
    done = _of(lines, task, epsilon, delta, seeded=True)
    names = list(variants)
    return [(seed, name) for seed in seeds for name in names if (name, seed) not in done]


def _of(
    lines: Lines, task: str, epsilon: float, delta: float, *, seeded: bool
) -> dict[Any, dict[str, Any]]:
    """Give the lines of plans by name, or those of runs by name and seed."""
    return {
        (line["method"], line["seed"]) if seeded else line["method"]: line
        for line in lines.read()
        if (line["task"], line["epsilon"], line["delta"]) == (task, epsilon, delta)
        and (line["seed"] is not None) == seeded
    }


def _with_shifts(task: Task, effort: str) -> Task:
    """Draw the shifts of planning once for all variants: finding them takes as long as a plan."""
    first, *others = task.planned_on()
    public = public_domains(*planning_records(task), **surrogate_arguments(task, effort))
    shifts = [shift for source, shift in public.domains if source is public.sources[0]]
    return replace(task, rehearsals=[replace(first, surrogate=shifts), *others])
