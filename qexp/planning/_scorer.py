"""What candidates are ranked by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qexp.measures import area_under_roc

__all__ = ["Score", "Scorer"]

Score = Literal["accuracy", "auroc", "loss"] | Callable[[Any, NDArray[Any], NDArray[Any]], float]

# Of losses and scores of one's own, which have no least value.
_SCORE_OF_DIVERGED: Final = -1e6


class Scorer:
    """What candidates are ranked by: the larger, the better."""

    def __init__(self, score: Score, y: NDArray[Any]) -> None:
        if not callable(score) and score not in ("accuracy", "auroc", "loss"):
            raise ValueError(
                f"score is {score!r}; it needs 'accuracy', 'auroc', 'loss' or a function "
                "score(model, X, y)"
            )
        if score == "auroc" and not np.array_equal(np.unique(y), [0, 1]):
            raise ValueError(
                "score='auroc' is for two classes, 0 and 1, both among the public labels; "
                f"these have the classes {np.unique(y).tolist()}"
            )
        self.score = score
        self.name = score if isinstance(score, str) else getattr(score, "__name__", "score")
        self.of_diverged = 0.0 if score in ("accuracy", "auroc") else _SCORE_OF_DIVERGED

    def __call__(self, model: Any, X: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
        """Give score and accuracy."""
        accuracy = float(model.score(X, y))
        if self.score == "accuracy":
            return accuracy, accuracy
        if self.score == "loss":
            value = -float(model.loss(X, y))
        elif self.score == "auroc":
            value = area_under_roc(y, np.asarray(model.predict_proba(X))[:, 1])
        else:
            value = float(self.score(model, X, y))
        return (value if math.isfinite(value) else self.of_diverged), accuracy
