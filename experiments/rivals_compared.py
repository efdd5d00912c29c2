"""Every rival with settings planned on public records, on the tasks of `experiments.tasks`.

    python -m experiments.rivals_compared mnist_to_usps --epsilon 1 --seeds 2 [--methods dp_gd …]

prints one JSON line a method and budget. qexp's own line comes from `experiments.full_space`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict

import numpy as np

from experiments.tasks import TASKS
from qexp.bits import insecure_test_generator
from qexp.rivals import METHODS, plan_rival

DELTA = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--trials", type=int, help="try at most so many candidates")
    parser.add_argument("--effort", choices=["quick", "full"], default="quick")
    arguments = parser.parse_args()

    tasks = [TASKS[arguments.task](seed) for seed in range(arguments.seeds)]
    model, X, y = tasks[0].planning or (tasks[0].model, tasks[0].X_held_out, tasks[0].y_held_out)
    for epsilon in arguments.epsilon:
        for name in arguments.methods:
            started, processor = time.perf_counter(), time.process_time()
            # One plan serves all seeds, as one plan would serve one job.
            made = plan_rival(
                METHODS[name],
                model,
                X,
                y,
                n_records=len(tasks[0].X_private),
                target_epsilon=epsilon,
                target_delta=DELTA,
                surrogate=tasks[0].planning_surrogates or tasks[0].surrogate,
                image_shape=tasks[0].image_shape,
                public_group=tasks[0].planning_group,
                effort=arguments.effort,
                trials=arguments.trials,
                progress=True,
            )
            planned = time.perf_counter()
            processor = time.process_time() - processor
            results = [
                METHODS[name](
                    task.model,
                    task.X_private,
                    task.y_private,
                    target_epsilon=epsilon,
                    target_delta=DELTA,
                    public_data=(task.X_held_out, task.y_held_out),
                    settings=made.settings,
                    rng=insecure_test_generator(seed),
                )
                for seed, task in enumerate(tasks)
            ]
            ended = time.perf_counter()
            accuracies = [
                result.model.score(task.X_test, task.y_test)
                for result, task in zip(results, tasks, strict=True)
            ]
            line = {
                "task": arguments.task,
                "method": name,
                "epsilon": epsilon,
                "delta": DELTA,
                "settings": asdict(made.settings),
                "candidates": len(made.table),
                "planning_seconds": round(planned - started, 1),
                "planning_processor_seconds": round(processor, 1),
                "seconds": round((ended - planned) / len(tasks), 2),
                "predicted": round(made.predicted_accuracy, 4),
                "accuracy_mean": round(float(np.mean(accuracies)), 4),
                "accuracy_std": round(float(np.std(accuracies)), 4),
                "accuracies": [round(value, 4) for value in accuracies],
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
