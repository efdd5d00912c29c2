"""A demonstration task, the private draw on it, and the choice of its settings on public data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexp.bits import BitGenerator
from qexp.curvature import Curvature, DenseCurvature, IdentityCurvature
from qexp.ledger import PrivacyLedger
from qexp.measures import area_under_roc
from qexp.mechanism import sample_private_weights
from qexp.models import MultilayerPerceptron
from qexp.projections import Identity, Projection
from qexp.release import PrivateRelease

__all__ = ["Settings", "Shifted", "Task", "accuracy", "area_under_curve", "choose_settings", "draw"]

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


def choose_settings(
    model: MultilayerPerceptron,
    curvature_records: NDArray[Any],
    surrogates: Iterable[Shifted],
    *,
    projection: Projection | None = None,
    epsilon: float,
    delta: float,
    dampings: Sequence[float],
    clipping_norms: Sequence[float],
    step_sizes: Sequence[float],
    measure: Measure,
    generators: Callable[[], BitGenerator],
    draws: int = 1,
) -> dict[Settings, float]:
    """Score a grid of settings on surrogate shifts of public records.

    Parameters
    ----------
    model : MultilayerPerceptron
        Pretrained on public records.
    curvature_records : array of shape (m, n_features)
        Public records for the curvature.
    surrogates : iterable of Shifted
        Public records that stand in for private ones, as many as those.
    projection : Projection, optional
        As in the draw that is planned; so are `epsilon` and `delta`.
    epsilon, delta : float
    dampings, clipping_norms, step_sizes : sequence of float
        The grid.
    measure : callable
        Higher is better.
    generators : callable
        Makes a bit generator for each draw; the records are public, so a test generator will do.
    draws : int
        Draws a setting and surrogate.

    Returns
    -------
    dict of Settings to float
        The mean measure over surrogates and draws, best first.
    """
    projection = Identity(model.n_parameters) if projection is None else projection
    source = model.curvature_blocks(curvature_records)
    rows = np.vstack([projection.forward(block) for block in source.blocks()])
    rows = rows.astype(np.float64, copy=False)
    curvature_matrix = rows.T @ rows / source.n_records
    scores: dict[Settings, list[float]] = {}
    for surrogate in surrogates:
        gradients = np.vstack(
            [
                projection.forward(block)
                for block in model.gradient_blocks(surrogate.x_train, surrogate.y_train).blocks()
            ]
        )
        for damping in dampings:
            curvature = DenseCurvature.from_matrix(curvature_matrix, damping=damping)
            whitened = curvature.whiten(gradients)
            for norm, _ in itertools.product(clipping_norms, range(draws)):
                # The same draw as in whitened coordinates, where the curvature is the identity.
                release = sample_private_weights(
                    np.zeros(curvature.n_components),
                    whitened,
                    curvature=IdentityCurvature(curvature.n_components),
                    target_epsilon=epsilon,
                    target_delta=delta,
                    clipping_norm=norm,
                    rng=generators(),
                )
                direction = projection.adjoint(curvature.unwhiten(release.weights))
                for step in step_sizes:
                    tuned = model.with_weights(model.weights + step * direction)
                    value = measure(tuned, surrogate.x_test, surrogate.y_test)
                    setting = Settings(damping=damping, clipping_norm=norm, step_size=step)
                    scores.setdefault(setting, []).append(value)
    means = {setting: float(np.mean(values)) for setting, values in scores.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))
