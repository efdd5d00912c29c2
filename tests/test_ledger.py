from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from hypothesis import given
from hypothesis import strategies as st

from qexp.ledger import BudgetExceededError, LedgerEntry, PrivacyLedger, to_dp_event
from qexp.privacy import calibrate_mu, compose_mu, epsilon

# --- Charges ----------------------------------------------------------------------------------


def test_ledger_charges() -> None:
    ledger = PrivacyLedger(mu_budget=5.0)
    ledger.charge(3.0, "first")
    assert (ledger.mu_budget, ledger.mu_spent, ledger.mu_remaining) == (5.0, 3.0, 4.0)
    ledger.check(4.0)
    ledger.charge(4.0)
    assert (ledger.mu_spent, ledger.mu_remaining) == (5.0, 0.0)
    assert ledger.epsilon_spent(1e-5) == epsilon(1e-5, 5.0)
    with pytest.raises(BudgetExceededError):
        ledger.check(5e-324)
    first, second = ledger.entries
    assert (first.mu, first.label, second.mu, second.label) == (3.0, "first", 4.0, "")
    stamp = datetime.fromisoformat(first.time)
    assert stamp.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - stamp) < timedelta(minutes=5)
    with pytest.raises(AttributeError):
        first.mu = 1.0  # type: ignore[misc]


def test_ledger_with_a_target() -> None:
    ledger = PrivacyLedger(target_epsilon=1.0, target_delta=1e-5)
    assert (ledger.target_epsilon, ledger.target_delta) == (1.0, 1e-5)
    assert ledger.mu_budget == calibrate_mu(1.0, 1e-5)
    ledger.charge(ledger.mu_budget)
    assert 0.999999 < ledger.epsilon_spent(1e-5) <= 1.0
    assert "mu_spent=0.26805" in repr(ledger)


def test_budget_exceeded_message() -> None:
    ledger = PrivacyLedger(target_epsilon=1.0, target_delta=1e-5)
    with pytest.raises(BudgetExceededError, match=r"mu = 0\.5 does not fit") as caught:
        ledger.charge(0.5)
    text = str(caught.value)
    assert f"{ledger.mu_remaining!r} remains" in text
    assert f"epsilon = {epsilon(1e-5, 0.5):.6g} at delta = 1e-05" in text
    assert "where the budget is epsilon = 1 " in text
    assert isinstance(caught.value, ValueError)
    assert ledger.entries == ()
    with pytest.raises(BudgetExceededError, match=r"no finite epsilon at delta = 1e-06"):
        PrivacyLedger(mu_budget=1.0).charge(1e300)


def test_overspending_is_decided_exactly() -> None:
    ledger = PrivacyLedger(mu_budget=1.0)
    ledger.charge(0.6)
    largest = ledger.mu_remaining
    assert (largest >= 0.8) == (Fraction(0.6) ** 2 + Fraction(0.8) ** 2 <= 1)
    with pytest.raises(BudgetExceededError):
        ledger.check(math.nextafter(largest, 1.0))
    ledger.charge(largest)
    assert sum(Fraction(entry.mu) ** 2 for entry in ledger.entries) <= 1
    # In floats 1 + 1e-400 is 1; exactly, it is too much.
    tiny = PrivacyLedger(mu_budget=1.0)
    tiny.charge(1e-200)
    with pytest.raises(BudgetExceededError):
        tiny.charge(1.0)


@given(st.lists(st.floats(1e-3, 1.0), max_size=20), st.floats(0.1, 2.0))
def test_ledger_never_overspends(charges: list[float], budget: float) -> None:
    ledger = PrivacyLedger(mu_budget=budget)
    spent = Fraction(0)
    for mu in charges:
        if spent + Fraction(mu) ** 2 <= Fraction(budget) ** 2:
            ledger.charge(mu)
            spent += Fraction(mu) ** 2
        else:
            with pytest.raises(BudgetExceededError):
                ledger.charge(mu)
    assert Fraction(ledger.mu_spent) ** 2 >= spent
    assert Fraction(ledger.mu_remaining) ** 2 <= Fraction(budget) ** 2 - spent
    assert ledger.mu_spent == compose_mu(entry.mu for entry in ledger.entries)


