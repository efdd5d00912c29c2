"""Tables and figures of whatever results there are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.study.reasons import NOT_FOUND, PLANS, REASONS
from experiments.study.results import Store
from qexp._files import atomic_write

__all__ = [
    "DOCS",
    "Difference",
    "Summary",
    "figure_file",
    "paired",
    "shown_as",
    "summaries",
    "write",
]

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
_OURS: Final = ("qexp", "qexp_one_round")
_BOUNDS: Final = ("public_only", "non_private")
_PLAIN: Final = "dp_sgd"
# Largest part of DP-SGD's gap that qexp is to leave at ε = 1.
_AIM: Final = 0.5
# Tasks that differ in the number of private records alone.
_RECORDS: Final[Mapping[str, int]] = {
    **{f"mnist_few_{n}": n for n in (250, 500, 1000, 2000)},
    "mnist_to_usps": 7291,
}


@dataclass(frozen=True)
class Summary:
    """A method on a task at one budget: the mean over seeds, and half its 95 % interval."""

    task: str
    method: str
    epsilon: float | None
    metric: str
    mean: float
    half_width: float
    by_seed: Mapping[int, float]
    seconds: float

    @property
    def seeds(self) -> int:
        return len(self.by_seed)


@dataclass(frozen=True)
class Difference:
    """A mean of differences over the seeds that two methods share, and half its 95 % interval."""

    mean: float
    half_width: float
    seeds: int

    @property
    def is_clear(self) -> bool:
        return abs(self.mean) > self.half_width


def summaries(lines: list[dict[str, Any]], delta: float = 1e-5) -> list[Summary]:
    """Summarise lines of results over their seeds. The interval is Student's."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["delta"] == delta:
            cells[line["task"], line["method"], line["epsilon"]].append(line)
    made = []
    for (task, method, epsilon), some in cells.items():
        by_seed = {line["seed"]: line["value"] for line in some}
        mean, half = _student(list(by_seed.values()))
        seconds = float(np.median([line["seconds"] for line in some]))
        made.append(Summary(task, method, epsilon, some[0]["metric"], mean, half, by_seed, seconds))
    return made


def paired(one: Summary, other: Summary) -> Difference | None:
    """Give one method's values less the other's, seed by seed; None where they share no seed.

    A seed sets the pretrained model, the split and the noise of all methods, so that much of what
    spreads the values of each is not in their difference.
    """
    common = sorted(one.by_seed.keys() & other.by_seed.keys())
    if not common:
        return None
    mean, half = _student([one.by_seed[seed] - other.by_seed[seed] for seed in common])
    return Difference(mean, half, len(common))


