"""Prepare the example job digits.toml: upright digits are public, turned ones private.

    python examples/prepare_digits.py examples/digits
    qexp run examples/digits.toml

The digits come with scikit-learn (in a clone: `pip install ".[demo]"`); nothing is downloaded.
"""

import argparse
from pathlib import Path

import numpy as np

from qexp.datasets import load_digits
from qexp.datasets.images import rotate
from qexp.models import mlp


def prepare(folder: Path) -> None:
    digits = load_digits()
    X = digits.images.reshape(-1, 64).astype(np.float32)
    private = rotate(digits.images[900:], 30).reshape(-1, 64).astype(np.float32)
    model = mlp((64, 32, 10), seed=0).fit(X[:600], digits.labels[:600], epochs=60, seed=0)
    arrays = {
        "pretrained": model.weights,
        "public-x": X[600:900],
        "public-y": digits.labels[600:900],
        "private-x": private,
        "private-y": digits.labels[900:],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    print(f"{folder}: 300 public and {len(private)} private records")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    prepare(parser.parse_args().folder)
