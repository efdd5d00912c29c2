"""What lines of results come to: means with their intervals, differences seed by seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "Difference",
    "Summary",
    "difference_text",
    "mean_text",
    "methods_by_cell",
    "paired",
    "shown_as",
    "student",
    "summarise",
]


@dataclass(frozen=True)
class Summary:
    """A method on a task at one budget: the mean over seeds, and half its 95 % interval.

    `measures` are such pairs of what else was measured of the same models.
    """

    task: str
    method: str
    epsilon: float | None
    metric: str
    mean: float
    half_width: float
    by_seed: Mapping[int, float]
    seconds: float
    measures: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        return len(self.by_seed)

    @property
    def text(self) -> str:
        """The mean and its interval, as tables have them."""
        return mean_text(self.mean, self.half_width, self.metric)

    @property
    def bar(self) -> float:
        """Half of the interval as figures have it, 0 where there is none."""
        factor, _ = shown_as(self.metric)
        return factor * self.half_width if math.isfinite(self.half_width) else 0.0


@dataclass(frozen=True)
class Difference:
    """A mean of differences over the seeds that two methods share, and half its 95 % interval."""

    mean: float
    half_width: float
    seeds: int

    @property
    def is_clear(self) -> bool:
        return abs(self.mean) > self.half_width

    @property
    def is_clearly_below(self) -> bool:
        """Whether the first is below the other, and that by more than chance."""
        return self.is_clear and self.mean < 0


def summarise(lines: list[dict[str, Any]], delta: float = 1e-5) -> list[Summary]:
    """Summarise lines of results over their seeds. The interval is Student's."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["delta"] == delta:
            cells[line["task"], line["method"], line["epsilon"]].append(line)
    made = []
    for (task, method, epsilon), some in cells.items():
        by_seed = {line["seed"]: line["value"] for line in some}
        mean, half = student(list(by_seed.values()))
        seconds = float(np.median([line["seconds"] for line in some]))
        metric = some[0]["metric"]
        measures = {
            name: student([line["measures"][name] for line in some])
            for name in some[0].get("measures") or {}
            if name != metric
        }
        made.append(Summary(task, method, epsilon, metric, mean, half, by_seed, seconds, measures))
    return made


def paired(one: Summary, other: Summary) -> Difference | None:
    """Give one method's values less the other's, seed by seed; None where they share no seed.

    A seed sets the pretrained model, the split and the noise of all methods, so that much of what
    spreads the values of each is not in their difference.
    """
    common = sorted(one.by_seed.keys() & other.by_seed.keys())
    if not common:
        return None
    mean, half = student([one.by_seed[seed] - other.by_seed[seed] for seed in common])
    return Difference(mean, half, len(common))


def student(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Give the mean and half its 95 % interval, which is infinite for one value."""
    n, array = len(values), np.asarray(values)
    if n < 2:
        return float(array.mean()), math.inf
    half = float(stats.t.ppf(0.975, n - 1) * array.std(ddof=1) / math.sqrt(n))
    return float(array.mean()), half


def methods_by_cell(found: list[Summary]) -> dict[tuple[str, float], dict[str, Summary]]:
    by_cell: dict[tuple[str, float], dict[str, Summary]] = defaultdict(dict)
    for summary in found:
        if summary.epsilon is not None:
            by_cell[summary.task, summary.epsilon][summary.method] = summary
    return by_cell


def mean_text(mean: float, half_width: float, metric: str) -> str:
    factor, digits = shown_as(metric)
    return f"{factor * mean:.{digits}f} ± {_half(half_width, factor, digits)}"


def difference_text(made: Difference, metric: str, sign: str = "+") -> str:
    factor, digits = shown_as(metric)
    half = _half(made.half_width, factor, digits + 1)
    return f"{factor * made.mean:{sign}.{digits + 1}f} ± {half}"


def _half(half_width: float, factor: float, digits: int) -> str:
    # One seed has no interval.
    return f"{factor * half_width:.{digits}f}" if math.isfinite(half_width) else "?"


def shown_as(metric: str) -> tuple[float, int]:
    """Give the factor and the digits of a metric's figures."""
    return (100.0, 1) if metric == "accuracy" else (1.0, 3)
