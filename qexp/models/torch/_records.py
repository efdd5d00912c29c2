"""Records in blocks of one fixed shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qexp.models._records import has_dtype
from qexp.records import LazyRows

__all__ = ["Block", "Records", "as_array", "as_tensor", "finite_records"]


@dataclass
class Block:
    """Tensors (block_size, ...) of which the first n_records are records and the rest zeros."""

    start: int
    n_records: int
    inputs: list[Any]
    valid: NDArray[np.bool_]


class Records:
    """The module's arguments, cut into blocks of one fixed shape."""

    def __init__(self, X: Any, dtype: Any, block_size: int) -> None:
        self._arrays = [as_array(x, "X") for x in (X if isinstance(X, tuple) else (X,))]
        lengths = {len(x) if x.ndim else 0 for x in self._arrays}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"X has the shape(s) {[x.shape for x in self._arrays]}; it needs (n, ...) with n "
                "at least 1, the same for all arguments of the module"
            )
        self._dtype = dtype
        self.block_size = block_size
        self.n_records = lengths.pop()

    @property
    def signature(self) -> tuple[Any, ...]:
        """Shape and kind of a record, which the module's layers' shapes follow from."""
        return tuple((x.shape[1:], x.dtype.kind) for x in self._arrays)

    def zeros(self, count: int) -> list[Any]:
        """Give `count` records of zeros."""
        return [
            as_tensor(np.zeros((count, *x.shape[1:]), x.dtype), self._dtype) for x in self._arrays
        ]

    def probe(self) -> list[Any]:
        """Give one public record: normal numbers, or zeros where the numbers are no floats."""
        generator = np.random.default_rng(0)
        return [
            torch.from_numpy(generator.standard_normal(x.shape)).to(x.dtype)
            if x.dtype.is_floating_point
            else x
            for x in self.zeros(1)
        ]

    def blocks(self) -> Iterator[Block]:
        for start in range(0, self.n_records, self.block_size):
            m = min(self.block_size, self.n_records - start)
            valid = np.ones(self.block_size, np.bool_)
            inputs = []
            for x in self._arrays:
                padded = np.zeros((self.block_size, *x.shape[1:]), x.dtype)
                padded[:m] = x[start : start + m]
                tensor = as_tensor(padded, self._dtype)
                finite = finite_records(tensor.numpy())
                tensor[torch.from_numpy(~finite)] = 0
                valid &= finite
                inputs.append(tensor)
            yield Block(start, m, inputs, valid)


def as_array(value: Any, name: str) -> Any:
    """Give an array, or lazy rows as they are."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
    if not has_dtype(value):
        raise TypeError(
            f"{name} is a {type(value).__name__}; it must be a tensor, an array or lazy rows: the "
            "dtype of a list would depend on single records"
        )
    array = value if isinstance(value, LazyRows) else np.asarray(value)
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} is {array.dtype}; it must hold real numbers")
    return array


def as_tensor(array: NDArray[Any], dtype: Any) -> Any:
    kind = array.dtype.kind
    if kind == "f":
        # A warning on overflow would tell of one record.
        with np.errstate(all="ignore"):
            target = np.float32 if dtype == torch.float32 else np.float64
            return torch.from_numpy(array.astype(target, copy=False))
    return torch.from_numpy(array if kind == "b" else array.astype(np.int64, copy=False))


def finite_records(array: NDArray[Any]) -> NDArray[np.bool_]:
    if array.dtype.kind != "f":
        return np.ones(len(array), np.bool_)
    finite: NDArray[np.bool_] = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return finite
