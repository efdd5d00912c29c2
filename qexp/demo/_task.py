"""A demonstration task, and the private draw on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from qexp.bits import BitGenerator
from qexp.curvature import Curvature
from qexp.ledger import PrivacyLedger
from qexp.measures import area_under_roc
from qexp.mechanism import sample_private_weights
from qexp.models import MultilayerPerceptron
from qexp.projections import Projection
from qexp.release import PrivateRelease

__all__ = ["Measure", "Settings", "Shifted", "Task", "accuracy", "area_under_curve", "draw"]

Measure = Callable[[MultilayerPerceptron, NDArray[Any], NDArray[Any]], float]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The public settings of a draw: damping λ, clipping norm c (whitened units), step size η."""

    damping: float
    clipping_norm: float
    step_size: float


@dataclass(frozen=True, eq=False)
class Shifted:
    """Records of a shifted domain, some to fine-tune on and others to test on."""

    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A pretrained model, public curvature and private records.

    Attributes
    ----------
    title, public, chosen : str
        What the task is; what was public; how the settings were chosen.
    model : MultilayerPerceptron
        At the pretrained weights.
    private : Shifted
        The private records, and test records of the same domain.
    projection : Projection
    curvature : Curvature
        Public.
    settings : Settings
    measure : callable
        ``measure(model, X, y)``, higher is better.
    measure_name : str
    ordinary : callable
        Fine-tunes the model without privacy, for comparison.
    """

    title: str
    public: str
    chosen: str
    model: MultilayerPerceptron
    private: Shifted
    projection: Projection
    curvature: Curvature
    settings: Settings
    measure: Measure
    measure_name: str
    ordinary: Callable[[MultilayerPerceptron, Shifted], MultilayerPerceptron]

    def value(self, model: MultilayerPerceptron) -> float:
        """Measure a model on the test records."""
        return self.measure(model, self.private.x_test, self.private.y_test)


def accuracy(model: MultilayerPerceptron, X: NDArray[Any], y: NDArray[Any]) -> float:
    """Give the share of right answers."""
    return model.score(X, y)


def area_under_curve(model: MultilayerPerceptron, X: NDArray[Any], y: NDArray[Any]) -> float:
    """Give the area under the ROC curve of class 1 (Mann-Whitney, ties count half)."""
    log_probabilities = model.predict_log_proba(X)
    return area_under_roc(y, log_probabilities[:, 1] - log_probabilities[:, 0])


def draw(
    task: Task,
    epsilon: float,
    delta: float,
    *,
    ledger: PrivacyLedger | None = None,
    rng: BitGenerator | None = None,
    progress: bool = False,
) -> PrivateRelease:
    """Make one private release of a task: one round."""
    return sample_private_weights(
        task.model.weights,
        task.model.gradient_blocks(task.private.x_train, task.private.y_train),
        curvature=task.curvature,
        projection=task.projection,
        target_epsilon=epsilon,
        target_delta=delta,
        clipping_norm=task.settings.clipping_norm,
        step_size=task.settings.step_size,
        ledger=ledger,
        rng=rng,
        progress=progress,
    )
