"""Ask what private curvature is worth, where public records are alike and where there are none.

    python -m experiments.private_curvature mnist_to_usps --epsilon 1 8 --seeds 5

prints one JSON line for each budget, source of the public curvature and share of the budget that
buys private curvature; `python -m experiments all` keeps these. The public curvature is made of the
task's held-out records, or of images of noise, which tell nothing of any record. For each, the
schedule is planned on public records with no share, then the share is varied: it is the share that
is judged here, not the plan.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.fine_tuning import fine_tuned
from experiments.full_space import DELTA, planned, seeded
from experiments.measurement import Line, Measurement, markdown_table
from experiments.study.summaries import mean_text, student
from experiments.tasks import TASKS, Task
from qexp.finetune import Schedule

SHARES = (0.0, 0.05, 0.2, 0.5)
_NOISE_IMAGES = 4000


def noise_images(task: Task) -> NDArray[np.float32]:
    """Images of independent uniform pixels."""
    shape = (_NOISE_IMAGES, task.X_private.shape[1])
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@lru_cache
def _schedule(task: str, epsilon: float, seeds: int) -> Schedule:
    return planned(seeded(task, seeds)[0], epsilon, None, "quick")[0].schedule


def compared(
    task: str, epsilon: float, delta: float, curvature_of: str, curvature_share: float, seeds: int
) -> Line:
    """Fine-tune with a share of the budget spent on curvature, beside that of public records."""
    schedule = replace(_schedule(task, epsilon, seeds), curvature_share=curvature_share)
    values = [
        made.value(
            fine_tuned(
                made,
                schedule,
                epsilon=epsilon,
                delta=delta,
                seed=seed,
                curvature_records=noise_images(made) if curvature_of == "noise" else None,
            ).model
        )
        for seed, made in enumerate(seeded(task, seeds))
    ]
    return {"accuracies": values, "schedule": schedule.describe()}


_SOURCES: Final = {"held out": "held-out digits", "noise": "images of noise"}


def _cells(task: str, epsilons: Sequence[float], seeds: int) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "epsilon": epsilon,
            "delta": DELTA,
            "curvature_of": source,
            "curvature_share": share,
            "seeds": seeds,
        }
        for epsilon in epsilons
        for source in _SOURCES
        for share in SHARES
    ]


def _tables(lines: list[Line]) -> dict[str, str]:
    by_row: dict[tuple[float, str], dict[float, Line]] = defaultdict(dict)
    for line in lines:
        by_row[line["epsilon"], line["curvature_of"]][line["curvature_share"]] = line
    rows = [
        [
            f"{epsilon:g}",
            _SOURCES[source],
            *(
                mean_text(*student(some[share]["accuracies"]), "accuracy") if share in some else ""
                for share in SHARES
            ),
        ]
        for (epsilon, source), some in by_row.items()
    ]
    heads = ["ε", "public curvature from", "none", *(f"{100 * s:g} %" for s in SHARES[1:])]
    return {"private curvature": markdown_table(heads, rows)}


MEASUREMENT: Final = Measurement(
    name="private_curvature",
    cells=_cells("mnist_to_usps", (1.0, 8.0), 5),
    run=compared,
    page="results.md",
    tables=_tables,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    for cell in _cells(arguments.task, arguments.epsilon, arguments.seeds):
        print(json.dumps({**cell, **compared(**cell)}), flush=True)


if __name__ == "__main__":
    main()
