"""One cell of the study: a task, a method, a budget and a seed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from experiments.fine_tuning import planning_records
from experiments.study.methods import METHODS, NO_BUDGET, StudyMethod
from experiments.tasks import TASKS, Task
from qexp._memory import peak_mebibytes
from qexp.planning._domains import LEAST_RECORDS

__all__ = ["DEFAULT_EPSILONS", "Cell", "plan_settings", "run_cell", "run_planned", "task_at"]

DEFAULT_EPSILONS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
CHOSEN_ON: Final = "public records, at seed 0"
_LARGER: Final = {"mimic_mortality": "mimic_mortality_full, of the whole release (docs/mimic.md)"}


@dataclass(frozen=True)
class Cell:
    """Where a figure stands."""

    task: str
    method: str
    epsilon: float
    delta: float
    seed: int


def run_cell(cell: Cell, *, effort: Literal["quick", "full"] = "quick") -> dict[str, Any]:
    """Plan and run one cell, and the fine-tuning without privacy to compare it with."""
    settings = plan_settings(cell.task, cell.method, cell.epsilon, cell.delta, effort)
    line = run_planned(cell, settings)
    free = Cell(cell.task, "non_private", NO_BUDGET, cell.delta, cell.seed)
    free_settings = plan_settings(cell.task, "non_private", NO_BUDGET, cell.delta, effort)
    line["non_private"] = run_planned(free, free_settings)["value"]
    return line


def plan_settings(
    task: str, method: str, epsilon: float, delta: float, effort: Any
) -> dict[str, Any]:
    """Plan on the public records of seed 0: one plan serves all seeds, as it would one job.

    Raises
    ------
    ValueError
        If there are too few of them.
    """
    epsilon = epsilon if METHODS[method].takes_budget else 1.0
    made = task_at(task, 0)
    if (n := len(planning_records(made)[2])) < LEAST_RECORDS:
        raise ValueError(
            f"{task} has {n} public records to plan on, and a plan of any method takes at least "
            f"{LEAST_RECORDS}; take a larger task"
            + (f": {_LARGER[task]}" if task in _LARGER else "")
        )
    return METHODS[method].plan(made, epsilon, delta, effort)


def run_planned(
    cell: Cell, settings: dict[str, Any], method: StudyMethod | None = None
) -> dict[str, Any]:
    """Run one cell with settings that are given; `method` by default is the cell's.

    Returns
    -------
    dict
        As JSON can hold it. ``seconds`` are of the private part alone, without pretraining,
        planning and learning a subspace, and so are ``cpu_seconds``, of all threads; ``peak_mib``
        of the whole process; ``mu`` is None for Poisson samples, whose privacy is no single
        Gaussian's.
    """
    task = task_at(cell.task, cell.seed)
    method = METHODS[cell.method] if method is None else method
    method.prepare(task, settings)
    started, started_cpu = time.perf_counter(), time.process_time()
    epsilon = cell.epsilon if math.isfinite(cell.epsilon) else 1.0
    tuned = method.run(task, settings, epsilon, cell.delta, cell.seed)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    measures = task.measures(tuned.model)
    return {
        "task": cell.task,
        "method": cell.method,
        "epsilon": cell.epsilon if math.isfinite(cell.epsilon) else None,
        "delta": cell.delta,
        "mu": tuned.mu,
        "relation": tuned.relation,
        "seed": cell.seed,
        "metric": task.metric,
        "value": measures[task.metric],
        "measures": measures,
        "before": task.value(task.model),
        "non_private": None,
        "rounds": tuned.rounds,
        "seconds": round(seconds, 4),
        "cpu_seconds": round(cpu_seconds, 4),
        "peak_mib": round(peak_mebibytes(), 1),
        "hyperparameters": settings,
        "chosen_on": CHOSEN_ON,
    }


@lru_cache(maxsize=2)
def task_at(name: str, seed: int) -> Task:
    """Make a task; the last ones stay at hand, since pretraining takes seconds."""
    return TASKS[name](seed)
