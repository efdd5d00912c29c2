"""Ablations: what each part of qexp is worth, the others as they are.

    python -m experiments.ablations [--tasks mnist_to_usps mnist_few_500] [--epsilons 1 4]

Each variant's own settings are chosen on shifted public records, from a few candidates. Lines are
kept in experiments/results/ablations.jsonl, and what is there is left out; `--report`, or
`python -m experiments report`, makes docs/ablations.md and its figure.

- curvature, eight rounds: Kronecker curvature of the whole space; dense curvature behind an SRHT
  with Kronecker signs to k components; none, which is DP gradient descent; and Kronecker curvature
  that only shapes the step, the gradients clipped in Euclidean norm and disturbed alike;
- damping, momentum and rounds, each fixed and all else planned;
- shrinkage, at the settings planned without it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.fine_tuning import planning_arguments, planning_records
from experiments.lines import Lines
from experiments.study.figures import figure_file
from experiments.study.methods import StudyMethod, Tuned, qexp_method, rival_method
from experiments.study.report import DOCS
from experiments.study.results import FOLDER
from experiments.study.summaries import Summary, shown_as, summarise
from experiments.study.variants import Variant, lines_at, plan_variants, run_variants
from experiments.tasks import TASKS, Task
from experiments.time_to_accuracy import RESULTS as LADDERS
from experiments.time_to_accuracy import descents, one_thread, schedules
from qexp import DenseCurvature, KroneckerCurvature, KroneckerSRHT
from qexp._files import atomic_write_bytes
from qexp.bits import insecure_test_generator
from qexp.finetune import Schedule, fine_tune
from qexp.planning import plan
from qexp.rivals import dp_gd
from qexp.rivals._boundary import Boundary
from qexp.rivals._descent import Descent, descend
from qexp.rivals._method import Method, PublicData
from qexp.rivals._method import Tuned as TunedWeights
from qexp.rivals._parts import WholeSpace
from qexp.rivals.gradient_descent import noisy_mean

RESULTS: Final = FOLDER / "ablations.jsonl"
TASK_NAMES: Final = ("mnist_to_usps", "mnist_few_500")
ROUNDS: Final = 8
COMPONENTS: Final = (500, 1000, 3000)
DAMPINGS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SWEPT_ROUNDS: Final = (1, 2, 4, 16)
MOMENTA: Final = (0.0, 0.5, 0.8)
# Planning more components than this takes minutes: they take the settings of so many.
_MOST_PLANNED: Final = 1000
# Dense curvature is planned by whole simulated jobs, which grow with the number of records.
_DENSE_RECORDS: Final = 3000
_KRONECKER: Final = "curvature/Kronecker, whole space"


# ---------------------------------------------------------- Kronecker steps, Euclidean clipping


@dataclass(frozen=True, kw_only=True)
class PreconditionedSettings:
    """Settings of gradient descent whose noisy sums are preconditioned.

    Attributes
    ----------
    rounds : int
    clipping_norm : float
        Euclidean.
    step_size : float
        η of θ ← θ - η A⁻¹ (noisy mean of clipped gradients).
    damping : float
        λ of A.
    """

    rounds: int
    clipping_norm: float
    step_size: float
    damping: float


def _tune_preconditioned(
    model: Any, boundary: Boundary, settings: PreconditionedSettings, public: PublicData | None
) -> TunedWeights:
    """Sum gradients clipped in Euclidean norm, as DP gradient descent does, then precondition.

    A is public, so that A⁻¹ of a noisy sum is post-processing.
    """
    if public is None:
        raise ValueError("curvature takes public records")
    boundary.plan_full_batch([1.0] * settings.rounds)
    curvature = KroneckerCurvature.from_model(model, public.X, damping=settings.damping)
    mean = noisy_mean(
        boundary,
        WholeSpace(model),
        clipping="abadi",
        clipping_norm=settings.clipping_norm,
        expected_records=boundary.n_records,
        label="round",
    )
    descent = Descent(model.weights)

    def direction(at: Any, t: int) -> NDArray[np.float64]:
        return curvature.unwhiten(curvature.whiten(mean(at, t)[None])[0])

    rate = settings.step_size * settings.clipping_norm
    within = descend(descent, model, settings.rounds, direction, lambda t: rate)
    return TunedWeights(descent.released, diverged=not within)


def _preconditioned_candidates() -> list[PreconditionedSettings]:
    return [
        PreconditionedSettings(rounds=ROUNDS, clipping_norm=c, step_size=eta, damping=damping)
        for c, eta, damping in itertools.product((0.3, 1.0), (1.0, 0.3, 0.1), (1e-2, 1e-1, 1.0))
    ]


preconditioned: Final = Method(
    name="preconditioned",
    summary="Gradients clipped in Euclidean norm; steps shaped by public Kronecker curvature.",
    settings_type=PreconditionedSettings,
    algorithm=_tune_preconditioned,
    candidates=_preconditioned_candidates,
    neighbours=lambda settings: [],
    needs_public_data=True,
)


# ------------------------------------------------------------- dense curvature behind an SRHT


class SketchedCurvature:
    """Dense curvature of sketched gradients as a curvature of whole ones, whose factors it takes.

    One object for both, since the planner takes a curvature and no projection.
    """

    def __init__(self, model: Any, X: NDArray[Any], k: int, damping: float) -> None:
        self._projection = KroneckerSRHT(model.layer_shapes, k, seed=0)
        self._dense = DenseCurvature.from_model(
            model, X, projection=self._projection, damping=damping
        )
        self.n_components, self.n_parameters = k, self._projection.n_parameters
        self.effective_dimension = self._dense.effective_dimension

    def whiten(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Whiten gradients that are given in full."""
        return self._dense.whiten(self._projection.forward(rows))

    def whiten_factors(self, factors: Any) -> NDArray[np.float64]:
        """Whiten gradients that are given as factors."""
        return self._dense.whiten(self._projection.forward_factors(factors))

    def unwhiten(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give P L⁻ᵀ y."""
        return self._projection.adjoint(self._dense.unwhiten(y))

    def describe(self) -> Mapping[str, Any]:
        """Describe both, as JSON can hold it."""
        return {**self._dense.describe(), "projection": self._projection.describe()}


def dense_method(k: int) -> StudyMethod:
    """Make dense curvature behind an SRHT to k components a method."""

    def planned(task: Task, epsilon: float, delta: float, effort: Any) -> dict[str, Any]:
        model, X, y = planning_records(task)
        arguments = planning_arguments(task, epsilon, delta, effort)
        made = plan(
            model,
            X[:_DENSE_RECORDS],
            y[:_DENSE_RECORDS],
            curvature=lambda at, damping: SketchedCurvature(at, X, k, damping),
            candidates=schedules(ROUNDS),
            **arguments,
        )
        return made.schedule.describe()

    def run(task: Task, settings: dict[str, Any], epsilon: float, delta: float, seed: int) -> Tuned:
        schedule, records = Schedule(**settings), task.public_records()[0]
        result = fine_tune(
            task.model,
            task.X_private,
            task.y_private,
            schedule=schedule,
            curvature=lambda model: SketchedCurvature(model, records, k, schedule.damping),
            target_epsilon=epsilon,
            target_delta=delta,
            rng=insecure_test_generator(seed),
        )
        release = result.release
        return Tuned(result.model, release.mu, release.neighboring_relation, result.rounds_done)

    return StudyMethod(planned, run)


def _dense_name(k: int) -> str:
    return f"curvature/dense behind an SRHT, k = {k:,}"


# ------------------------------------------------------------------------------ all variants


def variants() -> dict[str, Variant]:
    """Give all variants, named "group/variant"."""
    made = {_KRONECKER: Variant(qexp_method(ROUNDS, schedules(ROUNDS)))}
    for k in COMPONENTS:
        made[_dense_name(k)] = Variant(
            dense_method(k), settings_of=_dense_name(_MOST_PLANNED) if k > _MOST_PLANNED else None
        )
    made["curvature/none: Euclidean clipping, plain step"] = Variant(
        rival_method(dp_gd, descents(ROUNDS))
    )
    made["curvature/Kronecker step, Euclidean clipping"] = Variant(rival_method(preconditioned))
    for damping in DAMPINGS:
        made[f"damping/λ = {damping:g}"] = Variant(
            qexp_method(ROUNDS, schedules(ROUNDS, dampings=(damping,)))
        )
    for rounds in SWEPT_ROUNDS:
        made[f"rounds/{rounds}"] = Variant(qexp_method(rounds, schedules(rounds)))
    made[f"rounds/{ROUNDS}"] = Variant(qexp_method(), settings_of=_KRONECKER)
    for momentum in MOMENTA:
        made[f"momentum/{momentum:g}"] = Variant(qexp_method(ROUNDS, _with_momentum(momentum)))
    made["shrinkage/none"] = Variant(qexp_method(), settings_of=_KRONECKER)
    made["shrinkage/last sum, layer by layer"] = Variant(
        qexp_method(shrinkage="last"), settings_of=_KRONECKER
    )
    made["shrinkage/last sum, as a whole"] = Variant(
        qexp_method(shrinkage="last_whole"), settings_of=_KRONECKER
    )
    return made


def _with_momentum(momentum: float) -> list[Schedule]:
    return [
        Schedule(
            rounds=ROUNDS,
            clipping_norm=c,
            step_size=reach * (1 - momentum),
            damping=damping,
            momentum=momentum,
        )
        for damping, c, reach in itertools.product((1e-3, 1e-2, 1e-1), (3.0, 10.0), (1.0, 0.3))
    ]


def adopt_rounds(lines: Lines, ladders: Lines) -> None:
    """Take the plans of qexp's ladder, whose candidates are the same, where there are none yet."""
    names = {f"qexp/{t} round{'s' * (t > 1)}": f"rounds/{t}" for t in SWEPT_ROUNDS}
    names[f"qexp/{ROUNDS} rounds"] = _KRONECKER
    known = {
        (line["task"], line["method"], line["epsilon"], line["delta"]) for line in lines.read()
    }
    for line in ladders.read():
        adopted = {**line, "method": names.get(line["method"])}
        key = adopted["task"], adopted["method"], adopted["epsilon"], adopted["delta"]
        if line["seed"] is None and adopted["method"] is not None and key not in known:
            lines.add(adopted)


# -------------------------------------------------------------------------------- reporting


def write(lines: Lines | None = None, docs: Path = DOCS) -> list[Path]:
    """Write docs/ablations.md and its figure; give their paths."""
    lines = lines_at(RESULTS) if lines is None else lines
    runs = [line for line in lines.read() if line["seed"] is not None]
    if not runs:
        return []
    found = [s for delta in sorted({r["delta"] for r in runs}) for s in summarise(runs, delta)]
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    figure = docs / "figures" / "ablations.png"
    _plot(found, figure)
    groups = [
        group for group in _TITLES if any(_group(summary.method) == group for summary in found)
    ]
    parts = [_HEAD, f"![damping and rounds](figures/{figure.name})"]
    parts += [_table(group, [s for s in found if _group(s.method) == group]) for group in groups]
    page = docs / "ablations.md"
    atomic_write_bytes(page, "\n\n".join(parts).encode() + b"\n")
    return [page, figure]


_HEAD: Final = """\
# Ablations

One part of qexp changed, the others as they are: accuracy in %, or area under the ROC curve, mean
over seeds ± half of its 95 % interval, at δ = 1e-5 under `replace_special`. Every variant's own
settings are chosen on shifted public records, from 6 to 18 candidates, without the refinement of
the study's plans; so a figure may lie below the study's. Written by `python -m experiments report`
from what `python -m experiments.ablations` measured."""

_TITLES: Final[Mapping[str, tuple[str, str]]] = {
    "curvature": (
        "Curvature and clipping, eight rounds",
        "Whitened clipping unless it says Euclidean. Without curvature it is DP gradient descent. "
        "The Kronecker step with Euclidean clipping preconditions the noisy sum, as "
        "post-processing. The SRHT has Kronecker signs; its settings are planned on 3,000 public "
        "records instead of all, and k = 3,000 runs at those planned for k = 1,000.",
    ),
    "damping": ("Damping, eight rounds", "Clipping norm and step size planned for each."),
    "rounds": ("Rounds", "Damping, clipping norm and step size planned for each."),
    "momentum": ("Momentum, eight rounds", "Step sizes are divided by what momentum adds up to."),
    "shrinkage": ("Shrinkage, eight rounds", "At the settings planned without it."),
}


def _group(name: str) -> str:
    return name.partition("/")[0]


def _variant(name: str) -> str:
    return name.partition("/")[2]


def _table(group: str, found: Sequence[Summary]) -> str:
    title, words = _TITLES[group]
    by_cell = {(s.method, s.task, s.epsilon): s for s in found}
    columns = sorted({(s.task, s.epsilon or 0.0) for s in found})
    seeds = sorted({s.seeds for s in found})
    counted = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    order = {name: number for number, name in enumerate(variants())}
    names = sorted(
        {s.method for s in found},
        key=(lambda name: float(_variant(name).removeprefix("λ = ")))
        if group in ("damping", "rounds", "momentum")
        else (lambda name: order.get(name, len(order))),
    )
    rows = [
        f"## {title}",
        "",
        f"{words} {counted}.",
        "",
        "| | " + " | ".join(f"{task}, ε = {epsilon:g}" for task, epsilon in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    best = {
        column: max(s.mean for s in found if (s.task, s.epsilon) == column) for column in columns
    }
    for name in names:
        cells = []
        for column in columns:
            summary = by_cell.get((name, *column))
            if summary is None:
                cells.append("")
                continue
            factor, digits = shown_as(summary.metric)
            text = f"{factor * summary.mean:.{digits}f}"
            if math.isfinite(summary.half_width):
                text += f" ± {factor * summary.half_width:.{digits}f}"
            cells.append(f"**{text}**" if summary.mean == best[column] else text)
        rows.append(f"| {_variant(name)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _plot(found: Sequence[Summary], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, group in zip(figure.subplots(1, 2), ("damping", "rounds"), strict=True):
        some = [s for s in found if _group(s.method) == group]
        for number, (task, epsilon) in enumerate(sorted({(s.task, s.epsilon or 0) for s in some})):
            curve = sorted(
                (float(_variant(s.method).removeprefix("λ = ")), s.mean, s.half_width)
                for s in some
                if (s.task, s.epsilon) == (task, epsilon)
            )
            axes.errorbar(
                [x for x, _, _ in curve],
                [mean for _, mean, _ in curve],
                [half if math.isfinite(half) else 0.0 for _, _, half in curve],
                marker="osDv^<"[number % 6],
                capsize=2,
                label=f"{task}, ε = {epsilon:g}",
            )
        axes.set_xscale("log", base=2 if group == "rounds" else 10)
        axes.set_xlabel("damping λ" if group == "damping" else "rounds")
        axes.grid(alpha=0.3)
        if some:
            axes.legend(fontsize="x-small")
    figure.axes[0].set_ylabel("accuracy, or area under the ROC curve")
    figure_file(figure, path)


def measure(
    *,
    tasks: Sequence[str] = TASK_NAMES,
    epsilons: Sequence[float] = (1.0, 4.0),
    delta: float = 1e-5,
    seeds: int = 5,
    only: Sequence[str] = tuple(_TITLES),
) -> None:
    """Measure what is missing."""
    lines = lines_at(RESULTS)
    adopt_rounds(lines, lines_at(LADDERS))
    # The others take the plan of the first.
    chosen = {
        name: variant
        for name, variant in variants().items()
        if name == _KRONECKER or _group(name) in only
    }
    with one_thread():
        for task, epsilon in itertools.product(tasks, epsilons):
            cell: dict[str, Any] = {"task": task, "epsilon": epsilon, "delta": delta}
            settings = plan_variants(chosen, lines, **cell)
            run_variants(chosen, settings, lines, seeds=range(seeds), **cell)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ablations", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASK_NAMES))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 4.0])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, default=5, help="0 up to this number less one")
    parser.add_argument("--only", nargs="+", choices=list(_TITLES), default=list(_TITLES))
    parser.add_argument("--report", action="store_true", help="write the page and its figure only")
    arguments = parser.parse_args()
    if arguments.report:
        for path in write():
            print(path)
        return
    given = {name: value for name, value in vars(arguments).items() if name != "report"}
    try:
        measure(**given)
    except KeyboardInterrupt:
        sys.exit(f"stopped; what is done is in {RESULTS}, and the same command goes on")


if __name__ == "__main__":
    main()
