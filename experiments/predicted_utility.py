"""Compare the utility that a draw is predicted to lose with what draws lose.

    python -m experiments.predicted_utility [TASK …] [--epsilon 1] [--draws 200]

prints one JSON line a task; `python -m experiments all` keeps those of all tasks of open data. In
the quadratic model a draw loses (η/2n) ‖y - y*‖² of utility, y* the sum without noise, and is
predicted to lose η σ² k / 2n (the mean of τ/2 χ²_k), whatever the records are. The draws here are
real ones: the task's records, clipped and summed in integers. What the quadratic model itself
leaves out is not part of this comparison.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

import numpy as np

from experiments.measurement import Line, Measurement, markdown_table
from experiments.tasks import CREDENTIALED, TASKS, Task
from qexp import KroneckerCurvature, calibrate_mu
from qexp.bits import insecure_test_generator
from qexp.mechanism import draw_figures, private_step
from qexp.private_sum import Lattice, NoisySum, lattice_for
from qexp.projections import Identity

_DAMPING, _CLIPPING_NORM, _STEP_SIZE = 1e-2, 3.0, 1.0
# Its noise is some 10⁻⁵ of a draw's.
_MU_WITHOUT_NOISE = 2.0**16
_OPEN: Final = sorted(TASKS.keys() - CREDENTIALED)


def compared(task: Task, epsilon: float, delta: float, draws: int) -> dict[str, Any]:
    """Give the predicted and the mean realised loss of utility."""
    curvature = KroneckerCurvature.from_model(
        task.model, task.public_records()[0], damping=_DAMPING
    )
    projection, n = Identity(task.model.n_parameters), len(task.X_private)

    def draw(lattice: Lattice, seed: int) -> NoisySum:
        drawn = private_step(
            task.model.gradient_blocks(task.X_private, task.y_private),
            n_records=n,
            projection=projection,
            curvature=curvature,
            lattice=lattice,
            step_size=_STEP_SIZE,
            bits=insecure_test_generator(seed),
            ledger=None,
            label="",
        )
        assert drawn is not None  # on a root
        return drawn[1]

    exact = draw(lattice_for(_MU_WITHOUT_NOISE, _CLIPPING_NORM, n), 0).values
    lattice = lattice_for(calibrate_mu(epsilon, delta), _CLIPPING_NORM, n)
    sums = [draw(lattice, seed) for seed in range(1, draws + 1)]
    losses = [_STEP_SIZE / (2 * n) * float(np.square(y.values - exact).sum()) for y in sums]
    predicted = draw_figures(sums[0], projection, curvature, _STEP_SIZE)["expected_utility_loss"]
    return {
        "task": task.name,
        "epsilon": epsilon,
        "delta": delta,
        "n_components": curvature.n_components,
        "draws": draws,
        "predicted": predicted,
        "realised_mean": float(np.mean(losses)),
        "realised_std": float(np.std(losses)),
        "ratio": float(np.mean(losses)) / predicted,
    }


def _run(task: str, epsilon: float, delta: float, draws: int) -> Line:
    return compared(TASKS[task](0), epsilon, delta, draws)


def _tables(lines: list[Line]) -> dict[str, str]:
    rows = []
    for line in lines:
        half = 1.96 * line["realised_std"] / line["draws"] ** 0.5
        rows.append(
            [
                line["task"],
                f"{line['n_components']:,}",
                f"{line['predicted']:.4g}",
                f"{line['realised_mean']:.4g} ± {half:.2g}",
                f"{line['ratio']:.4f}",
            ]
        )
    heads = ["task", "k", "predicted", "mean of the draws", "ratio"]
    return {"predicted utility": markdown_table(heads, rows)}


MEASUREMENT: Final = Measurement(
    name="predicted_utility",
    cells=[{"task": task, "epsilon": 1.0, "delta": 1e-5, "draws": 200} for task in _OPEN],
    run=_run,
    page="results.md",
    tables=_tables,
    needs=("duckdb",),  # of mimic_mortality
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"out of {sorted(TASKS)}")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    for name in arguments.tasks or _OPEN:
        if name not in TASKS:
            parser.error(f"{name!r} is no task; choose from {sorted(TASKS)}")
        line = compared(TASKS[name](0), arguments.epsilon, arguments.delta, arguments.draws)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