def _student(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Give the mean and half its 95 % interval, which is infinite for one value."""
    n, array = len(values), np.asarray(values)
    if n < 2:
        return float(array.mean()), math.inf
    half = float(stats.t.ppf(0.975, n - 1) * array.std(ddof=1) / math.sqrt(n))
    return float(array.mean()), half


def write(store: Store | None = None, docs: Path = DOCS) -> list[Path]:
    """Write docs/study.md and a figure for each task of several budgets; give their paths."""
    store = Store() if store is None else store
    found = summaries(store.all_lines())
    tasks = sorted({summary.task for summary in found})
    figures = docs / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    written, parts = [], [_HEAD]
    for task in tasks:
        of_task = [summary for summary in found if summary.task == task]
        figure = None
        # One budget alone makes no curve.
        if len({summary.epsilon for summary in of_task} - {None}) > 1:
            path = figures / f"study-{task.replace('_', '-')}.png"
            _plot(of_task, path)
            written.append(path)
            figure = f"figures/{path.name}"
        parts.append(_table(task, of_task, figure))
    records = _chosen_budget(found)
    if records is not None:
        path = figures / "study-number-of-records.png"
        _plot_records(found, records, path)
        written.append(path)
        parts.append(_records_section(records, f"figures/{path.name}"))
    gaps = _gaps(found)
    if gaps is not None:
        parts.append(gaps)
    parts.append(_verdicts(found))
    page = docs / "study.md"
    atomic_write(page, lambda file: file.write("\n\n".join(parts).encode() + b"\n"))
    return [page, *written]


_HEAD: Final = """\
# The study

Every method on every task, at the same (ε, δ = 1e-5) under `replace_special`, mean over seeds ±
half of its 95 % interval. Settings are planned on shifted public records by the same stages of
trials: of qexp's grid of 780 schedules closed forms leave 64 to 770 to try, each rival tries all
of its 90 to 216. Noise comes from reproducible test generators. Written by `python -m experiments
report` from `experiments/results`, which `python -m experiments all` fills. Poisson samples
(DP-SGD, SPARTA) are accounted for by privacy loss distributions, all other methods exactly. Seconds
are a run's, without planning. Tasks and budgets that are not here were not run yet; `usps_to_mnist`
was planned with an earlier grid and a single trial of each finalist."""


def _table(task: str, found: list[Summary], figure: str | None) -> str:
    metric = found[0].metric
    by_cell = {(s.method, s.epsilon): s for s in found}
    epsilons = sorted({s.epsilon for s in found if s.epsilon is not None})
    methods = sorted({s.method for s in found if s.epsilon is not None}, key=_order)
    rows = [
        "| method | " + " | ".join(f"ε = {epsilon:g}" for epsilon in epsilons) + " | seconds |",
        "| --- |" + " --- |" * (len(epsilons) + 1),
    ]
    for method in methods:
        cells, seconds = [], []
        for epsilon in epsilons:
            summary = by_cell.get((method, epsilon))
            if summary is None:
                cells.append("")
                continue
            seconds.append(summary.seconds)
            text = _figure(summary.mean, summary.half_width, metric)
            others = [
                by_cell[m, epsilon].mean for m in methods if (m, epsilon) in by_cell and m != method
            ]
            best = not others or summary.mean >= max(others)
            cells.append(f"**{text}**" if best else text)
        rows.append(f"| {method} | " + " | ".join(cells) + f" | {np.median(seconds):.1f} |")
    bounds = []
    for name, words in zip(_BOUNDS, ("public records alone", "without privacy"), strict=True):
        summary = by_cell.get((name, None))
        if summary is not None:
            bounds.append(f"{words} {_figure(summary.mean, summary.half_width, metric)}")
    seeds = sorted({s.seeds for s in found})
    counted = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    unit = "accuracy in %" if metric == "accuracy" else "area under the ROC curve"
    return "\n".join(
        [
            f"## {task}",
            "",
            f"{unit}, {counted}" + ("; " + ", ".join(bounds) if bounds else "") + ".",
            "",
            *([f"![{unit} against ε, every method]({figure})", ""] if figure else []),
            *rows,
        ]
    )


def _verdicts(found: list[Summary]) -> str:
    """Tell which cells at ε ≥ 0.5 qexp wins, ties and loses, by differences seed by seed."""
    rows: dict[str, list[str]] = {"Lost": [], "Tied": [], "Won": []}
    for (task, epsilon), methods in sorted(_by_cell(found).items()):
        ours = methods.get("qexp")
        rivals = [s for name, s in methods.items() if name not in (*_OURS, *_BOUNDS)]
        if epsilon < 0.5 or ours is None or not rivals:
            continue
        best = max(rivals, key=lambda s: s.mean)
        gap = paired(ours, best)
        verdict = "Tied"
        if gap is not None and gap.is_clear:
            verdict = "Won" if gap.mean > 0 else "Lost"
        cells = [
            task,
            f"{epsilon:g}",
            _figure(ours.mean, ours.half_width, ours.metric),
            f"{best.method}, {_figure(best.mean, best.half_width, best.metric)}",
            "no common seed" if gap is None else _difference(gap, ours.metric),
            str(0 if gap is None else gap.seeds),
        ]
        if verdict == "Lost":
            cells.append(REASONS.get(task, NOT_FOUND))
        rows[verdict].append("| " + " | ".join(cells) + " |")
    parts = [
        "## Where qexp loses",
        "",
        "Against the rival of the best mean in each cell with ε ≥ 0.5: "
        f"{len(rows['Won'])} won, {len(rows['Tied'])} tied, {len(rows['Lost'])} lost. Seeds are "
        "paired: the same pretrained model, split and noise seed for all methods. So the verdict "
        "is by the differences seed by seed, and a cell is tied where their 95 % interval "
        "(Student's) holds 0. The rival is chosen by the same figures, which favours it.",
        "",
        PLANS,
    ]
    for title, cells in rows.items():
        if cells:
            heads = [title, "ε", "qexp", "best rival", "difference, paired", "common seeds"]
            if title == "Lost":
                heads.append("reason")
            parts += ["", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|", *cells]
    return "\n".join(parts)


def _gaps(found: list[Summary]) -> str | None:
    """Set what privacy costs qexp beside what it costs DP-SGD, on the seeds of both."""
    free = {s.task: s for s in found if s.method == "non_private" and s.epsilon is None}
    rows, judged, met, clear = [], 0, 0, 0
    for (task, epsilon), methods in sorted(_by_cell(found).items()):
        above, ours, plain = free.get(task), methods.get("qexp"), methods.get(_PLAIN)
        if above is None or ours is None or plain is None:
            continue
        seeds = sorted(above.by_seed.keys() & ours.by_seed.keys() & plain.by_seed.keys())
        if not seeds:
            continue
        ours_by_seed = np.array([above.by_seed[i] - ours.by_seed[i] for i in seeds])
        plain_by_seed = np.array([above.by_seed[i] - plain.by_seed[i] for i in seeds])
        our_gap = Difference(*_student(ours_by_seed), len(seeds))
        plain_gap = Difference(*_student(plain_by_seed), len(seeds))
        if epsilon == 1:
            missing = Difference(*_student(ours_by_seed - _AIM * plain_by_seed), len(seeds))
            judged += 1
            met += missing.mean <= 0
            clear += missing.mean <= 0 and missing.is_clear
        # Without a gap of DP-SGD's there is none to be a part of.
        ratio = our_gap.mean / plain_gap.mean if plain_gap.mean > 0 else None
        rows.append(
            f"| {task} | {epsilon:g} | {_difference(our_gap, ours.metric, sign='')} | "
            f"{_difference(plain_gap, ours.metric, sign='')} | "
            f"{'–' if ratio is None else f'{ratio:.2f}'} | {len(seeds)} |"
        )
    if not rows:
        return None
    return "\n".join(
        [
            "## What privacy costs",
            "",
            "The gap to fine-tuning without privacy, differences seed by seed ± half of their "
            f"95 % interval, and qexp's as a part of DP-SGD's. The aim is at most {_AIM:g} at "
            f"ε = 1: met on {met} of {judged} tasks by the means, beyond their interval on "
            f"{clear}.",
            "",
            "| task | ε | qexp's gap | DP-SGD's gap | ratio | seeds |",
            "| --- " * 6 + "|",
            *rows,
        ]
    )


def _by_cell(found: list[Summary]) -> dict[tuple[str, float], dict[str, Summary]]:
    by_cell: dict[tuple[str, float], dict[str, Summary]] = defaultdict(dict)
    for summary in found:
        if summary.epsilon is not None:
            by_cell[summary.task, summary.epsilon][summary.method] = summary
    return by_cell


def _chosen_budget(found: list[Summary]) -> float | None:
    """Give the ε of the figure over numbers of records: the one nearest to 1 with two tasks."""
    tasks: dict[float, set[str]] = defaultdict(set)
    for summary in found:
        if summary.task in _RECORDS and summary.epsilon is not None:
            tasks[summary.epsilon].add(summary.task)
    known = sorted(epsilon for epsilon, some in tasks.items() if len(some) > 1)
    return min(known, key=lambda epsilon: abs(math.log(epsilon)), default=None)


def _records_section(epsilon: float, figure: str) -> str:
    return "\n".join(
        [
            "## Accuracy against the number of private records",
            "",
            f"The same model pretrained on MNIST and the same test digits; private are 250 to "
            f"7,291 digits of USPS, ε = {epsilon:g}.",
            "",
            f"![accuracy in % against the number of private records, every method]({figure})",
        ]
    )


def _figure(mean: float, half_width: float, metric: str) -> str:
    factor, digits = shown_as(metric)
    return f"{factor * mean:.{digits}f} ± {_half(half_width, factor, digits)}"


def _difference(made: Difference, metric: str, sign: str = "+") -> str:
    factor, digits = shown_as(metric)
    half = _half(made.half_width, factor, digits + 1)
    return f"{factor * made.mean:{sign}.{digits + 1}f} ± {half}"


def _half(half_width: float, factor: float, digits: int) -> str:
    # One seed has no interval.
    return f"{factor * half_width:.{digits}f}" if math.isfinite(half_width) else "?"


def shown_as(metric: str) -> tuple[float, int]:
    """Give the factor and the digits of a metric's figures."""
    return (100.0, 1) if metric == "accuracy" else (1.0, 3)


def _order(method: str) -> tuple[bool, str]:
    return method not in _OURS, method


def _plot(found: list[Summary], path: Path) -> None:
    from matplotlib.figure import Figure

    factor, _ = shown_as(found[0].metric)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    methods = sorted({s.method for s in found if s.epsilon is not None}, key=_order)
    for number, method in enumerate(methods):
        curve = sorted(
            (s for s in found if s.method == method and s.epsilon is not None),
            key=lambda s: s.epsilon or 0.0,
        )
        _draw_curve(axes, [s.epsilon or 0.0 for s in curve], curve, number)
    for summary in found:
        if summary.method in _BOUNDS:
            axes.axhline(factor * summary.mean, color="grey", linestyle="--", linewidth=0.9)
            axes.annotate(
                summary.method.replace("_", " "),
                (1, factor * summary.mean),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize="x-small",
            )
    epsilons = sorted({s.epsilon for s in found if s.epsilon is not None})
    _finish(axes, [f"{epsilon:g}" for epsilon in epsilons], epsilons, found[0].metric)
    axes.set_xlabel("ε at δ = 1e-5")
    figure_file(figure, path)


def _plot_records(found: list[Summary], epsilon: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shown = [s for s in found if s.task in _RECORDS and s.epsilon in (epsilon, None)]
    methods = sorted({s.method for s in shown}, key=lambda m: (m in _BOUNDS, *_order(m)))
    for number, method in enumerate(methods):
        curve = sorted((s for s in shown if s.method == method), key=lambda s: _RECORDS[s.task])
        _draw_curve(axes, [_RECORDS[s.task] for s in curve], curve, number)
    sizes = sorted({_RECORDS[s.task] for s in shown})
    _finish(axes, [f"{size:,}" for size in sizes], sizes, shown[0].metric)
    axes.set_xlabel(f"private records (ε = {epsilon:g}, δ = 1e-5)")
    figure_file(figure, path)


def figure_file(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib."""
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=120))


def _draw_curve(axes: Any, places: Sequence[float], curve: list[Summary], number: int) -> None:
    [method] = {s.method for s in curve}
    factor, _ = shown_as(curve[0].metric)
    axes.errorbar(
        places,
        [factor * s.mean for s in curve],
        [factor * s.half_width if math.isfinite(s.half_width) else 0.0 for s in curve],
        label=method,
        marker="os^Dv<>pPX*hd"[number % 13],
        capsize=2,
        linewidth=2.2 if method in _OURS else 1.2,
        alpha=1.0 if method in _OURS else 0.75,
        **({"color": "grey", "linestyle": "--"} if method in _BOUNDS else {}),
    )


def _finish(axes: Any, names: Sequence[str], places: Sequence[float], metric: str) -> None:
    axes.set_xscale("log", base=2)
    if places:
        axes.set_xticks(places, names)
    axes.minorticks_off()
    axes.set_ylabel("accuracy, %" if metric == "accuracy" else "area under the ROC curve")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", ncols=2)
