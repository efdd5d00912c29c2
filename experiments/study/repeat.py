"""Run some of the study's lines again, by the plans that stand on them, and compare.

    python -m experiments repeat --lines 40

Planning is what takes days; to run a line again takes seconds. Data, pretraining, noise and so all
figures are functions of the seed. On the kind of processor that they were measured on they come
out to the last digit, on another, whose kernels round otherwise, a few test records may differ.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.study.cells import Cell, run_planned
from experiments.study.methods import NO_BUDGET

__all__ = ["drawn", "repeated"]


def drawn(
    lines: Sequence[dict[str, Any]], count: int, *, seconds: float, seed: int = 0
) -> list[dict[str, Any]]:
    """Draw lines at random among those whose run took no longer than so many seconds."""
    quick = [line for line in lines if line["seconds"] <= seconds]
    some = random.Random(seed).sample(quick, max(0, min(count, len(quick))))
    # In this order pretraining is shared.
    return sorted(some, key=lambda line: (line["task"], line["seed"]))


def repeated(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Run lines again, and give each with the value that it came to this time."""
    for line in lines:
        epsilon = NO_BUDGET if line["epsilon"] is None else line["epsilon"]
        cell = Cell(line["task"], line["method"], epsilon, line["delta"], line["seed"])
        yield line, run_planned(cell, line["hyperparameters"])["value"]
