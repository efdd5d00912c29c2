"""Checks of public arguments, each with one message: what was given, what is allowed."""

from __future__ import annotations

import hashlib
import math
import operator
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "array_digest",
    "count",
    "finite_array",
    "for_kernels",
    "labelled",
    "positive",
    "real_array",
    "seed",
]


def positive(value: object, name: str, *, zero_allowed: bool = False) -> float:
    """Check a finite real number above zero (or at zero, where that is allowed)."""
    wanted = "a finite number of at least 0" if zero_allowed else "a finite number above 0"
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {value!r}; it needs {wanted}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero_allowed):
        raise ValueError(f"{name} is {value!r}; it needs {wanted}")
    return number


def count(value: int, name: str, *, least: int = 1) -> int:
    """Check an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; it needs an integer of at least {least}")
    if value < least:
        raise ValueError(f"{name} is {value}; it needs an integer of at least {least}")
    return int(value)


def seed(value: SupportsIndex, name: str = "seed") -> int:
    """Return a seed of public random numbers as an int from 0 to 2**128 - 1, or raise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} is a {type(value).__name__}; it needs an integer from 0 to 2**128 - 1, so "
            "that the same numbers can be drawn again"
        ) from None
    if not 0 <= number < 2**128:
        raise ValueError(f"{name} is {number}; it needs to be from 0 to 2**128 - 1")
    return number


def real_array(value: ArrayLike, name: str, ndim: int) -> NDArray[Any]:
    """Check a float32 or float64 array of `ndim` dimensions, without a copy."""
    array = np.asarray(value)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {array.dtype}; it needs float32 or float64")
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}; it needs {ndim} dimension(s)")
    return array


def finite_array(value: ArrayLike, name: str, ndim: int) -> NDArray[Any]:
    """Check a public float array that must hold no NaN and no infinity."""
    array = real_array(value, name, ndim)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(
            f"{name} holds {bad} value(s) that are NaN or infinite; it needs finite values only"
        )
    return array


def labelled(
    X: ArrayLike, y: ArrayLike, names: tuple[str, str] = ("X_public", "y_public")
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Check that records are rows with a label each, by their shapes alone."""
    records, labels = np.asarray(X), np.asarray(y)
    if records.ndim != 2 or labels.shape != (len(records),):
        raise ValueError(
            f"{names[0]} has shape {records.shape} and {names[1]} {labels.shape}; they need (m, d) "
            "and (m,)"
        )
    return records, labels


def for_kernels(array: ArrayLike, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return the array C-contiguous and aligned, copied only where it is not."""
    # numpy.ascontiguousarray lets misaligned arrays pass, as of a mapped file with an odd header.
    # A warning on a signalling NaN would tell of one record.
    with np.errstate(all="ignore"):
        return np.require(array, dtype, ["C", "A", "E"])


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 of an array's dtype, shape and little-endian contents."""
    array = np.ascontiguousarray(array)
    header = f"{array.dtype.newbyteorder('<').str}{array.shape}".encode()
    contents = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(header + b"\0" + contents.tobytes()).hexdigest()
