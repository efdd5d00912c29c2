"""The figures of the study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.study.names import BOUNDS, OURS, RECORDS, in_order
from experiments.study.summaries import Summary, shown_as
from qexp._files import atomic_write

__all__ = ["axis_label", "figure_file", "plot_budgets", "plot_records"]


def axis_label(metric: str) -> str:
    return "accuracy, %" if metric == "accuracy" else "area under the ROC curve"


def plot_budgets(found: list[Summary], path: Path) -> None:
    from matplotlib.figure import Figure

    factor, _ = shown_as(found[0].metric)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    methods = sorted({s.method for s in found if s.epsilon is not None}, key=in_order)
    for number, method in enumerate(methods):
        curve = sorted(
            (s for s in found if s.method == method and s.epsilon is not None),
            key=lambda s: s.epsilon or 0.0,
        )
        _draw_curve(axes, [s.epsilon or 0.0 for s in curve], curve, number)
    for summary in found:
        if summary.method in BOUNDS:
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


def plot_records(found: list[Summary], epsilon: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shown = [s for s in found if s.task in RECORDS and s.epsilon in (epsilon, None)]
    methods = sorted({s.method for s in shown}, key=lambda m: (m in BOUNDS, *in_order(m)))
    for number, method in enumerate(methods):
        curve = sorted((s for s in shown if s.method == method), key=lambda s: RECORDS[s.task])
        _draw_curve(axes, [RECORDS[s.task] for s in curve], curve, number)
    sizes = sorted({RECORDS[s.task] for s in shown})
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
        [s.bar for s in curve],
        label=method,
        marker="os^Dv<>pPX*hd"[number % 13],
        capsize=2,
        linewidth=2.2 if method in OURS else 1.2,
        alpha=1.0 if method in OURS else 0.75,
        **({"color": "grey", "linestyle": "--"} if method in BOUNDS else {}),
    )


def _finish(axes: Any, names: Sequence[str], places: Sequence[float], metric: str) -> None:
    axes.set_xscale("log", base=2)
    if places:
        axes.set_xticks(places, names)
    axes.minorticks_off()
    axes.set_ylabel(axis_label(metric))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", ncols=2)
