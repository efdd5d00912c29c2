"""Checkpoints of a fine-tuning: whatever stops it, no round is paid for twice and none is free.

A round goes through five steps:

1. **reserve**: the ledger holds the round's share; no other thread can have it;
2. **draw**: the noisy sum is made, in memory;
3. **save**: the state after the round, with its claim, replaces the checkpoint in one step;
4. **charge**: the reservation becomes a charge under a label that no other round has, made of the
   job's random number and the round;
5. **publish**: ``on_round`` is called; results and interruptions carry the state.

Nothing is published before it is charged, nothing is charged before it is saved. So wherever the
process is lost, the checkpoint has all rounds that the ledger has, and the ledger all that were
published. What a restart does, by the place of the loss:

======================  ==========  ==========  ================================================
lost                    checkpoint  ledger      the restart
======================  ==========  ==========  ================================================
before the draw         t - 1       t - 1       draws round t
after it, unsaved       t - 1       t - 1       draws round t again, and first removes what is
                                                left of saving the lost draw, which nobody knows
                                                then and which cost nothing
after the save          t           t - 1       charges round t, which is in the checkpoint
after the charge        t           t           goes on with round t + 1
before the owner of     t           older       charges every round that is in the checkpoint
the ledger saved it                             and not in the ledger
======================  ==========  ==========  ================================================

The owner of a ledger on disk saves it in ``on_round``, before showing the round to anybody. A
:class:`qexp.SharedLedger` is on disk at every step: a process that is lost between reservation and
charge leaves the reservation open, and the restart takes it up under the same label.

Private curvature is a draw of its own before the first round, and goes the same way as round 0.

A ledger that has rounds which the checkpoint has not tells of an older copy of the checkpoint:
those rounds may have been published, and drawing them again would be a release of its own. It is
refused. Without a ledger an older copy cannot be told, so keep one file a job. Two processes
cannot work on one checkpoint: a lock file beside it sees to that.

A checkpoint holds released numbers only: no record, and no digest of records, which would let
anyone test a guess of them. So it cannot tell whether a restart reads the same private data; that
is the caller's part. Until its last round is charged, keep the file as private as the data, and
so what a killed process left of writing it, ``.qexp-<name>-<digits>.tmp`` beside it. Both are
readable by their owner alone, whatever the umask.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from qexp._files import DamagedFileError, advice, atomic_write, read_archive, regular_mode
from qexp.finetune._result import RoundReport

__all__ = ["FineTuneState", "load_state", "locked", "save_state"]

_FORMAT: Final = "qexp fine-tuning checkpoint"
_VERSION: Final = 1
_ARRAYS: Final = ("weights", "velocity", "iterate_sum", "input_moments")
_TYPES: Final = {
    "configuration": dict,
    "arrays": list,
    "job_id": str,
    "rounds_done": int,
    "iterates_summed": int,
    "history": list,
    "diverged": bool,
}
_NUMBERS: Final = {entry.name for entry in fields(RoundReport)} - {"model"}


@dataclass(frozen=True, kw_only=True, eq=False)
class FineTuneState:
    """All that the next round needs, and all that was drawn.

    Attributes
    ----------
    job_id : str
        Random and unique; part of every charge's label.
    rounds_done : int
        Rounds drawn.
    weights : ndarray of float64, shape (p,)
        θ after the last round, before it is rounded to the model's dtype.
    velocity : ndarray of float64, shape (p,), or None
        v, where the schedule has momentum.
    iterate_sum : ndarray of float64, shape (p,), or None
        Sum of the iterates that are averaged, once there is one.
    iterates_summed : int
        How many they are.
    input_moments : ndarray of float64, or None
        The noisy sum that private curvature is made of, once it is drawn.
    history : tuple of mappings
        Public numbers of every round done, its claim among them.
    diverged : bool
        True when the last step left the range of the weights' dtype; `weights` are those before.
    """

    job_id: str
    rounds_done: int = 0
    weights: NDArray[np.float64] = field(repr=False)
    velocity: NDArray[np.float64] | None = field(default=None, repr=False)
    iterate_sum: NDArray[np.float64] | None = field(default=None, repr=False)
    iterates_summed: int = 0
    input_moments: NDArray[np.float64] | None = field(default=None, repr=False)
    history: tuple[Mapping[str, Any], ...] = ()
    diverged: bool = False


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes and jobs off a checkpoint.

    Parameters
    ----------
    path : path-like
        The checkpoint. The lock file beside it stays behind; the system frees the lock itself
        when a process ends, however it ends.

    Raises
    ------
    BlockingIOError
        If another job works on it now.
    OSError
        If its folder is not there, or cannot be written, or if it is no file on a disk.
    ValueError
        If the path does not end in a name.
    """
    name = os.fspath(path)
    if not os.path.basename(name):
        raise ValueError(f"checkpoint is {name!r}; it needs the name of a file, such as 'job.npz'")
    target = os.path.realpath(path)
    try:
        # Before a lock is made beside what can be no checkpoint.
        regular_mode(target)
        descriptor = os.open(f"{target}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"the checkpoint {name!r} cannot be opened ({error.strerror or error}): "
            f"{advice(error.errno)}",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another fine-tuning works on the checkpoint {name!r} now; wait for it, or give "
                "every job a path of its own"
            ) from None
        yield
    finally:
        os.close(descriptor)


