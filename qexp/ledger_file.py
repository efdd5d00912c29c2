"""A privacy ledger in a file that several jobs share, on one machine or on many.

The file is a list of JSON lines that only grows. Every line carries its number and the SHA-256 of
its own content behind the checksum of the line before, so that no line can be changed, left out
or moved unnoticed. A line counts once it is on disk with its line feed (fsync):

========  =======================================================================================
kind      what it says
========  =======================================================================================
budget    the first line: format, μ, target (ε, δ), neighbouring relation and unit of privacy
reserve   a draw is about to be made; counts against the budget from here on
charge    that draw is paid for; it may be published
cancel    that draw failed or was interrupted before anything of it got out
resume    another process of the same job goes on with it
release   an operator says that nothing of it got out, and gives its share back
========  =======================================================================================

A process that is killed between `reserve` and `charge` leaves an open reservation. It goes on
counting: the draw may have been made. The same job takes it up when it resumes from its
checkpoint, or an operator gives it back with :meth:`SharedLedger.release`.

What a crash or a full disk leaves behind the last line feed is a line that nobody was told of. It
is completed if it is whole, and else cut off. Any other difference is damage, and refused.

One process at a time works on the file, under a POSIX lock on the file itself (``fcntl.lockf``):
that holds between the nodes of a cluster on NFSv4, Lustre (mounted with ``flock``), GPFS and
BeeGFS (with locks enabled). Do not put the file where locks are local to a node.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from types import TracebackType
from typing import Any, Final

from qexp import _checks
from qexp._files import DamagedFileError, advice, atomic_write_bytes, regular_mode
from qexp._privacy_checks import (
    NeighboringRelation,
    UnitOfPrivacy,
    check_delta,
    check_epsilon,
    check_mu,
    check_relation,
    check_unit,
)
from qexp.ledger import LedgerEntry, PrivacyLedger
from qexp.privacy import compose_mu, delta, square

__all__ = ["LedgerSummary", "OpenReservation", "SharedLedger", "read_ledger"]

_FORMAT: Final = "qexp shared privacy ledger"
_VERSION: Final = 1
_SHORTEST_WAIT, _LONGEST_WAIT = 0.002, 0.1


@dataclass(frozen=True, kw_only=True)
class OpenReservation:
    """A draw that was begun, and neither paid for nor given back.

    Attributes
    ----------
    number : int
        Number of its line; what `SharedLedger.release` takes.
    mu : float
        What it holds, as μ-GDP under the neighbouring relation of the ledger.
    label : str
        What it is for.
    time : str
        When it was made, in UTC, ISO 8601.
    holder : str
        Host, process and batch job that hold it.
    """

    number: int
    mu: float
    label: str
    time: str
    holder: str


# --- Lines ------------------------------------------------------------------------------------


def _render(body: dict[str, Any], head: str) -> tuple[bytes, str]:
    """Give a line with its line feed, and its checksum, which goes on from that of the last one."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    checksum = hashlib.sha256(f"{head}\n{text}".encode("ascii")).hexdigest()
    return f'{text[:-1]},"sha256":"{checksum}"}}\n'.encode("ascii"), checksum


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Damage(Exception):
    """What is wrong with a line."""


