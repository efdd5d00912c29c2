"""qexp: fine-tune pretrained models on sensitive data with an exact privacy guarantee.

The pretrained weights, a curvature and a projection are public; the private records enter through
one noisy sum, made in exact integer arithmetic. See :func:`sample_private_weights`.
"""

import sys

from qexp import _config, bits
from qexp._config import config, show_config
from qexp._core import __version__
from qexp._threads import register_threadpool_controller
from qexp.curvature import (
    Curvature,
    DenseCurvature,
    IdentityCurvature,
    NotPositiveDefiniteError,
)
from qexp.finetune import FineTuneInterrupted, FineTuneResult, RoundReport, Schedule, fine_tune
from qexp.kronecker_srht import KroneckerSRHT
from qexp.layered import DiagonalCurvature, KroneckerCurvature, LayeredCurvature
from qexp.ledger import BudgetExceededError, PrivacyLedger, to_dp_event
from qexp.ledger_file import SharedLedger
from qexp.mechanism import sample_private_weights
from qexp.privacy import calibrate_mu, compose_mu, delta, epsilon
from qexp.projections import SRHT, Basis, CoordinateMask, Identity, Projection
from qexp.records import ArrayRecords, RecordSource
from qexp.release import PrivateRelease

__all__ = [
    "SRHT",
    "ArrayRecords",
    "Basis",
    "BudgetExceededError",
    "CoordinateMask",
    "Curvature",
    "DenseCurvature",
    "DiagonalCurvature",
    "FineTuneInterrupted",
    "FineTuneResult",
    "Identity",
    "IdentityCurvature",
    "KroneckerCurvature",
    "KroneckerSRHT",
    "LayeredCurvature",
    "NotPositiveDefiniteError",
    "PrivacyLedger",
    "PrivateRelease",
    "Projection",
    "RecordSource",
    "RoundReport",
    "Schedule",
    "SharedLedger",
    "__version__",
    "bits",
    "calibrate_mu",
    "compose_mu",
    "config",
    "delta",
    "epsilon",
    "fine_tune",
    "register_threadpool_controller",
    "sample_private_weights",
    "show_config",
    "to_dp_event",
]

_config.check_instruction_set()
# Where thread pools are being controlled already, qexp's own count is one of them.
if hasattr(sys.modules.get("threadpoolctl"), "register"):
    register_threadpool_controller()
