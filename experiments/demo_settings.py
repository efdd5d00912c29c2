"""Choose the settings of a demonstration on its public data alone.

    python -m experiments.demo_settings digits
    python -m experiments.demo_settings icu

Scores a grid of damping, clipping norm and step size on surrogate shifts of public records, with
the number of private records and the privacy of the real draw. The best is what stands in
qexp/demo. The last line printed is JSON. icu needs the data set (environment variable QEXP_DATA).
Of mnist-usps, `python -m experiments.mnist_usps_one_round --choose` does the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qexp.bits import BitGenerator, insecure_test_generator
from qexp.curvature import DenseCurvature, IdentityCurvature
from qexp.datasets import load_digits, load_mnist
from qexp.datasets.images import blur, contrast, resize, rotate, shift
from qexp.demo import digits, icu, mnist_usps
from qexp.demo._task import Measure, Settings, Shifted, accuracy, area_under_curve
from qexp.mechanism import sample_private_weights
from qexp.models import MultilayerPerceptron
from qexp.projections import SRHT, Identity, Projection

__all__ = [
    "choose_settings",
    "digits_surrogates",
    "ranking",
    "score_digits",
    "score_icu",
    "score_mnist_usps",
]

Images = NDArray[Any]


def choose_settings(
    model: MultilayerPerceptron,
    curvature_records: NDArray[Any],
    surrogates: Iterable[Shifted],
    *,
    projection: Projection | None = None,
    epsilon: float,
    delta: float,
    dampings: Sequence[float],
    clipping_norms: Sequence[float],
    step_sizes: Sequence[float],
    measure: Measure,
    generators: Callable[[], BitGenerator],
    draws: int = 1,
) -> dict[Settings, float]:
    """Score a grid of settings on surrogate shifts of public records.

    Parameters
    ----------
    model : MultilayerPerceptron
        Pretrained on public records.
    curvature_records : array of shape (m, n_features)
        Public records for the curvature.
    surrogates : iterable of Shifted
        Public records that stand in for private ones, as many as those.
    projection : Projection, optional
        As in the draw that is planned; so are `epsilon` and `delta`.
    epsilon, delta : float
    dampings, clipping_norms, step_sizes : sequence of float
        The grid.
    measure : callable
        Higher is better.
    generators : callable
        Makes a bit generator for each draw; the records are public, so a test generator will do.
    draws : int
        Draws a setting and surrogate.

    Returns
    -------
    dict of Settings to float
        The mean measure over surrogates and draws, best first.
    """
    projection = Identity(model.n_parameters) if projection is None else projection
    source = model.curvature_blocks(curvature_records)
    rows = np.vstack([projection.forward(block) for block in source.blocks()])
    rows = rows.astype(np.float64, copy=False)
    curvature_matrix = rows.T @ rows / source.n_records
    scores: dict[Settings, list[float]] = {}
    for surrogate in surrogates:
        gradients = np.vstack(
            [
                projection.forward(block)
                for block in model.gradient_blocks(surrogate.x_train, surrogate.y_train).blocks()
            ]
        )
        for damping in dampings:
            curvature = DenseCurvature.from_matrix(curvature_matrix, damping=damping)
            whitened = curvature.whiten(gradients)
            for norm, _ in itertools.product(clipping_norms, range(draws)):
                # The same draw as in whitened coordinates, where the curvature is the identity.
                release = sample_private_weights(
                    np.zeros(curvature.n_components),
                    whitened,
                    curvature=IdentityCurvature(curvature.n_components),
                    target_epsilon=epsilon,
                    target_delta=delta,
                    clipping_norm=norm,
                    rng=generators(),
                )
                direction = projection.adjoint(curvature.unwhiten(release.weights))
                for step in step_sizes:
                    tuned = model.with_weights(model.weights + step * direction)
                    value = measure(tuned, surrogate.x_test, surrogate.y_test)
                    setting = Settings(damping=damping, clipping_norm=norm, step_size=step)
                    scores.setdefault(setting, []).append(value)
    means = {setting: float(np.mean(values)) for setting, values in scores.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


# ------------------------------------------------------------------------------------ digits


_DIGITS_SHIFTS: Final[tuple[Callable[[Images, float], Images], ...]] = (
    lambda images, change: rotate(images, -25 + 5 * change),
    lambda images, change: shift(images, 0.8 + 0.2 * change, 0),
    lambda images, change: shift(rotate(images, -15 + 5 * change), 0, 0.6),
)


def digits_surrogates(images: Images, labels: NDArray[Any]) -> list[Shifted]:
    """Turn and move public digits that pretraining has not seen, each in several ways.

    Each digit appears several times, a little different, to make as many records as the private
    ones. Digits to test on are others than those to fine-tune on.
    """
    n_train = 3 * len(images) // 4
    result = []
    for change_images in _DIGITS_SHIFTS:
        copies = -(-digits.N_PRIVATE // n_train)
        changes = np.linspace(-1, 1, copies)
        variants = [digits.as_records(change_images(images, change)) for change in changes]
        result.append(
            Shifted(
                np.concatenate([v[:n_train] for v in variants])[: digits.N_PRIVATE],
                np.tile(labels[:n_train], copies)[: digits.N_PRIVATE],
                np.concatenate([v[n_train:] for v in variants]),
                np.tile(labels[n_train:], copies),
            )
        )
    return result


def score_digits(seed: int, *, epsilon: float, delta: float) -> dict[Settings, float]:
    """Score a grid on surrogates, by public digits alone: one half pretrains, one is shifted."""
    data = load_digits()
    public = digits.split(len(data.labels), seed)[0]
    images, labels = data.images[public], data.labels[public]
    seen, unseen = slice(0, digits.N_PUBLIC // 2), slice(digits.N_PUBLIC // 2, None)
    seeds = itertools.count(1_000_000 * (seed + 1))
    return choose_settings(
        digits.pretrain(images[seen], labels[seen], seed=seed),
        digits.as_records(images),
        digits_surrogates(images[unseen], labels[unseen]),
        epsilon=epsilon,
        delta=delta,
        dampings=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        clipping_norms=(0.3, 1.0, 3.0, 10.0),
        step_sizes=(0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0),
        measure=accuracy,
        generators=lambda: insecure_test_generator(next(seeds)),
        draws=3,
    )


# ---------------------------------------------------------------------------- intensive care


def score_icu(seed: int, *, epsilon: float, delta: float) -> dict[Settings, float]:
    """Score a grid on the moves between medical and surgical stays: public stays alone."""
    features, died, unit, set_number = icu.all_stays()
    n_private = int(np.isin(unit[set_number == 0], (icu.CORONARY, icu.CARDIAC_SURGERY)).sum())
    seeds = itertools.count(1_000_000 * (seed + 1))
    scores: dict[Settings, float] = {}
    for before, after in ((icu.MEDICAL, icu.SURGICAL), (icu.SURGICAL, icu.MEDICAL)):
        x = icu.as_records(features, unit == before)
        seen_x, seen_y = x[unit == before], died[unit == before]
        model = icu.pretrain(seen_x, seen_y, seed=seed)
        order = np.random.default_rng(seed).permutation(np.flatnonzero(unit == after))
        train, test = order[:n_private], order[n_private:]
        found = choose_settings(
            model,
            seen_x,
            [Shifted(x[train], died[train], x[test], died[test])],
            projection=icu.leading_directions(model, seen_x),
            epsilon=epsilon,
            delta=delta,
            dampings=(1e-3, 1e-2, 1e-1),
            clipping_norms=(0.3, 1.0, 3.0, 10.0, 30.0),
            step_sizes=(0.03, 0.1, 0.3, 0.5, 1.0, 2.0),
            measure=area_under_curve,
            generators=lambda: insecure_test_generator(next(seeds)),
            draws=5,
        )
        for settings, value in found.items():
            scores[settings] = scores.get(settings, 0.0) + value / 2
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


# ----------------------------------------------------------------------------- MNIST to USPS


def _affine(images: Images, strength: float) -> Images:
    """Turn and, by cutting off columns, stretch."""
    cut = round(7 * strength)
    return resize(rotate(images, 30 * strength)[:, :, cut : 28 - cut], (28, 28))


_MNIST_SHIFTS: Final[dict[str, Callable[[Images, float], Images]]] = {
    "affine": _affine,
    "blur": lambda images, strength: blur(images, 4 * strength),
    "contrast": lambda images, strength: contrast(images, 1 - strength),
}


def _mnist_surrogates(
    model: MultilayerPerceptron,
    images: Images,
    labels: NDArray[Any],
    *,
    margin: int,
    accuracy_before: float = 0.6,
) -> Iterator[tuple[str, Shifted]]:
    """Shift public digits that pretraining has not seen, each way so far that accuracy drops."""
    n = mnist_usps.N_PRIVATE
    for name, change in _MNIST_SHIFTS.items():
        before = {}
        for strength in np.linspace(0.1, 1.0, 10):
            some = mnist_usps.as_records(change(images[:2000], strength), margin)
            before[strength] = model.score(some, labels[:2000])
        strength = min(before, key=lambda s: abs(before[s] - accuracy_before))
        records = mnist_usps.as_records(change(images, strength), margin)
        yield (
            f"{name}, strength {strength:.1f}, accuracy before {before[strength]:.3f}",
            Shifted(records[:n], labels[:n], records[n:], labels[n:]),
        )


def score_mnist_usps(
    seed: int, *, margin: int, activation: mnist_usps.Activation, epsilon: float, delta: float
) -> tuple[dict[Settings, float], list[str]]:
    """Score a grid on surrogates, by MNIST alone; name the surrogates."""
    mnist = load_mnist()
    seen, unseen = slice(0, mnist_usps.N_PRETRAINING), slice(mnist_usps.N_PRETRAINING, None)
    model = mnist_usps.pretrain(
        mnist.x_train[seen], mnist.y_train[seen], seed=seed, margin=margin, activation=activation
    )
    images, labels = mnist.x_train[unseen], mnist.y_train[unseen]
    named = list(_mnist_surrogates(model, images, labels, margin=margin))
    seeds = itertools.count(1_000_000 * (seed + 1))
    scores = choose_settings(
        model,
        mnist_usps.as_records(mnist.x_train[: mnist_usps.N_CURVATURE], margin),
        [surrogate for _, surrogate in named],
        projection=SRHT(model.n_parameters, mnist_usps.N_COMPONENTS, seed=seed),
        epsilon=epsilon,
        delta=delta,
        dampings=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        clipping_norms=(0.3, 1.0, 3.0),
        step_sizes=(0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0),
        measure=accuracy,
        generators=lambda: insecure_test_generator(next(seeds)),
    )
    return scores, [name for name, _ in named]


# ----------------------------------------------------------------------------------- ranking


def ranking(score: Callable[[int], Mapping[Settings, float]], seeds: int) -> dict[str, Any]:
    """Print the settings that are best over seeds, and give the figures of the very best."""
    scores: dict[Settings, list[float]] = defaultdict(list)
    for seed in range(seeds):
        for settings, value in score(seed).items():
            scores[settings].append(value)
    ranked = sorted(scores.items(), key=lambda item: -np.mean(item[1]))
    for settings, values in ranked[:8]:
        print(f"{np.mean(values):.4f}  {settings}")
    best, values = ranked[0]
    return {
        "seeds": seeds,
        "settings": vars(best),
        "surrogate_value": float(np.mean(values)),
        "grid_size": len(ranked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=["digits", "icu"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    arguments = parser.parse_args()
    score = {"digits": score_digits, "icu": score_icu}[arguments.data]
    found = ranking(
        lambda seed: score(seed, epsilon=arguments.epsilon, delta=arguments.delta), arguments.seeds
    )
    print(json.dumps({"study": f"demo_settings {arguments.data}", **found}))


if __name__ == "__main__":
    main()
