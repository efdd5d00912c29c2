"""Other ways of private fine-tuning, on one interface and on qexp's own boundary.

Each is implemented to win: with published improvements, exact accounting, and settings planned on
public records by the stages of trials that qexp's own get (:func:`plan_rival`). docs/rivals.md says
which improvements there are, and which are left out. A method is called like a function; see
:class:`Method`.
"""

from types import MappingProxyType
from typing import Any

from qexp.rivals._method import Method, RivalResult
from qexp.rivals.adamix import AdaMixSettings, adamix
from qexp.rivals.baselines import NonPrivateSettings, PublicOnlySettings, non_private, public_only
from qexp.rivals.gradient_descent import GradientDescentSettings, SGDSettings, dp_gd, dp_sgd
from qexp.rivals.linear_heads import (
    FeatureCovarianceSettings,
    LeastSquaresSettings,
    NewtonSettings,
    dp_fc,
    dp_ls,
    dp_newton,
)
from qexp.rivals.output_perturbation import OutputPerturbationSettings, output_perturbation
from qexp.rivals.planning import RivalPlan, plan_rival
from qexp.rivals.sparta import SpartaSettings, sparta

__all__ = [
    "METHODS",
    "AdaMixSettings",
    "FeatureCovarianceSettings",
    "GradientDescentSettings",
    "LeastSquaresSettings",
    "Method",
    "NewtonSettings",
    "NonPrivateSettings",
    "OutputPerturbationSettings",
    "PublicOnlySettings",
    "RivalPlan",
    "RivalResult",
    "SGDSettings",
    "SpartaSettings",
    "adamix",
    "dp_fc",
    "dp_gd",
    "dp_ls",
    "dp_newton",
    "dp_sgd",
    "non_private",
    "output_perturbation",
    "plan_rival",
    "public_only",
    "sparta",
]

METHODS: MappingProxyType[str, Method[Any]] = MappingProxyType(
    {
        method.name: method
        for method in (
            public_only,
            non_private,
            dp_gd,
            dp_sgd,
            adamix,
            sparta,
            dp_ls,
            dp_newton,
            dp_fc,
            output_perturbation,
        )
    }
)
"""All of them by name."""
