"""Digits: from one hand, frame or angle to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.tasks._task import Task, split
from qexp.datasets import load_mnist, load_usps
from qexp.datasets.images import resize, rotate
from qexp.models import MultilayerPerceptron, mlp
from qexp.planning import Rehearsal
from qexp.surrogates import image_surrogates

_EPOCHS = 12
_HELD_OUT = 12_000
_ROTATION = 25.0
_ROTATED_RECORDS = 4_000
_SHIFTS, _COPIES = 24, 4
# Not that of the planner's shifts, which are to be new to the model.
_SEED_OF_SHIFTS = 1000


def mnist_to_usps(seed: int = 0) -> Task:
    """MNIST digits in the frame of USPS; private: the 7,291 USPS training digits."""
    mnist, usps = load_mnist(), load_usps()
    images = _in_usps_frame(mnist.x_train)
    public, held_out = split(len(images), _HELD_OUT, seed)
    return Task(
        name="mnist_to_usps",
        model=_pretrained((256, 64, 10), images[public], mnist.y_train[public], seed),
        X_public=images[public],
        y_public=mnist.y_train[public],
        X_held_out=images[held_out],
        y_held_out=mnist.y_train[held_out],
        X_private=usps.x_train,
        y_private=usps.y_train,
        X_test=usps.x_test,
        y_test=usps.y_test,
        image_shape=(16, 16),
    )


def mnist_rotated(seed: int = 0) -> Task:
    """MNIST; private: 4,000 training digits that pretraining did not see, rotated by 25°.

    The private digits are the same for all seeds, so that a plan made at one seed has seen none.
    """
    mnist = load_mnist()
    rest, private = split(len(mnist.x_train), _ROTATED_RECORDS, seed=0)
    kept, out = split(len(rest), _HELD_OUT, seed)
    public, held_out = rest[kept], rest[out]
    images = _flat(mnist.x_train)
    return Task(
        name="mnist_rotated",
        model=_pretrained((784, 64, 10), images[public], mnist.y_train[public], seed),
        X_public=images[public],
        y_public=mnist.y_train[public],
        X_held_out=images[held_out],
        y_held_out=mnist.y_train[held_out],
        X_private=_flat(rotate(mnist.x_train[private], _ROTATION)),
        y_private=mnist.y_train[private],
        X_test=_flat(rotate(mnist.x_test, _ROTATION)),
        y_test=mnist.y_test,
        image_shape=(28, 28),
    )


def usps_to_mnist(seed: int = 0) -> Task:
    """USPS digits; private: the 60,000 MNIST training digits in the frame of USPS.

    Pretraining sees the USPS training digits; the 2,007 USPS test digits are held out. So few stand
    badly for 60,000 private records, so that schedules are planned with a model that was pretrained
    on 3,500 digits, on all others.
    """
    mnist, usps = load_mnist(), load_usps()
    part = _pretrained((256, 64, 10), usps.x_train[:3500], usps.y_train[:3500], seed)
    others = np.concatenate([usps.x_train[3500:], usps.x_test])
    labels = np.concatenate([usps.y_train[3500:], usps.y_test])
    return Task(
        name="usps_to_mnist",
        model=_pretrained((256, 64, 10), usps.x_train, usps.y_train, seed),
        X_public=usps.x_train,
        y_public=usps.y_train,
        X_held_out=usps.x_test,
        y_held_out=usps.y_test,
        X_private=_in_usps_frame(mnist.x_train),
        y_private=mnist.y_train,
        X_test=_in_usps_frame(mnist.x_test),
        y_test=mnist.y_test,
        image_shape=(16, 16),
        rehearsals=[Rehearsal(part, others, labels, "images")],
    )


def mnist_few(n_records: int, seed: int = 0) -> Task:
    """MNIST digits in the frame of USPS; private: as few USPS training digits as the name says.

    The same model as that of `mnist_to_usps`, and all 2,007 USPS test digits. The private digits
    are the same for all seeds, and the first of those of a larger `n_records`.
    """
    whole = mnist_to_usps(seed)
    kept = np.random.default_rng(0).permutation(len(whole.X_private))[:n_records]
    return replace(
        whole,
        name=f"mnist_few_{n_records}",
        X_private=whole.X_private[kept],
        y_private=whole.y_private[kept],
    )


def augmented(base: Callable[[int], Task], seed: int = 0) -> Task:
    """As the task of that name, by a model that was trained on shifted public images, too.

    What no privacy has to be spent on: four copies of the public records, every image turned,
    moved, stretched and blurred by one of 24 random shifts (domain randomisation: Tobin et al.,
    IROS 2017). How many, and how long they are trained on, was settled on held-out public images
    shifted by others. Schedules are planned on shifts of the same strength, new to the model; such
    as break this model as much as the other one would be far stronger.
    """
    task = base(seed)
    rng = np.random.default_rng(seed)
    drawn = partial(image_surrogates, task.model, image_shape=task.image_shape)
    shifts = drawn(task.X_public, task.y_public, count=_SHIFTS, seed=_SEED_OF_SHIFTS)
    blocks = [
        shift(task.X_public[rows], task.y_public[rows], rng)
        for _ in range(_COPIES)
        for rows, shift in zip(
            np.array_split(rng.permutation(len(task.X_public)), _SHIFTS), shifts, strict=True
        )
    ]
    X, y = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    model, held_out = task.model.fit(X, y, epochs=6, seed=seed), task.public_records()
    return replace(
        task,
        name=f"{task.name}_augmented",
        model=model,
        rehearsals=[Rehearsal(model, *held_out, drawn(*held_out, count=3))],
        moves_model=task.model,
    )


TASKS: Final[Mapping[str, Callable[[int], Task]]] = {
    **{task.__name__: task for task in (mnist_to_usps, mnist_rotated, usps_to_mnist)},
    **{f"mnist_few_{n}": partial(mnist_few, n) for n in (250, 500, 1000, 2000)},
    "mnist_to_usps_augmented": partial(augmented, mnist_to_usps),
    "mnist_few_500_augmented": partial(augmented, partial(mnist_few, 500)),
}


def _in_usps_frame(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    # USPS digits fill their frame; the central 22 x 22 pixels of MNIST are filled about as well.
    return _flat(resize(images[:, 3:25, 3:25], (16, 16)))


def _flat(images: NDArray[Any]) -> NDArray[np.float32]:
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    flat: NDArray[np.float32] = images.reshape(len(images), -1).astype(np.float32) / scale
    return flat


def _pretrained(
    layer_sizes: tuple[int, ...], X: NDArray[Any], y: NDArray[Any], seed: int
) -> MultilayerPerceptron:
    return mlp(layer_sizes, seed=seed).fit(X, y, epochs=_EPOCHS, seed=seed)