class _Book:
    """What the lines of a ledger add up to."""

    def __init__(self) -> None:
        self.lines = 0
        self.length = 0
        self.head = ""
        self.relation: NeighboringRelation = "replace_special"
        self.unit: UnitOfPrivacy = "record"
        self.budget = 0.0
        self.target: tuple[float, float] | None = None
        self.entries: list[LedgerEntry] = []
        self.open: dict[int, OpenReservation] = {}
        self.spent = Fraction(0)
        self.reserved = Fraction(0)

    def feed(self, data: bytes) -> bytes:
        """Take in whole lines and give back what follows the last line feed."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            try:
                self._take(line + b"\n")
            except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
                if self.lines == 0:
                    raise _Damage("its first line is not that of a ledger") from error
                raise _Damage(f"line {self.lines} is wrong ({error})") from error
        return rest

    def completes(self, rest: bytes) -> bool:
        """Say whether `rest` is the next line but for its line feed."""
        try:
            self._parse(rest + b"\n")
        except (_Damage, KeyError, TypeError, ValueError, RecursionError):
            return False
        return True

    def next_line(self, kind: str, fields: dict[str, Any]) -> bytes:
        """Make the line that would follow."""
        body = {"sequence": self.lines, "kind": kind, "time": _now(), **fields}
        return _render(body, self.head)[0]

    def _parse(self, line: bytes) -> tuple[dict[str, Any], str]:
        body = json.loads(line)
        if not isinstance(body, dict):
            raise _Damage(f"line {self.lines} is no record")
        body.pop("sha256", None)
        expected, checksum = _render(body, self.head)
        if expected != line:
            raise _Damage(f"the checksum of line {self.lines} does not fit the lines before it")
        if body["sequence"] != self.lines:
            raise _Damage(f"line {self.lines} has the number {body['sequence']!r}")
        return body, checksum

    def _take(self, line: bytes) -> None:
        body, checksum = self._parse(line)
        kind, stamp = body["kind"], body["time"]
        if (kind == "budget") != (self.lines == 0) or not isinstance(stamp, str):
            raise _Damage(f"line {self.lines} has no place there")
        if kind == "budget":
            self._open_book(body)
        elif kind == "reserve":
            mu, label = check_mu(float.fromhex(body["mu"])), body["label"]
            if not isinstance(label, str) or not isinstance(body["holder"], str):
                raise TypeError("its label or holder is no text")
            self.reserved += square(mu)
            self.open[self.lines] = OpenReservation(
                number=self.lines, mu=mu, label=label, time=stamp, holder=body["holder"]
            )
            if self.spent + self.reserved > square(self.budget):
                raise _Damage(f"line {self.lines} goes beyond the budget")
        elif kind == "resume":
            self.open[body["of"]] = replace(self.open[body["of"]], holder=str(body["holder"]))
        elif kind in ("charge", "cancel", "release"):
            held = self.open.pop(body["of"])
            self.reserved -= square(held.mu)
            if kind == "charge":
                self.spent += square(held.mu)
                self.entries.append(LedgerEntry(held.mu, held.label, stamp))
        else:
            raise _Damage(f"line {self.lines} is of a kind that is not known, {kind!r}")
        self.head = checksum
        self.lines += 1
        self.length += len(line)

    def _open_book(self, body: dict[str, Any]) -> None:
        if body["format"] != _FORMAT or body["version"] != _VERSION:
            raise _Damage(
                f"it is of format {body['format']!r}, version {body['version']!r}; this release "
                f"reads version {_VERSION} of {_FORMAT!r}"
            )
        self.relation = check_relation(body["neighboring_relation"])
        self.unit = check_unit(body["unit_of_privacy"])
        self.budget = check_mu(float.fromhex(body["mu_budget"]))
        if body["target"] is not None:
            eps, target = (float.fromhex(value) for value in body["target"])
            if delta(check_epsilon(eps), self.budget) > check_delta(target):
                raise _Damage("its budget does not fit its target")
            self.target = eps, target


# --- The lock ---------------------------------------------------------------------------------

# A process loses its POSIX locks on a file when it closes any descriptor of it, and its threads
# share them. So all threads of a process take turns first.
_turns: dict[str, threading.RLock] = {}
_turns_guard = threading.Lock()


def _forget_turns() -> None:
    global _turns_guard
    _turns_guard = threading.Lock()
    _turns.clear()


# Whoever held a lock in the parent process does not exist in its child.
os.register_at_fork(after_in_child=_forget_turns)


def _turn(path: str) -> threading.RLock:
    with _turns_guard:
        return _turns.setdefault(path, threading.RLock())


class _Transaction:
    """The lock of a ledger: inside it, the file is ours and the ledger up to date."""

    def __init__(self, ledger: SharedLedger, timeout: float) -> None:
        self._ledger = ledger
        self._timeout = timeout
        self._depth = 0
        self._process = os.getpid()

    def __enter__(self) -> None:
        deadline = time.monotonic() + self._timeout
        path = self._ledger.path
        turn = _turn(path)
        if not turn.acquire(timeout=self._timeout):
            raise self._too_late("another thread of this process")
        try:
            if self._process != os.getpid():  # A child process inherits no lock.
                self._depth, self._process = 0, os.getpid()
            if self._depth == 0:
                self._ledger._file = descriptor = _opened(path)
                try:
                    self._wait(descriptor, deadline)
                    self._ledger._refresh()
                except BaseException:
                    os.close(descriptor)
                    raise
            self._depth += 1
        except BaseException:
            turn.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.close(self._ledger._file)  # and with it goes the lock
        _turn(self._ledger.path).release()

    def _wait(self, descriptor: int, deadline: float) -> None:
        pause = _SHORTEST_WAIT
        holder_path = f"{self._ledger.path}.holder"
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise OSError(
                        error.errno,
                        f"the privacy ledger {self._ledger.path!r} cannot be locked "
                        f"({error.strerror}); put it on a file system with POSIX locks, such as "
                        "NFSv4 or Lustre mounted with the option flock",
                    ) from error
            if time.monotonic() >= deadline:
                try:
                    with open(holder_path, encoding="utf-8", errors="replace") as file:
                        holder = file.read(300).strip()
                except OSError:
                    holder = ""
                raise self._too_late(holder or "a process that left no name")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_WAIT)
        # For the message above, in other processes; of no consequence where it cannot be written.
        with contextlib.suppress(OSError), open(holder_path, "w", encoding="utf-8") as file:
            file.write(f"{_holder()}, since {_now()}")

    def _too_late(self, holder: str) -> TimeoutError:
        return TimeoutError(
            errno.ETIMEDOUT,
            f"the privacy ledger {self._ledger.path!r} was locked for {self._timeout:g} s, last by "
            f"{holder}; nothing was changed. A ledger is locked for moments only: see whether "
            "that process hangs, then try again",
        )


def _opened(path: str) -> int:
    try:
        # Before it is opened: a pipe would wait, and a device need not end.
        regular_mode(path)
        return os.open(path, os.O_RDWR)
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT,
            f"no shared privacy ledger at {path!r}: correct the path, or create one with "
            "`qexp ledger create`",
        ) from None
    except OSError as error:
        raise OSError(
            error.errno,
            f"the privacy ledger {path!r} cannot be opened ({error.strerror}): "
            f"{advice(error.errno)}",
        ) from error


# --- Who holds it -----------------------------------------------------------------------------


def _started(process: int) -> str:
    """Give the start time of a process, which tells it from a later one of the same number."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "?"


