"""Fine-tune the full weight space under a budget, with settings planned on public records.

    python -m experiments.full_space mnist_to_usps --epsilon 1 4 --seeds 5 [--rounds 1] [--grid]

prints one JSON line a budget. ``--grid`` adds the best schedule of the planner's grid on the real
task: to judge the planner by, never to choose from; `python -m experiments all` keeps such lines.
On a machine shared with others, set OPENBLAS_NUM_THREADS=1: products here are small, and threads
that wait for each other are slow.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import lru_cache
from typing import Any, Final

import numpy as np

from experiments.fine_tuning import fine_tuned, planning_arguments, planning_records
from experiments.measurement import Line, Measurement, markdown_table
from experiments.study.results import Store
from experiments.study.summaries import Difference, difference_text, mean_text, student
from experiments.tasks import TASKS, Task
from qexp.finetune import Schedule
from qexp.models import MultilayerPerceptron
from qexp.planning import Plan, candidate_schedules, plan
from qexp.planning._kronecker_trial import KroneckerTrial, eigen_factors
from qexp.privacy import calibrate_mu

DELTA = 1e-5


def private_model(
    task: Task, schedule: Schedule, epsilon: float, seed: int
) -> MultilayerPerceptron:
    """Fine-tune on the private records."""
    result = fine_tuned(task, schedule, epsilon=epsilon, delta=DELTA, seed=seed)
    model: MultilayerPerceptron = result.model
    return model


def best_of_grid(task: Task, epsilon: float, rounds: int | None) -> Schedule:
    """Find the schedule of the planner's grid that does best on the real task.

    By halving over the real private and test records, with the planner's fast simulation of the
    draw; the last ones by the mean of several, as a single one finds the luckiest. It judges the
    planner; no job may be run with its result.
    """
    noise = 1 / (len(task.X_private) * calibrate_mu(epsilon, DELTA))
    trial = KroneckerTrial(
        task.model,
        task.X_private,
        task.y_private,
        task.public_records()[0],
        eigen_factors(task.model, task.public_records()[0]),
    )

    def value(schedule: Schedule, n_records: int, draws: int) -> float:
        tuned = (
            trial.head(n_records).tune(schedule, noise, np.random.default_rng(seed))
            for seed in range(draws)
        )
        return float(np.mean([0.0 if model is None else task.value(model) for model in tuned]))

    alive = candidate_schedules(rounds)
    for n_records, most, draws in ((1000, 64, 1), (4000, 12, 2), (len(task.X_private), 1, 8)):
        alive = sorted(alive, key=lambda s: value(s, n_records, draws), reverse=True)[:most]
    return alive[0]


def planned(task: Task, epsilon: float, rounds: int | None, effort: Any) -> tuple[Plan, float]:
    """Plan on the held-out public records; also give the seconds it took."""
    started = time.perf_counter()
    made = plan(
        *planning_records(task),
        rounds=rounds,
        progress=True,
        **planning_arguments(task, epsilon, DELTA, effort),
    )
    return made, time.perf_counter() - started


@lru_cache(maxsize=1)
def seeded(task: str, seeds: int) -> list[Task]:
    """Make a task for so many seeds; the last ones stay at hand, for several cells of them."""
    return [TASKS[task](seed) for seed in range(seeds)]


def judged(task: str, epsilon: float, seeds: int) -> Line:
    """Run the study's plan, and the best of the grid."""
    store = Store()
    settings = store.settings(task, "qexp_full_space", epsilon, DELTA)
    # Where there are no subspaces to choose from, qexp is that.
    settings = settings or store.planned(task, "qexp", epsilon, DELTA)
    return measured(Schedule(**settings), task, epsilon, seeds, grid=True)


def measured(
    schedule: Schedule,
    task: str,
    epsilon: float,
    seeds: int,
    *,
    rounds: int | None = None,
    grid: bool = False,
) -> Line:
    """Run one schedule for all seeds, as one plan would serve one job."""
    tasks = seeded(task, seeds)

    def measures(schedule: Schedule) -> list[dict[str, float]]:
        return [
            each.measures(private_model(each, schedule, epsilon, seed))
            for seed, each in enumerate(tasks)
        ]

    line: Line = {
        "delta": DELTA,
        "schedule": schedule.describe(),
        "metric": tasks[0].metric,
    }
    before = [each.measures(each.model) for each in tasks]
    found = measures(schedule)
    for name in before[0]:
        line[name] = {
            "before": round(float(np.mean([m[name] for m in before])), 4),
            "values": [round(m[name], 4) for m in found],
        }
    if grid:
        best = best_of_grid(tasks[0], epsilon, rounds)
        line["best_of_grid"] = best.describe()
        line["best_of_grid_values"] = [round(m[tasks[0].metric], 4) for m in measures(best)]
    return line


def _tables(lines: list[Line]) -> dict[str, str]:
    rows = []
    for line in lines:
        metric = line["metric"]
        planned, best = line[metric]["values"], line["best_of_grid_values"]
        gap = Difference(*student(np.subtract(planned, best)), line["seeds"])
        texts = [mean_text(*student(values), metric) for values in (planned, best)]
        row = [line["task"], f"{line['epsilon']:g}", *texts, difference_text(gap, metric)]
        rows.append([*row, line["seeds"]])
    heads = ["task", "ε", "planned", "best of the grid", "difference, paired", "seeds"]
    return {"planned and best of the grid": markdown_table(heads, rows)}


MEASUREMENT: Final = Measurement(
    name="planned_and_best_of_grid",
    cells=[
        {"task": task, "epsilon": epsilon, "seeds": seeds}
        for task, epsilon, seeds in (
            ("mnist_to_usps", 1.0, 5),
            ("mnist_to_usps", 4.0, 5),
            ("mnist_few_500", 1.0, 5),
            ("mnist_rotated", 4.0, 5),
            ("icu_cardiac", 1.0, 5),
            ("icu_cardiac", 4.0, 5),
        )
    ],
    run=judged,
    page="results.md",
    tables=_tables,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="plan for exactly so many")
    parser.add_argument("--effort", choices=["quick", "full"], default="quick")
    parser.add_argument("--grid", action="store_true", help="judge the planner; slow")
    given = parser.parse_args()
    first = seeded(given.task, given.seeds)[0]
    for epsilon in given.epsilon:
        made, seconds = planned(first, epsilon, given.rounds, given.effort)
        cell = {"task": given.task, "epsilon": epsilon, "seeds": given.seeds}
        found = measured(made.schedule, **cell, rounds=given.rounds, grid=given.grid)
        told = {"planning_seconds": round(seconds, 1), "predicted": round(made.predicted_score, 4)}
        print(json.dumps({**cell, **told, **found}), flush=True)


if __name__ == "__main__":
    main()