def test_reservation() -> None:
    ledger = PrivacyLedger(mu_budget=5.0)
    with ledger.reserve(3.0, "kept") as reservation:
        assert (ledger.mu_spent, ledger.mu_remaining, reservation.mu) == (0.0, 4.0, 3.0)
        with pytest.raises(BudgetExceededError, match=r"3\.0 is reserved"):
            ledger.charge(4.5)
        reservation.commit()
        assert (ledger.mu_spent, ledger.mu_remaining) == (3.0, 4.0)
        with pytest.raises(RuntimeError, match="this one is committed"):
            reservation.commit()
    with ledger.reserve(4.0, "given back"):
        assert ledger.mu_remaining == 0.0
    assert ledger.mu_remaining == 4.0
    with pytest.raises(KeyError), ledger.reserve(4.0):
        raise KeyError("the release failed")
    assert ledger.mu_remaining == 4.0

    def fail_after_the_commit() -> None:
        with ledger.reserve(4.0) as paid:
            paid.commit()
            raise KeyError("after the commit")

    with pytest.raises(KeyError):
        fail_after_the_commit()
    assert [entry.mu for entry in ledger.entries] == [3.0, 4.0]


def test_reservation_misuse() -> None:
    ledger = PrivacyLedger(mu_budget=5.0)
    reservation = ledger.reserve(3.0)
    assert ledger.mu_remaining == 5.0
    with pytest.raises(RuntimeError, match="this one is new"):
        reservation.commit()
    with reservation:
        pass
    with pytest.raises(RuntimeError, match="this one is returned"):
        reservation.commit()
    with pytest.raises(RuntimeError, match="entered once only"):
        reservation.__enter__()
    with pytest.raises(TypeError, match="label must be a str"):
        ledger.reserve(1.0, label=3)  # type: ignore[arg-type]
    assert ledger.mu_remaining == 5.0


