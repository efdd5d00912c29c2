"""How well probabilities rank and tell two classes apart, where accuracy says little.

Of stays in intensive care, say, one in seven ends in death: never to predict a death is right six
times in seven. These measures are of two classes, 0 and 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

__all__ = ["area_under_roc", "average_precision", "calibration_error"]


def area_under_roc(y: ArrayLike, scores: ArrayLike) -> float:
    """Give the share of pairs, one of each class, that the scores put in the right order.

    Parameters
    ----------
    y : array, shape (n,)
        0 or 1.
    scores : array, shape (n,)
        Larger for what is more likely 1. Pairs of equal scores count half.

    Returns
    -------
    float
        0 to 1; one half where only one class is there, and there is nothing to order; else NaN
        where a score is.

    Raises
    ------
    ValueError
        If the shapes do not agree, or a label is neither 0 nor 1.

    References
    ----------
    J. A. Hanley, B. J. McNeil, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve", Radiology 143, 1982.
    """
    positive, values = _checked(y, scores)
    n_positive = int(positive.sum())
    pairs = n_positive * (len(positive) - n_positive)
    if pairs == 0:
        return 0.5
    surplus = rankdata(values)[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(surplus / pairs)


def average_precision(y: ArrayLike, scores: ArrayLike) -> float:
    """Give the area under the precision-recall curve, as the sum of its steps.

    Parameters
    ----------
    y, scores
        As in `area_under_roc`.

    Returns
    -------
    float
        The share of 1 for scores that say nothing, 1 for perfect ones; 0 where no label is 1; else
        NaN where a score is.

    Raises
    ------
    ValueError
        As `area_under_roc`.
    """
    positive, values = _checked(y, scores)
    if not positive.any():
        return 0.0
    # Sorting would put it last, as if it were the smallest.
    if np.isnan(values).any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    # Equal scores pass a threshold together, infinite ones too.
    sorted_values = values[order]
    last = np.flatnonzero(np.append(sorted_values[1:] != sorted_values[:-1], True))
    found = np.cumsum(positive[order])[last]
    precision = found / (last + 1)
    return float(np.sum(precision * np.diff(found, prepend=0)) / found[-1])


def calibration_error(y: ArrayLike, probabilities: ArrayLike, *, bins: int = 10) -> float:
    """Give the mean difference of stated and observed frequencies, over bins of as many records.

    Parameters
    ----------
    y : array, shape (n,)
        0 or 1.
    probabilities : array, shape (n,)
        Of 1.
    bins : int
        At most one a record.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        As `area_under_roc`, or if there is no record or `bins` is less than 1.

    References
    ----------
    M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using
    Bayesian binning", AAAI, 2015; with bins of equal counts.
    """
    positive, values = _checked(y, probabilities)
    if len(values) == 0 or bins < 1:
        raise ValueError(f"there are {len(values)} records and {bins} bins; it takes 1 or more")
    order = np.argsort(values, kind="stable")
    gaps = [
        abs(float((values[part] - positive[part]).sum()))
        for part in np.array_split(order, min(bins, len(order)))
    ]
    return sum(gaps) / len(values)


def _checked(y: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    labels: NDArray[Any] = np.asarray(y)
    values = np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != values.shape:
        raise ValueError(
            f"labels have shape {labels.shape} and scores {values.shape}; both need (n,)"
        )
    if not np.all((labels == 0) | (labels == 1)):
        raise ValueError("labels must be 0 or 1")
    return labels == 1, values
