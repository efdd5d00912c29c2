"""Fine-tuning simulated on public records, with whatever curvature the job is to have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qexp import _checks
from qexp._bounds import clip_shares
from qexp.bits import insecure_test_generator
from qexp.curvature import Curvature, DenseCurvature
from qexp.finetune import Schedule, fine_tune
from qexp.layered import KroneckerCurvature
from qexp.models import MultilayerPerceptron
from qexp.planning._kronecker_trial import KroneckerTrial, eigen_factors
from qexp.privacy import epsilon
from qexp.projections import SRHT

__all__ = ["GeneralTrial", "Maker", "Trial", "make_trials"]

Maker = Callable[[Any, float], Curvature]


class Trial(Protocol):
    """Fine-tuning simulated on records that stand for the private ones."""

    def head(self, n_records: int) -> Trial:
        """Keep the first records only."""
        ...

    def tune(self, schedule: Schedule, noise: float, rng: np.random.Generator) -> Any:
        """Return the tuned model, or None where it diverged; `noise` is 1/(nμ)."""
        ...

    def first_draw(self, damping: float, clipping_norm: float) -> tuple[float, float]:
        """Give ‖s̄‖, s̄ the clipped mean at the start, and its product with the mean."""
        ...

    def kept(self, damping: float) -> NDArray[np.float64]:
        """Give the eigenvalues ρ of H A⁻¹, or nearly."""
        ...


class GeneralTrial:
    """Simulated fine-tuning by :func:`qexp.fine_tune` itself, with whatever curvature."""

    def __init__(
        self,
        model: Any,
        X: NDArray[Any],
        y: NDArray[Any],
        make: Maker,
        projection: Any,
        delta: float,
        curvatures: dict[float, Curvature] | None = None,
    ) -> None:
        self.model, self.X, self.y = model, X, y
        self.make, self.projection, self.delta = make, projection, delta
        # By damping; trials on other records of the model may share them.
        self._curvatures = {} if curvatures is None else curvatures

    def head(self, n_records: int) -> GeneralTrial:
        """Keep the first records only."""
        part = copy.copy(self)
        part.X, part.y = self.X[:n_records], self.y[:n_records]
        return part

    def _curvature(self, damping: float) -> Curvature:
        if damping not in self._curvatures:
            self._curvatures[damping] = self.make(self.model, damping)
        return self._curvatures[damping]

    def tune(self, schedule: Schedule, noise: float, rng: np.random.Generator) -> Any:
        """Return the tuned model, or None where it diverged; `noise` is 1/(nμ)."""
        mu = 1 / (noise * len(self.X))
        make, damping = self.make, schedule.damping
        result = fine_tune(
            self.model,
            self.X,
            self.y,
            schedule=schedule,
            curvature=(lambda model: make(model, damping))
            if schedule.refresh_curvature
            else self._curvature(damping),
            target_epsilon=epsilon(self.delta, mu),
            target_delta=self.delta,
            projection=self.projection,
            rng=insecure_test_generator(int(rng.integers(2**31))),
        )
        return None if result.stopped_because == "diverged" else result.model

    def first_draw(self, damping: float, clipping_norm: float) -> tuple[float, float]:
        """Give the same as :meth:`KroneckerTrial.first_draw`."""
        curvature = self._curvature(damping)
        clipped, whole = np.zeros((2, curvature.n_components))
        for block in self.model.gradient_blocks(self.X, self.y).blocks():
            rows = block if self.projection is None else self.projection.forward(block)
            whitened = curvature.whiten(rows)
            norms = np.linalg.norm(whitened, axis=1, keepdims=True)
            clipped += (whitened * clip_shares(norms, clipping_norm)).sum(0)
            whole += whitened.sum(0)
        m = len(self.X)
        return float(np.linalg.norm(clipped)) / m, float(clipped @ whole) / m**2

    def kept(self, damping: float) -> NDArray[np.float64]:
        """Give the eigenvalues ρ of H A⁻¹, all at their mean."""
        curvature = self._curvature(damping)
        k = curvature.n_components
        return np.full(k, curvature.effective_dimension / k)


def make_trials(
    model: Any,
    X: NDArray[Any],
    curvature: Literal["kronecker", "dense"] | Maker,
    n_components: Sequence[int],
    delta: float,
) -> Iterator[tuple[int | None, Callable[[NDArray[Any], NDArray[Any]], Trial]]]:
    """Give for each k what makes a trial from simulated private records."""
    if curvature == "kronecker" and isinstance(model, MultilayerPerceptron):
        eigen = eigen_factors(model, X)
        yield None, lambda X_sim, y_sim: KroneckerTrial(model, X_sim, y_sim, X, eigen)
    elif curvature == "kronecker":

        def kronecker(at: Any, damping: float) -> Curvature:
            return KroneckerCurvature.from_model(at, X, damping=damping)

        yield None, _general(model, kronecker, None, delta)
    elif curvature == "dense":
        p = len(model.weights)
        for k in sorted({min(_checks.count(k, "n_components"), p) for k in n_components}):
            projection = SRHT(p, k, seed=0)

            def dense(at: Any, damping: float, projection: SRHT = projection) -> Curvature:
                return DenseCurvature.from_model(at, X, projection=projection, damping=damping)

            yield k, _general(model, dense, projection, delta)
    elif callable(curvature):
        yield None, _general(model, curvature, None, delta)
    else:
        raise ValueError(
            f"curvature is {curvature!r}; it needs 'kronecker', 'dense' or a function "
            "make(model, damping)"
        )


def _general(
    model: Any, make: Maker, projection: Any, delta: float
) -> Callable[[NDArray[Any], NDArray[Any]], Trial]:
    shared: dict[float, Curvature] = {}
    return lambda X_sim, y_sim: GeneralTrial(model, X_sim, y_sim, make, projection, delta, shared)
