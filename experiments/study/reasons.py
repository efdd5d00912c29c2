"""Why qexp loses where it does: written by hand, shown beside the lost cells of docs/study.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["NOT_FOUND", "REASONS"]

REASONS: Final[Mapping[str, str]] = {}
"""A task's name, and what was found to be the reason; say what was measured."""

NOT_FOUND: Final = "reason not found yet"
