"""The pipelines that a one-run audit attacks, each with what its attacker can see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from experiments.attacks.evidence import Evidence
from experiments.attacks.logits import best_threshold, label_logits
from experiments.attacks.scenes import Scene
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
from qexp.models import mlp
from qexp.rivals import SGDSettings
from qexp.rivals import dp_sgd as rival_dp_sgd
from qexp.subspace import PublicSubspace, image_moves, learn_directions

__all__ = ["CLIPPING_NORM", "DAMPING", "PIPELINES", "Attacked", "Trial", "noiseless", "orthogonal"]

CLIPPING_NORM = 3.0
DAMPING = 1e-2
_CLIPPING_NORM_IN_SUBSPACE = 0.3


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """Which canaries are in the data, what is claimed of the release, and the seed of its noise."""

    included: NDArray[np.bool_]
    epsilon: float
    delta: float
    seed: int

    def claim(self) -> dict[str, Any]:
        """Give the arguments of a release; each time with the generator at its start."""
        return {
            "target_epsilon": self.epsilon,
            "target_delta": self.delta,
            "rng": insecure_test_generator(self.seed),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Attacked:
    """Scores of the canaries, above 0 for those guessed in the data, and the claim, if any.

    `is_gaussian` says that the claimed ε is that of μ at δ, and not that of Poisson samples.
    """

    scores: NDArray[np.float64]
    mu: float | None
    clipped_share: float | None = None
    is_gaussian: bool = True


def _attacked(evidence: Evidence, mu: float | None) -> Attacked:
    return Attacked(scores=evidence.scores(), mu=mu, clipped_share=evidence.clipped_share)


Pipeline = Callable[[Scene, Trial], Attacked]


def _curvature(scene: Scene) -> KroneckerCurvature:
    return KroneckerCurvature.from_model(scene.model, scene.X_public, damping=DAMPING)


def kronecker(scene: Scene, trial: Trial) -> Attacked:
    return _one_round(scene, trial, _curvature(scene), None)


def srht(scene: Scene, trial: Trial, n_components: int = 2000) -> Attacked:
    projection = SRHT(scene.model.n_parameters, n_components, seed=trial.seed)
    curvature = DenseCurvature.from_model(
        scene.model, scene.X_public, projection=projection, damping=DAMPING
    )
    return _one_round(scene, trial, curvature, projection)


def subspace(scene: Scene, trial: Trial, n_components: int = 200, n_moves: int = 50) -> Attacked:
    return _in_subspace(scene, trial, _learnt_subspace(scene, n_components, n_moves))


def subspace_by_turns(
    scene: Scene, trial: Trial, n_components: int = 200, n_moves: int = 50, at_once: int = 50
) -> Attacked:
    """Release by turns, each with the same few canaries and the next of the coins.

    A coin is in one release alone, so that all of them together are a mechanism with the same claim
    for every coin. The canaries are those whose gradients are closest to orthogonal.
    """
    projection = _learnt_subspace(scene, n_components, n_moves)
    chosen = _closest_to_orthogonal(scene, projection, at_once)
    starts = range(0, len(trial.included), at_once)
    found = []
    for turn, start in enumerate(starts):
        coins = trial.included[start : start + at_once]
        some = chosen[: len(coins)]
        few = replace(scene, X_canaries=scene.X_canaries[some], y_canaries=scene.y_canaries[some])
        seed = trial.seed * len(starts) + turn
        found.append(_in_subspace(few, replace(trial, included=coins, seed=seed), projection))
    return replace(found[0], scores=np.concatenate([attacked.scores for attacked in found]))


def _learnt_subspace(scene: Scene, n_components: int, n_moves: int) -> PublicSubspace:
    # The honest records are known to the auditor, so that what is learnt from them is public.
    X, y = scene.X_honest, scene.y_honest
    moves = image_moves(scene.model, X, y, count=n_moves)
    return learn_directions(scene.model, X, y, moves=moves).subspace(n_components)


def _in_subspace(scene: Scene, trial: Trial, projection: PublicSubspace) -> Attacked:
    curvature = IdentityCurvature(projection.n_components)
    return _one_round(scene, trial, curvature, projection, _CLIPPING_NORM_IN_SUBSPACE)


def _closest_to_orthogonal(
    scene: Scene, projection: PublicSubspace, count: int
) -> NDArray[np.intp]:
    """Choose canaries one by one, each the longest beside those before it, once clipped."""
    source = scene.model.gradient_blocks(scene.X_canaries, scene.y_canaries)
    rows = np.concatenate([projection.forward(block) for block in source.blocks()])
    norms = linalg.norm(rows, axis=1, keepdims=True)
    rows *= np.minimum(1, _CLIPPING_NORM_IN_SUBSPACE / norms)
    order: NDArray[np.intp] = linalg.qr(rows.T, mode="r", pivoting=True)[1]
    return order[:count]


def _one_round(
    scene: Scene,
    trial: Trial,
    curvature: Any,
    projection: Any,
    clipping_norm: float = CLIPPING_NORM,
) -> Attacked:
    model = scene.model
    release = sample_private_weights(
        model.weights,
        model.gradient_blocks(*scene.records(trial.included)),
        curvature=curvature,
        projection=projection,
        clipping_norm=clipping_norm,
        **trial.claim(),
    )
    evidence = Evidence(scene)
    evidence.add(
        model,
        _difference(release.weights, model.weights),
        curvature=curvature,
        projection=projection,
        clipping_norm=clipping_norm,
        step_size=1.0,
        noise_std=clipping_norm / release.mu,
    )
    return _attacked(evidence, release.mu)


def rounds(scene: Scene, trial: Trial) -> Attacked:
    schedule = Schedule(rounds=8, clipping_norm=CLIPPING_NORM, step_size=0.3, damping=DAMPING)
    curvature = _curvature(scene)
    path, mus = [scene.model], []

    def watch(report: Any) -> None:
        path.append(report.model)
        mus.append(report.mu)

    result = fine_tune(
        scene.model,
        *scene.records(trial.included),
        schedule=schedule,
        curvature=curvature,
        **trial.claim(),
        on_round=watch,
    )
    evidence = Evidence(scene)
    for before, after, mu in zip(path[:-1], path[1:], mus, strict=True):
        evidence.add(
            before,
            _difference(after.weights, before.weights),
            curvature=curvature,
            clipping_norm=CLIPPING_NORM,
            step_size=schedule.step_size,
            noise_std=CLIPPING_NORM / mu,
        )
    return _attacked(evidence, result.release.mu)


def momentum(scene: Scene, trial: Trial) -> Attacked:
    schedule = Schedule(
        rounds=8,
        clipping_norm=CLIPPING_NORM,
        step_size=0.1,
        damping=DAMPING,
        momentum=0.8,
        averaging=0.25,
    )
    curvature = _curvature(scene)
    result = fine_tune(
        scene.model,
        *scene.records(trial.included),
        schedule=schedule,
        curvature=curvature,
        **trial.claim(),
    )
    return _by_the_end(scene, result, schedule, curvature)


def estimator(scene: Scene, trial: Trial) -> Attacked:
    from qexp.estimator import PrivateFineTuner

    schedule = Schedule(rounds=4, clipping_norm=CLIPPING_NORM, step_size=0.3, damping=DAMPING)
    tuner = PrivateFineTuner(
        scene.model,
        target_epsilon=trial.epsilon,
        target_delta=trial.delta,
        public_data=(scene.X_public, None),
        schedule=schedule,
        insecure_test_seed=trial.seed,
    ).fit(*scene.records(trial.included))
    return _by_the_end(scene, tuner.result_, schedule, _curvature(scene))


def _by_the_end(scene: Scene, result: Any, schedule: Schedule, curvature: Any) -> Attacked:
    """Score by the released weights alone, as if all gradients were those at the start."""
    weight = _weight_of_rounds(schedule)
    evidence = Evidence(scene)
    evidence.add(
        scene.model,
        _difference(result.release.weights, scene.model.weights),
        curvature=curvature,
        clipping_norm=schedule.clipping_norm,
        step_size=schedule.step_size * sum(weight),
        noise_std=schedule.clipping_norm
        * math.sqrt(schedule.rounds * sum(w * w for w in weight))
        / (sum(weight) * result.release.mu),
    )
    return _attacked(evidence, result.release.mu)


def _weight_of_rounds(schedule: Schedule) -> list[float]:
    """Give how much of each round's step is in the released weights."""
    m, last = schedule.momentum, schedule.rounds
    ends = range(last - max(1, schedule.averaged_rounds) + 1, last + 1)
    return [
        sum(sum(m**j for j in range(end - t + 1)) for end in ends if end >= t) / len(ends)
        for t in range(1, last + 1)
    ]


