"""Compare what a draw is predicted to lose with what draws lose.

    python -m experiments.predicted_utility [TASK …] [--kind one_round]

prints one JSON line a draw of a task; `python -m experiments all` keeps those of open data. In the
quadratic model a draw with the whitened noise ν = y - y*, y* the sum without noise, loses

    (η/2n) ‖ν‖²          of utility, η σ² k / 2n in the mean: that of τ/2 χ²_k;
    (η/n)² νᵀ M ν / 2    of mean loss, (η σ/n)² tr(M) / 2 in the mean: M is the public curvature H
                         without its damping, whitened by the one with it, L⁻¹ H L⁻ᵀ = I - λ A⁻¹.

These means are what every release says of itself. The draws here are real ones: the task's records,
clipped and summed in integers with the noise of as many generators. Three kinds of draws:

    one_round    in the whole space: λ = 1e-2, c = 3, η = 1
    subspace     in 200 learnt directions: c = 0.3, η = 1
    first_round  of the schedule that the study planned at this ε

What the quadratic model itself leaves out is not part of this comparison.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.fine_tuning import directions, schedule_of
from experiments.measurement import Line, Measurement, markdown_table
from experiments.study.figures import figure_file
from experiments.study.results import Store
from experiments.tasks import CREDENTIALED, TASKS, Task
from qexp import IdentityCurvature, KroneckerCurvature, Schedule, calibrate_mu
from qexp.bits import insecure_test_generator
from qexp.curvature import Curvature
from qexp.layered import KroneckerLayer
from qexp.mechanism import draw_figures, private_step
from qexp.private_sum import Lattice, NoisySum, WhitenedBlock, lattice_for
from qexp.projections import Identity, Projection
from qexp.subspace import DAMPING

_EPSILON, _DELTA = 1.0, 1e-5
_ONE_ROUND: Final = Schedule(rounds=1, clipping_norm=3.0, step_size=1.0, damping=1e-2)
_IN_SUBSPACE: Final = Schedule(rounds=1, clipping_norm=0.3, step_size=1.0, damping=DAMPING)
_DIRECTIONS: Final = 200
# Its noise is some 10⁻⁵ of a draw's.
_MU_WITHOUT_NOISE: Final = 2.0**16
_OPEN: Final = sorted(TASKS.keys() - CREDENTIALED)
_DRAWS: Final = 200
# A few directions have most of a subspace's curvature, so that its loss varies more.
_DRAWS_IN_SUBSPACE: Final = 4000
_NAMES: Final = {
    "one_round": "one round",
    "subspace": f"one round, {_DIRECTIONS} directions",
    "first_round": "first planned round",
}
# By the names that releases have for what is expected of them.
_LOSSES: Final = {"utility": "expected_utility_loss", "mean_loss": "expected_mean_loss"}


class _Whitened:
    """Whitens a source's factors once, for all draws."""

    def __init__(self, whiten: Callable[[Any], WhitenedBlock]) -> None:
        self._whiten = whiten
        self._blocks: list[WhitenedBlock] | None = None

    def __call__(self, factor_blocks: Iterable[Any]) -> Iterable[WhitenedBlock]:
        if self._blocks is None:
            self._blocks = [self._whiten(factors) for factors in factor_blocks]
        return self._blocks


class _Quadratic:
    """What is drawn in, and what a noise costs there of mean loss."""

    def __init__(self, task: Task, damping: float, subspace: int | None) -> None:
        X = task.public_records()[0]
        self._full = KroneckerCurvature.from_model(
            task.model, X, damping=damping if subspace is None else DAMPING
        )
        self.projection: Projection = Identity(task.model.n_parameters)
        self.curvature: Curvature = self._full
        self.whiten: Callable[[Any], WhitenedBlock] = self._full.whiten_factors
        self._lifted: Callable[[NDArray[Any]], NDArray[Any]] = lambda noise: noise
        if subspace is not None:
            learnt = directions(task)
            within, identity = learnt.subspace(subspace), IdentityCurvature(subspace)
            self.projection, self.curvature = within, identity
            self.whiten = lambda factors: identity.whiten(within.forward_factors(factors))
            self._lifted = learnt.whitened(within).adjoint
        self._moments = [
            (layer.expected_output_moments(), layer.expected_moments())
            for layer in self._full.layers
            if isinstance(layer, KroneckerLayer)
        ]

    def mean_loss(self, noise: NDArray[np.float64]) -> float:
        """Give νᵀ M ν / 2, layer by layer, of which M has two factors."""
        whole, total = self._lifted(noise), 0.0
        places = self._full.layer_slices()
        for layer, place, (of_b, of_a) in zip(
            self._full.layers, places, self._moments, strict=True
        ):
            matrix = whole[place].reshape(layer.shape)
            total += float(np.sum((of_b @ matrix) * (matrix @ of_a))) / 2
        return total


