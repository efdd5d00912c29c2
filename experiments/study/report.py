"""Tables and figures of whatever results there are."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import stats

from experiments.study.results import Store
from qexp._files import atomic_write

__all__ = ["DOCS", "Summary", "figure_file", "shown_as", "summaries", "write"]

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
_OURS: Final = ("qexp", "qexp_one_round")
_BOUNDS: Final = ("public_only", "non_private")


@dataclass(frozen=True)
class Summary:
    """A method on a task at one budget: the mean over seeds, and half its 95 % interval."""

    task: str
    method: str
    epsilon: float | None
    metric: str
    mean: float
    half_width: float
    seeds: int
    seconds: float


def summaries(lines: list[dict[str, Any]], delta: float = 1e-5) -> list[Summary]:
    """Summarise lines of results over their seeds. The interval is Student's."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["delta"] == delta:
            cells[line["task"], line["method"], line["epsilon"]].append(line)
    made = []
    for (task, method, epsilon), some in cells.items():
        values = np.array([line["value"] for line in some])
        n = len(values)
        half = math.inf
        if n > 1:
            half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
        seconds = float(np.median([line["seconds"] for line in some]))
        made.append(
            Summary(
                task, method, epsilon, some[0]["metric"], float(values.mean()), half, n, seconds
            )
        )
    return made


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
    parts.append(_verdicts(found))
    page = docs / "study.md"
    atomic_write(page, lambda file: file.write("\n\n".join(parts).encode() + b"\n"))
    return [page, *written]


_HEAD: Final = """\
# The study

Every method on every task, at the same (ε, δ = 1e-5) under `replace_special`, with settings planned
on shifted public records by the same number of trials, mean over seeds ± half of its 95 % interval.
Noise comes from reproducible test generators. Written by `python -m experiments report` from
`experiments/results`, which `python -m experiments all` fills. Poisson samples (DP-SGD, SPARTA) are
accounted for by privacy loss distributions, all other methods exactly. Seconds are a run's, without
planning. Tasks and budgets that are not here were not run yet."""


def _table(task: str, found: list[Summary], figure: str | None) -> str:
    metric = found[0].metric
    factor, digits = shown_as(metric)
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
            text = f"{factor * summary.mean:.{digits}f} ± {factor * summary.half_width:.{digits}f}"
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
            bounds.append(
                f"{words} {factor * summary.mean:.{digits}f} "
                f"± {factor * summary.half_width:.{digits}f}"
            )
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
    """Tell which cells at ε ≥ 0.5 qexp wins, ties and loses."""
    rows = ["## Where qexp loses", ""]
    by_cell: dict[tuple[str, float], dict[str, Summary]] = defaultdict(dict)
    for summary in found:
        if summary.epsilon is not None:
            by_cell[summary.task, summary.epsilon][summary.method] = summary
    wins, ties, losses = 0, [], []
    for (task, epsilon), methods in sorted(by_cell.items()):
        ours = methods.get("qexp")
        rivals = [s for name, s in methods.items() if name not in (*_OURS, *_BOUNDS)]
        if epsilon < 0.5 or ours is None or not rivals:
            continue
        best = max(rivals, key=lambda s: s.mean)
        gap = ours.mean - best.mean
        if abs(gap) <= math.hypot(ours.half_width, best.half_width):
            ties.append((task, epsilon, ours, best))
        elif gap > 0:
            wins += 1
        else:
            losses.append((task, epsilon, ours, best))
    rows.append(
        f"Against the best rival of each cell with ε ≥ 0.5: {wins} won, {len(ties)} tied (the "
        f"difference is within its interval), {len(losses)} lost."
    )
    for title, cells in (("Lost", losses), ("Tied", ties)):
        if cells:
            rows += ["", f"| {title} | ε | qexp | best rival |", "| --- | --- | --- | --- |"]
            for task, epsilon, ours, best in cells:
                factor, digits = shown_as(ours.metric)
                rows.append(
                    f"| {task} | {epsilon:g} | {factor * ours.mean:.{digits}f} | "
                    f"{best.method}, {factor * best.mean:.{digits}f} |"
                )
    return "\n".join(rows)


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
        axes.errorbar(
            [s.epsilon for s in curve],
            [factor * s.mean for s in curve],
            [factor * s.half_width if math.isfinite(s.half_width) else 0.0 for s in curve],
            label=method,
            marker="os^Dv<>pPX*hd"[number % 13],
            capsize=2,
            linewidth=2.2 if method in _OURS else 1.2,
            alpha=1.0 if method in _OURS else 0.75,
        )
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
    axes.set_xscale("log", base=2)
    epsilons = sorted({s.epsilon for s in found if s.epsilon is not None})
    if epsilons:
        axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.minorticks_off()
    axes.set_xlabel("ε at δ = 1e-5")
    axes.set_ylabel("accuracy, %" if found[0].metric == "accuracy" else "area under the ROC curve")
    if methods:
        axes.legend(fontsize="x-small", ncols=2)
    figure_file(figure, path)


def figure_file(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib."""
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=120))
