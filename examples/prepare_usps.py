"""Prepare the example job usps.toml: MNIST is public, USPS is private.

    QEXP_DATA=/path/to/data python examples/prepare_usps.py examples/usps
    qexp ledger create examples/usps/ledger.jsonl --epsilon 1 --delta 1e-5
    qexp run examples/usps.toml
    QEXP_DATA=/path/to/data python examples/prepare_usps.py examples/usps --score

Pretrains a perceptron on MNIST digits in the frame of USPS, keeps 6,000 others for curvature and
planning, and cuts the 7,291 USPS training digits, which play the private part, into four shards.
`--score` tells the accuracy on the USPS test digits, before and after.
"""

import argparse
from pathlib import Path

import numpy as np

import qexp
from qexp.datasets import load_mnist, load_usps
from qexp.datasets.images import resize
from qexp.models import MultilayerPerceptron, mlp

LAYERS = (256, 64, 10)
HELD_OUT = 6_000
SHARDS = 4


def prepare(folder: Path) -> None:
    mnist, usps = load_mnist(), load_usps()
    # USPS digits fill their frame; the central 22 x 22 pixels of MNIST are filled about as well.
    images = resize(mnist.x_train[:, 3:25, 3:25], (16, 16)).reshape(-1, 256)
    images = images.astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)
    order = np.random.default_rng(0).permutation(len(images))
    held_out, public = np.sort(order[:HELD_OUT]), np.sort(order[HELD_OUT:])
    model = mlp(LAYERS, seed=0).fit(images[public], mnist.y_train[public], epochs=12, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pretrained.npy", model.weights)
    np.save(folder / "public-x.npy", images[held_out])
    np.save(folder / "public-y.npy", mnist.y_train[held_out])
    for name, array in (("x", usps.x_train), ("y", usps.y_train)):
        for i, part in enumerate(np.array_split(array, SHARDS)):
            np.save(folder / f"private-{name}-{i}.npy", part)
    print(f"{folder}: {len(images[held_out])} public and {len(usps.x_train)} private records")


def score(folder: Path, weights: Path) -> None:
    usps = load_usps()
    release = qexp.PrivateRelease.load(weights)
    before = MultilayerPerceptron(LAYERS, np.load(folder / "pretrained.npy"))
    after = before.with_weights(release.weights)
    for name, model in (("before", before), ("after", after)):
        print(f"{name:<6} {100 * model.score(usps.x_test, usps.y_test):.2f} % of 2007 test digits")
    print(release.statement)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--score", action="store_true")
    arguments = parser.parse_args()
    if arguments.score:
        score(arguments.folder, arguments.folder / "out" / "weights.npz")
    else:
        prepare(arguments.folder)


if __name__ == "__main__":
    main()
