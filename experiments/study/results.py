"""Where results are kept: one file of JSON lines for each task and method."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from qexp._files import atomic_write

__all__ = ["Store"]

FOLDER: Final = Path(__file__).resolve().parents[1] / "results"


class Store:
    """Lines of results, one a cell, sorted. A file is replaced as a whole or not at all."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def lines(self, task: str, method: str) -> list[dict[str, Any]]:
        """Read what is known of a task and method."""
        path = self._path(task, method)
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def all_lines(self) -> list[dict[str, Any]]:
        """Read everything."""
        return [
            json.loads(line)
            for path in sorted(self.folder.glob("*/*.jsonl"))
            for line in path.read_text("utf-8").splitlines()
        ]

    def add(self, new: Iterable[dict[str, Any]]) -> None:
        """Put lines in, in place of others of the same cells."""
        for line in new:
            task, method = line["task"], line["method"]
            known = {_key(old): old for old in self.lines(task, method)}
            known[_key(line)] = line
            text = "".join(json.dumps(known[key]) + "\n" for key in sorted(known))
            path = self._path(task, method)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, lambda file, text=text: file.write(text.encode()))

    def _path(self, task: str, method: str) -> Path:
        return self.folder / task / f"{method}.jsonl"


def _key(line: dict[str, Any]) -> tuple[float, float, int]:
    epsilon = float("inf") if line["epsilon"] is None else line["epsilon"]
    return epsilon, line["delta"], line["seed"]
