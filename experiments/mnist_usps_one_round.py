"""One private round from MNIST to USPS: accuracy before and after, over several seeds.

    python -m experiments.mnist_usps_one_round --seeds 5 --epsilon 1
    python -m experiments.mnist_usps_one_round --choose --seeds 3

Needs the data sets (environment variable QEXP_DATA). A seed sets the initial weights of
pretraining, the projection and the noise, so the noise of this study is reproducible and its
releases are not private. The last line printed is JSON. `--choose` scores the grid of settings on
shifted MNIST digits alone and never reads USPS. `python -m experiments all` keeps what
docs/results.md tells of.
"""

import argparse
import json
from typing import Final, Literal

from experiments.demo_settings import ranking, score_mnist_usps
from experiments.measurement import Line, Measurement, markdown_table
from experiments.study.summaries import mean_text, student
from qexp.bits import insecure_test_generator
from qexp.demo._task import Settings, draw
from qexp.demo.mnist_usps import MARGIN, SETTINGS, mnist_usps_task


def measured(
    margin: int, activation: Literal["tanh", "relu"], epsilon: float, delta: float, seeds: int
) -> Line:
    """Fine-tune by one round for each seed, and by ordinary training."""
    before, after, ordinary = [], [], []
    for seed in range(seeds):
        task = mnist_usps_task(seed, margin=margin, activation=activation)
        release = draw(task, epsilon, delta, rng=insecure_test_generator(seed))
        before.append(task.value(task.model))
        after.append(task.value(task.model.with_weights(release.weights)))
        ordinary.append(task.value(task.ordinary(task.model, task.private)))
    return {
        "rounds": 1,
        "n_private": len(task.private.y_train),
        "n_test": len(task.private.y_test),
        "n_components": task.projection.n_components,
        "settings": vars(SETTINGS[margin, activation]),
        "accuracy_before": before,
        "accuracy_after": after,
        "accuracy_ordinary": ordinary,
    }


def _tables(lines: list[Line]) -> dict[str, str]:
    kinds = ("accuracy_before", "accuracy_after", "accuracy_ordinary")
    rows = [
        [
            line["margin"],
            line["activation"],
            *(mean_text(*student(line[kind]), "accuracy") for kind in kinds),
        ]
        for line in lines
    ]
    heads = ["M", "activation", "before", "one private round", "ordinary fine-tuning"]
    return {"one round behind a projection": markdown_table(heads, rows)}


MEASUREMENT: Final = Measurement(
    name="mnist_usps_one_round",
    cells=[
        {
            "margin": margin,
            "activation": activation,
            "epsilon": 1.0,
            "delta": 1e-5,
            "seeds": 5,
        }
        for margin, activation in SETTINGS
    ],
    run=measured,
    page="results.md",
    tables=_tables,
)


def choose(arguments: argparse.Namespace) -> None:
    def score(seed: int) -> dict[Settings, float]:
        found, names = score_mnist_usps(
            seed,
            margin=arguments.margin,
            activation=arguments.activation,
            epsilon=arguments.epsilon,
            delta=arguments.delta,
        )
        print(f"seed {seed}: {'; '.join(names)}", flush=True)
        return found

    result = {
        "study": "mnist_usps_one_round --choose",
        "margin": arguments.margin,
        "activation": arguments.activation,
        **ranking(score, arguments.seeds),
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
    if arguments.choose:
        choose(arguments)
        return
    cell = {
        name: getattr(arguments, name)
        for name in ("margin", "activation", "epsilon", "delta", "seeds")
    }
    found = measured(**cell)
    noise = "reproducible test generator: these releases are not private"
    print(json.dumps({"study": "mnist_usps_one_round", **cell, **found, "noise": noise}))


if __name__ == "__main__":
    main()
