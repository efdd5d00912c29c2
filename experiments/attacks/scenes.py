"""What a one-run audit is made on: a public model, honest records that are known, and canaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.tasks import TASKS
from qexp.models import MultilayerPerceptron

__all__ = ["Scene", "digits_scene", "make_scene", "mislabelled_scene"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """What is audited on: a public model and curvature records, honest records, canaries."""

    model: MultilayerPerceptron
    X_public: NDArray[Any]
    X_honest: NDArray[Any]
    y_honest: NDArray[Any]
    X_canaries: NDArray[Any]
    y_canaries: NDArray[Any]

    def records(self, included: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give the private data: canaries whose coin fell so are there, others are null."""
        canaries = np.where(included[:, None], self.X_canaries, np.nan)
        X = np.concatenate([canaries, self.X_honest]).astype(np.float32)
        return X, np.concatenate([self.y_canaries, self.y_honest])

    @property
    def n_records(self) -> int:
        return len(self.y_canaries) + len(self.y_honest)


def make_scene(
    model: MultilayerPerceptron,
    X_public: NDArray[Any],
    X_honest: NDArray[Any],
    y_honest: NDArray[Any],
    *,
    n_canaries: int,
    seed: int,
) -> Scene:
    """Make canaries of noise, each with a label that the model does not give it.

    Whitened, noise in features that public records keep constant is large in all directions: such
    gradients are clipped, so that they have full norm, and nearly orthogonal.
    """
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_canaries, X_public.shape[1])).astype(np.float32)
    y = (model.predict(X) + rng.integers(1, model.n_classes, n_canaries)) % model.n_classes
    return Scene(
        model=model,
        X_public=X_public,
        X_honest=X_honest,
        y_honest=y_honest.astype(np.int64),
        X_canaries=X,
        y_canaries=y,
    )


def digits_scene(n_canaries: int, n_honest: int, seed: int) -> Scene:
    task = TASKS["mnist_to_usps"](0)
    return make_scene(
        task.model,
        task.public_records()[0][:4000],
        task.X_private[:n_honest],
        task.y_private[:n_honest],
        n_canaries=n_canaries,
        seed=seed,
    )


def mislabelled_scene(n_canaries: int, n_honest: int, seed: int) -> Scene:
    """Make canaries of real digits, each with a wrong label."""
    task = TASKS["mnist_to_usps"](0)
    rng = np.random.default_rng(seed)
    last = n_honest + n_canaries
    wrong = (task.y_private[n_honest:last].astype(np.int64) + rng.integers(1, 10, n_canaries)) % 10
    return Scene(
        model=task.model,
        X_public=task.public_records()[0][:4000],
        X_honest=task.X_private[:n_honest],
        y_honest=task.y_private[:n_honest].astype(np.int64),
        X_canaries=task.X_private[n_honest:last],
        y_canaries=wrong,
    )
