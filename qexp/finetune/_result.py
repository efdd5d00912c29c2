"""What comes of a fine-tuning, round by round and as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qexp.release import PrivateRelease

__all__ = ["FineTuneInterrupted", "FineTuneResult", "RoundReport", "StopReason"]

StopReason = Literal["finished", "ledger empty", "interrupted", "diverged"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundReport:
    """What a round made, all of it released and paid for.

    Attributes
    ----------
    round : int
        t, from 1.
    rounds : int
        T.
    mu : float
        μ_t claimed by the round, under "replace_special".
    mu_so_far : float
        √Σ μ_s² up to this round, under "replace_special".
    noise_to_signal : float
        Expected norm of the noise over the norm of the noisy sum, both whitened.
    expected_utility_loss, expected_mean_loss : float
        Of the round, as in :class:`qexp.PrivateRelease`.
    step_norm : float
        Euclidean norm of the round's step in weight space, before momentum.
    model
        The model after the round.
    """

    round: int
    rounds: int
    mu: float
    mu_so_far: float
    noise_to_signal: float
    expected_utility_loss: float
    expected_mean_loss: float
    step_norm: float
    model: Any = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class FineTuneResult:
    """A fine-tuning, finished or not.

    Attributes
    ----------
    model
        The model at the released weights.
    release : PrivateRelease
        The weights with the privacy of **all** rounds together. Its `epsilon` and `mu` are the
        target's, also of a job that stopped before its last round: where the rounds' outcomes may
        have told it to stop, the rounds done do not compose to less (Rogers, Roth, Ullman and
        Vadhan 2016 on privacy odometers and filters). But a job that its ledger stopped costs
        what the rounds done cost at the target's δ. `noise_to_signal` and the expected losses are
        those of the last round.
    rounds_done : int
        Rounds drawn and paid for.
    stopped_because : {"finished", "ledger empty", "interrupted", "diverged"}
        "diverged": a step left the range of the weights' dtype; the weights are those before it,
        and the round is paid for because its outcome shows. Try a smaller step_size.
    history : tuple of mappings
        The numbers of each round, named as in :class:`RoundReport`.
    """

    model: Any = field(repr=False)
    release: PrivateRelease
    rounds_done: int
    stopped_because: StopReason
    history: tuple[Mapping[str, Any], ...] = field(repr=False)


class FineTuneInterrupted(KeyboardInterrupt):
    """Ctrl-C during a fine-tuning that had rounds paid for.

    Attributes
    ----------
    result : FineTuneResult
        The state after the last round paid for.
    """

    def __init__(self, result: FineTuneResult) -> None:
        super().__init__(
            f"interrupted after {result.rounds_done} round(s); what was paid for is in .result"
        )
        self.result = result