def dp_sgd(scene: Scene, trial: Trial) -> Attacked:
    """Score by the released weights alone, as if all gradients were those at the start.

    A record is in a share of the samples: in all steps together its gradient is taken as often as
    in the mean, and the noise is that of all steps.
    """
    # Short steps, so that gradients stay what they were: the noise is as long beside them.
    settings = SGDSettings(steps=32, sampling_rate=0.25, learning_rate=0.1, clipping_norm=1.0)
    result = rival_dp_sgd(
        scene.model, *scene.records(trial.included), settings=settings, **trial.claim()
    )
    assert result.release is not None  # it has privacy
    # What the steps compose to without the gain of sampling: √T over their noise multiplier.
    mu, c = result.release.mu, settings.clipping_norm
    evidence = Evidence(scene)
    evidence.add(
        scene.model,
        _difference(result.release.weights, scene.model.weights),
        curvature=IdentityCurvature(scene.model.n_parameters),
        clipping_norm=c,
        step_size=settings.learning_rate * settings.steps / c,
        noise_std=c / (settings.sampling_rate * mu),
    )
    return replace(_attacked(evidence, mu), is_gaussian=False)


def noiseless(scene: Scene, trial: Trial) -> Attacked:
    """Step as `kronecker` does, without noise: clipped as it should be, and not private."""
    model = scene.model
    curvature = _curvature(scene)
    total = np.zeros(model.n_parameters)
    for block in model.gradient_blocks(*scene.records(trial.included)).blocks():
        whitened = np.nan_to_num(curvature.whiten(block))
        norms = np.maximum(linalg.norm(whitened, axis=1), CLIPPING_NORM)
        total += (whitened * (CLIPPING_NORM / norms)[:, None]).sum(axis=0)
    weights = (model.weights - curvature.unwhiten(total) / scene.n_records).astype(np.float32)
    evidence = Evidence(scene)
    evidence.add(
        model,
        _difference(weights, model.weights),
        curvature=curvature,
        clipping_norm=CLIPPING_NORM,
        step_size=1.0,
        noise_std=1e-2 * CLIPPING_NORM,
    )
    return _attacked(evidence, None)


