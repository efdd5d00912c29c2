"""Audit the whole pipeline with canaries, in one run.

    python -m experiments.attacks.one_run_audit kronecker --epsilon 1

Canaries are records, in the data or null by fair coins; the data are otherwise a few honest records
that the auditor knows. The auditor sees the released weights (of every round, where all are
released), and guesses every coin. The last line printed is JSON; `holds` says that no lower bound
exceeds the claim. The pipelines:

    kronecker   one round, all weights, Kronecker curvature
    srht        one round, SRHT to 2,000 dimensions, dense curvature
    rounds      fine_tune in 8 rounds, every round's weights seen
    momentum    fine_tune in 8 rounds with momentum and averaging, only the released weights seen
    estimator   PrivateFineTuner in 4 rounds, only the released weights seen
    orthogonal  one round on orthogonal gradients of full norm, no model: the clean worst case
    noiseless   kronecker, but for the noise: the audit must catch it
    fit         model.fit until canaries are known by heart: the audit must catch it

Needs the data sets (environment variable QEXP_DATA). Noise is the reproducible test generator's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special

from experiments.attacks.bounds import judge
from qexp import (
    SRHT,
    DenseCurvature,
    IdentityCurvature,
    KroneckerCurvature,
    Schedule,
    fine_tune,
    sample_private_weights,
)
from qexp.bits import insecure_test_generator
from qexp.models import MultilayerPerceptron, mlp
from qexp.projections import Identity

DELTA = 1e-5
CLIPPING_NORM = 3.0
DAMPING = 1e-2


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """What is audited on: a public model and curvature records, honest records, canaries."""

    model: MultilayerPerceptron
    X_public: NDArray[Any]
    X_honest: NDArray[Any]
    y_honest: NDArray[Any]
    X_canaries: NDArray[Any]
    y_canaries: NDArray[Any]

    def records(self, included: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give the private data: canaries whose coin fell so are there, others are null."""
        canaries = np.where(included[:, None], self.X_canaries, np.nan)
        X = np.concatenate([canaries, self.X_honest]).astype(np.float32)
        return X, np.concatenate([self.y_canaries, self.y_honest])

    @property
    def n_records(self) -> int:
        return len(self.y_canaries) + len(self.y_honest)


def make_scene(
    model: MultilayerPerceptron,
    X_public: NDArray[Any],
    X_honest: NDArray[Any],
    y_honest: NDArray[Any],
    *,
    n_canaries: int,
    seed: int,
) -> Scene:
    """Make canaries of noise, each with a label that the model does not give it.

    Whitened, noise in features that public records keep constant is large in all directions: such
    gradients are clipped, so that they have full norm, and nearly orthogonal.
    """
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_canaries, X_public.shape[1])).astype(np.float32)
    y = (model.predict(X) + rng.integers(1, model.n_classes, n_canaries)) % model.n_classes
    return Scene(
        model=model,
        X_public=X_public,
        X_honest=X_honest,
        y_honest=y_honest.astype(np.int64),
        X_canaries=X,
        y_canaries=y,
    )


