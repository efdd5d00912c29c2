"""DP-SGD's published accuracy on MNIST, run again by `qexp.rivals.dp_sgd`.

    python -m experiments.opacus_mnist --seeds 3

Opacus' MNIST example (examples/mnist.py and mnist_README.md of its repository) trains a small
convolutional network from random weights, without public data. Network, preprocessing, sampling
rate, noise, clipping norm, learning rate and epochs are those of its first private setting; the
example trains, and reports 94.63 ± 0.34 % over ten runs. Here ε is the exact price of that noise;
the example's older accountant says 1.16.

Needs the data set (environment variable QEXP_DATA) and the extra qexp[torch]. The noise of this
study is reproducible, so its releases are not private. Prints a line of JSON a seed;
`python -m experiments all` keeps these.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qexp.bits import insecure_test_generator
from qexp.datasets import load_mnist
from qexp.models.torch import TorchModel
from qexp.rivals import SGDSettings, dp_sgd
from qexp.rivals._accounting import poisson_epsilon

DELTA = 1e-5
RATE, EPOCHS, SIGMA, NORM, LEARNING_RATE = 0.004, 15, 1.3, 1.5, 0.25
PUBLISHED = {"epsilon": 1.16, "accuracy": 0.9463, "deviation": 0.0034, "runs": 10}
_PIXEL_MEAN, _PIXEL_DEVIATION = np.float32(0.1307), np.float32(0.3081)


def network() -> nn.Module:
    """Give Opacus' `SampleConvNet`: 26,010 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def settings() -> SGDSettings:
    """Give the example's settings; our learning rates are of gradients in units of the norm."""
    return SGDSettings(
        steps=round(EPOCHS / RATE),
        sampling_rate=RATE,
        learning_rate=LEARNING_RATE * NORM,
        clipping_norm=NORM,
    )


def normalised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = images.astype(np.float32) / np.float32(255)
    return ((pixels - _PIXEL_MEAN) / _PIXEL_DEVIATION)[:, None]


def measured(seed: int) -> dict[str, Any]:
    """Train once; the seed sets initial weights, samples and noise."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data, chosen = load_mnist(), settings()
    epsilon = poisson_epsilon(RATE, chosen.steps, SIGMA, DELTA, "replace_special")
    result = dp_sgd(
        TorchModel(network()),
        normalised(data.x_train),
        data.y_train,
        target_epsilon=epsilon,
        target_delta=DELTA,
        settings=chosen,
        rng=insecure_test_generator(seed),
    )
    assert result.release is not None  # dp_sgd is private
    (event,) = result.release.certificate()["event"]["events"]
    return {
        "delta": DELTA,
        "epsilon": epsilon,
        "noise_multiplier": event["event"]["event"]["noise_multiplier"],
        "accuracy": result.model.score(normalised(data.x_test), data.y_test),
        "published": PUBLISHED,
        "settings": vars(chosen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    for seed in range(parser.parse_args().seeds):
        print(json.dumps({"seed": seed, **measured(seed)}), flush=True)


if __name__ == "__main__":
    main()
