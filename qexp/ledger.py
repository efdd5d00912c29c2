"""Who has spent how much of a privacy budget: charges that compose exactly, decided exactly."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from types import TracebackType
from typing import Any, Literal, Self

from qexp._files import atomic_write_bytes
from qexp._privacy_checks import (
    NeighboringRelation,
    UnitOfPrivacy,
    check_delta,
    check_epsilon,
    check_mu,
    check_relation,
    check_unit,
    sensitivity_factor,
)
from qexp.privacy import calibrate_mu, delta, epsilon, noise_multiplier, sqrt_bounds, square

__all__ = ["BudgetExceededError", "LedgerEntry", "PrivacyLedger", "Reservation", "to_dp_event"]

_FORMAT = "qexp privacy ledger"
_VERSION = 1


class BudgetExceededError(ValueError):
    """A release would cost more than the privacy budget has left."""


@dataclass(frozen=True)
class LedgerEntry:
    """One charge.

    Attributes
    ----------
    mu : float
        What it cost, as μ-GDP under the neighbouring relation of the ledger.
    label : str
        What it was for.
    time : str
        When it was charged, in UTC, ISO 8601.
    """

    mu: float
    label: str
    time: str


class Reservation:
    """A part of a budget that is held while a release is made; see `PrivacyLedger.reserve`."""

    def __init__(self, ledger: PrivacyLedger, mu: float, label: str, *, resume: bool) -> None:
        self._ledger = ledger
        self._mu = mu
        self._label = label
        self._resume = resume
        self._number = 0
        self._state: Literal["new", "held", "committed", "returned"] = "new"

    @property
    def mu(self) -> float:
        """What is held, as μ-GDP under the neighbouring relation of the ledger."""
        return self._mu

    def __enter__(self) -> Self:
        with self._ledger._lock:
            if self._state != "new":
                raise RuntimeError(
                    "a reservation can be entered once only: call reserve() for each release"
                )
            self._number = self._ledger._hold(self._mu, self._label, resume=self._resume)
            self._state = "held"
        return self

    def commit(self) -> None:
        """Turn the reservation into a charge. Do it before anything of the release gets out.

        Raises
        ------
        RuntimeError
            The reservation is not held: committed before, or outside its ``with`` block.
        """
        with self._ledger._lock:
            if self._state != "held":
                raise RuntimeError(
                    "only a reservation that is held can be committed, once, inside its with "
                    f"block; this one is {self._state}"
                )
            # In this order, an interrupt in between leaves too much counted as spent, never too
            # little.
            self._state = "committed"
            self._ledger._pay(self._mu, self._label, self._number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._state == "held":
            self._state = "returned"
            self._ledger._give_back(self._mu, self._number, error)


class PrivacyLedger:
    """A privacy budget and what has been spent of it.

    The budget is one μ; charges compose as √Σ μ_i². Squares are kept as exact fractions, so
    whether a charge fits is decided exactly, and a budget can be used up to the last bit.

    Parameters
    ----------
    mu_budget : float, optional
        The budget as μ-GDP under ``neighboring_relation``.
    target_epsilon, target_delta : float, optional
        The budget as (ε, δ)-differential privacy; both, instead of ``mu_budget``.
    neighboring_relation : {"replace_special", "replace_one"}
        Which data sets are neighbours, with the names of dp_accounting: one record replaced by a
        null record that contributes nothing, or by any other record. The number of records is
        public under both. A bounded sum that is μ-GDP under the first is 2μ-GDP under the second.
    unit_of_privacy : {"record", "user"}
        Whom the budget protects. A ledger for users takes only what protects users; one for
        records takes both, as protecting a user protects each of that user's records.

    Raises
    ------
    TypeError, ValueError
        A wrong or missing argument.

    Notes
    -----
    All properties are stated under the relation of the ledger. The μ handed to `check`, `charge`
    and `reserve` is stated under "replace_special", as mechanisms have it (bound on one record
    over noise standard deviation), and is doubled here for a "replace_one" ledger; pass
    ``neighboring_relation`` there if it is stated otherwise.

    Safe to use from many threads. It cannot be copied or pickled, because a copy could spend the
    same budget again: hand the ledger itself around, or save it.

    Examples
    --------
    >>> ledger = PrivacyLedger(mu_budget=5.0)
    >>> ledger.charge(3.0, "first release")
    >>> ledger.mu_remaining
    4.0
    """

    def __init__(
        self,
        *,
        mu_budget: float | None = None,
        target_epsilon: float | None = None,
        target_delta: float | None = None,
        neighboring_relation: NeighboringRelation = "replace_special",
        unit_of_privacy: UnitOfPrivacy = "record",
    ) -> None:
        has_pair = target_epsilon is not None and target_delta is not None
        has_either = target_epsilon is not None or target_delta is not None
        if has_pair != has_either or has_pair == (mu_budget is not None):
            raise ValueError(
                "give either mu_budget, or both target_epsilon and target_delta; got "
                f"mu_budget={mu_budget!r}, target_epsilon={target_epsilon!r}, "
                f"target_delta={target_delta!r}"
            )
        self._relation = check_relation(neighboring_relation)
        self._unit = check_unit(unit_of_privacy)
        self._target: tuple[float, float] | None = None
        if mu_budget is not None:
            self._budget = check_mu(mu_budget, "mu_budget")
        else:
            self._target = (
                check_epsilon(target_epsilon, "target_epsilon"),
                check_delta(target_delta, "target_delta"),
            )
            self._budget = calibrate_mu(*self._target)
        self._process = os.getpid()
        self._lock: AbstractContextManager[Any] = threading.RLock()
        self._entries: list[LedgerEntry] = []
        self._spent = Fraction(0)
        self._reserved = Fraction(0)

    def __repr__(self) -> str:
        return (
            f"PrivacyLedger(mu_spent={self.mu_spent!r}, mu_budget={self.mu_budget!r}, "
            f"neighboring_relation={self._relation!r}, unit_of_privacy={self._unit!r}, "
            f"entries={len(self.entries)})"
        )

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            "a PrivacyLedger cannot be copied or pickled, because a copy could spend the same "
            "budget again: hand the ledger itself around, or use save() and load()"
        )

    @property
    def neighboring_relation(self) -> NeighboringRelation:
        """The relation under which everything in the ledger is stated."""
        return self._relation

    @property
    def unit_of_privacy(self) -> UnitOfPrivacy:
        """Whom the budget protects: a single record, or all records of a user."""
        return self._unit

    @property
    def target_epsilon(self) -> float | None:
        """The ε of the budget, or None if it was given as μ."""
        return self._target[0] if self._target else None

    @property
    def target_delta(self) -> float | None:
        """The δ of the budget, or None if it was given as μ."""
        return self._target[1] if self._target else None

    @property
    def mu_budget(self) -> float:
        """The whole budget."""
        return self._budget

    @property
    def mu_spent(self) -> float:
        """What the charges cost together, rounded up. Reservations do not count."""
        with self._lock:
            return sqrt_bounds(self._spent)[1]

    @property
    def mu_remaining(self) -> float:
        """The largest μ that can still be charged, rounded down. Reservations are not in it."""
        with self._lock:
            return sqrt_bounds(self._left())[0]

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """The charges, oldest first."""
        with self._lock:
            return tuple(self._entries)

    def epsilon_spent(self, delta: float) -> float:
        """Return the ε of all charges together at this δ, rounded up.

        Parameters
        ----------
        delta : float
            δ, strictly between 0 and 1.

        Returns
        -------
        float
            The smallest ε for which the charges are (ε, δ)-differentially private.
        """
        return epsilon(delta, self.mu_spent)

    def check(
        self,
        mu: float,
        *,
        neighboring_relation: NeighboringRelation = "replace_special",
        unit_of_privacy: UnitOfPrivacy = "record",
    ) -> None:
        """Raise if a charge of ``mu`` would not fit now.

        Parameters
        ----------
        mu : float
            μ > 0 of the release.
        neighboring_relation : {"replace_special", "replace_one"}
            The relation under which ``mu`` is stated.
        unit_of_privacy : {"record", "user"}
            What ``mu`` protects.

        Raises
        ------
        BudgetExceededError
            It does not fit beside the charges and reservations.
        """
        cost = self._cost(mu, neighboring_relation, unit_of_privacy)
        with self._lock:
            self._require(cost)

    def charge(
        self,
        mu: float,
        label: str = "",
        *,
        neighboring_relation: NeighboringRelation = "replace_special",
        unit_of_privacy: UnitOfPrivacy = "record",
        resume: bool = False,
    ) -> None:
        """Charge the budget at once.

        Parameters
        ----------
        mu : float
            μ > 0 of the release.
        label : str
            What it is for.
        neighboring_relation : {"replace_special", "replace_one"}
            The relation under which ``mu`` is stated.
        unit_of_privacy : {"record", "user"}
            What ``mu`` protects.
        resume : bool
            The label belongs to this one release and to no other. A ledger that outlives its
            process (:class:`qexp.SharedLedger`) then takes up what was left reserved under it.

        Raises
        ------
        BudgetExceededError
            It does not fit; nothing is charged.
        """
        with self.reserve(
            mu,
            label,
            neighboring_relation=neighboring_relation,
            unit_of_privacy=unit_of_privacy,
            resume=resume,
        ) as reservation:
            reservation.commit()

    def reserve(
        self,
        mu: float,
        label: str = "",
        *,
        neighboring_relation: NeighboringRelation = "replace_special",
        unit_of_privacy: UnitOfPrivacy = "record",
        resume: bool = False,
    ) -> Reservation:
        """Hold a part of the budget while a release is made, for use in a ``with`` statement.

        No other thread can have that part meanwhile. ``commit()`` makes it a charge; leaving the
        block without it, also by an exception, gives it back.

        Parameters
        ----------
        mu : float
            μ > 0 of the release.
        label : str
            What it is for.
        neighboring_relation : {"replace_special", "replace_one"}
            The relation under which ``mu`` is stated.
        unit_of_privacy : {"record", "user"}
            What ``mu`` protects.
        resume : bool
            The label belongs to this one release and to no other. A ledger that outlives its
            process (:class:`qexp.SharedLedger`) then takes up what was left reserved under it.

        Returns
        -------
        Reservation
            Entering it raises `BudgetExceededError` if the budget does not suffice.

        Examples
        --------
        >>> ledger = PrivacyLedger(mu_budget=1.0)
        >>> with ledger.reserve(0.5, "round 1") as reservation:
        ...     reservation.commit()  # as soon as noise has met data
        """
        if not isinstance(label, str):
            raise TypeError(f"label must be a str, got {label!r} of type {type(label).__name__}")
        cost = self._cost(mu, neighboring_relation, unit_of_privacy)
        return Reservation(self, cost, label, resume=resume)

    def to_dp_event(self) -> Any:
        """Return the charges as a dp_accounting event; see the function `to_dp_event`."""
        return to_dp_event(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ledger to a JSON file, atomically. Open reservations are not in it.

        Parameters
        ----------
        path : str or os.PathLike
            The file; one that exists is replaced.

        Raises
        ------
        OSError
            The file cannot be written; the one before is whole.
        """
        with self._lock:
            content = {
                "neighboring_relation": self._relation,
                "unit_of_privacy": self._unit,
                "mu_budget": self._budget.hex(),
                "target": [value.hex() for value in self._target] if self._target else None,
                "entries": [
                    {"mu": entry.mu.hex(), "label": entry.label, "time": entry.time}
                    for entry in self._entries
                ],
            }
            document = {
                "format": _FORMAT,
                "version": _VERSION,
                "sha256": _checksum(content),
                "content": content,
            }
            data = json.dumps(document, indent=1).encode("ascii") + b"\n"
            # Inside the lock, so that of two threads that save, the later state stays.
            atomic_write_bytes(path, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrivacyLedger:
        """Read a ledger that `save` wrote.

        Parameters
        ----------
        path : str or os.PathLike
            The file.

        Returns
        -------
        PrivacyLedger
            The ledger, every number bit for bit as it was.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is damaged, not a ledger, or of a version that is not known here.
        """
        name = os.fspath(path)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no privacy ledger at {name!r}: correct the path, or start a new one with "
                "PrivacyLedger(...) and save() it there"
            ) from None
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(
                f"{name!r} is not a privacy ledger, or is damaged: give a file that "
                "PrivacyLedger.save wrote, or restore it from a backup"
            )
        if document.get("version") != _VERSION:
            raise ValueError(
                f"{name!r} is a privacy ledger of format version {document.get('version')!r}; this "
                f"release reads version {_VERSION}: use the release of qexp that wrote it"
            )
        content = document.get("content")
        damaged = (
            f"the privacy ledger {name!r} is damaged or was edited: restore it from a backup; do "
            "not start a new one for the same data, or what was spent is forgotten"
        )
        if _checksum(content) != document.get("sha256"):
            raise ValueError(damaged)
        try:
            return cls._from_content(content)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{damaged} ({error})") from error

    @classmethod
    def _from_content(cls, content: Any) -> PrivacyLedger:
        ledger = cls(
            mu_budget=float.fromhex(content["mu_budget"]),
            neighboring_relation=content["neighboring_relation"],
            unit_of_privacy=content["unit_of_privacy"],
        )
        if content["target"] is not None:
            eps, target = (float.fromhex(value) for value in content["target"])
            # Not calibrated again: the stored budget is what the charges were checked against.
            if delta(check_epsilon(eps), ledger._budget) > check_delta(target):
                raise ValueError("its budget does not fit its target")
            ledger._target = (eps, target)
        for item in content["entries"]:
            mu, label, time = check_mu(float.fromhex(item["mu"])), item["label"], item["time"]
            if not isinstance(label, str) or not isinstance(time, str):
                raise ValueError("an entry has a label or time that is not text")
            ledger._entries.append(LedgerEntry(mu, label, time))
            ledger._spent += square(mu)
        if ledger._left() < 0:
            raise ValueError("it holds more charges than its budget allows")
        return ledger

    # The methods below are called with the lock held.

    def _left(self) -> Fraction:
        return square(self._budget) - self._spent - self._reserved

    def _require(self, cost: float) -> None:
        if square(cost) <= self._left():
            return
        held = f" ({sqrt_bounds(self._reserved)[1]!r} is reserved)" if self._reserved else ""
        level = self._target[1] if self._target else 1e-6
        asked = sqrt_bounds(self._spent + self._reserved + square(cost))[1]

        def epsilon_text(mu: float) -> str:
            try:
                return f"epsilon = {epsilon(level, mu):.6g}"
            except ValueError:
                return "no finite epsilon"

        raise BudgetExceededError(
            f"a release of mu = {cost!r} does not fit: mu = {sqrt_bounds(self._left())[0]!r} "
            f"remains of mu_budget = {self._budget!r}{held}. With it, mu would be {asked!r} in "
            f"all, that is {epsilon_text(asked)} at delta = {level:.6g}, where the budget is "
            f"{epsilon_text(self._budget)} (neighboring_relation {self._relation!r}). Ask for "
            "less, or stop: a larger budget is a weaker promise to the people in the data"
        )

    def _hold(self, cost: float, label: str, *, resume: bool) -> int:
        """Hold a part of the budget; the number tells the reservation from others."""
        self._require_own_process()
        self._require(cost)
        self._reserved += square(cost)
        return 0

    def _pay(self, cost: float, label: str, number: int) -> None:
        self._require_own_process()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._spent += square(cost)
        self._entries.append(LedgerEntry(cost, label, now))
        self._reserved -= square(cost)

    def _require_own_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                "this PrivacyLedger was copied into a forked process, which could spend the same "
                "budget again: charge it in the process that made it, or share a "
                "qexp.SharedLedger, which is kept in a file"
            )

    # Without the lock held: a file's lock may fail, and then `error` must not be lost.

    def _give_back(self, cost: float, number: int, error: BaseException | None) -> None:
        with self._lock:
            self._reserved -= square(cost)

    def _cost(self, mu: float, stated_under: NeighboringRelation, protects: UnitOfPrivacy) -> float:
        """Return μ under the relation of the ledger.

        From "replace_one" to "replace_special" μ is kept: the null record is one of the records.
        """
        number = check_mu(mu)
        if check_unit(protects) == "record" and self._unit == "user":
            raise ValueError(
                "this release protects single records and its ledger protects users, who may have "
                "many; protect users (groups=), or use a ledger of unit_of_privacy='record'"
            )
        if check_relation(stated_under) == "replace_special" and self._relation == "replace_one":
            return check_mu(2 * number, "mu (doubled for 'replace_one')")
        return number


