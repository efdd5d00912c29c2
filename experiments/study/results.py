"""Where results are kept: one file of JSON lines for each task and method."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from experiments.lines import Lines

__all__ = ["FOLDER", "Store"]

FOLDER: Final = Path(__file__).resolve().parents[1] / "results"


class Store:
    """Lines of results in one file for each task and method."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def lines(self, task: str, method: str) -> list[dict[str, Any]]:
        """Read what is known of a task and method."""
        return self._file(task, method).read()

    def settings(
        self, task: str, method: str, epsilon: float | None, delta: float
    ) -> dict[str, Any] | None:
        """Give the plan of a cell, which is that of all its seeds; None where it was not run."""
        for line in self.lines(task, method):
            if (line["epsilon"], line["delta"]) == (epsilon, delta):
                planned: dict[str, Any] = line["hyperparameters"]
                return planned
        return None

    def planned(self, task: str, method: str, epsilon: float, delta: float) -> dict[str, Any]:
        """Give the plan of a cell.

        Raises
        ------
        ValueError
            If it was not run.
        """
        settings = self.settings(task, method, epsilon, delta)
        if settings is None:
            raise ValueError(
                f"the study has no {method} for {task} at epsilon = {epsilon:g}; run it first"
            )
        return settings

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
