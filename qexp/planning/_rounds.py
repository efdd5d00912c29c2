"""The rounds of simulated fine-tuning: how noisy each of them is, and where they lead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexp._bounds import within_bounds
from qexp.finetune import Schedule

__all__ = ["Descent", "noise_of_rounds"]


def noise_of_rounds(schedule: Schedule, noise: float) -> NDArray[np.float64]:
    """Give the noise of each round's mean gradient; `noise` is 1/(nμ), μ that of all rounds."""
    shares = np.array(schedule.budget or (1.0,) * schedule.rounds)
    sigmas: NDArray[np.float64] = schedule.clipping_norm * noise * np.sqrt(shares.sum() / shares)
    return sigmas


class Descent:
    """Weights, in one or several arrays, that go down by a schedule's rounds as a job's do."""

    def __init__(self, schedule: Schedule, theta: Sequence[NDArray[Any]]) -> None:
        self.theta = list(theta)
        self._schedule = schedule
        self._velocity = [np.zeros_like(x) for x in self.theta]
        self._total, self._summed = [np.zeros_like(x) for x in self.theta], 0

    def step(self, t: int, steps: Sequence[NDArray[Any]]) -> bool:
        """Go against round t's steps, and tell whether the weights are within bounds."""
        schedule = self._schedule
        self._velocity = [
            schedule.momentum * velocity - schedule.step_size * step
            for velocity, step in zip(self._velocity, steps, strict=True)
        ]
        self.theta = [x + velocity for x, velocity in zip(self.theta, self._velocity, strict=True)]
        if t > schedule.rounds - schedule.averaged_rounds:
            self._total = [total + x for total, x in zip(self._total, self.theta, strict=True)]
            self._summed += 1
        return all(within_bounds(x) for x in self.theta)

    @property
    def released(self) -> list[NDArray[Any]]:
        """The average of the last rounds' weights, or the last ones where none are averaged."""
        return [total / self._summed for total in self._total] if self._summed else self.theta
