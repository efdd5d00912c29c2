"""Differentially private stochastic and full-batch gradient descent.

Abadi et al., "Deep learning with differential privacy" (CCS 2016); automatic clipping: Bu et al.,
"Automatic clipping: differentially private deep learning made easier and stronger" (NeurIPS 2023);
learning rates of unit-norm gradients and averaged weights: De et al., "Unlocking high-accuracy
differentially private image classification through scale" (2022).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from numpy.typing import NDArray

from qexp.rivals._boundary import Boundary
from qexp.rivals._descent import Descent, Optimizer, descend
from qexp.rivals._method import Method, PublicData, Tuned
from qexp.rivals._parts import Part, WholeSpace, gradients
from qexp.rivals._settings import (
    check_choice,
    check_count,
    check_positive,
    check_rate,
    check_share,
)

__all__ = ["GradientDescentSettings", "SGDSettings", "dp_gd", "dp_sgd", "noisy_mean"]

Clipping = Literal["abadi", "automatic"]
_OPTIMIZERS: Final = ("sgd", "adam")
_CLIPPINGS: Final = ("abadi", "automatic")


def noisy_mean(
    boundary: Boundary,
    part: Part,
    *,
    clipping: Clipping,
    clipping_norm: float,
    expected_records: float,
    label: str,
) -> Callable[[Any, int], NDArray[Any]]:
    """Give the function of a model that makes the next noisy mean of clipped gradients.

    Gradients are in units of the clipping norm, so that a learning rate means the same at all
    norms, and divided by the *expected* number of records.
    """
    automatic = clipping == "automatic"
    norm = 1.0 if automatic else clipping_norm

    def mean(model: Any, t: int) -> NDArray[Any]:
        values = boundary.noisy_sum(
            gradients(model, part, automatic=automatic),
            n_components=part.n_components,
            clipping_norm=norm,
            label=label,
        )
        return part.embed(values / (norm * expected_records))

    return mean


@dataclass(frozen=True, kw_only=True)
class SGDSettings:
    """Settings of `dp_sgd`.

    Attributes
    ----------
    steps : int
        T.
    sampling_rate : float
        q in (0, 1]: every record is in a step's sample with this probability, independently. At 1
        the accounting is that of `dp_gd`.
    learning_rate : float
        Of gradients in units of the clipping norm.
    clipping : {"abadi", "automatic"}
        g min(1, c/‖g‖), or g/(‖g‖ + 0.01).
    clipping_norm : float
        c, Euclidean. Not used by "automatic".
    optimizer : {"sgd", "adam"}
    momentum : float
        Of "sgd".
    averaging : float
        Decay of an exponential moving average of the weights; 0 for none.
    """

    steps: int = 200
    sampling_rate: float = 0.1
    learning_rate: float = 1.0
    clipping: Clipping = "abadi"
    clipping_norm: float = 1.0
    optimizer: Optimizer = "sgd"
    momentum: float = 0.0
    averaging: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "steps")
        check_rate(self)
        check_positive(self, "learning_rate", "clipping_norm")
        check_share(self, "momentum", "averaging")
        check_choice(self, "clipping", _CLIPPINGS)
        check_choice(self, "optimizer", _OPTIMIZERS)


@dataclass(frozen=True, kw_only=True)
class GradientDescentSettings:
    """Settings of `dp_gd`.

    Attributes
    ----------
    steps : int
        T.
    learning_rate, clipping, clipping_norm, momentum, averaging
        As in :class:`SGDSettings`.
    """

    steps: int = 32
    learning_rate: float = 1.0
    clipping: Clipping = "abadi"
    clipping_norm: float = 1.0
    momentum: float = 0.9
    averaging: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "steps")
        check_positive(self, "learning_rate", "clipping_norm")
        check_share(self, "momentum", "averaging")
        check_choice(self, "clipping", _CLIPPINGS)


def _tune_sgd(
    model: Any, boundary: Boundary, settings: SGDSettings, public: PublicData | None
) -> Tuned:
    boundary.plan_sampled(settings.sampling_rate, settings.steps)
    descent = Descent(
        model.weights.astype(boundary.dtype),
        optimizer=settings.optimizer,
        momentum=settings.momentum,
        averaging=settings.averaging,
    )
    mean = noisy_mean(
        boundary,
        WholeSpace(model),
        clipping=settings.clipping,
        clipping_norm=settings.clipping_norm,
        expected_records=settings.sampling_rate * boundary.n_records,
        label="step",
    )
    within = descend(descent, model, settings.steps, mean, lambda t: settings.learning_rate)
    return Tuned(descent.released, diverged=not within)


def _tune_gd(
    model: Any, boundary: Boundary, settings: GradientDescentSettings, public: PublicData | None
) -> Tuned:
    return _tune_sgd(
        model,
        boundary,
        SGDSettings(
            steps=settings.steps,
            sampling_rate=1.0,
            learning_rate=settings.learning_rate,
            clipping=settings.clipping,
            clipping_norm=settings.clipping_norm,
            momentum=settings.momentum,
            averaging=settings.averaging,
        ),
        public,
    )


_CLIPS: Final[tuple[dict[str, Any], ...]] = (
    {"clipping": "automatic"},
    {"clipping_norm": 0.3},
    {"clipping_norm": 1.0},
    {"clipping_norm": 3.0},
    # Of tables, gradients are several times as long as of images.
    {"clipping_norm": 10.0},
    {"clipping_norm": 30.0},
)
_SGD_STEPS: Final[tuple[dict[str, Any], ...]] = tuple(
    [{"learning_rate": eta} for eta in (0.3, 1.0, 3.0)]
    + [{"learning_rate": eta, "momentum": 0.9} for eta in (0.1, 0.3)]
    + [{"learning_rate": eta, "optimizer": "adam"} for eta in (1e-3, 4e-3)]
)
_GD_STEPS: Final = (
    *((eta, 0.0) for eta in (0.3, 1.0, 3.0, 10.0)),
    *((eta, 0.9) for eta in (0.1, 0.3, 1.0, 3.0)),
)


def _sgd_candidates() -> list[SGDSettings]:
    return [
        SGDSettings(steps=steps, sampling_rate=rate, **clip, **step)
        for (rate, steps), clip, step in itertools.product(
            # Small lots over few epochs, and large ones over many, as De et al. and Tramèr and
            # Boneh found best.
            (
                *((0.02, 200), (0.06, 100), (0.06, 400)),
                *((0.25, 100), (0.25, 400), (0.5, 100), (0.5, 400)),
            ),
            _CLIPS,
            _SGD_STEPS,
        )
    ]


def _gd_candidates() -> list[GradientDescentSettings]:
    return [
        GradientDescentSettings(steps=steps, learning_rate=eta, momentum=m, **clip)
        for steps, clip, (eta, m) in itertools.product((8, 32, 64, 128, 256), _CLIPS, _GD_STEPS)
    ]


def _varied(settings: Any) -> list[Any]:
    """Vary one setting at a time by half a step of the grid."""
    changes: list[dict[str, Any]] = [
        {"learning_rate": settings.learning_rate * f} for f in (0.55, 1.8)
    ]
    changes += [{"steps": max(1, round(settings.steps * f))} for f in (0.7, 1.4)]
    changes += [{"averaging": 0.9}, {"averaging": 0.97}]
    if settings.clipping == "abadi":
        changes += [{"clipping_norm": settings.clipping_norm * f} for f in (0.55, 1.8)]
    return [replace(settings, **change) for change in changes]


def _sgd_neighbours(settings: SGDSettings) -> list[SGDSettings]:
    rates = [settings.sampling_rate * f for f in (0.6, 1.6)]
    return [
        *_varied(settings),
        *(replace(settings, sampling_rate=min(rate, 1.0)) for rate in rates),
    ]


dp_sgd: Final = Method(
    name="dp_sgd",
    summary="Stochastic gradient descent on clipped gradients of Poisson samples, with noise "
    "(Abadi et al. 2016), optionally with automatic clipping, Adam or averaged weights.",
    settings_type=SGDSettings,
    algorithm=_tune_sgd,
    candidates=_sgd_candidates,
    neighbours=_sgd_neighbours,
)

dp_gd: Final = Method(
    name="dp_gd",
    summary="Gradient descent with momentum on clipped gradients of all records, with noise.",
    settings_type=GradientDescentSettings,
    algorithm=_tune_gd,
    candidates=_gd_candidates,
    neighbours=_varied,
)
