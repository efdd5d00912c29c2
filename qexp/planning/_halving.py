"""Successive halving: all candidates on few records first, the best of them on all.

After Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization" (AISTATS 2016). qexp's schedules and its rivals' settings are chosen by it alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import numpy as np

from qexp._parallel import several_at_once
from qexp._progress import progress_bar

__all__ = ["EFFORTS", "Effort", "Halving", "Outcome", "Try", "named_effort"]

C = TypeVar("C")
Try = Callable[[C, int, int], tuple[float, float]]
_Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Effort:
    """How many trials.

    Attributes
    ----------
    surrogates : int
        How many shifts are drawn.
    stages : tuple of (int or None, int or None, int or None)
        Candidates, surrogates and records at most; None for all.
    refinements : int
        How often what is near the best is tried.
    finalists, repeats : int
        So many of the best are tried so many times more at the end.
    """

    surrogates: int
    stages: tuple[tuple[int | None, int | None, int | None], ...]
    refinements: int
    finalists: int
    repeats: int

    def over(self, sources: int) -> Effort:
        """Give the effort of as many surrogates from each of several sources."""
        return replace(self, stages=tuple((c, s and s * sources, r) for c, s, r in self.stages))


EFFORTS: Final = {
    "quick": Effort(
        3,
        ((None, 1, 500), (64, None, 800), (24, None, 2500), (8, None, None)),
        refinements=2,
        finalists=8,
        repeats=4,
    ),
    "full": Effort(
        5,
        ((None, 2, 1000), (128, None, 1500), (48, None, 4000), (16, None, None)),
        refinements=3,
        finalists=12,
        repeats=4,
    ),
}


def named_effort(effort: str) -> Effort:
    """Give the stages of an effort; raise where there is none of that name."""
    if effort not in EFFORTS:
        raise ValueError(f"effort is {effort!r}; it needs 'quick' or 'full'")
    return EFFORTS[effort]


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate in the last stage that it reached.

    Attributes
    ----------
    stage : int
        Past the last one for finalists.
    records : int
        Simulated private records.
    pairs : tuple of (float, float)
        Score and accuracy, one pair a surrogate; of a finalist, means over its trials.
    """

    stage: int
    records: int
    pairs: _Pairs

    @property
    def mean(self) -> float:
        """Mean score over the surrogates."""
        return float(np.mean([score for score, _ in self.pairs]))


class Halving(Generic[C]):
    """Candidates tried in stages.

    Parameters
    ----------
    prepare : callable
        ``prepare(surrogates, records)`` gives, for a stage on so many of each, the function
        ``(candidate, number of the surrogate, seed) -> (score, accuracy)``.
    effort : Effort
    n_surrogates : int
        How many there are, though a stage may ask for more.
    n_records : int
        Of the private data.
    seed : int
    work : callable
        How far a candidate moves the progress bar on.
    what : str
        What that is counted in.
    progress : bool
    threads : int
        How many trials at once.
    """

    def __init__(
        self,
        prepare: Callable[[int, int], Try[C]],
        effort: Effort,
        *,
        n_surrogates: int,
        n_records: int,
        seed: int,
        work: Callable[[C], int] = lambda candidate: 1,
        what: str = "trials",
        progress: bool = False,
        threads: int = 1,
    ) -> None:
        self._prepare, self._effort, self._seed = prepare, effort, seed
        self._threads = threads
        self._n_surrogates, self._n_records = n_surrogates, n_records
        self._work, self._what, self._progress = work, what, progress
        self.outcomes: dict[C, Outcome] = {}

    def run(self, candidates: Sequence[C]) -> None:
        """Try the candidates, in each stage the best of the one before."""
        alive = list(dict.fromkeys(candidates))
        for stage, (most, _, _) in enumerate(self._effort.stages):
            if stage:
                alive = sorted(alive, key=self._mean, reverse=True)[:most]
            self._try(alive, stage)

    def refine(self, neighbours: Callable[[C], Sequence[C]], *, most: int = 0) -> None:
        """Try what is near the best, as often as the effort says.

        And on, up to `most` times in all, as long as something better is found: the best may lie
        beyond the grid.
        """
        done, better = 0, True
        while done < self._effort.refinements or (done < most and better):
            best = self.ranked()[0]
            self.add(neighbours(best))
            better = self.ranked()[0] != best
            done += 1

    def add(self, candidates: Sequence[C]) -> None:
        """Try more candidates on all surrogates and records, but for those that were."""
        last = len(self._effort.stages) - 1
        reached = {c for c, outcome in self.outcomes.items() if outcome.stage == last}
        self._try([c for c in dict.fromkeys(candidates) if c not in reached], last)

    def settle(self) -> None:
        """Try the best again with fresh noise.

        Of many candidates that are alike, the first in a single trial is the luckiest.
        """
        finalists = self.ranked()[: self._effort.finalists]
        seeds = [self._seed_of(len(self._effort.stages) + k) for k in range(self._effort.repeats)]
        if not finalists or not seeds:
            return
        last = len(self._effort.stages)
        records, trials = self._trials(finalists, last - 1, seeds, "finalists")
        for candidate, fresh in trials.items():
            means = np.mean([self.outcomes[candidate].pairs, *fresh], axis=0)
            pairs = tuple((float(score), float(accuracy)) for score, accuracy in means)
            self.outcomes[candidate] = Outcome(last, records, pairs)

    def ranked(self) -> list[C]:
        """Sort what was tried: those that got furthest first, the best of each stage first."""

        def rank(candidate: C) -> tuple[int, float]:
            return self.outcomes[candidate].stage, self._mean(candidate)

        return sorted(self.outcomes, key=rank, reverse=True)

    def _mean(self, candidate: C) -> float:
        return self.outcomes[candidate].mean

    def _try(self, candidates: Sequence[C], stage: int) -> None:
        records, trials = self._trials(
            candidates, stage, [self._seed_of(stage)], f"stage {stage + 1}"
        )
        for candidate, (pairs,) in trials.items():
            self.outcomes[candidate] = Outcome(stage, records, pairs)

    def _trials(
        self, candidates: Sequence[C], stage: int, seeds: Sequence[int], where: str
    ) -> tuple[int, dict[C, list[_Pairs]]]:
        """Try candidates as a stage does, once a seed; give its records and what came of each."""
        surrogates, records, tried = self._prepared(stage)
        jobs = [(c, i, seed + i) for c in candidates for seed in seeds for i in range(surrogates)]
        trials: dict[C, list[_Pairs]] = {candidate: [] for candidate in candidates}
        with (
            self._bar(candidates, where, len(seeds)) as advance,
            several_at_once(self._threads) as each,
        ):
            done = each(lambda job: tried(*job), jobs)
            for candidate, _ in itertools.product(candidates, seeds):
                trials[candidate].append(tuple(itertools.islice(done, surrogates)))
                advance(self._work(candidate))
        return records, trials

    def _prepared(self, stage: int) -> tuple[int, int, Try[C]]:
        """Give the surrogates and records of a stage, and what tries a candidate on them."""
        _, most_surrogates, most_records = self._effort.stages[stage]
        surrogates = min(most_surrogates or self._n_surrogates, self._n_surrogates)
        records = min(most_records or self._n_records, self._n_records)
        return surrogates, records, self._prepare(surrogates, records)

    def _seed_of(self, stage: int) -> int:
        return self._seed + 1000 * stage

    def _bar(
        self, candidates: Sequence[C], where: str, times: int = 1
    ) -> AbstractContextManager[Callable[[int], None]]:
        total = times * sum(map(self._work, candidates))
        return progress_bar(total, f"{self._what} of {where}", show=self._progress)
