"""Steps along noisy gradients: momentum, Adam and averages of the weights, all post-processing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qexp._bounds import within_bounds

__all__ = ["Descent", "Diverged", "Optimizer", "descend", "model_at", "one_cycle"]

Optimizer = Literal["sgd", "adam"]

_BETA_MEAN: Final = 0.9
_BETA_SQUARE: Final = 0.999
_ADAM_EPSILON: Final = 1e-8


class Diverged(Exception):
    """The weights left all bounds."""


def model_at(model: Any, theta: NDArray[Any]) -> Any:
    """Give the model at weights, rounded to its own dtype."""
    return model.with_weights(theta.astype(model.weights.dtype, copy=False))


class Descent:
    """Weights and the optimiser's state.

    Parameters
    ----------
    theta : ndarray, shape (p,)
        Where to start; all steps are in its dtype.
    optimizer : {"sgd", "adam"}
    momentum : float
        Of "sgd", in [0, 1).
    averaging : float
        Decay d of an exponential moving average of the weights, in [0, 1); 0 for none. It is
        min(d, (1 + t)/(10 + t)) at step t, as in De et al., "Unlocking high-accuracy
        differentially private image classification through scale" (2022).
    """

    def __init__(
        self,
        theta: NDArray[Any],
        *,
        optimizer: Optimizer = "sgd",
        momentum: float = 0.0,
        averaging: float = 0.0,
    ) -> None:
        self.theta = theta
        self._optimizer, self._momentum, self._averaging = optimizer, momentum, averaging
        self._average = self.theta
        self._steps = 0
        self.forget()

    def forget(self) -> None:
        """Clear the momentum."""
        self._mean = np.zeros_like(self.theta)
        self._square = np.zeros_like(self.theta)
        self._steps_remembered = 0

    def step(self, gradient: NDArray[Any], learning_rate: float) -> None:
        """Go against a gradient.

        Raises
        ------
        Diverged
            If the weights would leave all bounds; they stay where they were.
        """
        self._steps += 1
        self._steps_remembered += 1
        t = self._steps_remembered
        if self._optimizer == "adam":
            self._mean += (1 - _BETA_MEAN) * (gradient - self._mean)
            self._square += (1 - _BETA_SQUARE) * (gradient * gradient - self._square)
            size = np.sqrt(self._square / (1 - _BETA_SQUARE**t)) + _ADAM_EPSILON
            change = self._mean / (1 - _BETA_MEAN**t) / size
        else:
            self._mean = self._momentum * self._mean + gradient
            change = self._mean
        theta = self.theta - learning_rate * change
        if not within_bounds(theta):
            raise Diverged
        self.theta = theta
        if self._averaging:
            decay = min(self._averaging, (1 + self._steps) / (10 + self._steps))
            self._average = decay * self._average + (1 - decay) * theta

    @property
    def released(self) -> NDArray[Any]:
        """The average of the weights, or the last ones where there is no averaging."""
        return self._average if self._averaging else self.theta


def descend(
    descent: Descent,
    model: Any,
    steps: int,
    gradient: Callable[[Any, int], NDArray[Any]],
    learning_rate: Callable[[int], float],
) -> bool:
    """Make steps t = 0, 1, … and tell whether the weights stayed within bounds."""
    for t in range(steps):
        g = gradient(model_at(model, descent.theta), t)
        try:
            descent.step(g, learning_rate(t))
        except Diverged:
            return False
    return True


def one_cycle(t: int, steps: int, *, warm_up: float = 0.02) -> float:
    """Give the share of the peak learning rate at step t: up linearly, then down as a cosine."""
    rise = max(1.0, warm_up * steps)
    if t < rise:
        return (t + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (t - rise) / max(1.0, steps - rise))))