def test_racing_threads_cannot_overspend() -> None:
    ledger = PrivacyLedger(mu_budget=1.0)
    threads = 16
    barrier = threading.Barrier(threads)
    outcomes: list[bool] = []

    def race(number: int) -> None:
        barrier.wait()
        for attempt in range(25):
            try:
                with ledger.reserve(0.125, f"{number}") as reservation:
                    # Let others in between the check and the charge.
                    time.sleep(0)
                    if attempt % 2:
                        reservation.commit()
                        outcomes.append(True)
            except BudgetExceededError:
                outcomes.append(False)

    workers = [threading.Thread(target=race, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert outcomes.count(True) == len(ledger.entries) <= 64
    assert ledger.mu_spent <= 1.0
    # Nothing stays reserved, and what is left can be spent to the last bit.
    for _ in range(64 - len(ledger.entries)):
        ledger.charge(0.125)
    assert (ledger.mu_spent, ledger.mu_remaining) == (1.0, 0.0)


def test_neighboring_relation() -> None:
    special = PrivacyLedger(mu_budget=2.0)
    one = PrivacyLedger(mu_budget=2.0, neighboring_relation="replace_one")
    assert special.neighboring_relation == "replace_special"
    assert one.neighboring_relation == "replace_one"
    special.charge(0.5)
    one.charge(0.5)
    assert (special.mu_spent, one.mu_spent) == (0.5, 1.0)
    with pytest.raises(BudgetExceededError):
        one.charge(one.mu_remaining)
    one.charge(one.mu_remaining, neighboring_relation="replace_one")
    special.charge(0.5, neighboring_relation="replace_one")
    assert [entry.mu for entry in special.entries] == [0.5, 0.5]
    with pytest.raises(ValueError, match="doubled"):
        one.check(1.7e308)


def test_neighboring_relation_refused() -> None:
    refused: Any = "add_or_remove_one"
    with pytest.raises(ValueError, match="number of records is public"):
        PrivacyLedger(mu_budget=1.0, neighboring_relation=refused)
    wrong: list[Any] = ["REPLACE_ONE", "", None, 1, np.zeros(2)]
    for bad in wrong:
        with pytest.raises(ValueError, match="must be 'replace_special'"):
            PrivacyLedger(mu_budget=1.0, neighboring_relation=bad)
        with pytest.raises(ValueError, match="must be 'replace_special'"):
            PrivacyLedger(mu_budget=1.0).charge(1.0, neighboring_relation=bad)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"target_epsilon": 1.0},
        {"target_delta": 1e-5},
        {"mu_budget": 1.0, "target_epsilon": 1.0},
        {"mu_budget": 1.0, "target_delta": 1e-5},
        {"mu_budget": 1.0, "target_epsilon": 1.0, "target_delta": 1e-5},
    ],
)
def test_exactly_one_budget(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give either mu_budget, or both"):
        PrivacyLedger(**arguments)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_ledger_cannot_be_copied(duplicate: Any) -> None:
    with pytest.raises(TypeError, match="spend the same budget again"):
        duplicate(PrivacyLedger(mu_budget=1.0))


# --- Files ------------------------------------------------------------------------------------


def some_ledger() -> PrivacyLedger:
    ledger = PrivacyLedger(
        target_epsilon=1.1, target_delta=1e-7, neighboring_relation="replace_one"
    )
    ledger.charge(0.01 / 3, "first")
    ledger.charge(5e-324, 'with "quotes", ünïcode\n and \ud800')
    return ledger


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = some_ledger()
    with ledger.reserve(0.001):
        ledger.save(path)
    loaded = PrivacyLedger.load(str(path))
    assert loaded.entries == ledger.entries
    assert isinstance(loaded.entries[0], LedgerEntry)
    assert loaded.mu_budget == ledger.mu_budget
    assert loaded.mu_remaining == ledger.mu_remaining
    assert (loaded.target_epsilon, loaded.target_delta) == (1.1, 1e-7)
    assert loaded.neighboring_relation == "replace_one"
    again = tmp_path / "again.json"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    PrivacyLedger(mu_budget=0.3).save(path)
    assert PrivacyLedger.load(path).target_epsilon is None


def test_any_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    some_ledger().save(path)
    data = path.read_bytes()
    expected = PrivacyLedger.load(path).entries
    rng = np.random.default_rng(3)
    messages = []
    for position in rng.choice(len(data), 300, replace=False).tolist():
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
        try:
            loaded = PrivacyLedger.load(path)
        except ValueError as error:
            messages.append(str(error))
        else:
            # White space, or another spelling of the same text: nothing was lost.
            assert loaded.entries == expected
    assert len(messages) > 200
    assert all(str(path) in message for message in messages)
    for length in range(0, len(data) - 2, 7):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="not a privacy ledger, or is damaged"):
            PrivacyLedger.load(path)


def test_load_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="no privacy ledger at"):
        PrivacyLedger.load(path)
    for foreign in (b"", b"\xff\x00", b"[]", b"null", b"{}", b'{"format": 1}', b"[" * 100_000):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match="not a privacy ledger"):
            PrivacyLedger.load(path)


