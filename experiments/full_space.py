"""Fine-tune the full weight space under a budget, with settings planned on public records.

    python -m experiments.full_space mnist_to_usps --epsilon 1 4 --seeds 5 [--rounds 1] [--grid]

prints one JSON line a budget. ``--grid`` adds the best schedule of the planner's grid on the real
task: to judge the planner by, never to choose from. On a machine shared with others,
set OPENBLAS_NUM_THREADS=1: products here are small, and threads that wait for each other are slow.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from experiments.fine_tuning import fine_tuned, planning_arguments, planning_records
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
    draw. It judges the planner; no job may be run with its result.
    """
    noise = 1 / (len(task.X_private) * calibrate_mu(epsilon, DELTA))
    trial = KroneckerTrial(
        task.model,
        task.X_private,
        task.y_private,
        task.public_records()[0],
        eigen_factors(task.model, task.public_records()[0], 0),
    )

    def value(schedule: Schedule, n_records: int) -> float:
        tuned = trial.head(n_records).tune(schedule, noise, np.random.default_rng(0))
        return 0.0 if tuned is None else task.value(tuned)

    alive = candidate_schedules(rounds)
    for n_records, most in ((1000, 64), (4000, 12), (len(task.X_private), 1)):
        alive = sorted(alive, key=lambda s: value(s, n_records), reverse=True)[:most]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--effort", choices=["quick", "full"], default="quick")
    parser.add_argument("--grid", action="store_true", help="judge the planner; slow")
    arguments = parser.parse_args()

    tasks = [TASKS[arguments.task](seed) for seed in range(arguments.seeds)]
    before = [task.measures(task.model) for task in tasks]
    non_private = [task.measures(task.non_private()) for task in tasks]
    for epsilon in arguments.epsilon:
        # One plan serves all seeds, as one plan would serve one job.
        made, seconds = planned(tasks[0], epsilon, arguments.rounds, arguments.effort)
        found = [
            task.measures(private_model(task, made.schedule, epsilon, seed))
            for seed, task in enumerate(tasks)
        ]
        line: dict[str, Any] = {
            "task": arguments.task,
            "epsilon": epsilon,
            "delta": DELTA,
            "schedule": made.schedule.describe(),
            "planning_seconds": round(seconds, 1),
            "predicted": round(made.predicted_score, 4),
        }
        for name in before[0]:
            values = [measures[name] for measures in found]
            line[name] = {
                "before": round(float(np.mean([m[name] for m in before])), 4),
                "non_private": round(float(np.mean([m[name] for m in non_private])), 4),
                "mean": round(float(np.mean(values)), 4),
                "std": round(float(np.std(values)), 4),
                "values": [round(value, 4) for value in values],
            }
        if arguments.grid:
            best = best_of_grid(tasks[0], epsilon, arguments.rounds)
            values = [
                task.value(private_model(task, best, epsilon, seed))
                for seed, task in enumerate(tasks)
            ]
            line["best_of_grid"] = best.describe()
            line["best_of_grid_mean"] = round(float(np.mean(values)), 4)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
