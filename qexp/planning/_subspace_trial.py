"""Fine-tuning in a public subspace, simulated on public records."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qexp._bounds import clip_shares
from qexp.finetune import Schedule
from qexp.layered import Factors
from qexp.models._public_perceptron import for_public_records
from qexp.planning._rounds import Descent, noise_of_rounds
from qexp.subspace import Directions, PublicSubspace, learn_directions
from qexp.surrogates import IMAGE_KINDS, ImageShift, Surrogate

__all__ = ["SubspaceTrial", "rehearsed_directions"]

_ROWS: Final = 256


def rehearsed_directions(
    model: Any, X: NDArray[Any], y: NDArray[Any], moves: Sequence[Surrogate]
) -> list[Directions]:
    """Learn directions twice, each time from a part of the moves.

    What a subspace is worth shows on moves that it was not learnt from, as the private domain is
    none of them. Image shifts are parted by their kinds, others one by one.
    """
    shifts = [move for move in moves if isinstance(move, ImageShift)]
    parts: list[Sequence[Surrogate]] = [moves[0::2], moves[1::2] or moves]
    if len(shifts) == len(moves):
        parts = [[shift.only(kinds) for shift in shifts] for kinds in IMAGE_KINDS]
    return [learn_directions(model, X, y, moves=part) for part in parts]


class SubspaceTrial:
    """Simulated fine-tuning in a subspace.

    The same arithmetic as :func:`qexp.fine_tune`, in distribution: but in float32, with noise from
    a reproducible generator, and with the mean over whatever records are at hand.
    """

    def __init__(
        self, model: Any, X: NDArray[Any], y: NDArray[Any], subspace: PublicSubspace
    ) -> None:
        self.model, self.X, self.y, self.subspace = model, X, y, subspace
        self._quick, self._coordinates = for_public_records(model), _Coordinates(subspace)

    def head(self, n_records: int) -> SubspaceTrial:
        """Keep the first records only."""
        part = copy.copy(self)
        part.X, part.y = self.X[:n_records], self.y[:n_records]
        return part

    def tune(self, schedule: Schedule, noise: float, rng: np.random.Generator) -> Any:
        """Return the tuned model, or None where it diverged; `noise` is 1/(nμ)."""
        descent = Descent(schedule, [self.model.weights.astype(np.float64)])
        for t, sigma in enumerate(noise_of_rounds(schedule, noise), start=1):
            at = self._quick.with_weights(descent.theta[0])
            mean, _ = self._means(at, schedule.clipping_norm)
            drawn = mean + sigma * rng.standard_normal(len(mean))
            if not descent.step(t, [self.subspace.adjoint(drawn)]):
                return None
        return self.model.with_weights(descent.released[0])

    def first_draw(self, damping: float, clipping_norm: float) -> tuple[float, float]:
        """Give ‖s̄‖, s̄ the clipped mean at the start, and its product with the mean."""
        clipped, whole = self._means(self._quick, clipping_norm)
        return math.sqrt(float(clipped @ clipped)), float(clipped @ whole)

    def kept(self, damping: float) -> NDArray[np.float64]:
        """Give the eigenvalues ρ of Pᵀ H P, or nearly."""
        kept: NDArray[np.float64] = self.subspace.kept * self.subspace.scale**2
        return kept

    def _means(
        self, model: Any, clipping_norm: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give the mean of the projected gradients, clipped and as they are."""
        clipped, whole = np.zeros((2, self.subspace.n_components))
        for factors in model.gradient_blocks(self.X, self.y).factor_blocks():
            for rows in self._coordinates.blocks(factors):
                norms = np.sqrt(np.square(rows).sum(axis=1))
                clipped += clip_shares(norms, clipping_norm) @ rows
                whole += rows.sum(axis=0)
        return clipped / len(self.X), whole / len(self.X)


class _Coordinates:
    """The coordinates of public records' gradients, in single precision by matrix products.

    Of private records :class:`qexp.subspace.PublicSubspace` gives them, each by itself.
    """

    def __init__(self, subspace: PublicSubspace) -> None:
        self._subspace = subspace
        single = np.float32
        self._sides = [(x.left.astype(single), x.right.astype(single)) for x in subspace.layers]
        self._core = None if subspace.core is None else subspace.core.astype(single)
        self._scale = subspace.scale.astype(single)

    def blocks(self, factors: Sequence[Factors]) -> Iterator[NDArray[np.float32]]:
        """Yield the coordinates (m, k) of some records after others."""
        if any(inputs.ndim == 3 for inputs, _ in factors):  # sums of outer products
            yield self._subspace.forward_factors(factors)
            return
        for start in range(0, len(factors[0][0]), _ROWS):
            at = slice(start, start + _ROWS)
            # A record is a column, so that whole rows of memory are chosen.
            entries = [
                (left.T @ deltas[at].T)[layer.rows] * (right.T @ inputs[at].T)[layer.columns]
                for (inputs, deltas), (left, right), layer in zip(
                    factors, self._sides, self._subspace.layers, strict=True
                )
            ]
            joined = np.concatenate(entries).T
            yield self._scale * (joined if self._core is None else joined @ self._core)
