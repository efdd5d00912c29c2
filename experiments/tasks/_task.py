"""What a transfer task is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qexp.measures import area_under_roc, average_precision, calibration_error
from qexp.models import MultilayerPerceptron
from qexp.planning import Rehearsal
from qexp.subspace import image_moves
from qexp.surrogates import Surrogate


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """A transfer task. Records are rows of float32; images are flat, in [0, 1].

    Attributes
    ----------
    name : str
    model : MultilayerPerceptron
        Pretrained on the public records.
    X_public, y_public
        What the model was pretrained on.
    X_held_out, y_held_out : array, optional
        Public records that pretraining has not seen, for curvature and planning. None where it has
        seen all of them, and settings are planned on rehearsals.
    X_private, y_private
        What the model is to be fine-tuned on.
    X_test, y_test
        Records of the private domain that measure the result, and nothing else.
    metric : {"accuracy", "auroc"}
        What counts on the test records.
    surrogate : {"images", "tabular"}
        The kind of records.
    image_shape : (int, int) or None
        Height and width of images.
    rehearsals : sequence of Rehearsal
        What settings are planned on, where held-out records are too few to stand for the private
        ones: such as a model that was pretrained on a part of the public records, and the others.
        Default: the model and the held-out records, shifted as their kind is.
    planning_group : array, optional
        A public column of the records that schedules are planned with, such as the care unit.
    moves_model : MultilayerPerceptron, optional
        Whose errors say how far images are moved to learn a subspace from. Default: the model that
        settings are planned with.
    fit_arguments : mapping
        Of ``model.fit``, to fine-tune without privacy.
    """

    name: str
    model: MultilayerPerceptron
    X_public: NDArray[np.float32]
    y_public: NDArray[np.uint8]
    X_private: NDArray[np.float32]
    y_private: NDArray[np.uint8]
    X_test: NDArray[np.float32]
    y_test: NDArray[np.uint8]
    X_held_out: NDArray[np.float32] | None = None
    y_held_out: NDArray[np.uint8] | None = None
    metric: Literal["accuracy", "auroc"] = "accuracy"
    surrogate: Literal["images", "tabular"] = "images"
    image_shape: tuple[int, int] | None = None
    rehearsals: Sequence[Rehearsal] = ()
    planning_group: NDArray[Any] | None = None
    moves_model: MultilayerPerceptron | None = None
    fit_arguments: Mapping[str, Any] | None = None

    def public_records(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Give the public records that a method may use, and their labels."""
        if self.X_held_out is None or self.y_held_out is None:
            return self.X_public, self.y_public
        return self.X_held_out, self.y_held_out

    def planned_on(self) -> Sequence[Rehearsal]:
        """Give what settings are planned on, at least one."""
        return self.rehearsals or [Rehearsal(self.model, *self.public_records(), self.surrogate)]

    def moves(self) -> Sequence[Surrogate]:
        """Draw moves of public images, to learn a subspace from."""
        first = self.planned_on()[0]
        return image_moves(
            self.moves_model or first.model,
            first.X_public,
            first.y_public,
            image_shape=self.image_shape,
        )

    def non_private(self) -> MultilayerPerceptron:
        """Fine-tune without privacy."""
        arguments = {"epochs": 20, **(self.fit_arguments or {})}
        return self.model.fit(self.X_private, self.y_private, **arguments)

    def value(self, model: MultilayerPerceptron) -> float:
        """Measure a model on the test records by the task's metric."""
        return self.measures(model)[self.metric]

    def measures(self, model: MultilayerPerceptron) -> dict[str, float]:
        """Measure a model on the test records.

        Accuracy; for two classes of which the metric is AUROC also that, the average precision
        (AUPRC) and the calibration error.
        """
        found = {"accuracy": float(model.score(self.X_test, self.y_test))}
        if self.metric == "auroc":
            probabilities = model.predict_proba(self.X_test)[:, 1]
            found["auroc"] = area_under_roc(self.y_test, probabilities)
            found["auprc"] = average_precision(self.y_test, probabilities)
            found["calibration_error"] = calibration_error(self.y_test, probabilities)
        return found


def split(n_records: int, n_second: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split record numbers at random into those of two parts, each in order."""
    order = np.random.default_rng(seed).permutation(n_records)
    return np.sort(order[n_second:]), np.sort(order[:n_second])
