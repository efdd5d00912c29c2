"""Tables: who earns over 50,000 dollars a year, from one part of a population to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.tasks._task import Task, split
from qexp.datasets import load_adult, one_hot
from qexp.datasets.adult import CATEGORICAL_NAMES
from qexp.models import MultilayerPerceptron, mlp

_HELD_OUT: Final = 6000
_HIDDEN: Final = 32
_WORK_CLASS: Final = CATEGORICAL_NAMES.index("workclass")
_OCCUPATION: Final = CATEGORICAL_NAMES.index("occupation")
_SELF_EMPLOYED: Final = ("Self-emp-inc", "Self-emp-not-inc")


def adult_work(seed: int = 0) -> Task:
    """Adult: employees of companies; private: the self-employed.

    Public are the company employees of the training file, private its self-employed; the
    self-employed of the test file measure the result. The scales and levels of the features are
    those of the public rows, so that the private work classes are in no column.
    """
    adult = load_adult()
    train, test = adult.train, adult.test
    public = np.flatnonzero(train.categorical[:, _WORK_CLASS] == "Private")
    private = np.isin(train.categorical[:, _WORK_CLASS], _SELF_EMPLOYED)
    tested = np.isin(test.categorical[:, _WORK_CLASS], _SELF_EMPLOYED)
    encode = one_hot(train[public])

    def features(rows: Any) -> NDArray[np.float32]:
        return np.clip(encode.transform(rows), -5, 5).astype(np.float32)

    kept, out = (public[part] for part in split(len(public), _HELD_OUT, seed))
    X_kept, X_out = features(train[kept]), features(train[out])
    return Task(
        name="adult_work",
        model=_pretrained(X_kept, train.over_50k[kept], seed),
        X_public=X_kept,
        y_public=train.over_50k[kept],
        X_held_out=X_out,
        y_held_out=train.over_50k[out],
        X_private=features(train[private]),
        y_private=train.over_50k[private],
        X_test=features(test[tested]),
        y_test=test.over_50k[tested],
        surrogate="tabular",
        planning_group=train.categorical[out, _OCCUPATION],
    )


TASKS: Final[Mapping[str, Callable[[int], Task]]] = {"adult_work": adult_work}


def _pretrained(X: NDArray[Any], y: NDArray[Any], seed: int) -> MultilayerPerceptron:
    return mlp((X.shape[1], _HIDDEN, 2), seed=seed).fit(X, y, epochs=12, seed=seed)
