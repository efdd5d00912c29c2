"""Private records in many files: opened, checked, dealt to ranks, and read block by block.

Unless they are asked for in memory, nothing is ever held but the rows of one slice (and, of Parquet
files, one row group), so memory does not grow with the number of records. Shapes, dtypes and
lengths of all files are checked on opening, before a record is read; values never.
"""

from __future__ import annotations

import glob
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from qexp import _checks
from qexp.records import LazyRows

__all__ = ["Shards", "open_shards", "row_bytes"]

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_IDS_AT_ONCE: Final = 2**14
_BYTES_AT_ONCE: Final = 2**24


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards:
    """One rank's share of the records of a job.

    Attributes
    ----------
    X : LazyRows or ndarray, shape (n_records, …)
        Features, for a model's ``gradient_blocks(X, y)``.
    y : LazyRows or ndarray, shape (n_records,)
        Labels.
    groups : LazyRows or ndarray of integers, shape (n_records,), or None
        User ids.
    n_records : int
        Rows of this rank.
    n_records_total : int
        Rows of all ranks.
    """

    X: LazyRows | NDArray[Any] = field(repr=False)
    y: LazyRows | NDArray[Any] = field(repr=False)
    groups: LazyRows | NDArray[Any] | None = field(repr=False)
    n_records: int
    n_records_total: int

    def in_memory(self) -> Shards:
        """Read this rank's share once, for many rounds on it.

        Returns
        -------
        Shards
            The same of arrays, which take ``n_records`` times a row's bytes.

        Raises
        ------
        OSError
            If a file cannot be read any more.
        MemoryError
            If the share does not fit.
        """
        return replace(
            self,
            X=_read_all(self.X),
            y=_read_all(self.y),
            groups=None if self.groups is None else _read_all(self.groups),
        )


def open_shards(
    features: Paths,
    labels: Paths,
    *,
    groups: Paths | None = None,
    rank: int = 0,
    size: int = 1,
) -> Shards:
    """Open the files of a job and deal their rows to its ranks.

    Rows are dealt in order, contiguous and balanced; files are cut where needed. Features, labels
    and groups may be cut into files differently, but must have the same number of rows in all.

    Parameters
    ----------
    features : path, glob or list of them
        A glob's files come in alphabetical order. By the ending of their names:

        - ``x.npy``: an array (n, …), C order;
        - ``x.h5:name`` or ``x.hdf5:name``: a dataset, needs ``qexp[hdf5]``;
        - ``x.zarr`` or ``x.zarr:name``: an array, needs ``qexp[zarr]``;
        - ``x.parquet`` or ``x.parquet:a,b,c``: numeric columns, needs ``qexp[parquet]``; without
          names all but those that `labels` and `groups` take from the same files.
    labels : path, glob or list of them
        Arrays (n,), or ``y.parquet:label`` with one column.
    groups : path, glob or list of them, optional
        Integer user ids, as `labels`, in ascending order: see :func:`qexp.records.per_user`. No
        user's records are dealt to two ranks.
    rank, size : int
        Which share of how many.

    Returns
    -------
    Shards

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a glob matches none.
    TypeError, ValueError
        If a file is damaged or cut off, of another kind, shape or dtype than it needs to be, or
        the numbers of rows do not agree.
    ImportError
        If a format's extra is not installed.
    """
    size = _checks.count(size, "size")
    rank = _checks.count(rank, "rank", least=0)
    if rank >= size:
        raise ValueError(f"rank is {rank} of {size}; it needs to be below")
    x = _opened(features, "features", _taken(labels, groups))
    y = _opened(labels, "labels", None)
    ids = None if groups is None else _opened(groups, "groups", None)
    n = len(x)
    for name, rows in (("labels", y), ("groups", ids)):
        if rows is not None and len(rows) != n:
            raise ValueError(
                f"the features have {n} rows in all, the {name} {len(rows)}; they need the same"
            )
    start, stop = n * rank // size, n * (rank + 1) // size
    if ids is not None:
        start, stop = _end_of_user(ids, start), _end_of_user(ids, stop)
    return Shards(
        X=x.part(start, stop),
        y=y.part(start, stop),
        groups=None if ids is None else ids.part(start, stop),
        n_records=stop - start,
        n_records_total=n,
    )


