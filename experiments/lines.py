"""Files of JSON lines, which results are kept in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qexp._files import atomic_write

__all__ = ["Lines"]


class Lines:
    """A file of lines, one a cell, sorted. It is replaced as a whole or not at all."""

    def __init__(self, path: Path, key: Callable[[dict[str, Any]], Any]) -> None:
        self.path, self._key = path, key

    def read(self) -> list[dict[str, Any]]:
        """Read what is known."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def add(self, new: dict[str, Any]) -> None:
        """Put a line in, in place of another of the same cell."""
        known = {self._key(old): old for old in self.read()}
        known[self._key(new)] = new
        text = "".join(json.dumps(known[key]) + "\n" for key in sorted(known))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, lambda file: file.write(text.encode()))
