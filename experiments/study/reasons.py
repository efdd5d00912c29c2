"""Why qexp loses where it does: written by hand, shown beside the lost cells of docs/study.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["NOT_FOUND", "REASONS"]

REASONS: Final[Mapping[str, str]] = {
    "icu_cardiac": (
        "With little noise the plan goes on to where ordinary fine-tuning ends, at 0.852 on these "
        "1,451 stays: the public surrogates, which have more to gain, do not show that this is too "
        "far. Gentler rivals end above it."
    ),
}
"""A task's name, and what was found to be the reason; say what was measured."""

NOT_FOUND: Final = "reason not found yet"