def compared(
    task: Task, kind: str, schedule: Schedule, subspace: int | None, mu: float, draws: int
) -> dict[str, Any]:
    """Give the predicted losses of a draw at μ, and the mean realised ones."""
    model = _Quadratic(task, schedule.damping, subspace)
    source = task.model.gradient_blocks(task.X_private, task.y_private)
    n, eta, whitened = len(task.X_private), schedule.step_size, _Whitened(model.whiten)

    def draw(lattice: Lattice, seed: int) -> NoisySum:
        drawn = private_step(
            source,
            n_records=n,
            projection=model.projection,
            curvature=model.curvature,
            lattice=lattice,
            step_size=eta,
            bits=insecure_test_generator(seed),
            ledger=None,
            label="",
            whiten=whitened,
        )
        assert drawn is not None  # on a root
        return drawn[1]

    exact = draw(lattice_for(_MU_WITHOUT_NOISE, schedule.clipping_norm, n), 0).values
    lattice = lattice_for(mu, schedule.clipping_norm, n)
    lost: dict[str, list[float]] = {name: [] for name in _LOSSES}
    for seed in seeds(task.name, kind, draws):
        noisy = draw(lattice, seed)
        noise = noisy.values - exact
        lost["utility"].append(eta / (2 * n) * float(noise @ noise))
        lost["mean_loss"].append((eta / n) ** 2 * model.mean_loss(noise))
    figures = draw_figures(noisy, model.projection, model.curvature, eta)
    found: dict[str, Any] = {"n_components": model.curvature.n_components}
    for name, values in lost.items():
        half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(draws)
        predicted = figures[_LOSSES[name]]
        found[name] = {
            "predicted": predicted,
            "realised": float(np.mean(values)),
            "half_width": half,
            "ratio": float(np.mean(values)) / predicted,
        }
    return found


def seeds(task: str, kind: str, draws: int) -> Iterator[int]:
    """Give generators' seeds that no other task or kind of draw has."""
    first = hashlib.sha256(f"{task} {kind}".encode()).digest()[:8]
    start = int.from_bytes(first, "big")
    return iter(range(start, start + draws))


@lru_cache(maxsize=1)
def _made(task: str) -> Task:
    return TASKS[task](0)


def measured(task: str, kind: str, epsilon: float, delta: float, draws: int) -> Line:
    """Compare the losses of one kind of draws of a task.

    Raises
    ------
    ValueError
        If the first round of a plan is asked for that the study does not have.
    """
    schedule, subspace = _ONE_ROUND, None
    if kind == "subspace":
        schedule, subspace = _IN_SUBSPACE, _DIRECTIONS
    elif kind == "first_round":
        schedule, subspace = schedule_of(Store().planned(task, "qexp", epsilon, delta))
    shares = schedule.budget or (1.0,) * schedule.rounds
    mu = calibrate_mu(epsilon, delta) * math.sqrt(shares[0] / math.fsum(shares))
    found = compared(_made(task), kind, schedule, subspace, mu, draws)
    return {"rounds": schedule.rounds, "subspace": subspace, **found}


