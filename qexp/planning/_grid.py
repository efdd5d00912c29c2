"""The schedules to choose from."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, Final

from qexp import _checks
from qexp.finetune import Schedule
from qexp.subspace import DAMPING

__all__ = [
    "MOST_ROUNDS",
    "candidate_schedules",
    "lengthened",
    "neighbours",
    "subspace_schedules",
]

_DAMPINGS: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_CLIPPING_NORMS: Final = (0.3, 1.0, 3.0, 10.0)
_ROUNDS: Final = (1, 2, 4, 8, 16, 32, 64)
MOST_ROUNDS: Final = max(_ROUNDS)
"""Of the grid's schedules."""
_SHARE: Final = 0.25
# Step size without damping, momentum, averaging. Averaging takes the noise off long steps.
_STEPS: Final = (
    (1.0, 0.0, 0.0),
    (1.0, 0.0, _SHARE),
    (0.3, 0.0, 0.0),
    (0.1, 0.0, 0.0),
    (0.3, 0.8, 0.0),
    (0.1, 0.8, 0.0),
    (0.1, 0.9, 0.0),
    (0.03, 0.9, 0.0),
)


_SUBSPACE_CLIPPING_NORMS: Final = (0.3, 1.0, 3.0)
_SUBSPACE_ROUNDS: Final = (1, 2, 4, 8, 16, 32)
_SUBSPACE_STEPS: Final = (
    (0.5, 0.0, 0.0),
    (1.5, 0.0, 0.0),
    (5.0, 0.0, 0.0),
    (1.5, 0.0, _SHARE),
    (5.0, 0.0, _SHARE),
    (0.3, 0.8, 0.0),
    (1.0, 0.8, 0.0),
)


def candidate_schedules(rounds: int | None = None) -> list[Schedule]:
    """Give the planner's grid.

    Parameters
    ----------
    rounds : int, optional
        Only schedules of so many rounds. Default: powers of two from 1 to 64.

    Returns
    -------
    list of Schedule
    """
    counts = _ROUNDS if rounds is None else (_checks.count(rounds, "rounds"),)
    return [
        Schedule(
            rounds=t,
            clipping_norm=c,
            step_size=eta * _lengthening(damping),
            damping=damping,
            momentum=m,
            averaging=share,
        )
        for damping, c, t, (eta, m, share) in itertools.product(
            _DAMPINGS, _CLIPPING_NORMS, counts, _STEPS
        )
        if (m == 0 or t * (1 - m) >= 1.5) and (share == 0 or _averages_several(t))
    ]


def subspace_schedules(rounds: int | None = None) -> list[Schedule]:
    """Give the planner's grid for public subspaces, whose coordinates are whitened already."""
    counts = _SUBSPACE_ROUNDS if rounds is None else (_checks.count(rounds, "rounds"),)
    return [
        Schedule(
            rounds=t,
            clipping_norm=c,
            step_size=eta,
            damping=DAMPING,
            momentum=m,
            averaging=share,
        )
        for c, t, (eta, m, share) in itertools.product(
            _SUBSPACE_CLIPPING_NORMS, counts, _SUBSPACE_STEPS
        )
        if (m == 0 or t * (1 - m) >= 1.5) and (share == 0 or _averages_several(t))
    ]


def lengthened(schedule: Schedule) -> list[Schedule]:
    """Double the rounds, with steps as long and half as long."""
    return [
        replace(schedule, rounds=2 * schedule.rounds, step_size=step)
        for step in (schedule.step_size, schedule.step_size / 2)
    ]


def neighbours(
    schedule: Schedule, fixed_rounds: int | None, *, in_subspace: bool = False
) -> list[Schedule]:
    """Vary one setting at a time by half a step of the grid; a subspace's damping is its own."""
    root = math.sqrt(10)
    varied: list[dict[str, Any]] = []
    undamped = _rounded(schedule.step_size / _lengthening(schedule.damping))
    for damping in () if in_subspace else (schedule.damping / root, schedule.damping * root):
        damping = _rounded(damping)
        varied += [{"damping": damping, "step_size": undamped * _lengthening(damping)}]
    varied += [{"clipping_norm": schedule.clipping_norm * f} for f in (0.55, 1.8)]
    varied += [{"step_size": schedule.step_size * f} for f in (0.55, 1.8)]
    varied += [
        {"clipping_norm": schedule.clipping_norm * f, "step_size": schedule.step_size / f}
        for f in (0.55, 1.8)
    ]
    if schedule.averaging or _averages_several(schedule.rounds):
        varied += [{"averaging": 0.0 if schedule.averaging else _SHARE}]
    if fixed_rounds is None:
        for count in (max(1, round(schedule.rounds * f)) for f in (0.7, 1.4)):
            share = schedule.averaging if _averages_several(count) else 0.0
            varied += [{"rounds": count, "averaging": share}]
    return [replace(schedule, **changes) for changes in varied]


def _rounded(value: float) -> float:
    """Let a step there and back end at the very same number, so that it is not tried twice."""
    return float(f"{value:.6g}")


def _averages_several(rounds: int) -> bool:
    """Tell whether the share of so many rounds that is averaged is more than the last one."""
    return round(_SHARE * rounds) > 1


def _lengthening(damping: float) -> float:
    """Give what makes up for damping, which shortens a step along a curvature of 1 by as much.

    Without it, the steps beside much damping, almost gradient descent, are too short to lead
    anywhere.
    """
    return 1 + damping
