"""Measure what part of a domain's gradient a public subspace holds.

    python -m experiments.subspace_share mnist_to_usps

prints a JSON line for each number of directions: the part of the squared length of the whitened
mean gradient at the pretrained weights that they hold, of moves drawn anew and of the private
records. The latter reads these without noise: it is to understand by, never to choose by.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.fine_tuning import SUBSPACES, directions
from experiments.measurement import Line, Measurement, markdown_table
from experiments.tasks import TASKS, Task, images
from qexp.subspace import image_moves, learn_directions

_FRESH_MOVES, _SEED_OF_FRESH = 10, 9000


@lru_cache(maxsize=1)
def _seen(name: str) -> Task:
    return TASKS[name](0)


@lru_cache(maxsize=1)
def _gradients(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give the whitened first gradients of fresh moves and of the private records, as rows."""
    task = _seen(name)
    X, y = task.public_records()
    fresh = image_moves(
        task.moves_model or task.model,
        X,
        y,
        image_shape=task.image_shape,
        count=_FRESH_MOVES,
        seed=_SEED_OF_FRESH,
    )
    # In the place of public records; whitened by the curvature of those, as the subspace is.
    found = learn_directions(task.model, X, y, moves=[*fresh, lambda *_: _private(task)])
    firsts = [layer[:: len(layer) // (_FRESH_MOVES + 1)] for layer in found.gradients]
    rows = np.concatenate([layer.reshape(len(layer), -1) for layer in firsts], axis=1)
    return rows[:-1], rows[-1:]


def _private(task: Task) -> tuple[NDArray[Any], NDArray[Any]]:
    return task.X_private, task.y_private


def measured(task: str, k: int) -> Line:
    """Measure how much k directions hold."""
    learnt = directions(_seen(task))
    subspace = learnt.subspace(k)
    whitened = learnt.whitened(subspace)
    shares = []
    for rows in _gradients(task):
        # With the scale taken off, the directions are orthonormal.
        held = np.square(whitened.forward(rows) / subspace.scale).sum(axis=1)
        shares.append(float(np.mean(held / np.square(rows).sum(axis=1))))
    of_any = k / subspace.n_parameters
    return {"of_fresh_moves": shares[0], "of_private": shares[1], "of_any": of_any}


def _tables(lines: list[Line]) -> dict[str, str]:
    rows: list[Sequence[object]] = [
        [
            line["task"],
            f"{line['k']:,}",
            *(f"{100 * line[n]:.0f} %" for n in ("of_fresh_moves", "of_private")),
            f"{100 * line['of_any']:.1f} %",
        ]
        for line in lines
    ]
    heads = ["task", "k", "moves drawn anew", "the private domain", "any k directions"]
    return {"what subspaces hold": markdown_table(heads, rows)}


MEASUREMENT: Final = Measurement(
    name="subspace_share",
    cells=[
        {"task": task, "k": k}
        for task in ("mnist_to_usps", "mnist_few_500_augmented", "mnist_rotated", "usps_to_mnist")
        for k in SUBSPACES
    ],
    run=measured,
    page="subspaces.md",
    tables=_tables,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(images.TASKS))
    given = parser.parse_args()
    for k in SUBSPACES:
        print(json.dumps({"task": given.task, "k": k, **measured(given.task, k)}), flush=True)


if __name__ == "__main__":
    main()
