"""Where private gradients come from: a source yields them in blocks of rows.

An array or memmap is such a source once wrapped; the models of :mod:`qexp.models` make their
blocks on the fly. No n × p array is ever needed.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qexp import _checks

__all__ = ["ArrayRecords", "LazyRows", "RecordSource", "as_record_source", "per_user"]

_BLOCK_BYTES = 4 * 2**20
_MOST_USERS_AT_ONCE: Final = 1024
_IDS_AT_ONCE: Final = 2**16


@runtime_checkable
class RecordSource(Protocol):
    """A source of per-record gradients.

    Attributes
    ----------
    n_records : int
        n, public.
    n_parameters : int
        p, the length of a gradient.
    """

    @property
    def n_records(self) -> int:
        """Number of records n."""
        ...

    @property
    def n_parameters(self) -> int:
        """Length of a gradient p."""
        ...

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the gradients in order, as float32 or float64 arrays of shape (m, p).

        A block may be a view of a buffer that the next block overwrites. A row must depend on
        its own record and on public values alone: not on the other rows of its block.
        """
        ...


class ArrayRecords:
    """Per-record gradients that stand in an array or a memory-mapped file.

    Parameters
    ----------
    gradients : ndarray or memmap of float32 or float64, shape (n, p)
        Never copied as a whole; a block at a time is, where it is not C-contiguous or misaligned.
    block_size : int, optional
        Records a block. Any value gives the same release, bit for bit; the default keeps a block
        near 4 MiB.
    """

    def __init__(self, gradients: NDArray[Any], *, block_size: int | None = None) -> None:
        self._gradients = _checks.real_array(gradients, "records", 2)
        n, p = self._gradients.shape
        if n == 0 or p == 0:
            raise ValueError(f"records have shape {(n, p)}; they need at least one row and column")
        if block_size is None:
            block_size = max(1, min(n, _BLOCK_BYTES // (8 * p)))
        self._block_size = _checks.count(block_size, "block_size")

    @property
    def n_records(self) -> int:
        """Number of records n."""
        return int(self._gradients.shape[0])

    @property
    def n_parameters(self) -> int:
        """Length of a gradient p."""
        return int(self._gradients.shape[1])

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield C-contiguous, aligned blocks of rows, in order."""
        for start in range(0, self.n_records, self._block_size):
            yield _checks.for_kernels(self._gradients[start : start + self._block_size])


class LazyRows(ABC):
    """Rows that stand in files: they are read when they are sliced, and never all at once.

    The models' ``gradient_blocks`` takes them in place of arrays.

    Attributes
    ----------
    shape : tuple of int
        (n,) or (n, columns).
    dtype : numpy.dtype
        Of the slices.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Read the rows of a slice without a step."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[0 : len(self)].astype(dtype or self.dtype, copy=False)


def per_user(
    source: RecordSource, groups: Any, *, max_records_per_user: int | None = None
) -> RecordSource:
    """Make the user, not the record, the unit of privacy.

    The gradients of a user's records are **summed**, then clipped as one: whatever number of
    records a user has, the guarantee is about all of them together, and n counts users. (A mean
    in place of the sum would need the private number of a user's records; and a user with more
    records has more to say, up to the clipping norm.)

    Parameters
    ----------
    source : RecordSource
        Gradients of records.
    groups : integer array (number of rows,) or LazyRows
        The id of the user whom each record belongs to, in ascending order, so that a user's
        records are next to each other. What ids there are is not published, but that they are
        sorted and how many users there are is public.
    max_records_per_user : int, optional
        Public. Further records of a user are left out, silently. With it, sources that give
        factors stay factored: a user's records become the positions of one record, padded with
        zeros. Without it, rows are formed.

    Returns
    -------
    RecordSource
        With n_records the number of users. A record that holds a NaN or an infinity counts as
        null, and its user's others still count.

    Raises
    ------
    TypeError, ValueError
        If the ids are no integers, not sorted, or not one a record.

    Notes
    -----
    Neighbouring data sets differ in what one user's records hold. Where a gradient's bits depend
    on its record's place, as with :class:`qexp.models.torch.TorchModel`, how many records each user
    has moves the others' places; take the numbers of records as public there.
    """
    if max_records_per_user is not None:
        max_records_per_user = _checks.count(max_records_per_user, "max_records_per_user")
        if hasattr(source, "factor_blocks"):
            return _FactoredUsers(source, groups, max_records_per_user)
    return _Users(source, groups, max_records_per_user)


class _Users:
    """Gradients summed over the records of a user."""

    def __init__(self, source: RecordSource, groups: Any, most_records: int | None) -> None:
        ids = groups if isinstance(groups, LazyRows) else np.asarray(groups)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"groups are {ids.dtype}; they need to be integer user ids")
        if ids.shape != (source.n_records,):
            raise ValueError(
                f"groups have shape {ids.shape}; they need ({source.n_records},), one id a record"
            )
        self._source, self._ids, self._most_records = source, ids, most_records
        self.n_records = count_users(ids)
        self.n_parameters = source.n_parameters

    def describe_unit(self) -> dict[str, Any]:
        """Describe the unit of privacy for certificates."""
        return {"unit_of_privacy": "user", "max_records_per_user": self._most_records}

    def first_and_last_user(self) -> tuple[int, int] | None:
        """Give the ids of the first and the last user; None where there is none."""
        n = len(self._ids)
        return (int(self._ids[0:1][0]), int(self._ids[n - 1 : n][0])) if n else None

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the users' gradients, float64 (m, p); a buffer that the next block overwrites."""
        slots = self._users_at_once()
        sums = np.zeros((slots, self.n_parameters))
        places = _Places(self._ids, slots)
        for block in self._source.blocks():
            for piece in places.deal(len(block)):
                if piece is None:
                    yield sums
                    sums[:] = 0
                else:
                    self._add(sums, block, *piece)
        if places.users > 0:
            yield sums[: places.users]

    def _users_at_once(self) -> int:
        fitting = _BLOCK_BYTES // (8 * self.n_parameters)
        return max(1, min(fitting, _MOST_USERS_AT_ONCE, self.n_records))

    def _add(
        self,
        sums: NDArray[np.float64],
        block: NDArray[Any],
        rows: NDArray[np.intp],
        users: NDArray[np.intp],
        positions: NDArray[np.intp],
    ) -> None:
        # One record of each user at a time, in their order: so a user's sum has the same bits
        # wherever blocks end.
        for t in range(int(positions.min()), min(int(positions.max()) + 1, self._limit)):
            now = positions == t
            some = block[rows[now]]
            with np.errstate(all="ignore"):
                finite = np.isfinite(some).all(axis=1)
                sums[users[now]] += np.where(finite[:, None], some, 0)

    @property
    def _limit(self) -> int:
        return sys.maxsize if self._most_records is None else self._most_records


class _FactoredUsers(_Users):
    """The same with a user's records as the positions of one record, where gradients factor."""

    def factor_blocks(self) -> Iterator[list[tuple[NDArray[Any], NDArray[Any]]]]:
        """Yield pairs (inputs (m, T, in + 1), deltas (m, T, out)), one a layer."""
        source: Any = self._source
        slots = self._users_at_once()
        places = _Places(self._ids, slots)
        buffers: list[NDArray[Any]] = []
        for factors in source.factor_blocks():
            parts = [part for pair in factors for part in pair]
            if not buffers:
                buffers = [
                    np.zeros((slots, self._limit, *part.shape[1:]), part.dtype) for part in parts
                ]
            finite = np.logical_and.reduce(
                [np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in parts]
            )
            for piece in places.deal(len(finite)):
                if piece is None:
                    yield _as_positions(buffers, slots)
                    for buffer in buffers:
                        buffer[:] = 0
                    continue
                rows, users, positions = piece
                kept = (positions < self._limit) & finite[rows]
                for buffer, part in zip(buffers, parts, strict=True):
                    buffer[users[kept], positions[kept]] = part[rows[kept]]
        if places.users > 0:
            yield _as_positions(buffers, places.users)


def _as_positions(
    buffers: list[NDArray[Any]], users: int
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    flat = [
        buffer[:users].reshape(users, -1, buffer.shape[-1])  # records (and positions) of a user
        for buffer in buffers
    ]
    return list(zip(flat[::2], flat[1::2], strict=True))


class _Places:
    """Where the rows of blocks go in a buffer of so many users, which is emptied when full.

    Attributes
    ----------
    users : int
        How many users the buffer holds rows of.
    """

    def __init__(self, ids: Any, slots: int) -> None:
        self._ids, self._slots = ids, slots
        self._row = 0
        self._last_id: Any = None
        self._position = -1
        self.users = 0

    def deal(
        self, count: int
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]] | None]:
        """Yield (rows, users, positions) of the next `count` rows; None: empty the buffer."""
        if count == 0:
            return
        ids = np.asarray(self._ids[self._row : self._row + count])
        self._row += count
        rows = np.arange(count)
        first = np.ones(count, np.bool_)
        first[1:] = ids[1:] != ids[:-1]
        first[0] = self._last_id is None or ids[0] != self._last_id
        users = self.users - 1 + np.cumsum(first)
        begun = np.maximum.accumulate(np.where(first, rows, -1))
        positions = np.where(begun >= 0, rows - begun, self._position + 1 + rows)
        start = 0
        while start < count:
            stop = int(np.searchsorted(users, self._slots))
            if stop > start:
                yield rows[start:stop], users[start:stop], positions[start:stop]
            if stop < count:
                yield None
                users = users - self._slots
            start = stop
        self._last_id, self._position = ids[-1], int(positions[-1])
        self.users = int(users[-1]) + 1