def save_state(
    path: str | os.PathLike[str], state: FineTuneState, configuration: Mapping[str, Any]
) -> None:
    """Write the state and the public configuration of its job, atomically, for the owner alone.

    Parameters
    ----------
    path : path-like
    state : FineTuneState
    configuration : mapping
        JSON-able. :func:`load_state` refuses any other.

    Raises
    ------
    OSError
        If it cannot be written; an old checkpoint stays whole.
    """
    arrays = {name: getattr(state, name) for name in _ARRAYS}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "configuration": configuration,
        "arrays": list(arrays),
        "job_id": state.job_id,
        "rounds_done": state.rounds_done,
        "iterates_summed": state.iterates_summed,
        "history": [dict(numbers) for numbers in state.history],
        "diverged": state.diverged,
    }
    text = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)

    def write(file: BinaryIO) -> None:
        np.savez(file, state=text, **arrays)

    atomic_write(path, write, mode=0o600)


def load_state(
    path: str | os.PathLike[str], configuration: Mapping[str, Any]
) -> FineTuneState | None:
    """Read a checkpoint of the same job.

    Parameters
    ----------
    path : path-like
    configuration : mapping
        The public configuration of the job that wants to go on.

    Returns
    -------
    FineTuneState or None
        None if there is no such file yet.

    Raises
    ------
    OSError
        If it cannot be opened.
    DamagedFileError
        If the file is damaged, or no checkpoint; a ValueError.
    ValueError
        If it is of another format, or of another job.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            document, arrays = _read(file, name)
    except FileNotFoundError:
        return None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise DamagedFileError(f"{name!r} is not a checkpoint of a fine-tuning; give another path")
    if document.get("version") != _VERSION:
        raise ValueError(
            f"{name!r} is a checkpoint of format {document.get('version')!r}; this version of "
            f"qexp reads format {_VERSION}"
        )
    if not _is_whole(document, arrays):
        raise _damaged(name, "its entries are not those of one state")
    # Compared as they were written: JSON turns tuples into lists.
    wanted = json.loads(json.dumps(configuration))
    found = document["configuration"]
    different = sorted(
        key for key in {*wanted, *found} if wanted.get(key, ...) != found.get(key, ...)
    )
    if different:
        raise ValueError(
            f"the checkpoint {name!r} is of another job: it differs in {', '.join(different)}. "
            "Go on with the arguments it was begun with, or give another path to start anew, "
            "which costs anew"
        )
    return FineTuneState(
        job_id=document["job_id"],
        rounds_done=document["rounds_done"],
        iterates_summed=document["iterates_summed"],
        history=tuple(document["history"]),
        diverged=document["diverged"],
        **arrays,
    )


def _read(file: BinaryIO, name: str) -> tuple[Any, dict[str, NDArray[Any]]]:
    try:
        return read_archive(file, "state")
    # A damaged archive sets off almost anything in zipfile, NumPy and json.
    except Exception as error:
        raise _damaged(name, error) from error


def _is_whole(document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Say whether these are entries that :func:`save_state` can have written together."""
    if not all(type(document.get(key)) is kind for key, kind in _TYPES.items()):
        return False
    flat = [arrays[name] for name in arrays if name != "input_moments"]
    history = document["history"]
    return (
        {"weights"} <= arrays.keys() <= set(_ARRAYS)
        and document["arrays"] == list(arrays)
        and all(array.dtype == np.float64 for array in arrays.values())
        and all(array.ndim == 1 and len(array) == len(arrays["weights"]) for array in flat)
        and (document["iterates_summed"] > 0) == ("iterate_sum" in arrays)
        and document["rounds_done"] == len(history)
        and all(type(numbers) is dict and numbers.keys() >= _NUMBERS for numbers in history)
    )


def _damaged(name: str, reason: object) -> DamagedFileError:
    return DamagedFileError(
        f"{name!r} is not a readable checkpoint ({reason}): restore it, or give another path to "
        "start anew, which costs anew"
    )
