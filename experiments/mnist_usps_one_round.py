"""One private round from MNIST to USPS: accuracy before and after, over several seeds.

    python -m experiments.mnist_usps_one_round --seeds 5 --epsilon 1
    python -m experiments.mnist_usps_one_round --choose --seeds 3

Needs the data sets (environment variable QEXP_DATA). A seed sets the initial weights of
pretraining, the projection and the noise, so the noise of this study is reproducible and its
releases are not private. The last line printed is JSON. `--choose` scores the grid of settings on
shifted MNIST digits alone and never reads USPS.
"""

import argparse
import json
from collections import defaultdict

import numpy as np

from qexp.bits import insecure_test_generator
from qexp.demo._task import Settings, draw
from qexp.demo.mnist_usps import MARGIN, SETTINGS, mnist_usps_task, score_settings


def study(arguments: argparse.Namespace) -> None:
    before, after, ordinary = [], [], []
    for seed in range(arguments.seeds):
        task = mnist_usps_task(seed, margin=arguments.margin, activation=arguments.activation)
        release = draw(task, arguments.epsilon, arguments.delta, rng=insecure_test_generator(seed))
        before.append(task.value(task.model))
        after.append(task.value(task.model.with_weights(release.weights)))
        ordinary.append(task.value(task.ordinary(task.model, task.private)))
        print(
            f"seed {seed}: test accuracy {before[-1]:.4f} before, {after[-1]:.4f} after, "
            f"{ordinary[-1]:.4f} by ordinary fine-tuning (not private)",
            flush=True,
        )
    settings = SETTINGS[arguments.margin, arguments.activation]
    result = {
        "study": "mnist_usps_one_round",
        "epsilon": arguments.epsilon,
        "delta": arguments.delta,
        "rounds": 1,
        "margin": arguments.margin,
        "activation": arguments.activation,
        "n_private": len(task.private.y_train),
        "n_test": len(task.private.y_test),
        "n_components": task.projection.n_components,
        "settings": vars(settings),
        "accuracy_before": before,
        "accuracy_after": after,
        "accuracy_ordinary": ordinary,
        "mean_before": float(np.mean(before)),
        "mean_after": float(np.mean(after)),
        "std_after": float(np.std(after, ddof=1)) if len(after) > 1 else None,
        "noise": "reproducible test generator: these releases are not private",
    }
    print(json.dumps(result))


def choose(arguments: argparse.Namespace) -> None:
    scores: dict[Settings, list[float]] = defaultdict(list)
    for seed in range(arguments.seeds):
        found, names = score_settings(
            seed,
            margin=arguments.margin,
            activation=arguments.activation,
            epsilon=arguments.epsilon,
            delta=arguments.delta,
        )
        print(f"seed {seed}: {'; '.join(names)}", flush=True)
        for settings, value in found.items():
            scores[settings].append(value)
    ranked = sorted(scores.items(), key=lambda item: -np.mean(item[1]))
    for settings, values in ranked[:8]:
        print(f"{np.mean(values):.4f}  {settings}")
    result = {
        "study": "mnist_usps_one_round --choose",
        "margin": arguments.margin,
        "activation": arguments.activation,
        "seeds": arguments.seeds,
        "settings": vars(ranked[0][0]),
        "surrogate_accuracy": float(np.mean(ranked[0][1])),
        "grid_size": len(ranked),
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default 5)")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument(
        "--margin",
        type=int,
        choices=sorted({margin for margin, _ in SETTINGS}),
        default=MARGIN,
        help="pixels cut off each side of an MNIST image before it is resized",
    )
    parser.add_argument("--activation", choices=["tanh", "relu"], default="relu")
    parser.add_argument(
        "--choose", action="store_true", help="choose the settings on public data instead"
    )
    arguments = parser.parse_args()
    (choose if arguments.choose else study)(arguments)


if __name__ == "__main__":
    main()
