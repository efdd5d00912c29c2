"""Where results are kept: one file of JSON lines for each task and method."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from qexp._files import atomic_write

__all__ = ["FOLDER", "Lines", "Store"]

FOLDER: Final = Path(__file__).resolve().parents[1] / "results"


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


class Store:
    """Lines of results in one file for each task and method."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def lines(self, task: str, method: str) -> list[dict[str, Any]]:
        """Read what is known of a task and method."""
        return self._file(task, method).read()

    def all_lines(self) -> list[dict[str, Any]]:
        """Read everything."""
        return [
            line
            for path in sorted(self.folder.glob("*/*.jsonl"))
            for line in Lines(path, _key).read()
        ]

    def add(self, new: Iterable[dict[str, Any]]) -> None:
        """Put lines in, in place of others of the same cells."""
        for line in new:
            self._file(line["task"], line["method"]).add(line)

    def _file(self, task: str, method: str) -> Lines:
        return Lines(self.folder / task / f"{method}.jsonl", _key)


def _key(line: dict[str, Any]) -> tuple[float, float, int]:
    epsilon = float("inf") if line["epsilon"] is None else line["epsilon"]
    return epsilon, line["delta"], line["seed"]
