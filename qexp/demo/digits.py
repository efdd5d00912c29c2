"""Upright digits are public, turned ones private: a demonstration that needs no data files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qexp.bits import insecure_test_generator
from qexp.curvature import DenseCurvature
from qexp.datasets import load_digits
from qexp.datasets.images import rotate, shift
from qexp.demo._task import Settings, Shifted, Task, accuracy, choose_settings
from qexp.models import MultilayerPerceptron, softmax_regression
from qexp.projections import Identity

__all__ = ["digits_task"]

DEGREES: Final = 30.0
N_PUBLIC: Final = 600
N_PRIVATE: Final = 900

# The best of the grid in `python -m experiments.demo_settings digits`, which scores it on the
# public digits turned the other way, moved, or turned and moved; so was the weight decay chosen.
SETTINGS: Final = Settings(damping=1e-2, clipping_norm=0.3, step_size=5.0)

Images = NDArray[Any]


def as_records(images: Images) -> NDArray[np.float32]:
    """Flatten 8 × 8 images."""
    return np.ascontiguousarray(images.reshape(len(images), -1), dtype=np.float32)


def _split(n_records: int, seed: int) -> list[NDArray[np.intp]]:
    """Return which digits are public, private, and for the test."""
    order = np.random.default_rng(seed).permutation(n_records)
    return np.split(order, [N_PUBLIC, N_PUBLIC + N_PRIVATE])


def pretrain(images: Images, labels: NDArray[Any], *, seed: int) -> MultilayerPerceptron:
    """Train softmax regression on public digits."""
    model = softmax_regression(64, 10)
    return model.fit(
        as_records(images),
        labels,
        epochs=100,
        batch_size=64,
        learning_rate=1e-2,
        weight_decay=1.0,
        seed=seed,
    )


def digits_task(seed: int = 0) -> Task:
    """Split the scikit-learn digits into a public and a turned, private part."""
    digits = load_digits()
    public, private, test = _split(len(digits.labels), seed)
    model = pretrain(digits.images[public], digits.labels[public], seed=seed)
    turned = as_records(rotate(digits.images, DEGREES))
    return Task(
        title=f"handwritten digits: pretrained upright, fine-tuned on digits turned by "
        f"{DEGREES:g} degrees",
        public=f"{N_PUBLIC} upright digits, for pretraining, for the curvature and to choose the "
        "settings",
        chosen="by their score on other shifts of the public digits (turned the other way, "
        "moved), with the n, epsilon = 1 and delta = 1e-5 of this demonstration",
        model=model,
        private=Shifted(turned[private], digits.labels[private], turned[test], digits.labels[test]),
        projection=Identity(model.n_parameters),
        curvature=DenseCurvature.from_model(
            model,
            as_records(digits.images[public]),
            damping=SETTINGS.damping,
            labels="expected",
        ),
        settings=SETTINGS,
        measure=accuracy,
        measure_name="test accuracy",
        ordinary=lambda model, private: model.fit(
            private.x_train, private.y_train, epochs=100, batch_size=64, learning_rate=1e-2
        ),
    )


# --- The choice of the settings --------------------------------------------------------------

_SHIFTS: Final[tuple[Callable[[Images, float], Images], ...]] = (
    lambda images, change: rotate(images, -25 + 5 * change),
    lambda images, change: shift(images, 0.8 + 0.2 * change, 0),
    lambda images, change: shift(rotate(images, -15 + 5 * change), 0, 0.6),
)


def surrogates(images: Images, labels: NDArray[Any]) -> list[Shifted]:
    """Turn and move public digits that pretraining has not seen, each in several ways.

    Each digit appears several times, a little different, to make as many records as the private
    ones. Digits to test on are others than those to fine-tune on.
    """
    n_train = 3 * len(images) // 4
    result = []
    for change_images in _SHIFTS:
        copies = -(-N_PRIVATE // n_train)
        changes = np.linspace(-1, 1, copies)
        variants = [as_records(change_images(images, change)) for change in changes]
        result.append(
            Shifted(
                np.concatenate([v[:n_train] for v in variants])[:N_PRIVATE],
                np.tile(labels[:n_train], copies)[:N_PRIVATE],
                np.concatenate([v[n_train:] for v in variants]),
                np.tile(labels[n_train:], copies),
            )
        )
    return result


def score_settings(seed: int, *, epsilon: float, delta: float) -> dict[Settings, float]:
    """Score the grid on surrogates, by public digits alone: one half pretrains, one is shifted."""
    digits = load_digits()
    public = _split(len(digits.labels), seed)[0]
    images, labels = digits.images[public], digits.labels[public]
    seen, unseen = slice(0, N_PUBLIC // 2), slice(N_PUBLIC // 2, None)
    seeds = itertools.count(1_000_000 * (seed + 1))
    return choose_settings(
        pretrain(images[seen], labels[seen], seed=seed),
        as_records(images),
        surrogates(images[unseen], labels[unseen]),
        epsilon=epsilon,
        delta=delta,
        dampings=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        clipping_norms=(0.3, 1.0, 3.0, 10.0),
        step_sizes=(0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0),
        measure=accuracy,
        generators=lambda: insecure_test_generator(next(seeds)),
        draws=3,
    )
