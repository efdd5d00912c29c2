"""``qexp demo``."""

from __future__ import annotations

import argparse

from qexp.cli import _values
from qexp.cli._commands import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "demo",
        _demo,
        help="fine-tune a small model on real data, privately, and draw the result",
        description="Pretrain a small model on public records, fine-tune it privately on records "
        "of another domain, and say what that cost and gained. Writes release.npz, "
        "certificate.json and accuracy-epsilon.png.",
        examples=[
            "qexp demo",
            "qexp demo --epsilon 2 --out my-folder",
            "QEXP_DATA=/path/to/data qexp demo --data mnist-usps",
            "QEXP_DATA=/path/to/data qexp demo --data icu --no-plot",
        ],
    )
    parser.add_argument(
        "--data",
        choices=("digits", "mnist-usps", "icu"),
        default="digits",
        help="digits (default): comes with scikit-learn; mnist-usps, icu: files of MNIST and "
        "USPS, or PhysioNet 2012, in the folder that the environment variable QEXP_DATA names",
    )
    parser.add_argument(
        "--epsilon", type=_values.positive, default=1.0, help="privacy of the release (default 1)"
    )
    parser.add_argument(
        "--delta", type=_values.delta, default=1e-5, help="privacy of the release (default 1e-5)"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", default="qexp-demo", help="made if need be (default qexp-demo)"
    )
    parser.add_argument(
        "--seed",
        type=_values.seed,
        default=0,
        help="of the split and of pretraining (default 0); never of the noise, which is always "
        "drawn from a cryptographic generator",
    )
    parser.add_argument(
        "--no-plot", action="store_true", help="leave out the curve of accuracy over epsilon"
    )


def _demo(options: argparse.Namespace) -> None:
    from qexp.demo import run_demo

    run_demo(
        options.data,
        epsilon=options.epsilon,
        delta=options.delta,
        folder=options.out,
        seed=options.seed,
        plot=not options.no_plot,
    )
