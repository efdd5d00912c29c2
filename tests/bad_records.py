"""What a list of private records may hold in one place, and must not show."""

from decimal import Decimal

import numpy as np


class Unreadable:
    """Raises whatever is asked of it."""

    def __getattr__(self, name):
        raise RuntimeError("a secret")

    def __float__(self):
        raise RuntimeError("a secret")

    __len__ = __iter__ = __hash__ = __array__ = __float__


class UnreadableNumber(float):
    def __float__(self):
        raise RuntimeError("a secret")


VALUES = {
    "text": "n/a",
    "nothing": None,
    "huge": 10**400,
    "beyond a double": np.longdouble("1e400"),
    "complex": 1j,
    "bytes": b"1",
    "list": [1.0, 2.0],
    "array": np.array([1.0, 2.0]),
    "dictionary": {1: 2},
    "date": np.datetime64("2026-01-01"),
    "signalling": Decimal("sNaN"),
    "unreadable": Unreadable(),
    "unreadable number": UnreadableNumber(1.0),
}


def with_value(value):
    return lambda row: [row[0], value, *row[2:]]


# Rows in the place of a list of numbers.
ROWS = {name: with_value(value) for name, value in VALUES.items()} | {
    "short row": lambda row: row[:-1],
    "long row": lambda row: [*row, 0.0],
    "empty row": lambda row: [],
    "no row": lambda row: 1.0,
    "text for a row": lambda row: "a" * len(row),
    "none for a row": lambda row: None,
    "a row in a row": lambda row: [row],
    "an upright array": lambda row: np.array(row)[:, None],
    "an array without dimensions": lambda row: np.array(1.0),
    "a short array": lambda row: np.array(row[1:]),
    "an array of objects": lambda row: np.array([None, *row[1:]], dtype=object),
    "an array of text": lambda row: np.array(["?", *row[1:]]),
    "a complex array": lambda row: np.array(row) + 1j,
    "a dictionary for a row": lambda row: dict.fromkeys(row),
    "an unreadable row": lambda row: Unreadable(),
}
LABELS = VALUES | {"empty": [], "deep": [[0]]}
