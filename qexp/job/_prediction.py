"""What a plan predicts, in the words and units of what it ranked schedules by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Prediction", "predicted"]

# Its name, the factor to its unit, the unit.
_SCORES: Final = {
    "accuracy": ("accuracy", 100.0, " %"),
    "auroc": ("area under the ROC curve", 1.0, ""),
    "loss": ("mean loss", -1.0, " nats"),
}


@dataclass(frozen=True)
class Prediction:
    """A plan's figures.

    Attributes
    ----------
    name, unit : str
    before, after, deviation : float
        Of the pretrained model on the surrogates; of the planned schedule, mean and standard
        deviation over them.
    curve : list of (float, float, float)
        ε, mean and standard deviation.
    """

    name: str
    unit: str
    before: float
    after: float
    deviation: float
    curve: list[tuple[float, float, float]]

    @property
    def label(self) -> str:
        """Name and unit, as of an axis or a column."""
        return f"{self.name},{self.unit}" if self.unit else self.name

    def sentence(self) -> str:
        """Say it in one line."""
        return (
            f"{self.after:.4g}{self.unit} +- {self.deviation:.2g} on surrogates "
            f"(before: {self.before:.4g})"
        )


def predicted(plan: Mapping[str, Any]) -> Prediction:
    """Read the figures of a plan's description."""
    name, factor, unit = _SCORES[plan["score"]]
    return Prediction(
        name,
        unit,
        factor * plan["score_before"],
        factor * plan["predicted_score"],
        abs(factor) * plan["table"][0]["score_std"],
        [
            (point["epsilon"], factor * point["score_mean"], abs(factor) * point["score_std"])
            for point in plan["curve"]
        ],
    )
