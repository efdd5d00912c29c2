"""Why qexp loses where it does: written by hand, shown beside the lost cells of docs/study.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["NOT_FOUND", "REASONS"]

REASONS: Final[Mapping[str, str]] = {
    "adult_work": (
        "Every method ends within 0.6 points of ordinary fine-tuning, on either side of it, so "
        "that the plan decides. On tables the planner's first trials, of 500 records on one "
        "surrogate, rank badly: from a grid that held the schedule planned here they discarded it, "
        "and the plan was worth 0.840 on surrogates instead of 0.850."
    ),
    "icu_cardiac": (
        "The plan. At ε = 4 the move from medical to surgical stays hardly tells dampings apart "
        "(0.858 at 0.1, which was planned, 0.857 at 10, which is what ε = 1 took), the move to the "
        "heart units does. And qexp's candidates, the task's own, are not refined, as the rivals' "
        "are."
    ),
}
"""A task's name, and what was found to be the reason; say what was measured."""

NOT_FOUND: Final = "reason not found yet"
