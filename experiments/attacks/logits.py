"""The confidence of a model in a label, as attacks score it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from qexp.models import MultilayerPerceptron

__all__ = ["best_threshold", "label_logits"]


def label_logits(
    model: MultilayerPerceptron, X: NDArray[Any], y: NDArray[Any]
) -> NDArray[np.float64]:
    """Return log p/(1 - p) of the labels' probabilities, also where p rounds to 1."""
    log_p = model.predict_log_proba(X).astype(np.float64)
    each = np.arange(len(log_p))
    of_label = log_p[each, y].copy()
    log_p[each, y] = -np.inf
    logits: NDArray[np.float64] = of_label - special.logsumexp(log_p, axis=1)
    return logits


def best_threshold(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> float:
    """Return the threshold that tells most of the scores right."""
    order = np.argsort(scores)
    sorted_scores, inside = scores[order], included[order]
    # Right with the threshold after the i lowest: those that are out below, and in above.
    right = np.concatenate([[0], np.cumsum(~inside)]) + np.append(np.cumsum(inside[::-1])[::-1], 0)
    best = int(np.argmax(right[1:-1])) + 1
    return float((sorted_scores[best - 1] + sorted_scores[best]) / 2)