def _holder() -> str:
    batch_job = os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID")
    own = os.getpid()
    return f"{socket.gethostname()}, process {own} started {_started(own)}" + (
        f", batch job {batch_job}" if batch_job else ""
    )


def _is_running_elsewhere(holder: str) -> bool:
    """Say whether another process of this host, still running, is the holder."""
    host, _, rest = holder.partition(", process ")
    number, _, start = rest.split(",")[0].partition(" started ")
    if host != socket.gethostname() or not number.isdigit() or int(number) == os.getpid():
        return False
    return start != "?" and _started(int(number)) == start


# --- The ledger -------------------------------------------------------------------------------


class SharedLedger(PrivacyLedger):
    """A privacy ledger that lives in a file and is shared by jobs.

    Use it wherever a :class:`qexp.PrivacyLedger` goes. Every method reads what other jobs have
    written since, and every change is on disk before it returns; there is nothing to save.

    Parameters
    ----------
    path : path-like
        A file that `create` (or ``qexp ledger create``) made.
    lock_timeout : float
        Seconds to wait for other processes.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DamagedFileError
        If the file is not as it was written; a ValueError.
    TimeoutError
        If another process keeps the file locked; the message names it. So do all methods.
    OSError
        If the file cannot be read, written or locked.

    Notes
    -----
    A reservation outlives its process. ``reserve`` and ``charge`` with ``resume=True`` take up
    the one with the same label, unless a running process of this host holds it; that is how
    :func:`qexp.fine_tune` goes on after a crash and neither pays twice nor nothing.

    Examples
    --------
    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "ledger.jsonl")
    >>> ledger = SharedLedger.create(path, target_epsilon=1.0, target_delta=1e-5)
    >>> ledger.charge(0.1, "first release")
    >>> SharedLedger(path).mu_spent
    0.1
    """

    def __init__(self, path: str | os.PathLike[str], *, lock_timeout: float = 60.0) -> None:
        # Nothing of the base class's: its state comes from the file.
        self._path = os.path.realpath(path)
        timeout = _checks.positive(lock_timeout, "lock_timeout", zero_allowed=True)
        self._book: _Book | None = None
        self._identity: tuple[int, int] | None = None
        self._file = -1
        self._lock = _Transaction(self, timeout)
        with self._lock:
            pass

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        mu_budget: float | None = None,
        target_epsilon: float | None = None,
        target_delta: float | None = None,
        neighboring_relation: NeighboringRelation = "replace_special",
        unit_of_privacy: UnitOfPrivacy = "record",
        lock_timeout: float = 60.0,
    ) -> SharedLedger:
        """Start a ledger in a new file.

        Parameters
        ----------
        path : path-like
            A file that does not exist yet.
        mu_budget, target_epsilon, target_delta, neighboring_relation, unit_of_privacy
            As of :class:`qexp.PrivacyLedger`.
        lock_timeout : float
            Seconds to wait for other processes.

        Returns
        -------
        SharedLedger

        Raises
        ------
        FileExistsError
            If there is a file: what was spent must not be forgotten.
        """
        model = PrivacyLedger(
            mu_budget=mu_budget,
            target_epsilon=target_epsilon,
            target_delta=target_delta,
            neighboring_relation=neighboring_relation,
            unit_of_privacy=unit_of_privacy,
        )
        name = os.path.realpath(path)
        line = _Book().next_line(
            "budget",
            {
                "format": _FORMAT,
                "version": _VERSION,
                "neighboring_relation": model.neighboring_relation,
                "unit_of_privacy": model.unit_of_privacy,
                "mu_budget": model.mu_budget.hex(),
                "target": None if model._target is None else [x.hex() for x in model._target],
            },
        )

        # Claimed by an empty file first, so that of two that create one of them wins.
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            raise FileExistsError(
                errno.EEXIST,
                f"there is a file {name!r} already: open that ledger, or give a new path for other "
                "data; a new ledger for the same data would forget what was spent",
            ) from None
        except OSError as error:
            raise OSError(
                error.errno,
                f"could not create {name!r} ({error.strerror}): {advice(error.errno)}",
            ) from error
        try:
            atomic_write_bytes(name, line)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        return cls(name, lock_timeout=lock_timeout)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SharedLedger:
        """Open a ledger; the same as ``SharedLedger(path)``."""
        return cls(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Refuse: a copy could spend the same budget again, and the file is always up to date."""
        raise TypeError(
            f"a SharedLedger is on disk at all times, at {self._path!r}: there is nothing to save"
        )

    def __repr__(self) -> str:
        return f"SharedLedger({self._path!r})"

    @property
    def path(self) -> str:
        """The file, with symbolic links resolved."""
        return self._path

    @property
    def head(self) -> tuple[int, str]:
        """Number of lines, and the checksum of the last one: it stands for the whole history."""
        with self._lock:
            book = self._current()
            return book.lines, book.head

    @property
    def mu_reserved(self) -> float:
        """What the open reservations hold together, rounded up."""
        with self._lock:
            return compose_mu(held.mu for held in self._current().open.values())

    @property
    def open_reservations(self) -> tuple[OpenReservation, ...]:
        """Draws that were begun and neither paid for nor given back, oldest first."""
        with self._lock:
            return tuple(self._current().open.values())

    def release(self, number: int, note: str = "") -> OpenReservation:
        """Give back what a process that is gone had reserved.

        Allowed if, and only if, **nothing of that draw was published and nothing will be**: the
        job's outputs and its checkpoint were seen by nobody. A job that resumes from its
        checkpoint after all pays for the round anew.

        Parameters
        ----------
        number : int
            Of the reservation; see `open_reservations`.
        note : str
            Who says so, and why; kept in the file.

        Returns
        -------
        OpenReservation
            What was given back.

        Raises
        ------
        ValueError
            If there is no such open reservation.
        BlockingIOError
            If the process that holds it is running on this host.
        """
        if not isinstance(note, str):
            raise TypeError(f"note is {note!r}; it needs a text")
        with self._lock:
            book = self._current()
            if isinstance(number, bool) or number not in book.open:
                known = ", ".join(str(key) for key in book.open) or "none"
                raise ValueError(
                    f"there is no open reservation {number!r} in {self._path!r}; open are: {known}"
                )
            held = book.open[number]
            self._refuse_if_running(held)
            self._append("release", {"of": number, "note": note, "holder": _holder()})
            return held

    def verify(self) -> None:
        """Read the whole file again and check every line.

        Raises
        ------
        DamagedFileError
            If it is not as it was written, or not the file that was open before.
        """
        with self._lock:
            before = self._current()
            whole = self._read_all()
            if (whole.lines, whole.head) != (before.lines, before.head):
                raise self._damaged("lines that were read before have changed")

    # --- Inside the lock ---------------------------------------------------------------------

    def _current(self) -> _Book:
        assert self._book is not None
        return self._book

    def _refresh(self) -> None:
        """Take in what was written since, and mend what a crash left behind the last line feed."""
        try:
            status = os.fstat(self._file)
            identity = status.st_dev, status.st_ino
            if self._book is None:
                self._book = self._read_all()
            elif identity != self._identity or status.st_size < self._book.length:
                raise self._damaged("it was replaced or cut while it was in use")
            else:
                self._mend(self._book, self._take_in(self._book))
            self._identity = identity
            self._publish(self._book)
        except BaseException:
            self._book = None  # perhaps half read
            raise

    def _publish(self, book: _Book) -> None:
        self._relation, self._unit = book.relation, book.unit
        self._budget, self._target = book.budget, book.target
        self._entries, self._spent, self._reserved = book.entries, book.spent, book.reserved

    def _read_all(self) -> _Book:
        book = _Book()
        rest = self._take_in(book)
        if book.lines == 0:
            raise self._damaged(
                "it has no first line; if `qexp ledger create` was stopped here, nothing was "
                "spent: remove the file and create it again"
            )
        self._mend(book, rest)
        return book

    def _take_in(self, book: _Book) -> bytes:
        parts = []
        at = book.length
        while part := os.pread(self._file, 1 << 20, at):
            parts.append(part)
            at += len(part)
        try:
            return book.feed(b"".join(parts))
        except _Damage as damage:
            raise self._damaged(str(damage)) from damage

    def _mend(self, book: _Book, rest: bytes) -> None:
        if not rest:
            return
        if book.completes(rest):
            self._write(b"\n", book.length + len(rest), keep=book.length + len(rest))
            book.feed(rest + b"\n")
        else:
            os.ftruncate(self._file, book.length)
            os.fsync(self._file)

    def _damaged(self, what: str) -> DamagedFileError:
        return DamagedFileError(
            f"the privacy ledger {self._path!r} is damaged or was edited: {what}. Restore it from "
            "a backup that has all its charges; do not start a new one for the same data, or what "
            "was spent is forgotten"
        )

    def _append(self, kind: str, fields: dict[str, Any]) -> int:
        """Write a line, acknowledged when this returns; give its number."""
        book = self._current()
        number = book.lines
        line = book.next_line(kind, fields)
        try:
            self._write(line, book.length, keep=book.length)
            book.feed(line)
            self._publish(book)
        except BaseException:
            self._book = None  # what the file says counts
            raise
        return number

    def _write(self, data: bytes, at: int, *, keep: int) -> None:
        """Write to disk; what fails is taken away again down to `keep` bytes."""
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._file, data[done:], at + done)
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, keep)
            raise OSError(
                error.errno or errno.EIO,
                f"could not write the privacy ledger {self._path!r}: "
                f"{error.strerror or error}; the lines there before are whole: "
                f"{advice(error.errno)}",
            ) from error

    def _refuse_if_running(self, held: OpenReservation) -> None:
        if _is_running_elsewhere(held.holder):
            raise BlockingIOError(
                errno.EAGAIN,
                f"reservation {held.number} of {self._path!r} ({held.label}) is in use by "
                f"{held.holder}, which is running: stop it first, or wait for it",
            )

    def _hold(self, cost: float, label: str, *, resume: bool) -> int:
        if resume:
            for held in self._current().open.values():
                if held.label == label:
                    self._refuse_if_running(held)
                    if held.mu != cost:
                        raise ValueError(
                            f"{label!r} asks for mu = {cost!r} and has reserved {held.mu!r} in "
                            f"{self._path!r}; they need to be the same, or another label"
                        )
                    self._append("resume", {"of": held.number, "holder": _holder()})
                    return held.number
        self._require(cost)
        return self._append("reserve", {"mu": cost.hex(), "label": label, "holder": _holder()})

    def _pay(self, cost: float, label: str, number: int) -> None:
        if number not in self._current().open:  # An operator took this process for dead.
            number = self._hold(cost, label, resume=False)
        self._append("charge", {"of": number})

    # --- Outside the lock --------------------------------------------------------------------

    def _give_back(self, cost: float, number: int, error: BaseException | None) -> None:
        try:
            with self._lock:
                # An operator may have been quicker.
                if number in self._current().open:
                    self._append("cancel", {"of": number})
        except (OSError, DamagedFileError) as failure:
            if error is None:
                raise
            error.add_note(f"its reservation {number} stays open and counts: {failure}")


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """What a ledger's file says, read without a lock and without changing it.

    Attributes
    ----------
    path : str
    neighboring_relation, unit_of_privacy : str
    mu_budget, mu_spent, mu_reserved : float
    target : (float, float) or None
        ε and δ of the budget.
    entries : tuple of LedgerEntry
    open_reservations : tuple of OpenReservation
    lines : int
    head : str
        Checksum of the last line.
    torn_bytes : int
        Of an unacknowledged line at the end, that the next job will mend.
    """

    path: str
    neighboring_relation: str
    unit_of_privacy: str
    mu_budget: float
    mu_spent: float
    mu_reserved: float
    target: tuple[float, float] | None
    entries: tuple[LedgerEntry, ...]
    open_reservations: tuple[OpenReservation, ...]
    lines: int
    head: str
    torn_bytes: int


def read_ledger(path: str | os.PathLike[str]) -> LedgerSummary:
    """Check every line of a ledger and sum it up, with no right but to read it.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    LedgerSummary

    Raises
    ------
    FileNotFoundError, OSError
        If it cannot be read, or is no file on a disk.
    DamagedFileError
        If it is not as it was written.
    """
    name = os.path.realpath(path)
    # Not while another thread of this process has it locked: closing would free that lock.
    with _turn(name):
        try:
            regular_mode(name)
            with open(name, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT,
                f"no shared privacy ledger at {name!r}: correct the path, or create one with "
                "`qexp ledger create`",
            ) from None
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                f"the privacy ledger {name!r} cannot be read ({error.strerror}): correct the path, "
                "or get the right to read it",
            ) from error
    book = _Book()
    try:
        rest = book.feed(data)
        if book.lines == 0:
            raise _Damage("it has no first line")
    except _Damage as damage:
        raise DamagedFileError(
            f"{os.fspath(path)!r} is no shared privacy ledger, or is damaged or was edited: "
            f"{damage}. Restore it from a backup that has all its charges"
        ) from damage
    return LedgerSummary(
        path=os.path.realpath(path),
        neighboring_relation=book.relation,
        unit_of_privacy=book.unit,
        mu_budget=book.budget,
        mu_spent=compose_mu(entry.mu for entry in book.entries),
        mu_reserved=compose_mu(held.mu for held in book.open.values()),
        target=book.target,
        entries=tuple(book.entries),
        open_reservations=tuple(book.open.values()),
        lines=book.lines,
        head=book.head,
        torn_bytes=len(rest),
    )