def count_users(ids: Any) -> int:
    """Count the different ids of a sorted sequence, read piece by piece."""
    users, last = 0, None
    for start in range(0, len(ids), _IDS_AT_ONCE):
        piece = np.asarray(ids[start : start + _IDS_AT_ONCE])
        sorted_so_far = last is None or last <= piece[0]
        if not (sorted_so_far and bool((piece[1:] >= piece[:-1]).all())):
            raise ValueError(
                "groups are not sorted; the records of a user need to be next to each other, "
                "users in ascending order of their ids"
            )
        users += int(last is None or last != piece[0]) + int((piece[1:] != piece[:-1]).sum())
        last = piece[-1]
    return users


def as_record_source(records: Any, *, n_parameters: int, least: int = 1) -> RecordSource:
    """Give an array or a source as a source of gradients of the right length.

    Parameters
    ----------
    records : array of shape (n, p) or RecordSource
    n_parameters : int
        p, the number of pretrained weights.
    least : int
        Least number of records: 0 for one of several ranks.

    Returns
    -------
    RecordSource

    Raises
    ------
    TypeError, ValueError
        If `records` are neither, or of another length.
    """
    if isinstance(records, RecordSource):
        source: RecordSource = records
    elif isinstance(records, np.ndarray):
        nothing = least == 0 and records.ndim == 2 and len(records) == 0
        source = _NoRecords(records.shape[1]) if nothing else ArrayRecords(records)
    else:
        raise TypeError(
            f"records are a {type(records).__name__}; they need to be an (n, p) array of "
            "per-record gradients or a source with n_records, n_parameters and blocks()"
        )
    if source.n_parameters != n_parameters:
        raise ValueError(
            f"records have gradients of {source.n_parameters} entries, pretrained has "
            f"{n_parameters} weights; they need the same number"
        )
    _checks.count(source.n_records, "n_records", least=least)
    return source


class _NoRecords:
    """The share of a rank that has no records."""

    n_records = 0

    def __init__(self, n_parameters: int) -> None:
        self.n_parameters = n_parameters

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield nothing."""
        return iter(())