def forge(path: Path, **changes: Any) -> None:
    """Change the content of a ledger file and give it a fitting checksum."""
    document = json.loads(path.read_bytes())
    document["content"].update(changes)
    canonical = json.dumps(document["content"], sort_keys=True, separators=(",", ":"))
    document["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "changes",
    [
        {"entries": [{"mu": "0x1p+10", "label": "", "time": ""}]},
        {"entries": [{"mu": "-0x1p-30", "label": "", "time": ""}]},
        {"entries": [{"mu": "nan", "label": "", "time": ""}]},
        {"entries": [{"mu": 1.0, "label": "", "time": ""}]},
        {"entries": [{"mu": "0x1p-30", "label": 3, "time": ""}]},
        {"entries": [{"mu": "0x1p-30"}]},
        {"entries": None},
        {"mu_budget": "0x1p+10"},
        {"mu_budget": "0x1p+5000"},
        {"mu_budget": "word"},
        {"target": ["0x1p+0"]},
        {"neighboring_relation": "add_or_remove_one"},
    ],
)
def test_load_refuses_impossible_content(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "ledger.json"
    some_ledger().save(path)
    forge(path)
    assert len(PrivacyLedger.load(path).entries) == 2
    forge(path, **changes)
    with pytest.raises(ValueError, match="damaged or was edited"):
        PrivacyLedger.load(path)


def test_load_refuses_another_version(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    some_ledger().save(path)
    document = json.loads(path.read_bytes())
    document["version"] = 2
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="format version 2"):
        PrivacyLedger.load(path)


def test_killed_while_saving(tmp_path: Path) -> None:
    """Whenever the process dies, the file holds a whole ledger, no older than the last save."""
    path = tmp_path / "ledger.json"
    script = (
        "import sys\n"
        "from qexp.ledger import PrivacyLedger\n"
        "ledger = PrivacyLedger(mu_budget=1e6)\n"
        "for number in range(300):\n"
        "    ledger.charge(0.5, 'x' * 100)\n"
        "while True:\n"
        "    ledger.charge(0.5, 'one more')\n"
        "    ledger.save(sys.argv[1])\n"
        "    print(len(ledger.entries), flush=True)\n"
    )
    rng = np.random.default_rng(11)
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(float(rng.uniform(0.0, 0.2)))
            process.send_signal(signal.SIGKILL)
            said = first + process.stdout.read()
        assert process.returncode == -signal.SIGKILL
        found = len(PrivacyLedger.load(path).entries)
        last = int(said.splitlines()[-1])
        assert last <= found <= last + 1


# --- dp_accounting ----------------------------------------------------------------------------


def test_dp_event_of_a_number() -> None:
    event = to_dp_event(0.3)
    assert isinstance(event, dp_accounting.GaussianDpEvent)
    multiplier = event.noise_multiplier
    assert Fraction(multiplier) * Fraction(0.3) <= 1
    assert Fraction(math.nextafter(multiplier, 9.0)) * Fraction(0.3) > 1
    assert to_dp_event(5e-324).noise_multiplier == sys.float_info.max


@pytest.mark.parametrize("relation", ["replace_special", "replace_one"])
def test_pld_accountant_agrees(relation: Any) -> None:
    ledger = PrivacyLedger(mu_budget=3.0, neighboring_relation=relation)
    for mu in (0.3, 0.2, 0.5):
        ledger.charge(mu)
    event = ledger.to_dp_event()
    assert isinstance(event, dp_accounting.ComposedDpEvent)
    # The noise multiplier is that of one record under both relations.
    assert [e.noise_multiplier for e in event.events] == pytest.approx([1 / 0.3, 5.0, 2.0])
    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation[relation.upper()], value_discretization_interval=1e-3
    )
    accountant.compose(event)
    # The accountant rounds its grid up, so it is above the exact value, and near it.
    exact = ledger.epsilon_spent(1e-5)
    assert exact <= accountant.get_epsilon(1e-5) <= exact + 1e-4


def test_dp_event_of_an_empty_ledger() -> None:
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(to_dp_event(PrivacyLedger(mu_budget=1.0)))
    assert accountant.get_epsilon(1e-5) == 0


def test_missing_dp_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r'pip install "qexp\[accounting\]"'):
        to_dp_event(1.0)


def test_a_forked_process_cannot_spend_the_same_budget_again() -> None:
    ledger = PrivacyLedger(mu_budget=1.0)
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            ledger.charge(0.9)
            os.write(writing, b"charged")
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(process, 0)
    assert "copied into a forked process" in said
    assert "SharedLedger" in said
    ledger.charge(0.9)


def test_unit_of_privacy(tmp_path: Path) -> None:
    users = PrivacyLedger(mu_budget=1.0, unit_of_privacy="user")
    for spend in (users.check, users.charge, users.reserve):
        with pytest.raises(ValueError, match="use a ledger of unit_of_privacy='record'"):
            spend(0.1)
    users.charge(0.6, unit_of_privacy="user")
    users.save(tmp_path / "ledger.json")
    again = PrivacyLedger.load(tmp_path / "ledger.json")
    assert (again.unit_of_privacy, again.mu_spent) == ("user", 0.6)
    # Whoever is protected with all records is protected with each.
    records = PrivacyLedger(mu_budget=1.0)
    records.charge(0.6, unit_of_privacy="user")
    assert (records.unit_of_privacy, records.mu_spent) == ("record", 0.6)
    with pytest.raises(ValueError, match="unit_of_privacy must be 'record'"):
        PrivacyLedger(mu_budget=1.0, unit_of_privacy="person")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unit_of_privacy must be 'record'"):
        records.charge(0.1, unit_of_privacy="group")  # type: ignore[arg-type]
