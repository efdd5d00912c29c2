"""Checks of record arrays that look at shapes and dtypes alone, and blocks of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp.records import LazyRows

Rows = NDArray[Any] | LazyRows


def has_dtype(values: Any) -> bool:
    """Say whether an array-like has a dtype of its own, rather than one that its values imply."""
    if isinstance(values, LazyRows) or hasattr(values, "dtype") or hasattr(values, "__array__"):
        return True
    try:
        memoryview(values)
    except TypeError:
        return False
    return True


def declared_dtypes(values: Any) -> list[Any] | None:
    """Return the dtypes that a data frame or a series declares; None for anything else.

    The dtype of its array would depend on whether a single value is missing.
    """
    declared = getattr(values, "dtypes", None)
    if declared is None:
        return None
    dtypes = [declared] if hasattr(declared, "kind") else list(declared)
    return dtypes if all(hasattr(dtype, "kind") for dtype in dtypes) else None


def with_dtype(values: Any, width: int | None = None) -> Any:
    """Return lists and the like as float64, NaN for what is no number; all else as it is.

    NumPy would choose the dtype and the shape by their values, so that one private record with a
    text among numbers, or with a number too few, would show. Here every record is read by itself.

    Parameters
    ----------
    values : array_like
    width : int, optional
        Public length of a record's row; a row of another length is NaN throughout. Without it, a
        record is one number.

    Returns
    -------
    float64 array of shape (n,) or (n, width), or what was given if it has a dtype of its own. What
    is neither is an array without dimensions, for a check of shapes to refuse.
    """
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "buif":
        # What is masked is not there, whatever stands under the mask.
        dtype = values.dtype if values.dtype == np.float32 else np.float64
        return np.ma.filled(values.astype(dtype), np.nan)
    if has_dtype(values):
        dtypes = declared_dtypes(values) or []
        if any(not isinstance(dtype, np.dtype) for dtype in dtypes) and all(
            dtype.kind in "buif" for dtype in dtypes
        ):
            return values.to_numpy(dtype=np.float64, na_value=np.nan)
        return values
    if not is_list(values):
        return np.array(np.nan)
    numbers = np.full((len(values),) if width is None else (len(values), width), np.nan)
    # A warning on overflow would tell of one record, and so would whatever reading it raises.
    with np.errstate(all="ignore"):
        for i, value in enumerate(values):
            with contextlib.suppress(Exception):
                numbers[i] = _number(alone(value)) if width is None else _row(value, width)
    return numbers


def is_list(values: Any) -> bool:
    """Say whether values are a list, a tuple or the like."""
    return isinstance(values, Sequence) and not isinstance(values, str | bytes | bytearray)


def alone(value: Any) -> Any:
    """Return what stands alone in a list, a tuple or an array, as in one row of a column."""
    with contextlib.suppress(Exception):
        if isinstance(value, list | tuple) and len(value) == 1:
            return value[0]
        if getattr(value, "shape", None) in ((), (1,)):
            return np.asarray(value).reshape(-1)[0]
    return value


def _row(value: Any, width: int) -> Any:
    if has_dtype(value):
        value = np.asarray(value)
        if value.shape == (width,) and value.dtype.kind in "buif":
            return value
        value = list(value)
    if not is_list(value) or len(value) != width:
        return math.nan
    return [_number(entry) for entry in value]


def _number(value: Any) -> float:
    if type(value) is float:
        return value
    if getattr(value, "shape", None) == ():
        value = np.asarray(value)[()]
    if isinstance(value, Real | Decimal | str | np.bool_):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    return math.nan


def as_features(X: ArrayLike | LazyRows, n_features: int) -> Rows:
    """Return X as rows (n, n_features) of real numbers; a memory map or lazy rows stay so."""
    features = X if isinstance(X, LazyRows) else np.asarray(X)
    if features.dtype.kind not in "buif":
        raise TypeError(f"X is {features.dtype}; it must hold real numbers")
    if features.ndim != 2 or features.shape[1] != n_features:
        raise ValueError(f"X has the shape {features.shape}; it must be (n, {n_features})")
    return features


def as_label_rows(y: ArrayLike | LazyRows, n_records: int, n_classes: int) -> Rows:
    """Check the shape and dtype of labels, and leave their values for :func:`as_classes`."""
    labels = y if isinstance(y, LazyRows) else np.asarray(y)
    if labels.dtype.kind not in "buif":
        raise TypeError(f"y is {labels.dtype}; it must hold the classes 0..{n_classes - 1}")
    if labels.shape != (n_records,):
        raise ValueError(
            f"y has the shape {labels.shape}; it must be ({n_records},), as X has rows"
        )
    return labels


def as_classes(labels: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Return labels as int64 classes, -1 in place of what is none.

    Labels may be private: one that is no class must show in that record's gradient only, so it
    raises nothing here.
    """
    classes = np.full(len(labels), -1, np.int64)
    with np.errstate(all="ignore"):
        valid = (labels >= 0) & (labels < n_classes)
        if labels.dtype.kind == "f":
            valid &= labels == np.floor(labels)
        np.copyto(classes, labels, casting="unsafe", where=valid)
    return classes


def as_labels(y: ArrayLike | LazyRows, n_records: int, n_classes: int) -> NDArray[np.int64]:
    """Return all of y as int64 classes, -1 in place of what is none."""
    labels = as_label_rows(y, n_records, n_classes)
    return as_classes(labels[0:n_records], n_classes)


def record_blocks(
    features: Rows, block_size: int, dtype: np.dtype[Any]
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield slices of at most block_size records with their features as dtype, in one buffer."""
    buffer = np.empty((min(block_size, len(features)), features.shape[1]), dtype)
    for begin in range(0, len(features), block_size):
        rows = slice(begin, min(begin + block_size, len(features)))
        block = buffer[: rows.stop - begin]
        # A warning on overflow would tell of one record.
        with np.errstate(all="ignore"):
            np.copyto(block, features[rows], casting="unsafe")
        yield rows, block


def public_uniforms(seed: np.random.SeedSequence, first_record: int) -> np.random.Generator:
    """Give a stream of one uniform number a record, from some record on."""
    # Philox counts in fours, and a double takes one.
    generator = np.random.Generator(np.random.Philox(seed).advance(first_record // 4))
    generator.random(first_record % 4)
    return generator


def require_finite(block: NDArray[Any], first_record: int) -> None:
    """Raise for public records that are not finite. Never for private ones."""
    good = np.isfinite(block).all(axis=1)
    if not good.all():
        record = first_record + int(np.argmin(good))
        raise ValueError(
            f"record {record} of X holds a NaN or an infinity; public records must be finite"
        )


def require_classes(labels: NDArray[np.int64], n_classes: int) -> None:
    """Raise for public labels that are no class. Never for private ones."""
    if (labels < 0).any():
        record = int(np.argmax(labels < 0))
        raise ValueError(
            f"the label of record {record} is none of the classes 0..{n_classes - 1}; "
            "public labels must be"
        )


def require_labels_of(model: Any, y: ArrayLike) -> None:
    """Raise for public labels that are no classes of a model, where it says how many it has."""
    n_classes = getattr(model, "n_classes", None)
    if n_classes is not None:
        labels = np.asarray(y)
        require_classes(as_labels(labels, len(labels), n_classes), n_classes)