def row_bytes(rows: LazyRows | NDArray[Any]) -> int:
    """Give how many bytes a row takes in memory."""
    return int(np.prod(rows.shape[1:], dtype=np.int64)) * rows.dtype.itemsize


def _read_all(rows: LazyRows | NDArray[Any]) -> NDArray[Any]:
    """Read rows into one array, piece by piece so that they are never there twice."""
    if isinstance(rows, np.ndarray):
        return rows
    # No size: where users are protected, how many records they have is not public.
    try:
        array = np.empty(rows.shape, rows.dtype)
    except MemoryError:
        raise MemoryError(
            "the records do not fit in memory; read them from their files, or by more ranks"
        ) from None
    step = max(1, _BYTES_AT_ONCE // max(1, row_bytes(rows)))
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        array[start:stop] = rows[start:stop]
    return array


def _taken(*others: Paths | None) -> dict[str, list[str]]:
    """Give the columns of each file that others name, and that are no features therefore."""
    taken: dict[str, list[str]] = {}
    for paths in others:
        for path, name in _names(paths) if paths is not None else ():
            taken.setdefault(path, []).append(name)
    return taken


def _end_of_user(ids: LazyRows, row: int) -> int:
    """Give the first row from `row` on that begins another user."""
    if row in (0, len(ids)):
        return row
    user = ids[row - 1 : row][0]
    while row < len(ids):
        other = np.flatnonzero(ids[row : min(row + _IDS_AT_ONCE, len(ids))] != user)
        if len(other):
            return row + int(other[0])
        row = min(row + _IDS_AT_ONCE, len(ids))
    return row


class _File(ABC):
    """Rows in one file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name

    @abstractmethod
    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read some rows."""

    def close(self) -> None:  # noqa: B027 (most keep nothing)
        """Let go of what was kept for the next reading."""


class _NpyFile(_File):
    """An array that numpy.save wrote. Read, not mapped: pages of a map would count as memory."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, name)
        if name:
            raise ValueError(f"{path!r} holds one array; leave out {name!r}")
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            self.shape, fortran, self.dtype = read(file)
            self._begin = file.tell()
            length = file.seek(0, os.SEEK_END) - self._begin
        if self.dtype.hasobject:
            raise TypeError("it holds Python objects; it needs real numbers")
        if fortran and len(self.shape) > 1:
            raise ValueError(
                "it is in Fortran order; save it by numpy.save(path, numpy.ascontiguousarray(x))"
            )
        self._items = int(np.prod(self.shape[1:], dtype=np.int64))
        needed = (self.shape[0] if self.shape else 1) * self._items * self.dtype.itemsize
        if length < needed:
            raise ValueError(f"it is cut off: {length} bytes of data where {needed} are announced")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        with open(self.path, "rb") as file:
            file.seek(self._begin + start * self._items * self.dtype.itemsize)
            flat = np.fromfile(file, dtype=self.dtype, count=(stop - start) * self._items)
        if len(flat) != (stop - start) * self._items:
            raise OSError(f"{self.path!r} became shorter since it was opened; restore it")
        return flat.reshape(stop - start, *self.shape[1:])


class _Hdf5File(_File):
    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, name)
        if not name:
            raise ValueError(f"name the dataset: '{path}:dataset'")
        self._open: Any = None
        rows = self._dataset()
        self.shape, self.dtype = tuple(rows.shape), rows.dtype
        self.close()

    def _dataset(self) -> Any:
        if self._open is None:
            try:
                import h5py
            except ImportError as error:
                raise _missing("h5py", "hdf5") from error
            self._open = h5py.File(self.path, "r")
        rows = self._open.get(self.name)
        if not hasattr(rows, "dtype"):
            self.close()
            raise ValueError(f"it has no dataset {self.name!r}")
        return rows

    def read(self, start: int, stop: int) -> NDArray[Any]:
        rows: NDArray[Any] = self._dataset()[start:stop]
        return rows

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class _ZarrFile(_File):
    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, name)
        try:
            import zarr
        except ImportError as error:
            raise _missing("zarr", "zarr") from error
        opened: Any = zarr.open(path, mode="r")
        self._array = opened[name] if name else opened
        if not hasattr(self._array, "dtype"):
            raise ValueError(f"it is no array; name one: '{path}:array'")
        self.shape, self.dtype = tuple(self._array.shape), np.dtype(self._array.dtype)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self._array[start:stop])


class _ParquetFile(_File):
    """Columns of a Parquet file. The last row group is kept, since slices come in order."""

    what: ClassVar[str] = "features"

    def __init__(self, path: str, name: str, what: str, without: Sequence[str]) -> None:
        super().__init__(path, name)
        self._open: Any = None
        self._kept: tuple[int, NDArray[Any]] | None = None
        file = self._file()
        schema, metadata = file.schema_arrow, file.metadata
        names = name.split(",") if name else [c for c in schema.names if c not in without]
        absent = sorted(set(names) - set(schema.names))
        if absent or not names:
            raise ValueError(f"it has no column {absent}; it has {schema.names}")
        if what != "features" and len(names) != 1:
            raise ValueError(f"{what} need one column; name it: '{path}:column'")
        self._names = names
        kinds = [schema.field(column).type for column in names]
        types = self._arrow.types
        for column, kind in zip(names, kinds, strict=True):
            integer = types.is_integer(kind)
            if not (integer or types.is_floating(kind) or types.is_boolean(kind)):
                raise TypeError(f"its column {column!r} is {kind}; it needs numbers")
            if what == "groups" and not integer:
                raise TypeError(f"its column {column!r} is {kind}; it needs integers")
        # Room for what is missing, which becomes NaN; ids must be there.
        narrow = all(types.is_float16(kind) or types.is_float32(kind) for kind in kinds)
        self.dtype = np.dtype(
            np.int64 if what == "groups" else np.float32 if narrow else np.float64
        )
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        n = int(metadata.num_rows)
        self.shape = (n, len(names)) if what == "features" else (n,)
        self.close()

    def _file(self) -> Any:
        if self._open is None:
            try:
                import pyarrow
                import pyarrow.parquet
            except ImportError as error:
                raise _missing("pyarrow", "parquet") from error
            self._arrow: Any = pyarrow
            self._open = pyarrow.parquet.ParquetFile(self.path)
        return self._open

    def read(self, start: int, stop: int) -> NDArray[Any]:
        pieces = []
        while start < stop:
            group = int(np.searchsorted(self._ends, start, side="right"))
            end = int(self._ends[group])
            begin = int(self._ends[group - 1]) if group else 0
            rows = self._group(group)
            pieces.append(rows[start - begin : min(stop, end) - begin])
            start = min(stop, end)
        if not pieces:
            return np.empty((0, *self.shape[1:]), self.dtype)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _group(self, group: int) -> NDArray[Any]:
        if self._kept is None or self._kept[0] != group:
            self._kept = None
            table = self._file().read_row_group(group, columns=self._names, use_threads=False)
            rows = np.empty((len(table), len(self._names)), self.dtype)
            wanted = self._arrow.from_numpy_dtype(self.dtype)
            for i, name in enumerate(self._names):
                # Unsafe: an error on a number that rounds would tell of one record.
                column = table.column(name).cast(wanted, safe=False)
                if self.dtype.kind == "i":
                    column = column.fill_null(np.iinfo(np.int64).min)
                rows[:, i] = column.to_numpy()
            self._kept = group, rows.reshape(len(rows), *self.shape[1:])
        return self._kept[1]

    def close(self) -> None:
        self._kept = None
        if self._open is not None:
            self._open.close()
            self._open = None


class _FileRows(LazyRows):
    """Rows of files, one after another, from one row to another."""

    def __init__(self, files: Sequence[_File], start: int, stop: int) -> None:
        self._files, self._start = tuple(files), start
        self._ends = np.cumsum([file.shape[0] for file in files], dtype=np.int64)
        self.shape = (stop - start, *files[0].shape[1:])
        self.dtype = files[0].dtype
        self._last: _File | None = None

    def part(self, start: int, stop: int) -> _FileRows:
        """Give some of the rows."""
        return _FileRows(self._files, self._start + start, self._start + stop)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        if not isinstance(rows, slice):
            raise TypeError(f"rows in files are read by slices; got {rows!r}")
        first, last, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"rows in files are read without a step; got {rows!r}")
        row, stop = self._start + first, self._start + max(first, last)
        pieces = []
        while row < stop:
            i = int(np.searchsorted(self._ends, row, side="right"))
            file = self._files[i]
            begin = int(self._ends[i]) - file.shape[0]
            end = min(stop, int(self._ends[i]))
            if self._last is not None and self._last is not file:
                self._last.close()
            self._last = file
            pieces.append(file.read(row - begin, end - begin))
            row = end
        if not pieces:
            return np.empty((0, *self.shape[1:]), self.dtype)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


_NAMED: Final = re.compile(r"(.*\.(?:h5|hdf5|zarr|parquet)):(.+)", re.DOTALL)


def _names(paths: Paths) -> list[tuple[str, str]]:
    """Give the files that paths and globs stand for, with what they name inside of them."""
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = []
    for given in several:
        named = _NAMED.fullmatch(os.fspath(given))
        path, name = named.groups() if named else (os.fspath(given), "")
        if glob.has_magic(path) and not os.path.exists(path):
            matches = sorted(glob.glob(path))
            if not matches:
                raise FileNotFoundError(f"no file matches {path!r}; check the folder and the name")
            found += [(match, name) for match in matches]
        else:
            if not os.path.exists(path):
                raise FileNotFoundError(f"there is no file {path!r}; check the folder and the name")
            found.append((path, name))
    return found


def _opened(paths: Paths, what: str, taken: dict[str, list[str]] | None) -> _FileRows:
    files: list[_File] = []
    for path, name in _names(paths):
        try:
            files.append(_file(path, name, what, (taken or {}).get(path, [])))
        except ImportError:
            raise
        except PermissionError as error:
            raise PermissionError(
                f"the {what} in {path!r} cannot be read: {error}; ask for the right to"
            ) from error
        except TypeError as error:
            raise TypeError(f"the {what} in {path!r} cannot be used: {error}") from error
        # A damaged file sets off almost anything in the libraries that read it.
        except Exception as error:
            raise ValueError(f"the {what} in {path!r} cannot be used: {error}") from error
    if not files:
        raise ValueError(f"{what} name no file; they need at least one")
    least = 2 if what == "features" else 1
    kinds = "iu" if what == "groups" else "buif"
    for file in files:
        if file.dtype.kind not in kinds:
            wanted = "integers" if what == "groups" else "real numbers"
            raise TypeError(f"the {what} in {file.path!r} are {file.dtype}; they need {wanted}")
        if len(file.shape) < least or (what != "features" and len(file.shape) != 1):
            wanted = "(rows, columns)" if what == "features" else "(rows,)"
            raise ValueError(
                f"the {what} in {file.path!r} have shape {file.shape}; they need {wanted}"
            )
        if (file.shape[1:], file.dtype) != (files[0].shape[1:], files[0].dtype):
            raise ValueError(
                f"the {what} in {file.path!r} are {file.dtype} of shape {file.shape}, those in "
                f"{files[0].path!r} {files[0].dtype} of {files[0].shape}; all files need the same "
                "but for the number of rows"
            )
    return _FileRows(files, 0, sum(file.shape[0] for file in files))


def _file(path: str, name: str, what: str, taken: Sequence[str]) -> _File:
    ending = os.path.splitext(path.rstrip("/"))[1].lower()
    if ending == ".npy":
        return _NpyFile(path, name)
    if ending in (".h5", ".hdf5"):
        return _Hdf5File(path, name)
    if ending == ".zarr":
        return _ZarrFile(path, name)
    if ending == ".parquet":
        return _ParquetFile(path, name, what, taken)
    raise ValueError("its name needs to end in .npy, .h5, .hdf5, .zarr or .parquet")


def _missing(module: str, extra: str) -> ImportError:
    return ImportError(f'this needs {module}; install it with `pip install "qexp[{extra}]"`')
