"""Fine-tuning in rounds: every draw starts where the last one ended.

A round is one exact private draw around the current weights, with a share of the budget; rounds
compose to μ = √Σ μ_t² (Dong, Roth and Su 2022, Corollary 2), and whatever was released before may
shape the next one. Momentum, averaging and shrinkage work on released values and are free.
"""

from qexp.finetune._fine_tune import fine_tune
from qexp.finetune._job import Shrinkage
from qexp.finetune._result import FineTuneInterrupted, FineTuneResult, RoundReport
from qexp.finetune._schedule import Schedule

__all__ = [
    "FineTuneInterrupted",
    "FineTuneResult",
    "RoundReport",
    "Schedule",
    "Shrinkage",
    "fine_tune",
]
