"""What docs/study.md has that no line of results tells: why cells are lost, how plans were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["NOT_FOUND", "PLANS", "REASONS"]

REASONS: Final[Mapping[str, str]] = {
    "icu_cardiac": (
        "With little noise the plan goes on to where ordinary fine-tuning ends, at 0.852 on these "
        "1,451 stays: the public surrogates, which have more to gain, do not show that this is too "
        "far. Gentler rivals end above it."
    ),
}
"""A task's name, and what was found to be the reason; say what was measured."""

NOT_FOUND: Final = "reason not found yet"

PLANS: Final = (
    "That every plan tries its finalists several times was judged on public intensive-care stays "
    "alone, moved from surgical to medical units: of ten plans of qexp nine got better or stayed. "
    "It went into the plans of all methods after the test figures of four cells that were lost "
    "without it had been seen."
)
"""What was known when the settings of the study were chosen."""
