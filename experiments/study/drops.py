"""Where a method ends lower with more budget: what is left of chance in its plans."""

from __future__ import annotations

import itertools

from experiments.study.summaries import Summary, difference_text, paired

__all__ = ["section"]


def section(found: list[Summary]) -> str | None:
    """Tell of all clear drops from one budget to the next; None where there are none."""
    ladders: dict[tuple[str, str], list[Summary]] = {}
    for summary in found:
        if summary.epsilon is not None:
            ladders.setdefault((summary.task, summary.method), []).append(summary)
    rows = []
    for (task, method), ladder in sorted(ladders.items()):
        ladder.sort(key=lambda s: s.epsilon or 0.0)
        for less, more in itertools.pairwise(ladder):
            gap = paired(more, less)
            if gap is not None and gap.is_clearly_below:
                rows.append(
                    f"| {task} | {method} | {less.epsilon:g} | {more.epsilon:g} | "
                    f"{difference_text(gap, more.metric)} |"
                )
    if not rows:
        return None
    return "\n".join(
        [
            "## Where more budget did worse",
            "",
            "Every budget has a plan of its own, and public records do not tell all. Where a "
            "method ends clearly lower, seed by seed, than with the next smaller budget, its plan "
            "was worse than that one's, which would have cost less.",
            "",
            "| task | method | from ε | to ε | difference, paired |",
            "| --- " * 5 + "|",
            *rows,
        ]
    )
