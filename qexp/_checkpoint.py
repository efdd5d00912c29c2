"""The state of a fine-tuning between two rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FineTuneState"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FineTuneState:
    """All that the next round needs, and all that was paid for.

    Attributes
    ----------
    job_id : str
        Random and unique; part of every charge's label.
    rounds_done : int
        Rounds drawn.
    weights : ndarray of float64, shape (p,)
        θ after the last round, before it is rounded to the model's dtype.
    velocity : ndarray of float64, shape (p,), or None
        v, where the schedule has momentum.
    iterate_sum : ndarray of float64, shape (p,), or None
        Sum of the iterates that are averaged, once there is one.
    iterates_summed : int
        How many they are.
    history : tuple of mappings
        Public numbers of every round done.
    diverged : bool
        True when the last step left the range of the weights' dtype; `weights` are those before.
    """

    job_id: str
    rounds_done: int = 0
    weights: NDArray[np.float64] = field(repr=False)
    velocity: NDArray[np.float64] | None = field(default=None, repr=False)
    iterate_sum: NDArray[np.float64] | None = field(default=None, repr=False)
    iterates_summed: int = 0
    history: tuple[Mapping[str, Any], ...] = ()
    diverged: bool = False
