"""The job to come, simulated on the shifted public records, and what is known without a trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qexp._bounds import UNCLIPPED
from qexp.finetune import Schedule
from qexp.planning._domains import PublicDomains, Source, split_shifted
from qexp.planning._halving import Try
from qexp.planning._scorer import Scorer
from qexp.planning._subspace_trial import SubspaceTrial, rehearsed_directions
from qexp.planning._trials import Maker, Trial, make_trials
from qexp.surrogates import Surrogate

__all__ = ["Candidate", "Simulation", "figures", "noise_loss"]

# Hopeless is noise that costs more than this share of the loss before, and a path that would not
# save this share of what can be saved even if the slope at the start lasted.
_MOST_NOISE_LOSS: Final = 0.2
_LEAST_SAVING: Final = 0.25
_CURVE: Final = (1 / 4, 1 / 2, 2, 4)
_CURVE_RECORDS: Final = 3000

Candidate = tuple[Schedule, int | None]


class Simulation:
    """The simulated private domains of a job, for each k of a random projection or a subspace.

    `noise` gives, for an ε, the noise of a whole job in its mean gradient, for c = 1.
    """

    def __init__(
        self,
        public: PublicDomains,
        n_records: int,
        noise: Callable[[float], float],
        target_epsilon: float,
        target_delta: float,
        curvature: Literal["kronecker", "dense"] | Maker,
        n_components: Sequence[int],
        seed: int,
        *,
        subspaces: Sequence[int] = (),
        moves: Sequence[Surrogate] = (),
    ) -> None:
        self.scorer = public.scorer
        self._noise_at, self._epsilon, self.seed = noise, float(target_epsilon), seed
        self.noise = noise(self._epsilon)
        trials = {
            source: dict(
                make_trials(
                    source.model,
                    source.X,
                    source.curvature or curvature,
                    n_components,
                    target_delta,
                )
            )
            for source in public.sources
        }
        self.domains: dict[int | None, list[_Shifted]] = {
            k: [
                _simulated(source, shift, trials[source][k], n_records, seed + i)
                for i, (source, shift) in enumerate(public.domains)
            ]
            for k in trials[public.sources[0]]
        }
        self._add_subspaces(public, subspaces, moves)
        first = next(iter(self.domains.values()))
        self.before = float(np.mean([domain.before for domain in first]))
        self.loss_before = float(np.mean([domain.loss_before for domain in first]))
        self.score_before = float(
            np.mean([self.scorer(d.source.model, d.X_test, d.y_test)[0] for d in first])
        )
        self._kept: dict[tuple[float, int | None], NDArray[np.float64]] = {}
        self._draws: dict[tuple[float, float, int | None], tuple[float, float]] = {}

    def _add_subspaces(
        self, public: PublicDomains, subspaces: Sequence[int], moves: Sequence[Surrogate]
    ) -> None:
        """Simulate the same domains in subspaces, learnt from each part of the moves in turn."""
        if not subspaces:
            return
        learnt = {
            source: [
                {k: directions.subspace(k) for k in subspaces}
                for directions in rehearsed_directions(source.model, source.X, source.y, moves)
            ]
            for source in public.sources
        }
        turns: dict[Source, int] = dict.fromkeys(public.sources, 0)
        for full in self.domains[None]:
            of_part = learnt[full.source][turns[full.source] % 2]
            turns[full.source] += 1
            for k, subspace in of_part.items():
                trial = SubspaceTrial(full.source.model, full.X_private, full.y_private, subspace)
                self.domains.setdefault(k, []).append(replace(full, trial=trial))

    def tries(self, surrogates: int, records: int) -> Try[Candidate]:
        """Give what fine-tunes a candidate on a surrogate's first records, and scores it."""

        def tried(candidate: Candidate, surrogate: int, seed: int) -> tuple[float, float]:
            schedule, k = candidate
            domain = self.domains[k][surrogate]
            return domain.score(schedule, self.noise, records, seed, self.scorer)

        return tried

    def curve(
        self, candidate: Candidate, pairs: Sequence[tuple[float, float]]
    ) -> tuple[dict[str, float], ...]:
        """Try a candidate at other ε than that of which `pairs` came."""
        points = {self._epsilon: pairs}
        for factor in _CURVE:
            eps = self._epsilon * factor
            noise = self._noise_at(eps)
            points[eps] = [
                domain.score(candidate[0], noise, _CURVE_RECORDS, self.seed, self.scorer)
                for domain in self.domains[candidate[1]]
            ]
        return tuple({"epsilon": eps, **figures(points[eps])} for eps in sorted(points))

    def hopeful(self, pool: Sequence[Candidate]) -> list[Candidate]:
        """Give the candidates that closed forms leave a chance."""
        most = _MOST_NOISE_LOSS * self.loss_before
        return [c for c in self.moving(pool) if self.noise_loss(c) <= most]

    def moving(self, pool: Sequence[Candidate]) -> list[Candidate]:
        """Give the candidates whose path leads far enough, whatever the noise is."""
        # An order may get better, or a score of one's own, where the loss hardly does.
        by_loss = self.scorer.score in ("accuracy", "loss")
        least = _LEAST_SAVING * self._savable(pool) if by_loss else 0.0
        return [c for c in pool if self._saving(c) >= least]

    def _savable(self, pool: Sequence[Candidate]) -> float:
        """Predict what none of the candidates can save more than.

        That is ½ gᵀA⁻¹g, g the mean gradient, at the least damping, and the whole loss at most:
        where labels are noisy, by far the most of it stays whatever is learnt.
        """
        whole = (self._first_draw((replace(s, clipping_norm=UNCLIPPED), k)) for s, k in pool)
        return min(self.loss_before, max(0.5 * norm**2 for norm, _ in whole))

    def _saving(self, candidate: Candidate) -> float:
        """Predict what a candidate's path would save if the slope at the start lasted."""
        schedule, _ = candidate
        reach = schedule.rounds * schedule.step_size / (1 - schedule.momentum)
        return reach * self._first_draw(candidate)[1]

    def noise_loss(self, candidate: Candidate) -> float:
        """Predict the loss through the noise of all rounds."""
        schedule, k = candidate
        return noise_loss(schedule, self._kept_eigenvalues(schedule.damping, k), self.noise)

    def noise_to_signal(self, candidate: Candidate) -> float:
        """Give the norm of the first round's noise in terms of that of the clipped mean."""
        schedule, k = candidate
        signal, _ = self._first_draw(candidate)
        components = len(self._kept_eigenvalues(schedule.damping, k))
        draws = schedule.rounds / (1 - schedule.curvature_share)
        sigma = schedule.clipping_norm * self.noise * math.sqrt(draws)
        return sigma * math.sqrt(components) / max(signal, 1e-300)

    def _first_draw(self, candidate: Candidate) -> tuple[float, float]:
        schedule, k = candidate
        key = schedule.damping, schedule.clipping_norm, k
        if key not in self._draws:
            trial = self.domains[k][0].trial.head(1000)
            self._draws[key] = trial.first_draw(schedule.damping, schedule.clipping_norm)
        return self._draws[key]

    def _kept_eigenvalues(self, damping: float, k: int | None) -> NDArray[np.float64]:
        if (damping, k) not in self._kept:
            self._kept[damping, k] = self.domains[k][0].trial.kept(damping)
        return self._kept[damping, k]


