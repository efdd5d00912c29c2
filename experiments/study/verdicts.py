"""Which cells qexp wins, ties and loses, by differences seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from experiments.study.names import BOUNDS, OURS, PLANNED
from experiments.study.summaries import Difference, Summary, methods_by_cell, paired

__all__ = ["Verdict", "planned", "verdicts", "without_budget"]


@dataclass(frozen=True)
class Verdict:
    """qexp in a cell, and the rival of the best mean there.

    Attributes
    ----------
    ours, best : Summary
    missing : tuple of str
        Rivals that the task has at other budgets, and not here, or not with as many seeds yet.
    gap : Difference or None
        None where they share no seed.
    above : tuple of str
        All rivals that qexp is clearly below, best first.
    """

    ours: Summary
    best: Summary
    missing: tuple[str, ...]
    gap: Difference | None
    above: tuple[str, ...]

    @property
    def cell(self) -> tuple[str, float]:
        """Task and ε."""
        assert self.ours.epsilon is not None
        return self.ours.task, self.ours.epsilon

    @property
    def word(self) -> Literal["Won", "Tied", "Lost"]:
        """Tell it in a word: tied is where the interval of the difference holds 0."""
        if self.gap is None or not self.gap.is_clear:
            return "Tied"
        return "Won" if self.gap.mean > 0 else "Lost"


def verdicts(found: list[Summary]) -> list[Verdict]:
    """Judge every cell that has qexp and a rival; public records alone are one, at any ε."""
    public = without_budget(found, "public_only")
    known = {(s.task, s.method) for s in found if s.epsilon is not None and s.method not in OURS}
    made = []
    for (task, _), methods in sorted(methods_by_cell(found).items()):
        ours = planned(methods)
        if ours is None:
            continue
        whole = {
            name: s
            for name, s in methods.items()
            if name not in (*OURS, *BOUNDS) and s.seeds >= ours.seeds
        }
        if not whole:
            continue
        rivals = [*whole.values()]
        if task in public:  # It costs no privacy at all.
            rivals.append(public[task])
        rivals.sort(key=lambda s: s.mean, reverse=True)
        missing = tuple(sorted(m for t, m in known if t == task and m not in whole))
        gaps = [(s.method, paired(ours, s)) for s in rivals]
        above = tuple(m for m, gap in gaps if gap is not None and gap.is_clearly_below)
        made.append(Verdict(ours, rivals[0], missing, gaps[0][1], above))
    return made


def planned(methods: Mapping[str, Summary]) -> Summary | None:
    """Give qexp in a cell; where it has no plan with subspaces yet, that for the whole space."""
    return next((methods[name] for name in PLANNED if name in methods), None)


def without_budget(found: list[Summary], method: str) -> dict[str, Summary]:
    """Give a method that takes no budget, by task."""
    return {s.task: s for s in found if s.method == method and s.epsilon is None}
