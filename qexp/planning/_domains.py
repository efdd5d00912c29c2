"""The private domain, simulated: public records that pretraining has not seen, shifted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks
from qexp._parallel import threads_for
from qexp.models._records import require_labels_of
from qexp.planning._halving import Effort, named_effort
from qexp.planning._scorer import Score, Scorer
from qexp.planning._trials import Maker
from qexp.surrogates import SURROGATE_KEEPS, Surrogate, image_surrogates, table_surrogates

__all__ = ["PublicDomains", "Rehearsal", "Shifts", "Source", "public_domains", "split_shifted"]

Shifts = Literal["images", "tabular"] | Surrogate | Sequence[Surrogate]
"""How a private domain is simulated: shifts to draw, or functions of one's own."""

LEAST_RECORDS: Final = 50
"""How few public records a plan can be made on."""

_MOST_TEST_RECORDS: Final = 4000
_PRIVATE_SHARE: Final = 0.6


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A move between public domains, to plan on beside one's own.

    Such as a model of surgical wards for one of medical wards, each tried on the other's records:
    of many schedules that are alike on one move, the first is the luckiest on that move.

    Attributes
    ----------
    model : qexp.models.MultilayerPerceptron or alike
        Pretrained, of as many weights as the model that is planned for.
    X_public, y_public : array, shape (m, d) and (m,)
        Public records that it has not seen, or at least that curvature may be made of, and their
        labels.
    surrogate : {"images", "tabular"}, callable, or sequence of callables
        How the domain that it moves to is simulated, as in :func:`qexp.planning.plan`.
    curvature : {"kronecker", "dense"} or callable, optional
        As in :func:`qexp.planning.plan`, of this move's own public records. Default: that one,
        which must not be a function then. Rivals have no use for it.
    """

    model: Any
    X_public: ArrayLike
    y_public: ArrayLike
    surrogate: Shifts
    curvature: Literal["kronecker", "dense"] | Maker | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """A pretrained model, public records in its dtype with their labels, and their curvature."""

    model: Any
    X: NDArray[Any]
    y: NDArray[Any]
    curvature: Literal["kronecker", "dense"] | Maker | None = None


@dataclass(frozen=True, eq=False)
class PublicDomains:
    """What a plan is made on.

    Attributes
    ----------
    scorer : Scorer
    effort : Effort
    domains : list of (Source, Surrogate)
        The shift makes a private domain of the source's records. The model planned for comes
        first; sources take turns, so that the first few domains are of all.
    """

    scorer: Scorer
    effort: Effort
    domains: list[tuple[Source, Surrogate]]

    @property
    def sources(self) -> list[Source]:
        """Every source once, the one planned for first."""
        return list(dict.fromkeys(source for source, _ in self.domains))

    @property
    def threads(self) -> int:
        """How many trials may run at once; a score of the caller's own may bear only one."""
        if callable(self.scorer.score):
            return 1
        return threads_for(*(source.model for source in self.sources))


def public_domains(
    model: Any,
    X_public: ArrayLike,
    y_public: ArrayLike,
    *,
    surrogate: Shifts,
    surrogate_keeps: tuple[float, float] = SURROGATE_KEEPS,
    rehearsals: Sequence[Rehearsal] = (),
    image_shape: tuple[int, int] | None,
    public_group: ArrayLike | None,
    score: Score,
    effort: str,
    seed: int = 0,
) -> PublicDomains:
    """Check what :func:`qexp.planning.plan` and its like are given, and draw the shifts."""
    budget = named_effort(effort)
    moves = [Rehearsal(model, X_public, y_public, surrogate), *_checked(rehearsals, model)]
    drawn = {"count": budget.surrogates, "seed": seed, "keeps": surrogate_keeps}
    own: list[list[tuple[Source, Surrogate]]] = []
    for move in moves:
        records = _records(move.model, move.X_public, move.y_public)
        source = Source(move.model, *records, move.curvature)
        scorer = Scorer(score, source.y)
        # A public column is of the records that came with it.
        group = None if own else public_group
        shifts = _shifts(move.surrogate, source, scorer, image_shape, group, drawn)
        own.append([(source, shift) for shift in shifts])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*own))
    return PublicDomains(scorer, budget.over(len(moves)), [d for d in turns if d is not None])