@dataclass(frozen=True, eq=False)
class _Shifted:
    """One simulated private domain."""

    source: Source
    trial: Trial
    X_private: NDArray[Any]
    y_private: NDArray[Any]
    X_test: NDArray[Any]
    y_test: NDArray[Any]
    before: float
    loss_before: float

    def score(
        self, schedule: Schedule, noise: float, n_records: int, seed: int, scorer: Scorer
    ) -> tuple[float, float]:
        """Fine-tune on at most `n_records` simulated private records; test score and accuracy."""
        tuned = self.trial.head(n_records).tune(schedule, noise, np.random.default_rng(seed))
        if tuned is None:
            return scorer.of_diverged, 0.0
        return scorer(tuned, self.X_test, self.y_test)


def _simulated(
    source: Source,
    shift: Surrogate,
    trial: Callable[[NDArray[Any], NDArray[Any]], Trial],
    n_records: int,
    seed: int,
) -> _Shifted:
    """Shift the public records and split them into simulated private and test records."""
    X_private, y_private, X_test, y_test = split_shifted(shift, source.X, source.y, n_records, seed)
    return _Shifted(
        source,
        trial(X_private, y_private),
        X_private,
        y_private,
        X_test,
        y_test,
        float(source.model.score(X_test, y_test)),
        float(source.model.loss(X_test, y_test)),
    )


def figures(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Give mean and standard deviation of scores and of accuracies, None where there are none."""
    columns = list(zip(*pairs, strict=True)) or [(), ()]
    return {
        f"{name}_{figure}": float(function(column)) if column else None
        for name, column in zip(("score", "accuracy"), columns, strict=True)
        for figure, function in (("mean", np.mean), ("std", np.std))
    }


def noise_loss(schedule: Schedule, kept: NDArray[np.float64], noise: float) -> float:
    """Predict the loss that the noise of all rounds leaves in the quadratic model."""
    eta = schedule.step_size / (1 - schedule.momentum)
    draws = schedule.rounds / (1 - schedule.curvature_share)
    sigma = eta * schedule.clipping_norm * noise * math.sqrt(draws)
    decay = np.clip((1 - eta * kept) ** 2, 0, 1 - 1e-9)
    rounds = (1 - decay**schedule.rounds) / (1 - decay)
    return float(0.5 * sigma**2 * (kept * rounds).sum())