def _tables(lines: list[Line]) -> dict[str, str]:
    rows = []
    for line in lines:
        row = [line["task"], _described(line), f"{line['n_components']:,}"]
        for name in _LOSSES:
            loss = line[name]
            row += [
                f"{loss['predicted']:.4g}",
                f"{loss['realised']:.4g} ± {loss['half_width']:.2g}",
                f"{loss['ratio']:.4f}",
            ]
        rows.append(row)
    heads = ["task", "draw", "k"]
    for name in ("utility", "mean loss"):
        heads += [f"{name}, predicted", "mean of the draws", "ratio"]
    return {"predicted utility": markdown_table(heads, rows)}


def _described(line: Line) -> str:
    if line["kind"] != "first_round":
        return _NAMES[line["kind"]]
    within = "" if line["subspace"] is None else f", {line['subspace']:,} directions"
    return f"first of {line['rounds']} planned rounds{within}"


def _figure(lines: list[Line], path: Path) -> None:
    """Draw predicted against realised, and their ratio below, which the eye can tell from 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    above, below = figure.subplots(2, 2, sharex="col", height_ratios=(2, 1))
    titles = ("Utility lost", "Rise of the mean loss in the quadratic model")
    for upper, lower, name, title in zip(above, below, _LOSSES, titles, strict=True):
        for marker, (kind, label) in zip("o^s", _NAMES.items(), strict=True):
            losses = [line[name] for line in lines if line["kind"] == kind]
            x, y, half = (
                np.array([loss[part] for loss in losses])
                for part in ("predicted", "realised", "half_width")
            )
            style: dict[str, Any] = {"fmt": marker, "label": label, "markersize": 5, "capsize": 2}
            upper.errorbar(x, y, half, **style)
            lower.errorbar(x, y / x, half / x, **style)
        every = [line[name]["predicted"] for line in lines]
        ends = np.array([min(every) / 2, 2 * max(every)])
        for axes, equal in ((upper, ends), (lower, np.ones(2))):
            axes.plot(ends, equal, color="black", linewidth=0.8)
            axes.fill_between(
                ends, 0.95 * equal, 1.05 * equal, color="grey", alpha=0.3, label="± 5 %"
            )
        upper.set_xscale("log")
        upper.set_yscale("log")
        upper.set_title(title, fontsize="medium")
        lower.set_ylim(0.9, 1.1)
        lower.set_xlabel("predicted")
    above[0].set_ylabel("mean of the draws")
    below[0].set_ylabel("ratio")
    above[0].legend(fontsize="small")
    figure_file(figure, path)


def _cells() -> list[dict[str, Any]]:
    tables = ("adult_work", "icu_cardiac", "icu_cardiac_mlp", "icu_time")
    digits = ("mnist_few_500", "mnist_to_usps")
    made = [
        *((task, "one_round", _DRAWS) for task in _OPEN),
        *((task, "subspace", _DRAWS_IN_SUBSPACE) for task in digits),
        *((task, "first_round", _DRAWS) for task in (*tables, "mnist_to_usps")),
        ("mnist_few_500", "first_round", _DRAWS_IN_SUBSPACE),
    ]
    # Sorted, so that a task is made once for all of its draws.
    return [
        {"task": task, "kind": kind, "epsilon": _EPSILON, "delta": _DELTA, "draws": draws}
        for task, kind, draws in sorted(made)
    ]


MEASUREMENT: Final = Measurement(
    name="predicted_utility",
    cells=_cells(),
    run=measured,
    page="results.md",
    tables=_tables,
    figure=_figure,
    needs=("duckdb",),  # of mimic_mortality
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"out of {sorted(TASKS)}")
    parser.add_argument("--kind", choices=list(_NAMES), default="one_round")
    parser.add_argument("--epsilon", type=float, default=_EPSILON)
    parser.add_argument("--delta", type=float, default=_DELTA)
    parser.add_argument("--draws", type=int, default=_DRAWS)
    given = parser.parse_args()
    for name in given.tasks or _OPEN:
        if name not in TASKS:
            parser.error(f"{name!r} is no task; choose from {sorted(TASKS)}")
        cell = {
            "task": name,
            "kind": given.kind,
            "epsilon": given.epsilon,
            "delta": given.delta,
            "draws": given.draws,
        }
        print(json.dumps({**cell, **measured(**cell)}), flush=True)


if __name__ == "__main__":
    main()
