"""The settings of all rounds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qexp import _checks

__all__ = ["Schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Settings of a fine-tuning in rounds: all public.

    Attributes
    ----------
    rounds : int
        T, number of draws.
    clipping_norm : float
        c, in whitened units.
    step_size : float
        η of every round.
    damping : float
        λ of the curvature. :func:`fine_tune` gets its curvature ready made; this is what whoever
        makes it reads.
    momentum : float
        m in [0, 1): v ← m·v + step, θ ← θ + v.
    averaging : float
        Share of the last rounds, in [0, 1], whose weights are averaged, rounded to whole rounds
        and at least one; 0 releases the last weights.
    refresh_curvature : bool
        Make the curvature anew at every round's weights. Needs a curvature function.
    budget : tuple of float, optional
        μ² of each round, up to a common factor. Default: all rounds alike.
    curvature_share : float
        Share of μ², in [0, 1), that is spent before the first round on private curvature
        (:mod:`qexp.private_curvature`); the rounds share the rest.
    """

    rounds: int
    clipping_norm: float
    step_size: float
    damping: float
    momentum: float = 0.0
    averaging: float = 0.0
    refresh_curvature: bool = False
    budget: tuple[float, ...] | None = None
    curvature_share: float = 0.0

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("rounds", _checks.count(self.rounds, "rounds"))
        for name in ("clipping_norm", "step_size", "damping"):
            put(name, _checks.positive(getattr(self, name), name))
        for name in ("momentum", "averaging", "curvature_share"):
            put(name, _checks.positive(getattr(self, name), name, zero_allowed=True))
        if self.momentum >= 1:
            raise ValueError(f"momentum is {self.momentum}; it needs a number in [0, 1)")
        if self.curvature_share >= 1:
            raise ValueError(
                f"curvature_share is {self.curvature_share}; it needs a share in [0, 1), which "
                "leaves some of the budget to the rounds"
            )
        if self.averaging > 1:
            raise ValueError(f"averaging is {self.averaging}; it needs a share in [0, 1]")
        if not isinstance(self.refresh_curvature, bool):
            raise TypeError(
                f"refresh_curvature is {self.refresh_curvature!r}; it needs True or False"
            )
        if self.refresh_curvature and self.curvature_share > 0:
            raise ValueError(
                "curvature_share is above 0 with refresh_curvature; private curvature is paid for "
                "once and kept for all rounds: choose one of the two"
            )
        if self.budget is not None:
            budget = tuple(_checks.positive(share, "a share of budget") for share in self.budget)
            if len(budget) != self.rounds:
                raise ValueError(
                    f"budget has {len(budget)} share(s) for {self.rounds} round(s); it needs one "
                    "each, or None for equal shares"
                )
            put("budget", budget)

    @property
    def averaged_rounds(self) -> int:
        """How many of the last rounds are averaged; 0 where only the last one counts."""
        return max(1, round(self.averaging * self.rounds)) if self.averaging > 0 else 0

    def describe(self) -> dict[str, Any]:
        """Describe the schedule for certificates."""
        described = asdict(self)
        described["budget"] = None if self.budget is None else list(self.budget)
        return described
