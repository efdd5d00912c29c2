"""Why qexp loses where it does: written by hand, shown beside the lost cells of docs/study.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["NOT_FOUND", "REASONS"]

REASONS: Final[Mapping[str, str]] = {
    "adult_work": (
        "The plan, not the noise: every method but one ends within a point of ordinary fine-tuning "
        "(79.0 ± 0.2), most of them above it, and qexp by schedules of the same predicted score "
        "lies anywhere between. On tables the first trials, of 500 records on one surrogate, rank "
        "badly: from a grid that held the schedule planned here they discarded it, and the plan "
        "was worth 0.840 on surrogates instead of 0.850."
    ),
}
"""A task's name, and what was found to be the reason; say what was measured."""

NOT_FOUND: Final = "reason not found yet"
