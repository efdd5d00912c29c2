"""Judge the study's plans on fresh draws of the public moves that they were made on.

    python -m experiments.public_moves icu_cardiac --epsilon 1 --methods qexp dp_sgd

Prints a JSON line a method: the mean score over all moves, and its standard error over draws of
shifts, splits, noise and batches that planning has not seen, the same for all methods. Where these
figures agree, the public records do not tell which plan is better on the private ones. From the
second method on, also the difference from the first, draw by draw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.fine_tuning import (
    planning_records,
    schedule_of,
    subspace_arguments,
    surrogate_arguments,
)
from experiments.study.methods import METHODS as STUDY_METHODS
from experiments.study.methods import settings_from_json
from experiments.study.results import Store
from experiments.tasks import TASKS, Task
from qexp.planning._domains import public_domains
from qexp.planning._halving import Try
from qexp.planning._simulation import Simulation
from qexp.privacy import calibrate_mu
from qexp.rivals import METHODS
from qexp.rivals._accounting import Target
from qexp.rivals.planning import RivalSimulation

DELTA = 1e-5
PLANNED = ["qexp", *(name for name in METHODS if STUDY_METHODS[name].takes_budget)]


def trial(
    task: Task, method: str, settings: Any, epsilon: float, seed: int
) -> tuple[Callable[[int, int], tuple[float, float]], int]:
    """Give what tries settings on a public move, by its number and a seed; and how many moves."""
    public = public_domains(
        *planning_records(task), **surrogate_arguments(task, "quick"), seed=seed
    )
    n, moves = len(task.X_private), len(public.domains)
    tried: Try[Any]
    if method == "qexp":

        def noise(epsilon: float) -> float:
            return 1 / (n * calibrate_mu(epsilon, DELTA))

        _, subspace = settings
        given = {} if subspace is None else subspace_arguments(task) | {"subspaces": [subspace]}
        simulation = Simulation(public, n, noise, epsilon, DELTA, "kronecker", (), seed, **given)
        tried = simulation.tries(moves, n)
    else:
        target = Target(epsilon, DELTA, "replace_special")
        tried = RivalSimulation(METHODS[method], public, n, target, seed).tries(moves, n)
    return (lambda i, at: tried(settings, i, at)), moves


def settings_of(task: str, method: str, epsilon: float) -> Any:
    """Give the settings that the study planned; of qexp the schedule and the subspace's size."""
    planned = Store().settings(task, method, epsilon, DELTA)
    if planned is None:
        raise ValueError(
            f"the study has no {method} for {task} at epsilon = {epsilon:g}; run it first"
        )
    if method == "qexp":
        return schedule_of(planned)
    return settings_from_json(METHODS[method].settings_type, planned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--methods", nargs="+", choices=PLANNED, default=["qexp"])
    parser.add_argument("--draws", type=int, default=6, help="of every move (default 6)")
    parser.add_argument("--seed", type=int, default=7, help="planning's is 0 (default 7)")
    given = parser.parse_args()
    task, first = TASKS[given.task](0), None
    for method in given.methods:
        settings = settings_of(given.task, method, given.epsilon)
        scores = []
        for seed in range(given.seed, given.seed + 1000 * given.draws, 1000):
            tried, moves = trial(task, method, settings, given.epsilon, seed)
            scores.append(np.mean([tried(i, 5000 + seed + i)[0] for i in range(moves)]))
        line = {
            "task": given.task,
            "method": method,
            "epsilon": given.epsilon,
            **_mean(scores, "score", "standard_error"),
            "draws": given.draws,
        }
        if first is None:
            first = scores
        else:
            line |= _mean(np.subtract(scores, first), "difference", "its_standard_error")
        print(json.dumps(line), flush=True)


def _mean(values: Any, *names: str) -> dict[str, float]:
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return dict(zip(names, (round(float(x), 4) for x in (np.mean(values), error)), strict=True))


if __name__ == "__main__":
    main()
