"""Choosing a rival's settings as qexp chooses its own: on shifted public records, by halving.

The surrogates, the simulated number of records and the stages are those of
:func:`qexp.planning.plan`. The first stage tries all of a method's own grid, as it does what closed
forms leave of qexp's; from then on the number of trials is that of `plan`. What a rival is tried
with is its own algorithm, on a boundary that simulates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks
from qexp._privacy_checks import check_delta, check_epsilon
from qexp.models._public_perceptron import PublicPerceptron, for_public_records
from qexp.planning._domains import (
    PublicDomains,
    Rehearsal,
    Shifts,
    Source,
    public_domains,
    split_shifted,
)
from qexp.planning._halving import Halving, Outcome, Try
from qexp.planning._scorer import Score
from qexp.planning._simulation import figures
from qexp.rivals._accounting import Target
from qexp.rivals._boundary import SimulatedBoundary
from qexp.rivals._descent import model_at
from qexp.rivals._method import Method, PublicData
from qexp.surrogates import SURROGATE_KEEPS

__all__ = ["RivalPlan", "RivalSimulation", "plan_rival"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RivalPlan:
    """Settings of a rival, chosen on public records.

    Attributes
    ----------
    method : str
    settings
        Of the method's `settings_type`.
    predicted_accuracy, predicted_deviation : float
        Mean and standard deviation over the surrogates.
    accuracy_before : float
        Mean accuracy of the pretrained model on the surrogates.
    score : str
        What settings were ranked by.
    predicted_score : float
        Mean over the surrogates in terms of that score; larger is better.
    target_epsilon, target_delta : float
    n_records : int
    surrogates : tuple of str
    table : tuple of dict
        One row a candidate, best first: ``settings``, ``score_mean``, ``score_std``,
        ``accuracy_mean``, ``accuracy_std``, ``surrogates`` and ``records`` of the last stage
        that it reached.
    """

    method: str
    settings: Any
    predicted_accuracy: float
    predicted_deviation: float
    accuracy_before: float
    score: str
    predicted_score: float
    target_epsilon: float
    target_delta: float
    n_records: int
    surrogates: tuple[str, ...]
    table: tuple[Mapping[str, Any], ...]

    def describe(self) -> dict[str, Any]:
        """Describe the plan and its table as a dictionary that JSON can hold."""
        return {
            "method": self.method,
            "settings": asdict(self.settings),
            "predicted_accuracy": self.predicted_accuracy,
            "predicted_deviation": self.predicted_deviation,
            "accuracy_before": self.accuracy_before,
            "score": self.score,
            "predicted_score": self.predicted_score,
            "target_epsilon": self.target_epsilon,
            "target_delta": self.target_delta,
            "n_records": self.n_records,
            "surrogates": list(self.surrogates),
            "table": [{**row, "settings": asdict(row["settings"])} for row in self.table],
        }


# Grids hold what was published, and the best for other data may lie a few steps beyond them.
_MOST_REFINEMENTS: Final = 6


def plan_rival(
    method: Method[Any],
    model: Any,
    X_public: ArrayLike,
    y_public: ArrayLike,
    *,
    n_records: int,
    target_epsilon: float,
    target_delta: float,
    neighboring_relation: str = "replace_special",
    surrogate: Shifts = "images",
    surrogate_keeps: tuple[float, float] = SURROGATE_KEEPS,
    rehearsals: Sequence[Rehearsal] = (),
    image_shape: tuple[int, int] | None = None,
    public_group: ArrayLike | None = None,
    candidates: Iterable[Any] | None = None,
    trials: int | None = None,
    score: Score = "accuracy",
    effort: Literal["quick", "full"] = "quick",
    seed: int = 0,
    progress: bool = False,
) -> RivalPlan:
    """Choose a rival's settings on public records alone.

    Parameters
    ----------
    method : Method
        From ``qexp.rivals.METHODS``.
    model
        Pretrained.
    X_public, y_public : array, shape (m, d) and (m,)
        Public records that pretraining has not seen. The surrogates shift them; the method gets
        them unshifted as its public data, as :func:`qexp.planning.plan` makes curvature of them.
    n_records : int
        n of the private data; public.
    target_epsilon, target_delta, neighboring_relation
        The privacy of the job to come.
    surrogate, surrogate_keeps, rehearsals, image_shape, public_group, score, effort, seed
        As in :func:`qexp.planning.plan`.
    candidates : iterable of settings, optional
        Default: the method's grid, whose best are refined at the end; candidates of your own are
        not.
    trials : int, optional
        Try at most so many candidates, drawn at random from the others. Default: all.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    RivalPlan

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, or there are too few public records.
    ImportError
        If Poisson samples are to be accounted for and dp-accounting is not installed.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method is a {type(method).__name__}; it needs one of qexp.rivals.METHODS")
    n = _checks.count(n_records, "n_records")
    target = Target(
        check_epsilon(target_epsilon, "target_epsilon"),
        check_delta(target_delta, "target_delta"),
        neighboring_relation,
    )
    pool = list(dict.fromkeys(method.candidates() if candidates is None else candidates))
    if not pool or not all(isinstance(s, method.settings_type) for s in pool):
        raise TypeError(
            f"candidates need to be {method.settings_type.__name__}, and at least one of them"
        )
    if trials is not None and _checks.count(trials, "trials") < len(pool):
        kept = np.random.default_rng(seed).permutation(len(pool))[:trials]
        pool = [pool[i] for i in sorted(kept)]
    public = public_domains(
        model,
        X_public,
        y_public,
        surrogate=surrogate,
        surrogate_keeps=surrogate_keeps,
        rehearsals=rehearsals,
        image_shape=image_shape,
        public_group=public_group,
        score=score,
        effort=effort,
        seed=seed,
    )
    simulation = RivalSimulation(method, public, n, target, seed)
    halving: Halving[Any] = Halving(
        simulation.tries,
        public.effort,
        n_surrogates=len(public.domains),
        n_records=n,
        seed=seed,
        progress=progress,
        threads=public.threads,
    )
    halving.run(pool)
    if candidates is None:
        halving.refine(method.neighbours, most=_MOST_REFINEMENTS)
    halving.settle()
    table = tuple(_row(settings, halving.outcomes[settings]) for settings in halving.ranked())
    best = table[0]
    return RivalPlan(
        method=method.name,
        settings=best["settings"],
        predicted_accuracy=best["accuracy_mean"],
        predicted_deviation=best["accuracy_std"],
        accuracy_before=simulation.before,
        score=public.scorer.name,
        predicted_score=best["score_mean"],
        target_epsilon=target.epsilon,
        target_delta=target.delta,
        n_records=n,
        surrogates=tuple(str(shift) for _, shift in public.domains),
        table=table,
    )


