"""UCI Adult (Census Income): who earns over 50,000 dollars a year."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexp.datasets._locate import Source, read_plain
from qexp.datasets._standardise import Standardiser, standardise

_SOURCE = Source(
    title="Adult",
    folder="adult",
    publisher="the UCI Machine Learning Repository (archive.ics.uci.edu/dataset/2/adult)",
)

_COLUMNS = (
    ("age", float),
    ("workclass", str),
    ("fnlwgt", float),
    ("education", str),
    ("education-num", float),
    ("marital-status", str),
    ("occupation", str),
    ("relationship", str),
    ("race", str),
    ("sex", str),
    ("capital-gain", float),
    ("capital-loss", float),
    ("hours-per-week", float),
    ("native-country", str),
)
NUMERIC_NAMES = tuple(name for name, kind in _COLUMNS if kind is float)
CATEGORICAL_NAMES = tuple(name for name, kind in _COLUMNS if kind is str)
_NUMERIC = [index for index, (_, kind) in enumerate(_COLUMNS) if kind is float]
_CATEGORICAL = [index for index, (_, kind) in enumerate(_COLUMNS) if kind is str]
_LABELS = {"<=50K": 0, ">50K": 1}
_MISSING = "?"


@dataclass(frozen=True, eq=False)
class AdultRows:
    """Rows of Adult.

    Attributes
    ----------
    numeric
        Shape (n, 6), float64, NaN for missing; columns as in `NUMERIC_NAMES`.
    categorical
        Shape (n, 8), str, empty for missing; columns as in `CATEGORICAL_NAMES`.
    over_50k
        Shape (n,), uint8: 1 if the income is over 50,000 dollars.
    """

    numeric: NDArray[np.float64]
    categorical: NDArray[np.str_]
    over_50k: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.over_50k)

    def __getitem__(self, rows: slice | NDArray[Any]) -> "AdultRows":
        """Return the rows of a slice, an index array or a mask."""
        return AdultRows(self.numeric[rows], self.categorical[rows], self.over_50k[rows])


@dataclass(frozen=True, eq=False)
class Adult:
    """The 32,561 training and 16,281 test rows of Adult."""

    train: AdultRows
    test: AdultRows


@dataclass(frozen=True, eq=False)
class OneHot:
    """Adult rows as feature vectors, by the levels and scales of public rows.

    Attributes
    ----------
    standardiser
        Scales of the numeric columns.
    levels
        The levels of each categorical column, eight tuples.
    feature_names
        The names of the columns that `transform` returns, such as ``"age"``, ``"sex=Male"``.
    """

    standardiser: Standardiser
    levels: tuple[tuple[str, ...], ...]
    feature_names: tuple[str, ...]

    def transform(self, rows: AdultRows) -> NDArray[np.float64]:
        """Return the standardised numbers, then a 0/1 column for each level.

        A missing value, or a level that no public row has, is 0 in all columns of its variable.

        Returns
        -------
        ndarray
            Shape (n, d), float64.
        """
        blocks = [
            rows.categorical[:, [column]] == np.array(levels, dtype=np.str_)
            for column, levels in enumerate(self.levels)
        ]
        return np.hstack([self.standardiser.transform(rows.numeric), *blocks])


def one_hot(public_rows: AdultRows) -> OneHot:
    """Fit a `OneHot` on public rows; apply it to any rows with its ``transform``.

    Parameters
    ----------
    public_rows
        At least one row. Never private rows: their levels and scales would leak.

    Raises
    ------
    ValueError
        If there is no row.
    """
    standardiser = standardise(public_rows.numeric)
    levels = tuple(
        tuple(str(level) for level in np.unique(column) if level)
        for column in public_rows.categorical.T
    )
    names = (
        *NUMERIC_NAMES,
        *(f"{NUMERIC_NAMES[column]} missing" for column in standardiser.indicated),
        *(
            f"{name}={level}"
            for name, column in zip(CATEGORICAL_NAMES, levels, strict=True)
            for level in column
        ),
    )
    return OneHot(standardiser, levels, names)


def load_adult(root: str | os.PathLike[str] | None = None) -> Adult:
    """Read Adult from ``adult.data`` and ``adult.test``, each with or without ``.gz``.

    Parameters
    ----------
    root
        The folder that holds ``adult/``; by default that in the environment variable
        ``QEXP_DATA``.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If a file is damaged. The message names the line, never a value.

    References
    ----------
    B. Becker, R. Kohavi, "Adult", UCI Machine Learning Repository, 1996.
    """
    train = _SOURCE.find(root, "adult.data.gz", "adult.data")
    test = _SOURCE.find(root, "adult.test.gz", "adult.test")
    return Adult(_read(train), _read(test, comments=1, label_end="."))


def _read(path: Path, *, comments: int = 0, label_end: str = "") -> AdultRows:
    raw = read_plain(path)
    labels = {label + label_end: value for label, value in _LABELS.items()}
    numeric, categorical, over_50k = [], [], []
    lines = raw.decode("ascii", errors="replace").splitlines()
    for number, line in enumerate(lines[comments:], start=1 + comments):
        if not line:
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(_COLUMNS) + 1:
            raise ValueError(
                f"{path}: line {number} has {len(fields)} fields, not {len(_COLUMNS) + 1}"
            )
        if fields[-1] not in labels:
            raise ValueError(f"{path}: line {number} does not end in {' or '.join(labels)}")
        try:
            numeric.append([float("nan" if fields[i] == _MISSING else fields[i]) for i in _NUMERIC])
        except ValueError:
            raise ValueError(
                f"{path}: line {number} has no number where one of "
                f"{', '.join(NUMERIC_NAMES)} belongs"
            ) from None
        categorical.append(["" if fields[i] == _MISSING else fields[i] for i in _CATEGORICAL])
        over_50k.append(labels[fields[-1]])
    if not over_50k:
        raise ValueError(f"{path}: holds no rows")
    return AdultRows(
        np.array(numeric, dtype=np.float64),
        np.array(categorical, dtype=np.str_),
        np.array(over_50k, dtype=np.uint8),
    )