def _checksum(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


# --- dp_accounting ----------------------------------------------------------------------------


def to_dp_event(mu_or_ledger: float | PrivacyLedger) -> Any:
    """Return a release, or all charges of a ledger, as an event of dp_accounting.

    Parameters
    ----------
    mu_or_ledger : float or PrivacyLedger
        μ > 0 of one release under "replace_special", or a ledger.

    Returns
    -------
    dp_accounting.GaussianDpEvent or dp_accounting.ComposedDpEvent
        For a number, a Gaussian event with noise multiplier 1/μ (noise standard deviation over
        the bound on one record), rounded down. For a ledger, the composition of its charges.

    Raises
    ------
    ImportError
        dp_accounting is not installed.
    TypeError, ValueError
        The argument is neither a ledger nor a finite real number > 0.

    Notes
    -----
    The event does not say who is a neighbour; the accountant does. Give it
    ``NeighboringRelation.REPLACE_SPECIAL``, or ``REPLACE_ONE`` for a ledger with "replace_one":
    dp_accounting's PLD accountant then doubles the sensitivity itself, so noise multipliers here
    are always those of one record. (Its RDP accountant does not double it.)
    """
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            'to_dp_event needs dp_accounting: pip install "qexp[accounting]"'
        ) from error

    def gaussian(mu: float, changed_records: int) -> Any:
        return dp_accounting.GaussianDpEvent(noise_multiplier(mu, changed_records))

    if isinstance(mu_or_ledger, PrivacyLedger):
        changed_records = sensitivity_factor(mu_or_ledger.neighboring_relation)
        return dp_accounting.ComposedDpEvent(
            [gaussian(entry.mu, changed_records) for entry in mu_or_ledger.entries]
        )
    return gaussian(check_mu(mu_or_ledger), 1)
