"""From MNIST to USPS: an MLP for one kind of handwritten digits meets another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qexp.bits import insecure_test_generator
from qexp.curvature import DenseCurvature
from qexp.datasets import load_mnist, load_usps
from qexp.datasets.images import blur, contrast, resize, rotate
from qexp.demo._task import Settings, Shifted, Task, accuracy, choose_settings
from qexp.models import MultilayerPerceptron, mlp
from qexp.projections import SRHT

__all__ = ["mnist_usps_task"]

N_PRETRAINING: Final = 48_000
N_CURVATURE: Final = 10_000
N_COMPONENTS: Final = 3_000
N_PRIVATE: Final = 7_291

# Pixels cut off each side of an MNIST image before it is resized. MNIST's publishers state that a
# digit fits a box of 20 x 20 pixels in the middle of 28 x 28; USPS digits fill their frame.
MARGIN: Final = 4

# By margin and activation: the best of the grid in
#     python -m experiments.mnist_usps_one_round --choose --seeds 3 --margin M --activation A
# which scores it on shifted MNIST digits alone, for n = 7,291, epsilon = 1 and delta = 1e-5. There
# the rectifier did better than the hyperbolic tangent (82.96 % to 82.19 % at margin 4), so that it
# is the default.
SETTINGS: Final = {
    (0, "tanh"): Settings(damping=0.01, clipping_norm=0.3, step_size=5.0),
    (0, "relu"): Settings(damping=0.03, clipping_norm=0.3, step_size=10.0),
    (3, "tanh"): Settings(damping=0.003, clipping_norm=0.3, step_size=3.0),
    (3, "relu"): Settings(damping=0.01, clipping_norm=0.3, step_size=5.0),
    (4, "tanh"): Settings(damping=0.001, clipping_norm=1.0, step_size=0.5),
    (4, "relu"): Settings(damping=0.03, clipping_norm=0.3, step_size=5.0),
}

Images = NDArray[Any]
Activation = Literal["tanh", "relu"]


def as_records(images: Images, margin: int = 0) -> NDArray[np.float32]:
    """Cut a margin off MNIST images and resize them to the 16 × 16 pixels of USPS."""
    cut = images[:, margin : images.shape[1] - margin, margin : images.shape[2] - margin]
    return resize(cut, (16, 16)).reshape(len(images), -1)


def pretrain(
    images: Images,
    labels: NDArray[Any],
    *,
    seed: int,
    margin: int = 0,
    activation: Activation = "tanh",
) -> MultilayerPerceptron:
    """Train the MLP 256-64-10 on public MNIST digits."""
    model = mlp((256, 64, 10), activation=activation, seed=seed)
    return model.fit(as_records(images, margin), labels, epochs=10, weight_decay=0.01, seed=seed)


def _affine(images: Images, strength: float) -> Images:
    """Turn and, by cutting off columns, stretch."""
    cut = round(7 * strength)
    return resize(rotate(images, 30 * strength)[:, :, cut : 28 - cut], (28, 28))


_SHIFTS: Final[dict[str, Callable[[Images, float], Images]]] = {
    "affine": _affine,
    "blur": lambda images, strength: blur(images, 4 * strength),
    "contrast": lambda images, strength: contrast(images, 1 - strength),
}


def surrogates(
    model: MultilayerPerceptron,
    images: Images,
    labels: NDArray[Any],
    *,
    margin: int = 0,
    accuracy_before: float = 0.6,
) -> Iterator[tuple[str, Shifted]]:
    """Shift public digits that pretraining has not seen, each way so far that accuracy drops."""
    for name, shift in _SHIFTS.items():
        before = {
            strength: model.score(as_records(shift(images[:2000], strength), margin), labels[:2000])
            for strength in np.linspace(0.1, 1.0, 10)
        }
        strength = min(before, key=lambda s: abs(before[s] - accuracy_before))
        records = as_records(shift(images, strength), margin)
        yield (
            f"{name}, strength {strength:.1f}, accuracy before {before[strength]:.3f}",
            Shifted(
                records[:N_PRIVATE], labels[:N_PRIVATE], records[N_PRIVATE:], labels[N_PRIVATE:]
            ),
        )


def mnist_usps_task(
    seed: int = 0,
    *,
    margin: int = MARGIN,
    activation: Activation = "relu",
    n_components: int = N_COMPONENTS,
) -> Task:
    """Read both data sets, pretrain on MNIST and set up the draw on USPS.

    Parameters
    ----------
    seed : int
        Of the initial weights, the shuffles of pretraining and the projection; public.
    margin : {0, 3, 4}
        Pixels cut off each side of an MNIST image.
    activation : {"tanh", "relu"}
    n_components : int
        k of the SRHT.
    """
    usps = load_usps()
    mnist = load_mnist()
    images, labels = mnist.x_train[:N_PRETRAINING], mnist.y_train[:N_PRETRAINING]
    model = pretrain(images, labels, seed=seed, margin=margin, activation=activation)
    projection = SRHT(model.n_parameters, n_components, seed=seed)
    settings = SETTINGS[margin, activation]
    return Task(
        title="handwritten digits: pretrained on MNIST, fine-tuned on USPS",
        public=f"MNIST: {N_PRETRAINING} digits for pretraining, {N_CURVATURE} of them for the "
        f"curvature, and the {len(mnist.x_train) - N_PRETRAINING} others to choose the settings",
        chosen="by their score on MNIST digits that pretraining had not seen, turned and "
        "stretched, blurred, or in another contrast, with the n of this demonstration, "
        "epsilon = 1 and delta = 1e-5",
        model=model,
        private=Shifted(usps.x_train, usps.y_train, usps.x_test, usps.y_test),
        projection=projection,
        curvature=DenseCurvature.from_model(
            model,
            as_records(images[:N_CURVATURE], margin),
            projection=projection,
            damping=settings.damping,
            seed=seed,
        ),
        settings=settings,
        measure=accuracy,
        measure_name="test accuracy",
        ordinary=_ordinary,
    )


def _ordinary(model: MultilayerPerceptron, private: Shifted) -> MultilayerPerceptron:
    return model.fit(private.x_train, private.y_train, epochs=10)


def score_settings(
    seed: int, *, margin: int, activation: Activation, epsilon: float, delta: float
) -> tuple[dict[Settings, float], list[str]]:
    """Score the grid on surrogates, by MNIST alone; name the surrogates."""
    mnist = load_mnist()
    seen, unseen = slice(0, N_PRETRAINING), slice(N_PRETRAINING, None)
    model = pretrain(
        mnist.x_train[seen], mnist.y_train[seen], seed=seed, margin=margin, activation=activation
    )
    named = list(surrogates(model, mnist.x_train[unseen], mnist.y_train[unseen], margin=margin))
    seeds = itertools.count(1_000_000 * (seed + 1))
    scores = choose_settings(
        model,
        as_records(mnist.x_train[:N_CURVATURE], margin),
        [surrogate for _, surrogate in named],
        projection=SRHT(model.n_parameters, N_COMPONENTS, seed=seed),
        epsilon=epsilon,
        delta=delta,
        dampings=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        clipping_norms=(0.3, 1.0, 3.0),
        step_sizes=(0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0),
        measure=accuracy,
        generators=lambda: insecure_test_generator(next(seeds)),
    )
    return scores, [name for name, _ in named]
