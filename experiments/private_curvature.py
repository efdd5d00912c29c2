"""Ask what private curvature is worth, where public records are alike and where there are none.

    python -m experiments.private_curvature mnist_to_usps --epsilon 1 8 --seeds 5

prints one JSON line for each budget, source of the public curvature and share of the budget that
buys private curvature. The public curvature is made of the task's held-out records, or of images of
noise, which tell nothing of any record. For each, the schedule is planned on public records with
no share, then the share is varied: it is the share that is judged here, not the plan.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from experiments.fine_tuning import fine_tuned
from experiments.full_space import DELTA, planned
from experiments.tasks import TASKS, Task

SHARES = (0.0, 0.05, 0.2, 0.5)
_NOISE_IMAGES = 4000


def noise_images(task: Task) -> NDArray[np.float32]:
    """Images of independent uniform pixels."""
    shape = (_NOISE_IMAGES, task.X_private.shape[1])
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    tasks = [TASKS[arguments.task](seed) for seed in range(arguments.seeds)]
    for epsilon in arguments.epsilon:
        made, _ = planned(tasks[0], epsilon, None, "quick")
        for source in ("held out", "noise"):
            for share in SHARES:
                schedule = replace(made.schedule, curvature_share=share)
                values = [
                    task.value(
                        fine_tuned(
                            task,
                            schedule,
                            epsilon=epsilon,
                            delta=DELTA,
                            seed=seed,
                            curvature_records=noise_images(task) if source == "noise" else None,
                        ).model
                    )
                    for seed, task in enumerate(tasks)
                ]
                line = {
                    "task": arguments.task,
                    "epsilon": epsilon,
                    "delta": DELTA,
                    "curvature_of": source,
                    "curvature_share": share,
                    "accuracy_mean": round(float(np.mean(values)), 4),
                    "accuracy_std": round(float(np.std(values)), 4),
                    "accuracies": [round(value, 4) for value in values],
                    "schedule": schedule.describe(),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
