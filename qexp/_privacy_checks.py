"""Checks of ε, δ, μ and of who is a neighbour: one message wherever they are given."""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import numpy as np

__all__ = [
    "NeighboringRelation",
    "UnitOfPrivacy",
    "check_delta",
    "check_epsilon",
    "check_mu",
    "check_relation",
    "check_unit",
    "sensitivity_factor",
]

NeighboringRelation = Literal["replace_special", "replace_one"]
UnitOfPrivacy = Literal["record", "user"]


def _real(value: object, name: str, allowed: str, advice: str) -> float:
    """Return ``value`` as a finite float that equals it, or raise."""
    message = f"{name} must be {allowed}, got {value!r}: {advice}"
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise TypeError(
            f"{name} must be a real number (float or int), {allowed}, got {value!r} of type "
            f"{type(value).__name__}: {advice}"
        )
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(message) from None
    if not math.isfinite(number):
        raise ValueError(message)
    if number != value:
        raise ValueError(
            f"{name} must be exactly representable as a 64-bit float, got {value!r}: rounding it "
            "could weaken the guarantee, so round it yourself to the side that you want"
        )
    return number


def _not_negative(value: object, name: str, advice: str, zero_allowed: bool) -> float:
    allowed = "finite and " + (">= 0" if zero_allowed else "> 0")
    number = _real(value, name, allowed, advice)
    if number < 0 or (number == 0 and not zero_allowed):
        raise ValueError(f"{name} must be {allowed}, got {value!r}: {advice}")
    return number


def check_epsilon(value: object, name: str = "epsilon", *, zero_allowed: bool = False) -> float:
    advice = "choose the privacy loss that you accept, for example 1.0"
    return _not_negative(value, name, advice, zero_allowed)


def check_delta(value: object, name: str = "delta") -> float:
    allowed = "strictly between 0 and 1"
    advice = "choose a value well below 1 / (number of records), for example 1e-6"
    number = _real(value, name, allowed, advice)
    if not 0 < number < 1:
        raise ValueError(f"{name} must be {allowed}, got {value!r}: {advice}")
    return number


def check_mu(value: object, name: str = "mu", *, zero_allowed: bool = False) -> float:
    advice = "mu is (bound on one record) / (noise standard deviation); see calibrate_mu"
    return _not_negative(value, name, advice, zero_allowed)


def check_relation(value: object) -> NeighboringRelation:
    name = value if isinstance(value, str) else ""
    if name == "replace_special":
        return "replace_special"
    if name == "replace_one":
        return "replace_one"
    if name == "add_or_remove_one":
        raise ValueError(
            "neighboring_relation 'add_or_remove_one' is not supported: the number of records is "
            "public here, so the guarantee cannot hide it; use 'replace_special' (one record "
            "replaced by a null record) or 'replace_one'"
        )
    raise ValueError(
        "neighboring_relation must be 'replace_special' (one record replaced by a null record) or "
        f"'replace_one' (one record replaced by any other), got {value!r}"
    )


def sensitivity_factor(relation: object) -> int:
    """Give by how many clipping norms the sums of neighbours differ at most.

    A record's clipped gradient moves by c when it is nulled, by up to 2c when it is exchanged.
    """
    return 2 if check_relation(relation) == "replace_one" else 1


def check_unit(value: object) -> UnitOfPrivacy:
    if not isinstance(value, str) or value not in get_args(UnitOfPrivacy):
        raise ValueError(
            "unit_of_privacy must be 'record' (a single record is protected) or 'user' (all "
            f"records of a user), got {value!r}"
        )
    return cast(UnitOfPrivacy, value)
