"""Measure what part of the gap to fine-tuning without privacy is noise.

    python -m experiments.noise_share mnist_few_500

runs the study's plan for ε = 1 once more with next to no noise, at ε = 10⁹, and prints a JSON line.
What that still lacks of ordinary fine-tuning is not noise: clipping, rounds that are few because
noise was expected, or a subspace. It is no release, and nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

from experiments.fine_tuning import fine_tuned, schedule_of
from experiments.measurement import Line, Measurement, markdown_table
from experiments.study.results import Store
from experiments.study.summaries import Difference, difference_text, mean_text, student
from experiments.tasks import TASKS

_EPSILON, _DELTA = 1.0, 1e-5
# Of a noise some ten thousand times smaller.
_EPSILON_WITHOUT_NOISE: Final = 1e9
_SEEDS: Final = 5


def measured(task: str) -> Line:
    """Run the plan again, and set it beside what the study has of the same seeds."""
    store = Store()
    settings = store.planned(task, "qexp", _EPSILON, _DELTA)
    schedule, subspace = schedule_of(settings)
    values = []
    for seed in range(_SEEDS):
        made = TASKS[task](seed)
        result = fine_tuned(
            made,
            schedule,
            epsilon=_EPSILON_WITHOUT_NOISE,
            delta=_DELTA,
            seed=seed,
            subspace=subspace,
        )
        values.append(round(made.value(result.model), 4))
    return {
        "metric": made.metric,
        "settings": settings,
        "without_noise": values,
        "with_noise": _of_seeds(store.lines(task, "qexp"), _EPSILON),
        "without_privacy": _of_seeds(store.lines(task, "non_private"), None),
    }


def _of_seeds(lines: list[dict[str, Any]], epsilon: float | None) -> list[float]:
    by_seed = {line["seed"]: line["value"] for line in lines if line["epsilon"] == epsilon}
    return [by_seed[seed] for seed in range(_SEEDS)]


def _tables(lines: list[Line]) -> dict[str, str]:
    rows = []
    for line in lines:
        metric, free = line["metric"], line["without_privacy"]
        noisy, exact = line["with_noise"], line["without_noise"]
        noise = [a - b for a, b in zip(exact, noisy, strict=True)]
        rest = [a - b for a, b in zip(free, exact, strict=True)]
        rows.append(
            [
                line["task"],
                *(mean_text(*student(values), metric) for values in (noisy, exact, free)),
                *(
                    difference_text(Difference(*student(gap), _SEEDS), metric)
                    for gap in (noise, rest)
                ),
            ]
        )
    heads = ["task", "ε = 1", "without noise", "without privacy", "noise takes", "the rest takes"]
    return {"what noise takes": markdown_table(heads, rows)}


MEASUREMENT: Final = Measurement(
    name="noise_share",
    cells=[
        {"task": task}
        for task in (*(f"mnist_few_{n}" for n in (250, 500, 1000, 2000)), "mnist_to_usps")
    ],
    run=measured,
    page="results.md",
    tables=_tables,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    task = parser.parse_args().task
    print(json.dumps({"task": task, **measured(task)}))


if __name__ == "__main__":
    main()
