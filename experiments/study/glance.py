"""The study at a glance: at one budget, where the pretrained model and the tuned ones end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from experiments.study.figures import axis_label, figure_file
from experiments.study.names import PLAIN
from experiments.study.summaries import Summary, mean_text, methods_by_cell, shown_as, student
from experiments.study.verdicts import Verdict, verdicts, without_budget

__all__ = ["Row", "plot", "rows_of", "section"]

EPSILON: Final = 1.0
_METRICS: Final = ("accuracy", "auroc")


@dataclass(frozen=True)
class Row:
    """A task at the budget.

    Attributes
    ----------
    verdict : Verdict
        qexp, and the rival of the best mean.
    before : (float, float)
        Mean of the pretrained models, and half its 95 % interval.
    plain : Summary or None
        DP-SGD.
    free : Summary
        Without privacy.
    """

    verdict: Verdict
    before: tuple[float, float]
    plain: Summary | None
    free: Summary


def rows_of(found: list[Summary], before: Mapping[str, Sequence[float]]) -> list[Row]:
    """Give the tasks that were run at the budget and without privacy, numbers in order."""
    free, methods = without_budget(found, "non_private"), methods_by_cell(found)
    return [
        Row(
            verdict,
            student(before[verdict.cell[0]]),
            methods[verdict.cell].get(PLAIN),
            free[verdict.cell[0]],
        )
        for verdict in sorted(verdicts(found), key=lambda v: _in_order(v.ours.task))
        if verdict.cell[1] == EPSILON and verdict.cell[0] in free
    ]


def _in_order(task: str) -> list[tuple[str, int]]:
    """Sort digits by their number: 250 comes before 1000."""
    return [(words, int(digits or 0)) for words, digits in re.findall(r"(\D+)(\d*)", task)]


def section(rows: Sequence[Row], figure: str) -> str:
    """Write them as a section."""
    lines = []
    for row in rows:
        ours, best = row.verdict.ours, row.verdict.best
        cells = [
            ours.task,
            mean_text(*row.before, ours.metric),
            "" if row.plain is None else row.plain.text,
            f"{best.method}, {best.text}",
            ours.text,
            row.verdict.word.lower(),
            row.free.text,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    heads = ["task", "before", "DP-SGD", "best rival", "qexp", "verdict", "without privacy"]
    return "\n".join(
        [
            "## At a glance",
            "",
            f"At ε = {EPSILON:g}: accuracy in %, in intensive care the area under the ROC curve. "
            "Whether qexp has won, tied or lost is told by the differences seed by seed (below).",
            "",
            f"![where methods end, task by task]({figure})",
            "",
            f"| {' | '.join(heads)} |",
            "| --- " * len(heads) + "|",
            *lines,
        ]
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw for every task how far each method gets from the pretrained model."""
    from matplotlib.figure import Figure

    panels = {
        metric: [row for row in rows if row.verdict.ours.metric == metric] for metric in _METRICS
    }
    shown = {metric: some for metric, some in panels.items() if some}
    sizes = [len(some) + 1 for some in shown.values()]
    figure = Figure(figsize=(7, 0.9 + 0.34 * sum(sizes)), layout="constrained")
    all_axes = figure.subplots(len(shown), squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (metric, some) in zip(all_axes, shown.items(), strict=True):
        factor, _ = shown_as(metric)
        places = np.arange(len(some))[::-1]
        ends = [[row.before[0], row.free.mean] for row in some]
        axes.hlines(places, *(factor * np.array(ends).T), color="0.85", linewidth=7)
        axes.plot(
            [factor * row.before[0] for row in some], places, "|", color="0.3", markersize=9,
            label="before",
        )  # fmt: skip
        axes.plot(
            [factor * row.free.mean for row in some], places, "|", color="0.3", markersize=9,
            markeredgewidth=2.5, label="without privacy",
        )  # fmt: skip
        for label, style, summaries in (
            ("DP-SGD", {"marker": "s", "color": "C1", "mfc": "none"}, [r.plain for r in some]),
            ("best rival", {"marker": "D", "color": "C2"}, [r.verdict.best for r in some]),
            ("qexp", {"marker": "o", "color": "C0"}, [r.verdict.ours for r in some]),
        ):
            known = [(s, at) for s, at in zip(summaries, places, strict=True) if s is not None]
            axes.errorbar(
                [factor * s.mean for s, _ in known],
                [at for _, at in known],
                xerr=[s.bar for s, _ in known],
                linestyle="",
                markersize=6,
                capsize=2,
                label=label,
                **style,
            )
        axes.set_yticks(places, [row.verdict.ours.task for row in some])
        axes.set_ylim(-0.6, len(some) - 0.4)
        axes.set_xlabel(axis_label(metric))
        axes.grid(axis="x", alpha=0.3)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize="small")
    figure_file(figure, path)
