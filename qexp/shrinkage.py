"""Shrinkage of noisy sums: less noise for nothing, where there is little but noise.

A noisy sum y = S + σξ has a known σ. The positive-part James-Stein estimator of S,

    a y,   a = max(0, 1 - (k - 2) σ² / ‖y‖²),

has a smaller expected squared error than y itself for every S in k > 2 dimensions (James and
Stein 1961; Baranchik 1964), and as a function of y alone it costs no privacy (Balle and Wang
2018). Each block of components gets a factor of its own, so that a layer with much signal is not
shrunk on account of one with little.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks

__all__ = ["james_stein"]


def james_stein(
    values: ArrayLike, noise_std: float, *, blocks: Sequence[slice] | None = None
) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """Shrink a noisy vector block by block towards zero.

    Parameters
    ----------
    values : array_like of float64, shape (k,)
        y, released.
    noise_std : float
        σ, the standard deviation of the noise in each component, in the units of `values`.
    blocks : sequence of slice, optional
        Disjoint blocks of components, such as ``curvature.layer_slices()``. What is in none of
        them stays as it is. Default: one block for all.

    Returns
    -------
    shrunk : ndarray of float64, shape (k,)
    factors : tuple of float
        a of each block, in [0, 1]; 1 for blocks of at most two components.

    Raises
    ------
    TypeError, ValueError
        If `values` are not finite floating-point numbers, or `noise_std` is not finite and at
        least 0.

    References
    ----------
    W. James and C. Stein, "Estimation with quadratic loss", Berkeley Symposium 1961.
    A. J. Baranchik, "Multiple regression and estimation of the mean of a multivariate normal
    distribution", Stanford 1964.
    B. Balle and Y.-X. Wang, "Improving the Gaussian mechanism for differential privacy", ICML
    2018.

    Examples
    --------
    >>> import numpy as np
    >>> shrunk, factors = james_stein(np.array([3.0, 0.0, 4.0, 0.0]), 2.5)
    >>> factors
    (0.5,)
    """
    shrunk = _checks.finite_array(values, "values", 1).astype(np.float64)
    sigma = _checks.positive(noise_std, "noise_std", zero_allowed=True)
    factors = []
    for block in [slice(None)] if blocks is None else blocks:
        part = shrunk[block]
        factor = _factor(part, sigma)
        part *= factor
        factors.append(factor)
    return shrunk, tuple(factors)


def _factor(part: NDArray[np.float64], sigma: float) -> float:
    length = float(np.linalg.norm(part))
    if len(part) <= 2 or sigma == 0:
        return 1.0
    if length == 0:
        return 0.0
    return max(0.0, 1 - (len(part) - 2) * (sigma / length) ** 2)