class Evidence:
    """What released steps tell of the coins, gathered step by step.

    With clipped whitened gradients s_i as rows of S, a step comes from y = Σ b_i s_i + N(0, σ²).
    <y, s_i> is -(n/η) <step, g_i>, times what clipping left of g_i: no step is whitened again, and
    whatever the projection is, it need not be inverted.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        m = len(scene.y_canaries)
        self._gram, self._projections = np.zeros((m, m)), np.zeros(m)
        self.clipped_share = 1.0

    def add(
        self,
        model: MultilayerPerceptron,
        step: NDArray[np.float64],
        *,
        curvature: Any,
        projection: Any,
        clipping_norm: float,
        step_size: float,
        noise_std: float,
    ) -> None:
        """Add a step that was made of the gradients at a model."""
        scene = self._scene
        X = np.concatenate([scene.X_canaries, scene.X_honest])
        y = np.concatenate([scene.y_canaries, scene.y_honest])
        rows, inner = [], []
        for block in model.gradient_blocks(X, y).blocks():
            whitened = curvature.whiten(projection.forward(block))
            kept = np.minimum(1, clipping_norm / linalg.norm(whitened, axis=1))
            rows.append((whitened * kept[:, None]).astype(np.float32))
            inner.append(kept * (block @ step.astype(block.dtype)))
        s, m = np.concatenate(rows), len(scene.y_canaries)
        canaries, honest = s[:m], s[m:]
        seen = -scene.n_records / step_size * np.concatenate(inner)[:m]
        self._gram += (canaries @ canaries.T) / noise_std**2
        self._projections += (seen - canaries @ honest.sum(axis=0)) / noise_std**2
        norms = linalg.norm(canaries, axis=1)
        self.clipped_share = min(self.clipped_share, float(np.mean(norms > 0.999 * clipping_norm)))

    def scores(self) -> NDArray[np.float64]:
        """Return the best linear estimate of each coin, less 1/2.

        Coins have mean 1/2 and variance 1/4; the observations are Gram · coins, with noise of
        covariance Gram. (Canaries are only nearly orthogonal: this takes the others' part off.)
        """
        m = len(self._projections)
        centred = self._projections - self._gram.sum(axis=1) / 2
        solved: NDArray[np.float64] = linalg.solve(
            self._gram + 4 * np.eye(m), centred, assume_a="pos", overwrite_a=False
        )
        return solved


@dataclass(frozen=True, eq=False, kw_only=True)
class Attacked:
    """Scores of the canaries, above 0 for those guessed in the data, and the claim, if any."""

    scores: NDArray[np.float64]
    mu: float | None
    clipped_share: float | None = None


Pipeline = Callable[[Scene, NDArray[np.bool_], float, float, int], Attacked]


def kronecker(
    scene: Scene, included: NDArray[np.bool_], epsilon: float, delta: float, seed: int
) -> Attacked:
    curvature = KroneckerCurvature.from_model(scene.model, scene.X_public, damping=DAMPING)
    return _one_round(scene, included, epsilon, delta, seed, curvature, None)


def srht(
    scene: Scene,
    included: NDArray[np.bool_],
    epsilon: float,
    delta: float,
    seed: int,
    n_components: int = 2000,
) -> Attacked:
    projection = SRHT(scene.model.n_parameters, n_components, seed=seed)
    curvature = DenseCurvature.from_model(
        scene.model, scene.X_public, projection=projection, damping=DAMPING
    )
    return _one_round(scene, included, epsilon, delta, seed, curvature, projection)


def _one_round(
    scene: Scene,
    included: NDArray[np.bool_],
    epsilon: float,
    delta: float,
    seed: int,
    curvature: Any,
    projection: Any,
) -> Attacked:
    model = scene.model
    release = sample_private_weights(
        model.weights,
        model.gradient_blocks(*scene.records(included)),
        curvature=curvature,
        projection=projection,
        target_epsilon=epsilon,
        target_delta=delta,
        clipping_norm=CLIPPING_NORM,
        rng=insecure_test_generator(seed),
    )
    evidence = Evidence(scene)
    evidence.add(
        model,
        _difference(release.weights, model.weights),
        curvature=curvature,
        projection=Identity(model.n_parameters) if projection is None else projection,
        clipping_norm=CLIPPING_NORM,
        step_size=1.0,
        noise_std=CLIPPING_NORM / release.mu,
    )
    return Attacked(scores=evidence.scores(), mu=release.mu, clipped_share=evidence.clipped_share)


def rounds(
    scene: Scene, included: NDArray[np.bool_], epsilon: float, delta: float, seed: int
) -> Attacked:
    schedule = Schedule(rounds=8, clipping_norm=CLIPPING_NORM, step_size=0.3, damping=DAMPING)
    curvature = KroneckerCurvature.from_model(scene.model, scene.X_public, damping=DAMPING)
    path, mus = [scene.model], []

    def watch(report: Any) -> None:
        path.append(report.model)
        mus.append(report.mu)

    result = fine_tune(
        scene.model,
        *scene.records(included),
        schedule=schedule,
        curvature=curvature,
        target_epsilon=epsilon,
        target_delta=delta,
        rng=insecure_test_generator(seed),
        on_round=watch,
    )
    evidence = Evidence(scene)
    for before, after, mu in zip(path[:-1], path[1:], mus, strict=True):
        evidence.add(
            before,
            _difference(after.weights, before.weights),
            curvature=curvature,
            projection=Identity(scene.model.n_parameters),
            clipping_norm=CLIPPING_NORM,
            step_size=schedule.step_size,
            noise_std=CLIPPING_NORM / mu,
        )
    return Attacked(
        scores=evidence.scores(), mu=result.release.mu, clipped_share=evidence.clipped_share
    )


def momentum(
    scene: Scene, included: NDArray[np.bool_], epsilon: float, delta: float, seed: int
) -> Attacked:
    schedule = Schedule(
        rounds=8,
        clipping_norm=CLIPPING_NORM,
        step_size=0.1,
        damping=DAMPING,
        momentum=0.8,
        averaging=0.25,
    )
    curvature = KroneckerCurvature.from_model(scene.model, scene.X_public, damping=DAMPING)
    result = fine_tune(
        scene.model,
        *scene.records(included),
        schedule=schedule,
        curvature=curvature,
        target_epsilon=epsilon,
        target_delta=delta,
        rng=insecure_test_generator(seed),
    )
    return _by_the_end(scene, result, schedule, curvature)


def estimator(
    scene: Scene, included: NDArray[np.bool_], epsilon: float, delta: float, seed: int
) -> Attacked:
    from qexp.estimator import PrivateFineTuner

    schedule = Schedule(rounds=4, clipping_norm=CLIPPING_NORM, step_size=0.3, damping=DAMPING)
    tuner = PrivateFineTuner(
        scene.model,
        target_epsilon=epsilon,
        target_delta=delta,
        public_data=(scene.X_public, None),
        schedule=schedule,
        insecure_test_seed=seed,
    ).fit(*scene.records(included))
    curvature = KroneckerCurvature.from_model(scene.model, scene.X_public, damping=DAMPING)
    return _by_the_end(scene, tuner.result_, schedule, curvature)


def _by_the_end(scene: Scene, result: Any, schedule: Schedule, curvature: Any) -> Attacked:
    """Score by the released weights alone, as if all gradients were those at the start."""
    weight = _weight_of_rounds(schedule)
    evidence = Evidence(scene)
    evidence.add(
        scene.model,
        _difference(result.release.weights, scene.model.weights),
        curvature=curvature,
        projection=Identity(scene.model.n_parameters),
        clipping_norm=schedule.clipping_norm,
        step_size=schedule.step_size * sum(weight),
        noise_std=schedule.clipping_norm
        * math.sqrt(schedule.rounds * sum(w * w for w in weight))
        / (sum(weight) * result.release.mu),
    )
    return Attacked(
        scores=evidence.scores(), mu=result.release.mu, clipped_share=evidence.clipped_share
    )


def _weight_of_rounds(schedule: Schedule) -> list[float]:
    """Give how much of each round's step is in the released weights."""
    m, last = schedule.momentum, schedule.rounds
    ends = range(last - max(1, schedule.averaged_rounds) + 1, last + 1)
    return [
        sum(sum(m**j for j in range(end - t + 1)) for end in ends if end >= t) / len(ends)
        for t in range(1, last + 1)
    ]


def noiseless(
    scene: Scene, included: NDArray[np.bool_], epsilon: float, delta: float, seed: int
) -> Attacked:
    """Step as `kronecker` does, without noise: clipped as it should be, and not private."""
    model = scene.model
    curvature = KroneckerCurvature.from_model(model, scene.X_public, damping=DAMPING)
    total = np.zeros(model.n_parameters)
    for block in model.gradient_blocks(*scene.records(included)).blocks():
        whitened = np.nan_to_num(curvature.whiten(block))
        norms = np.maximum(linalg.norm(whitened, axis=1), CLIPPING_NORM)
        total += (whitened * (CLIPPING_NORM / norms)[:, None]).sum(axis=0)
    weights = (model.weights - curvature.unwhiten(total) / scene.n_records).astype(np.float32)
    evidence = Evidence(scene)
    evidence.add(
        model,
        _difference(weights, model.weights),
        curvature=curvature,
        projection=Identity(model.n_parameters),
        clipping_norm=CLIPPING_NORM,
        step_size=1.0,
        noise_std=1e-2 * CLIPPING_NORM,
    )
    return Attacked(scores=evidence.scores(), mu=None, clipped_share=evidence.clipped_share)


def fit(
    scene: Scene, included: NDArray[np.bool_], epsilon: float, delta: float, seed: int
) -> Attacked:
    """Train by heart what is there, without privacy; guess that what is known by heart was.

    How well is well enough is learned from a model trained on other coins.
    """
    other = np.random.default_rng([seed, 2]).random(len(included)) < 0.5
    shadow = _label_logits(scene, other, seed + 1)
    return Attacked(
        scores=_label_logits(scene, included, seed) - best_threshold(shadow, other), mu=None
    )


def _label_logits(scene: Scene, included: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    X, y = scene.records(included)
    present = ~np.isnan(X[:, 0])
    start = mlp((X.shape[1], 512, scene.model.n_classes), activation="relu", seed=seed)
    model = start.fit(X[present], y[present], epochs=300, weight_decay=0.0, seed=seed)
    return label_logits(model, scene.X_canaries, scene.y_canaries)


def label_logits(
    model: MultilayerPerceptron, X: NDArray[Any], y: NDArray[Any]
) -> NDArray[np.float64]:
    """Return log p/(1 - p) of the labels' probabilities, also where p rounds to 1."""
    log_p = model.predict_log_proba(X).astype(np.float64)
    each = np.arange(len(log_p))
    of_label = log_p[each, y].copy()
    log_p[each, y] = -np.inf
    logits: NDArray[np.float64] = of_label - special.logsumexp(log_p, axis=1)
    return logits


def best_threshold(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> float:
    """Return the threshold that tells most of the scores right."""
    order = np.argsort(scores)
    sorted_scores, inside = scores[order], included[order]
    # Right with the threshold after the i lowest: those that are out below, and in above.
    right = np.concatenate([[0], np.cumsum(~inside)]) + np.append(np.cumsum(inside[::-1])[::-1], 0)
    best = int(np.argmax(right[1:-1])) + 1
    return float((sorted_scores[best - 1] + sorted_scores[best]) / 2)


PIPELINES: dict[str, Pipeline] = {
    made.__name__: made for made in (kronecker, srht, rounds, momentum, estimator, noiseless, fit)
}


class OrthogonalGradients:
    """Records whose gradients are c e_i, or null: a RecordSource."""

    def __init__(self, included: NDArray[np.bool_]) -> None:
        self._included = included
        self.n_records = self.n_parameters = len(included)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        size = 64
        for start in range(0, self.n_records, size):
            here = self._included[start : start + size]
            block = np.zeros((len(here), self.n_parameters), np.float32)
            block[np.arange(len(here)), start + np.arange(len(here))] = CLIPPING_NORM * here
            yield block


def orthogonal(included: NDArray[np.bool_], epsilon: float, delta: float, seed: int) -> Attacked:
    m = len(included)
    release = sample_private_weights(
        np.zeros(m),
        OrthogonalGradients(included),
        curvature=IdentityCurvature(m),
        target_epsilon=epsilon,
        target_delta=delta,
        clipping_norm=CLIPPING_NORM,
        rng=insecure_test_generator(seed),
    )
    return Attacked(
        scores=-m / CLIPPING_NORM * release.weights - 0.5, mu=release.mu, clipped_share=1.0
    )


def digits_scene(n_canaries: int, n_honest: int, seed: int) -> Scene:
    from experiments.tasks import TASKS

    task = TASKS["mnist_to_usps"](0)
    return make_scene(
        task.model,
        task.X_held_out[:4000],
        task.X_private[:n_honest],
        task.y_private[:n_honest],
        n_canaries=n_canaries,
        seed=seed,
    )


def mislabelled_scene(n_canaries: int, n_honest: int, seed: int) -> Scene:
    """Make canaries of real digits, each with a wrong label."""
    from experiments.tasks import TASKS

    task = TASKS["mnist_to_usps"](0)
    rng = np.random.default_rng(seed)
    last = n_honest + n_canaries
    wrong = (task.y_private[n_honest:last].astype(np.int64) + rng.integers(1, 10, n_canaries)) % 10
    return Scene(
        model=task.model,
        X_public=task.X_held_out[:4000],
        X_honest=task.X_private[:n_honest],
        y_honest=task.y_private[:n_honest].astype(np.int64),
        X_canaries=task.X_private[n_honest:last],
        y_canaries=wrong,
    )


def _difference(after: NDArray[Any], before: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(after.astype(np.float64) - before.astype(np.float64))


def audit(
    pipeline: str,
    *,
    epsilon: float,
    delta: float = DELTA,
    n_canaries: int,
    n_honest: int,
    seed: int,
    canaries: str = "noise",
) -> dict[str, Any]:
    """Audit a pipeline once."""
    included = np.random.default_rng([seed, 1]).random(n_canaries) < 0.5
    if pipeline == "orthogonal":
        attacked = orthogonal(included, epsilon, delta, seed)
    else:
        make = mislabelled_scene if canaries == "mislabelled" else digits_scene
        attacked = PIPELINES[pipeline](
            make(n_canaries, n_honest, seed), included, epsilon, delta, seed
        )
    found = judge(attacked.scores, included, delta=delta)
    claim = attacked.mu
    return {
        "study": "one_run_audit",
        "pipeline": pipeline,
        "kind_of_canaries": "gradients" if pipeline == "orthogonal" else canaries,
        "epsilon_claimed": None if claim is None else epsilon,
        "delta": delta,
        "mu_claimed": claim,
        "seed": seed,
        "clipped_share": attacked.clipped_share,
        **found,
        "holds": None
        if claim is None
        else max(found["mu_lo"], found["mu_lo_independent"]) <= claim
        and max(found["epsilon_lo"], found["epsilon_lo_gdp"]) <= epsilon,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", choices=[*PIPELINES, "orthogonal"])
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--canaries", type=int, default=4000, help="their number (default 4000)")
    parser.add_argument("--honest", type=int, default=100, help="honest records (default 100)")
    parser.add_argument(
        "--kind",
        choices=["noise", "mislabelled"],
        default="noise",
        help="what canaries are made of: images of noise, or real digits with wrong labels",
    )
    parser.add_argument("--delta", type=float, default=DELTA)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    found = audit(
        given.pipeline,
        epsilon=given.epsilon,
        delta=given.delta,
        n_canaries=given.canaries,
        n_honest=given.honest,
        seed=given.seed,
        canaries=given.kind,
    )
    print(json.dumps({**found, "seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
