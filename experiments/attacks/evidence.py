"""What released steps tell of the coins by which canaries are in the data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from experiments.attacks.scenes import Scene
from qexp.models import MultilayerPerceptron

__all__ = ["Evidence"]


class Evidence:
    """What released steps tell of the coins, gathered step by step.

    With clipped whitened gradients s_i as rows of S, a step comes from y = Σ b_i s_i + N(0, σ²).
    <y, s_i> is -(n/η) <step, g_i>, times what clipping left of g_i: no step is whitened again, and
    whatever the projection is, it need not be inverted.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        m = len(scene.y_canaries)
        self._gram, self._projections = np.zeros((m, m)), np.zeros(m)
        self.clipped_share = 1.0

    def add(
        self,
        model: MultilayerPerceptron,
        step: NDArray[np.float64],
        *,
        curvature: Any,
        clipping_norm: float,
        step_size: float,
        noise_std: float,
        projection: Any = None,
    ) -> None:
        """Add a step that was made of the gradients at a model, or of their projections."""
        scene = self._scene
        X = np.concatenate([scene.X_canaries, scene.X_honest])
        y = np.concatenate([scene.y_canaries, scene.y_honest])
        rows, inner = [], []
        for block in model.gradient_blocks(X, y).blocks():
            whitened = curvature.whiten(projection.forward(block) if projection else block)
            kept = np.minimum(1, clipping_norm / linalg.norm(whitened, axis=1))
            rows.append((whitened * kept[:, None]).astype(np.float32))
            inner.append(kept * (block @ step.astype(block.dtype)))
        s, m = np.concatenate(rows), len(scene.y_canaries)
        canaries, honest = s[:m], s[m:]
        seen = -scene.n_records / step_size * np.concatenate(inner)[:m]
        self._gram += (canaries @ canaries.T) / noise_std**2
        self._projections += (seen - canaries @ honest.sum(axis=0)) / noise_std**2
        norms = linalg.norm(canaries, axis=1)
        self.clipped_share = min(self.clipped_share, float(np.mean(norms > 0.999 * clipping_norm)))

    def scores(self) -> NDArray[np.float64]:
        """Return the best linear estimate of each coin, less 1/2.

        Coins have mean 1/2 and variance 1/4; the observations are Gram · coins, with noise of
        covariance Gram. (Canaries are only nearly orthogonal: this takes the others' part off.)
        """
        m = len(self._projections)
        centred = self._projections - self._gram.sum(axis=1) / 2
        solved: NDArray[np.float64] = linalg.solve(
            self._gram + 4 * np.eye(m), centred, assume_a="pos", overwrite_a=False
        )
        return solved