def fit(scene: Scene, trial: Trial) -> Attacked:
    """Train by heart what is there, without privacy; guess that what is known by heart was.

    How well is well enough is learned from a model trained on other coins.
    """
    seed = trial.seed
    other = np.random.default_rng([seed, 2]).random(len(trial.included)) < 0.5
    threshold = best_threshold(_label_logits(scene, other, seed + 1), other)
    return Attacked(scores=_label_logits(scene, trial.included, seed) - threshold, mu=None)


def _label_logits(scene: Scene, included: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    X, y = scene.records(included)
    present = ~np.isnan(X[:, 0])
    start = mlp((X.shape[1], 512, scene.model.n_classes), activation="relu", seed=seed)
    model = start.fit(X[present], y[present], epochs=300, weight_decay=0.0, seed=seed)
    return label_logits(model, scene.X_canaries, scene.y_canaries)


def _difference(after: NDArray[Any], before: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(after.astype(np.float64) - before.astype(np.float64))


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


def orthogonal(trial: Trial) -> Attacked:
    m = len(trial.included)
    release = sample_private_weights(
        np.zeros(m),
        OrthogonalGradients(trial.included),
        curvature=IdentityCurvature(m),
        clipping_norm=CLIPPING_NORM,
        **trial.claim(),
    )
    return Attacked(
        scores=-m / CLIPPING_NORM * release.weights - 0.5, mu=release.mu, clipped_share=1.0
    )


PIPELINES: dict[str, Pipeline] = {
    made.__name__: made
    for made in (
        *(kronecker, srht, subspace, subspace_by_turns, rounds, momentum, estimator, dp_sgd),
        *(noiseless, fit),
    )
}