def _checked(rehearsals: Sequence[Rehearsal], model: Any) -> Sequence[Rehearsal]:
    for rehearsal in rehearsals:
        if not isinstance(rehearsal, Rehearsal):
            raise TypeError(
                f"rehearsals hold a {type(rehearsal).__name__}; they need to be "
                "qexp.planning.Rehearsal"
            )
        if len(rehearsal.model.weights) != len(model.weights):
            raise ValueError(
                f"a rehearsal's model has {len(rehearsal.model.weights)} weights and the model to "
                f"plan for {len(model.weights)}; they need as many"
            )
    return rehearsals


def _records(
    model: Any, X_public: ArrayLike, y_public: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give the records in the model's dtype, and their labels, if they can be planned with."""
    X, y = _checks.labelled(X_public, y_public)
    if len(X) < LEAST_RECORDS:
        raise ValueError(
            f"there are {len(X)} public records; a plan needs at least {LEAST_RECORDS}, and is "
            "worth little with fewer than a thousand"
        )
    X = X.astype(getattr(model, "dtype", np.float32), copy=False)
    if not np.all(np.isfinite(X)):
        raise ValueError("X_public holds NaN or infinite values; public records must be finite")
    require_labels_of(model, y)
    return X, y


def _shifts(
    surrogate: Shifts,
    source: Source,
    scorer: Scorer,
    image_shape: tuple[int, int] | None,
    group: ArrayLike | None,
    drawn: Mapping[str, Any],
) -> list[Surrogate]:
    """Give the shifts that `surrogate` names, or those that it is."""
    if callable(surrogate):
        return [surrogate]
    if not isinstance(surrogate, str):
        given = list(surrogate)
        if not given or not all(callable(shift) for shift in given):
            raise TypeError("surrogate needs functions shift(X, y, rng) -> (X, y), at least one")
        return given
    model, X, y = source.model, source.X, source.y
    if surrogate == "images":
        return list(image_surrogates(model, X, y, image_shape=image_shape, **drawn))
    if surrogate == "tabular":
        hardness: Literal["accuracy", "auroc"] = "auroc" if scorer.score == "auroc" else "accuracy"
        return list(table_surrogates(model, X, y, group=group, score=hardness, **drawn))
    raise ValueError(
        f"surrogate is {surrogate!r}; it needs 'images', 'tabular', or functions of your own"
    )


def split_shifted(
    shift: Surrogate, X: NDArray[Any], y: NDArray[Any], n_records: int, seed: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Give simulated private records, at most `n_records`, their labels, and those of the test.

    Where there are fewer, and a shift has several views of a record, those of the private ones are
    taken: on a few records for many, long steps overfit that do not on many.
    """
    rng = np.random.default_rng(_checks.seed(seed))
    shifted, labels = shift(X, y, rng)
    order = rng.permutation(len(shifted))
    n_private = min(n_records, int(_PRIVATE_SHARE * len(order)))
    private, test = order[:n_private], order[n_private:][:_MOST_TEST_RECORDS]
    if len(private) == 0 or len(test) == 0:
        raise ValueError(f"the surrogate {shift} left {len(order)} records; it needs more")
    views = [(shifted[private], labels[private])]
    for _ in range(min(n_records // n_private, getattr(shift, "views", 1)) - 1):
        views.append(shift(X[private], y[private], rng))
    X_private, y_private = (np.concatenate(parts) for parts in zip(*views, strict=True))
    return X_private, y_private, shifted[test], labels[test]
