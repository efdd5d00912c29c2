"""Fine-tune the full weight space under a budget, with settings planned on public records.

    python -m experiments.full_space mnist_to_usps --epsilon 1 4 --seeds 5 [--rounds 1] [--grid]

prints one JSON line a budget. ``--grid`` adds the real accuracy of every candidate that the
planner looked at: to judge the planner by, never to choose from. On a machine shared with others,
set OPENBLAS_NUM_THREADS=1: products here are small, and threads that wait for each other are slow.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from experiments.tasks import TASKS, Task
from qexp import KroneckerCurvature
from qexp.bits import insecure_test_generator
from qexp.finetune import Schedule, fine_tune
from qexp.planning import Plan, _eigen, _KroneckerTrial, candidate_schedules, plan
from qexp.privacy import calibrate_mu

DELTA = 1e-5


def private_accuracy(task: Task, schedule: Schedule, epsilon: float, seed: int) -> float:
    """Test accuracy after fine-tuning on the private records."""
    result = fine_tune(
        task.model,
        task.X_private,
        task.y_private,
        schedule=schedule,
        curvature=lambda model: KroneckerCurvature.from_model(
            model, task.X_held_out, damping=schedule.damping
        ),
        target_epsilon=epsilon,
        target_delta=DELTA,
        rng=insecure_test_generator(seed),
    )
    return float(result.model.score(task.X_test, task.y_test))


def grid_accuracies(task: Task, epsilon: float, rounds: int | None) -> list[dict[str, Any]]:
    """Real accuracy of the planner's whole grid, by the planner's fast simulation of the draw."""
    noise = 1 / (len(task.X_private) * calibrate_mu(epsilon, DELTA))
    trial = _KroneckerTrial(
        task.model,
        task.X_private,
        task.y_private,
        task.X_held_out,
        _eigen(task.model, task.X_held_out, 0),
    )
    rows = []
    for schedule in candidate_schedules(rounds):
        tuned = trial.tune(schedule, noise, np.random.default_rng(0))
        accuracy = 0.0 if tuned is None else float(tuned.score(task.X_test, task.y_test))
        rows.append({"schedule": schedule.describe(), "accuracy": accuracy})
    return sorted(rows, key=lambda row: -row["accuracy"])


def planned(task: Task, epsilon: float, rounds: int | None, effort: Any) -> tuple[Plan, float]:
    """Plan on the held-out public records; also give the seconds it took."""
    started = time.perf_counter()
    made = plan(
        task.model,
        task.X_held_out,
        task.y_held_out,
        n_records=len(task.X_private),
        target_epsilon=epsilon,
        target_delta=DELTA,
        surrogate="images",
        image_shape=task.image_shape,
        rounds=rounds,
        effort=effort,
        progress=True,
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
    before = [task.model.score(task.X_test, task.y_test) for task in tasks]
    tuned = [task.model.fit(task.X_private, task.y_private, epochs=20) for task in tasks]
    non_private = [m.score(t.X_test, t.y_test) for m, t in zip(tuned, tasks, strict=True)]
    for epsilon in arguments.epsilon:
        # One plan serves all seeds, as one plan would serve one job.
        made, seconds = planned(tasks[0], epsilon, arguments.rounds, arguments.effort)
        accuracies = [
            private_accuracy(task, made.schedule, epsilon, seed) for seed, task in enumerate(tasks)
        ]
        line: dict[str, Any] = {
            "task": arguments.task,
            "epsilon": epsilon,
            "delta": DELTA,
            "schedule": made.schedule.describe(),
            "planning_seconds": round(seconds, 1),
            "predicted": round(made.predicted_accuracy, 4),
            "before": round(float(np.mean(before)), 4),
            "non_private": round(float(np.mean(non_private)), 4),
            "accuracy_mean": round(float(np.mean(accuracies)), 4),
            "accuracy_std": round(float(np.std(accuracies)), 4),
            "accuracies": [round(value, 4) for value in accuracies],
        }
        if arguments.grid:
            line["grid"] = grid_accuracies(tasks[0], epsilon, arguments.rounds)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
