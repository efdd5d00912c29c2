"""Several processes as one: what the ranks of a job say to each other, and how they fail together.

Rank 0 is the root: it alone holds the noise, the ledger, the checkpoint and the certificate. The
ranks of one job trust each other and the network between them, as the threads of a process do:
partial sums without noise travel from rank to rank on their way to the root.

Every word but the arrays goes through one collective exchange, and an error is a word as well: a
rank that fails says so in the next exchange, whichever that is for the others, and all raise. So
no rank waits for one that has given up.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Final, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Communicator", "MpiCommunicator", "RankError", "SingleProcess"]

# 4 MiB a message: far below MPI's 2³¹ elements, fastest, and what MPI sets aside is as small.
_ELEMENTS_AT_ONCE: Final = 2**19
_BYTES_AT_ONCE: Final = 2**22
_LONGEST_PAUSE: Final = 1e-3
# After an error, for the other ranks to come and hear of it, and to end by themselves; before an
# abort, for the message.
_SECONDS_TO_HEAR: Final = 15.0
_SECONDS_TO_LEAVE: Final = 15.0
_SECONDS_TO_SPEAK: Final = 0.2
_SHARED: Final = "_qexp_shared_by_rank"


class RankError(RuntimeError):
    """Another rank failed, in a way that only its message tells."""


class Communicator(Protocol):
    """What the ranks of one job offer each other. All methods are collective but `abort`.

    Attributes
    ----------
    rank : int
        0 to size - 1; 0 is the root.
    size : int
        Number of ranks R.
    bytes_reduced : int
        Bytes of the arrays that this rank gave to :meth:`sum_int64` so far.
    bytes_broadcast : int
        Bytes of the arrays that went from the root to this rank, or from it, so far.
    """

    bytes_reduced: int
    bytes_broadcast: int

    @property
    def rank(self) -> int:
        """Number of this process; 0 is the root."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def sum_int64(self, array: NDArray[np.int64]) -> None:
        """Add up arrays (n,) modulo 2⁶⁴. The root's becomes the sum; others' are used up."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Give every rank's small public value to every rank, in the order of the ranks."""
        ...

    def sum(self, number: int) -> int:
        """Add up one integer a rank, for every rank."""
        ...

    def broadcast(self, array: NDArray[Any]) -> None:
        """Overwrite a C-contiguous array by the root's."""
        ...

    def broadcast_object(self, value: Any) -> Any:
        """Give the root's public value, which pickle must know, to every rank."""
        ...

    def shared_fate(self) -> AbstractContextManager[None]:
        """Make an error of one rank inside the block an error of all.

        The rank that failed raises what it raised; the others raise the same, with a note that
        names the rank, at their next exchange or at the end of the block. Where others do not get
        there within fifteen seconds, the job is ended.
        """
        ...

    def abort(self, message: str) -> NoReturn:
        """End all ranks at once. For errors outside of any block that is shared."""
        ...


class SingleProcess:
    """The communicator of a job that is one process."""

    rank: Final = 0
    size: Final = 1

    def __init__(self) -> None:
        self.bytes_reduced = 0
        self.bytes_broadcast = 0

    def sum_int64(self, array: NDArray[np.int64]) -> None:
        """Leave the array as it is."""

    def gather(self, value: Any) -> list[Any]:
        """Give the value in a list."""
        return [value]

    def sum(self, number: int) -> int:
        """Give the number."""
        return number

    def broadcast(self, array: NDArray[Any]) -> None:
        """Leave the array as it is."""

    def broadcast_object(self, value: Any) -> Any:
        """Give the value."""
        return value

    def shared_fate(self) -> AbstractContextManager[None]:
        """Do nothing: there is nobody to share with."""
        return nullcontext()

    def abort(self, message: str) -> NoReturn:
        """Exit with the message."""
        raise SystemExit(message)


