"""How far the study's differences would vary on other test records of the same domain.

Seeds vary pretraining and noise; the test records are the same for all of them. So a difference
that all seeds show may still be one of these few records. How far it would vary is told by its
variance over them: that of a mean for accuracies; for areas under the ROC curve, that of DeLong,
DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
characteristic curves: a nonparametric approach" (Biometrics 44, 1988).

    python -m experiments all --only sampling

measures the cells that are won or lost, whose lines take the plans of the study.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from experiments.lines import Lines, key_of
from experiments.study.cells import task_at
from experiments.study.methods import METHODS
from experiments.study.names import PLANNED
from experiments.study.results import Store
from experiments.study.summaries import summarise
from experiments.study.verdicts import Verdict, verdicts
from experiments.tasks import Task
from qexp._progress import progress_bar

__all__ = ["known_errors", "measure", "standard_error"]

_DELTA: Final = 1e-5
# Means over a few seeds hardly vary by record more than those over all.
_SEEDS: Final = 5
_KEY: Final = ("task", "epsilon", "rival")

Pair = tuple[NDArray[Any], NDArray[Any]]


def measure(store: Store | None = None) -> None:
    """Measure the cells that are won or lost and have no line of today's plans."""
    store = Store() if store is None else store
    clear = [v for v in verdicts(summarise(store.all_lines(), _DELTA)) if v.word != "Tied"]
    known = known_errors(store)
    missing = [v for v in clear if _key(v) not in known]
    lines = _lines(store)
    with progress_bar(len(missing), "sampling", show=True) as advance:
        for name, some in itertools.groupby(missing, key=lambda v: v.ours.task):
            # Pretraining is shared by the cells of a task.
            tasks = [task_at(name, seed) for seed in range(_SEEDS)]
            for verdict in some:
                lines.add(_measured(verdict, tasks, store))
                advance(1)


def known_errors(store: Store) -> dict[tuple[str, float, str], float]:
    """Give standard errors over test records, by task, ε and rival, of plans that are today's."""
    return {
        (line["task"], line["epsilon"], line["rival"]): line["standard_error"]
        for line in _lines(store).read()
        if line["method"] == _judged(store, line["task"], line["epsilon"])
        and line["ours"] == _settings(store, line["task"], line["method"], line["epsilon"])
        and line["theirs"] == _settings(store, line["task"], line["rival"], line["epsilon"])
    }


def standard_error(metric: str, y: NDArray[Any], pairs: Sequence[Pair]) -> float:
    """Give the standard error, over test records, of a difference that is a mean over seeds.

    Parameters
    ----------
    metric : {"accuracy", "auroc"}
    y : ndarray, shape (n,)
        Labels of the test records.
    pairs : sequence of (ndarray, ndarray), shape (n, K)
        Probabilities of classes by two models, one pair a seed.
    """
    share = _right if metric == "accuracy" else _placements
    of_records = np.mean([share(y, one) - share(y, other) for one, other in pairs], axis=0)
    groups = [of_records] if metric == "accuracy" else [of_records[y == c] for c in (0, 1)]
    return math.sqrt(sum(float(group.var(ddof=1)) / len(group) for group in groups))


def _right(y: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[np.float64]:
    right: NDArray[np.float64] = (probabilities.argmax(axis=1) == y).astype(np.float64)
    return right


def _placements(y: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Give each record's share of those of the other class that it is in order with.

    The mean over either class is the area under the ROC curve.
    """
    scores, positive = probabilities[:, 1], y == 1
    below = rankdata(scores)
    for of_class in (positive, ~positive):
        below[of_class] -= rankdata(scores[of_class])
    n_positive = int(positive.sum())
    shares: NDArray[np.float64] = np.where(
        positive, below / (len(y) - n_positive), 1 - below / n_positive
    )
    return shares


def _measured(verdict: Verdict, tasks: Sequence[Task], store: Store) -> dict[str, Any]:
    """Run qexp and the rival of a cell again, on each seed's task."""
    name, epsilon = verdict.cell
    methods = verdict.ours.method, verdict.best.method
    # Who has a verdict has a plan.
    settings = [_settings(store, name, method, epsilon) or {} for method in methods]
    pairs: list[Pair] = []
    for seed, task in enumerate(tasks):
        ours, theirs = (
            METHODS[method].run(task, planned, epsilon, _DELTA, seed).model
            for method, planned in zip(methods, settings, strict=True)
        )
        pairs.append((ours.predict_proba(task.X_test), theirs.predict_proba(task.X_test)))
    metric, y = tasks[0].metric, tasks[0].y_test
    return {
        **dict(zip(_KEY, _key(verdict), strict=True)),
        "delta": _DELTA,
        "seeds": len(tasks),
        "test_records": len(y),
        "standard_error": standard_error(metric, y, pairs),
        "method": verdict.ours.method,
        "ours": settings[0],
        "theirs": settings[1],
    }


def _judged(store: Store, task: str, epsilon: float) -> str | None:
    """Name the method that is judged as qexp in a cell."""
    known = (name for name in PLANNED if _settings(store, task, name, epsilon) is not None)
    return next(known, None)


def _settings(store: Store, task: str, method: str, epsilon: float) -> dict[str, Any] | None:
    """Give the plan of a cell, if it has one; one for all budgets where the method takes none."""
    stated = epsilon if METHODS[method].takes_budget else None
    return store.settings(task, method, stated, _DELTA)


def _key(verdict: Verdict) -> tuple[str, float, str]:
    return *verdict.cell, verdict.best.method


def _lines(store: Store) -> Lines:
    return Lines(store.folder / "sampling.jsonl", key_of(_KEY))