def _row(settings: Any, outcome: Outcome) -> dict[str, Any]:
    """Tell what is known of settings."""
    return {
        "settings": settings,
        **figures(outcome.pairs),
        "surrogates": len(outcome.pairs),
        "records": outcome.records,
    }


class RivalSimulation:
    """The simulated private domains that a rival is tried on."""

    def __init__(
        self,
        method: Method[Any],
        public: PublicDomains,
        n_records: int,
        target: Target,
        seed: int,
    ) -> None:
        self.scorer = public.scorer
        self.method, self.n_records, self.target = method, n_records, target
        self.domains = [
            _Domain(source, *split_shifted(shift, source.X, source.y, n_records, seed + i))
            for i, (source, shift) in enumerate(public.domains)
        ]
        self.before = float(
            np.mean([d.source.model.score(d.X_test, d.y_test) for d in self.domains])
        )

    def tries(self, surrogates: int, records: int) -> Try[Any]:
        """Give what fine-tunes with settings on a surrogate's first records, and scores it."""
        domains = [replace(d, X=d.X[:records], y=d.y[:records]) for d in self.domains[:surrogates]]
        # Heads on fixed features ask for nothing but the gradients at the pretrained weights.
        fast = {domain.source: _fast(domain.source, domains) for domain in domains}
        return lambda settings, i, seed: self._tried(
            fast[domains[i].source], settings, domains[i], seed
        )

    def _tried(self, model: Any, settings: Any, domain: _Domain, seed: int) -> tuple[float, float]:
        """Give score and accuracy."""
        source, rng = domain.source, np.random.default_rng(seed)
        boundary = SimulatedBoundary(domain.X, domain.y, self.target, self.n_records, rng)
        public = PublicData(source.X, source.y)
        tuned = self.method.algorithm(model, boundary, settings, public)
        if tuned.diverged:
            return self.scorer.of_diverged, 0.0
        # A score of the caller's own gets a model of the caller's own.
        judged = source.model if callable(self.scorer.score) else model
        return self.scorer(model_at(judged, tuned.theta), domain.X_test, domain.y_test)


@dataclass(frozen=True, eq=False)
class _Domain:
    """Simulated private records of a source's model, and those of the test."""

    source: Source
    X: NDArray[Any]
    y: NDArray[Any]
    X_test: NDArray[Any]
    y_test: NDArray[Any]


def _fast(source: Source, domains: Sequence[_Domain]) -> Any:
    """Give a perceptron that knows the gradients of all its records; other models as they are."""
    model = for_public_records(source.model)
    if isinstance(model, PublicPerceptron):
        model.keep(source.X, source.y)
        for domain in domains:
            if domain.source is source:
                model.keep(domain.X, domain.y)
    return model