class MpiCommunicator:
    """The ranks of an MPI job. Made by :func:`qexp.distributed.world`.

    Parameters
    ----------
    mpi : module
        ``mpi4py.MPI``.
    comm : mpi4py.MPI.Comm, optional
        The ranks, where they are some of the job's only. Default: all.
    """

    def __init__(self, mpi: Any, comm: Any = None) -> None:
        self._mpi = mpi
        # A copy, so that words here never meet the caller's own.
        self._comm = (mpi.COMM_WORLD if comm is None else comm).Dup()
        self.bytes_reduced = 0
        self.bytes_broadcast = 0

    @property
    def rank(self) -> int:
        """Number of this process; 0 is the root."""
        return int(self._comm.rank)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return int(self._comm.size)

    def sum_int64(self, array: NDArray[np.int64]) -> None:
        """Add up arrays (n,) modulo 2⁶⁴. The root's becomes the sum; others' are used up.

        Added as unsigned integers, for which C defines that sums wrap; two's complement makes
        that the sum of the signed ones. Wrapping sums are associative and commutative, so the
        order in which MPI takes the ranks cannot change a bit.
        """
        if array.dtype != np.int64 or array.ndim != 1 or not array.flags.c_contiguous:
            raise TypeError(
                f"the array is {array.dtype} of shape {array.shape}; it needs int64 of shape (n,), "
                "C-contiguous"
            )
        self._same_on_all(len(array), "the length of an array to sum")
        words = array.view(np.uint64)
        with self._or_abort():
            for start in range(0, len(words), _ELEMENTS_AT_ONCE):
                chunk = words[start : start + _ELEMENTS_AT_ONCE]
                if self.rank == 0:
                    self._comm.Reduce(self._mpi.IN_PLACE, chunk, op=self._mpi.SUM, root=0)
                else:
                    self._comm.Reduce(chunk, None, op=self._mpi.SUM, root=0)
        self.bytes_reduced += array.nbytes

    def gather(self, value: Any) -> list[Any]:
        """Give every rank's small public value to every rank, in the order of the ranks."""
        return self._exchange(None, value)

    def sum(self, number: int) -> int:
        """Add up one integer a rank, for every rank."""
        return sum(self.gather(int(number)))

    def broadcast(self, array: NDArray[Any]) -> None:
        """Overwrite a C-contiguous array by the root's."""
        if not array.flags.c_contiguous:
            raise TypeError("the array is not C-contiguous; it needs to be")
        self._same_on_all((array.dtype.str, array.shape), "the kind of an array to broadcast")
        self._broadcast_bytes(array.reshape(-1).view(np.uint8))

    def broadcast_object(self, value: Any) -> Any:
        """Give the root's public value, which pickle must know, to every rank.

        Arrays in it travel beside the pickle, without copies and of any length.
        """
        buffers: list[pickle.PickleBuffer] = []
        announced: Any = None
        if self.rank == 0:
            head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
            announced = head, [buffer.raw().nbytes for buffer in buffers]
        head, sizes = self.gather(announced)[0]
        if self.rank == 0:
            parts = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
        else:
            parts = [np.empty(size, dtype=np.uint8) for size in sizes]
        for part in parts:
            self._broadcast_bytes(part)
        return value if self.rank == 0 else pickle.loads(head, buffers=parts)

    @contextmanager
    def shared_fate(self) -> Iterator[None]:
        """Make an error of one rank inside the block an error of all.

        The rank that failed raises what it raised; the others raise the same, with a note that
        names the rank, at their next exchange or at the end of the block.
        """
        try:
            yield
        except BaseException as error:
            if _shared_by(error) is None:
                with contextlib.suppress(_OthersFailedTooError):
                    self._exchange(error, None)
                setattr(error, _SHARED, self.rank)
            raise
        self.gather(None)

    def abort(self, message: str) -> NoReturn:
        """End all ranks at once. For errors outside of any block that is shared."""
        print(message, file=sys.stderr, flush=True)
        time.sleep(_SECONDS_TO_SPEAK)
        self._mpi.COMM_WORLD.Abort(1)
        raise SystemExit(1)

    def except_hook(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """End the job on an exception that nobody caught, with its message: for sys.excepthook."""
        shared_by = _shared_by(error)
        text = self._told(error)
        if shared_by not in (None, self.rank):
            # The rank that failed shows where.
            lines = traceback.format_exception_only(error)
            text = f"rank {self.rank} of {self.size}:\n{''.join(lines)}"
        if shared_by is None:
            self.abort(text)
        print(text, file=sys.stderr, flush=True)
        request, latest = self._comm.Ibarrier(), time.monotonic() + _SECONDS_TO_LEAVE
        while not request.Test():
            if time.monotonic() > latest:
                self._mpi.COMM_WORLD.Abort(1)
            time.sleep(_LONGEST_PAUSE)

    def _told(self, error: BaseException | None) -> str:
        trace = "" if error is None else "".join(traceback.format_exception(error))
        return f"rank {self.rank} of {self.size}:\n{trace}"

    def _exchange(self, error: BaseException | None, value: Any) -> list[Any]:
        """Give everybody's value to everybody; raise where somebody has an error instead."""
        with self._or_abort():
            # A barrier that sleeps: MPI's own waiting would take the processor from the ranks
            # that are waited for, where several share one.
            request, pause = self._comm.Ibarrier(), 0.0
            latest = time.monotonic() + (math.inf if error is None else _SECONDS_TO_HEAR)
            while not request.Test():
                if time.monotonic() > latest:
                    # Others are in the midst of their records, which are of no use any more.
                    self.abort(self._told(error))
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause + 1e-5)
            said = self._comm.allgather((_packed(error), value))
        for rank, (packed, _) in enumerate(said):
            if packed is not None:
                if error is not None:
                    raise _OthersFailedTooError
                raise _unpacked(packed, rank, self.size)
        return [value for _, value in said]

    def _same_on_all(self, value: Any, name: str) -> None:
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise ValueError(f"{name} differs between the ranks: {values}; it needs to be the same")

    def _broadcast_bytes(self, words: NDArray[np.uint8]) -> None:
        with self._or_abort():
            for start in range(0, len(words), _BYTES_AT_ONCE):
                self._comm.Bcast(words[start : start + _BYTES_AT_ONCE], root=0)
        self.bytes_broadcast += words.nbytes

    @contextmanager
    def _or_abort(self) -> Iterator[None]:
        """End the job where a collective was left halfway: nobody could tell what comes next."""
        try:
            yield
        except BaseException as error:
            self.abort(self._told(error))


class _OthersFailedTooError(Exception):
    """Somebody failed, while this rank was telling of an error of its own."""


def _packed(error: BaseException | None) -> tuple[bytes | None, str] | None:
    if error is None:
        return None
    text = "".join(traceback.format_exception_only(error)).strip()
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:
        return None, text
    return packed, text


def _unpacked(packed: tuple[bytes | None, str], rank: int, size: int) -> BaseException:
    """Give another rank's error as one to raise here: of its own class where pickle knows it."""
    dumped, text = packed
    error: BaseException = RankError(f"rank {rank} of {size}: {text}")
    if dumped is not None:
        # A class that this rank cannot import stays a RankError.
        with contextlib.suppress(Exception):
            error = pickle.loads(dumped)
            error.add_note(f"raised on rank {rank} of {size}")
    setattr(error, _SHARED, rank)
    return error


def _shared_by(error: BaseException | None) -> int | None:
    """Give the rank that all have this error, or one that led to it, from; None if only we do."""
    while error is not None:
        rank: int | None = getattr(error, _SHARED, None)
        if rank is not None:
            return rank
        error = error.__cause__ or error.__context__
    return None
