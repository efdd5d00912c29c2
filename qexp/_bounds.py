"""Bounds of what is public: norms that are clipped in simulations, and weights on their way.

Private records are clipped by :mod:`qexp.private_sum` alone.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNCLIPPED", "clip_shares", "within_bounds"]

# In single precision, so small a norm still divides so large a one.
_LEAST_NORM: Final = 1e-15
UNCLIPPED: Final = 1e15
"""A clipping norm that no record's gradient reaches."""

_MOST_WEIGHT: Final = 1e6


def clip_shares(norms: NDArray[Any], clipping_norm: float) -> NDArray[Any]:
    """Give the shares that clipping leaves of vectors of these norms."""
    shares: NDArray[Any] = np.minimum(1, clipping_norm / np.maximum(norms, _LEAST_NORM))
    return shares


def within_bounds(weights: NDArray[Any]) -> bool:
    """Tell whether weights have not diverged, nor are NaN."""
    return bool(np.all(np.abs(weights) < _MOST_WEIGHT))
