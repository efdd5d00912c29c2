"""Judge the study's plans on fresh draws of the public moves that they were made on.

    python -m experiments.public_moves icu_cardiac --epsilon 1 --methods qexp dp_sgd

Prints a JSON line a method: the mean score over all moves, and its standard error over draws of
shifts, splits, noise and batches that planning has not seen, the same for all methods. Where these
figures agree, the public records do not tell which plan is better on the private ones. From the
second method on, also the difference from the first, draw by draw. `python -m experiments all`
keeps those of the cells of intensive care where the study's plans of qexp lose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from experiments.fine_tuning import (
    planning_records,
    schedule_of,
    subspace_arguments,
    surrogate_arguments,
)
from experiments.measurement import Line, Measurement, markdown_table
from experiments.study.methods import METHODS as STUDY_METHODS
from experiments.study.methods import settings_from_json
from experiments.study.results import Store
from experiments.study.summaries import Difference, difference_text, mean_text, student
from experiments.tasks import TASKS, Task
from qexp.planning._domains import public_domains
from qexp.planning._halving import Try
from qexp.planning._simulation import Simulation
from qexp.privacy import calibrate_mu
from qexp.rivals import METHODS
from qexp.rivals._accounting import Target
from qexp.rivals.planning import RivalSimulation

DELTA = 1e-5
OURS: Final = ("qexp", "qexp_one_round")
PLANNED = [*OURS, *(name for name in METHODS if STUDY_METHODS[name].takes_budget)]
# Planning's seed is 0.
_DRAWS, _SEED = 20, 7


def trial(
    task: Task, method: str, settings: Any, epsilon: float, seed: int
) -> tuple[Callable[[int, int], tuple[float, float]], int]:
    """Give what tries settings on a public move, by its number and a seed; and how many moves."""
    public = public_domains(
        *planning_records(task), **surrogate_arguments(task, "quick"), seed=seed
    )
    n, moves = len(task.X_private), len(public.domains)
    tried: Try[Any]
    if method in OURS:

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
    planned = Store().planned(task, method, epsilon, DELTA)
    if method in OURS:
        return schedule_of(planned)
    return settings_from_json(METHODS[method].settings_type, planned)


def scores(task: str, method: str, epsilon: float, draws: int, seed: int) -> list[float]:
    """Give the mean score over all public moves of the study's plan, draw by draw."""
    made, settings = TASKS[task](0), settings_of(task, method, epsilon)
    found = []
    for at in range(seed, seed + 1000 * draws, 1000):
        tried, moves = trial(made, method, settings, epsilon, at)
        found.append(float(np.mean([tried(i, 5000 + at + i)[0] for i in range(moves)])))
    return found


def measured(task: str, epsilon: float, rival: str, draws: int, seed: int) -> Line:
    """Set qexp's plan beside another, on the same draws."""
    return {
        "metric": TASKS[task](0).metric,
        "qexp": scores(task, "qexp", epsilon, draws, seed),
        "rival_scores": scores(task, rival, epsilon, draws, seed),
    }


def _tables(lines: list[Line]) -> dict[str, str]:
    rows = []
    for line in lines:
        metric, ours, theirs = line["metric"], line["qexp"], line["rival_scores"]
        ahead = [a - b for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            [
                line["task"],
                f"{line['epsilon']:g}",
                mean_text(*student(ours), metric),
                f"{line['rival']}, {mean_text(*student(theirs), metric)}",
                difference_text(Difference(*student(ahead), len(ahead)), metric),
                len(ahead),
            ]
        )
    heads = ["task", "ε", "qexp's plan", "another", "difference, paired", "draws"]
    return {"public moves": markdown_table(heads, rows)}


MEASUREMENT: Final = Measurement(
    name="public_moves",
    cells=[
        {"task": task, "epsilon": epsilon, "rival": rival, "draws": _DRAWS, "seed": _SEED}
        for task, rival, epsilons in (
            ("icu_cardiac", "dp_gd", (0.25, 0.5, 1.0)),
            ("icu_cardiac_mlp", "dp_sgd", (4.0, 8.0)),
            ("icu_time", "adamix", (2.0, 4.0, 8.0)),
            ("icu_time", "qexp_one_round", (2.0, 4.0, 8.0)),
        )
        for epsilon in epsilons
    ],
    run=measured,
    page="results.md",
    tables=_tables,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--methods", nargs="+", choices=PLANNED, default=["qexp"])
    parser.add_argument(
        "--draws", type=int, default=_DRAWS, help=f"of every move (default {_DRAWS})"
    )
    parser.add_argument(
        "--seed", type=int, default=_SEED, help=f"planning's is 0 (default {_SEED})"
    )
    given = parser.parse_args()
    first = None
    for method in given.methods:
        found = scores(given.task, method, given.epsilon, given.draws, given.seed)
        line = {
            "task": given.task,
            "method": method,
            "epsilon": given.epsilon,
            **_mean(found, "score", "standard_error"),
            "draws": given.draws,
        }
        if first is None:
            first = found
        else:
            line |= _mean(np.subtract(found, first), "difference", "its_standard_error")
        print(json.dumps(line), flush=True)


def _mean(values: Any, *names: str) -> dict[str, float]:
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return dict(zip(names, (round(float(x), 4) for x in (np.mean(values), error)), strict=True))


if __name__ == "__main__":
    main()
