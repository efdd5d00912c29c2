"""The ledger that jobs share: what it adds up to, races, crashes, damage, and who may resume."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qexp
from qexp import ledger_file
from qexp._files import DamagedFileError
from qexp.bits import insecure_test_generator
from qexp.finetune import Schedule, _job, fine_tune
from qexp.ledger import BudgetExceededError, PrivacyLedger
from qexp.ledger_file import SharedLedger, read_ledger
from qexp.models import mlp


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def kinds(path):
    return [json.loads(line)["kind"] for line in path.read_bytes().splitlines()]


def abandon(ledger, mu, label="gone"):
    """Reserve as a process does that is killed next."""
    ledger.reserve(mu, label).__enter__()


# ------------------------------------------------------------------------- what it adds up to


def test_what_is_no_file_on_a_disk_is_no_ledger(tmp_path):
    """A pipe would be waited for, and a device read until memory is full."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for odd in (pipe, Path("/dev/full")):
        for function in (read_ledger, SharedLedger):
            with pytest.raises(OSError, match="a device, a pipe or a socket") as caught:
                function(odd)
            assert f"the privacy ledger {str(odd)!r}" in str(caught.value)
    for function in (read_ledger, SharedLedger):
        with pytest.raises(IsADirectoryError, match="the privacy ledger"):
            function(tmp_path)
    assert list(tmp_path.iterdir()) == [pipe]


def test_two_openings_are_one_ledger(path):
    first = SharedLedger.create(path, mu_budget=5.0)
    second = SharedLedger(path)
    assert isinstance(first, PrivacyLedger)
    first.charge(3.0, "first")
    assert (second.mu_spent, second.mu_remaining) == (3.0, 4.0)
    with second.reserve(4.0, "second") as reservation:
        assert (first.mu_spent, first.mu_remaining, first.mu_reserved) == (3.0, 0.0, 4.0)
        with pytest.raises(BudgetExceededError, match=r"4\.0 is reserved"):
            first.check(0.5)
        reservation.commit()
    assert [(entry.mu, entry.label) for entry in first.entries] == [(3.0, "first"), (4.0, "second")]
    assert (first.mu_spent, first.mu_remaining, first.mu_reserved) == (5.0, 0.0, 0.0)
    assert first.epsilon_spent(1e-5) == qexp.epsilon(1e-5, 5.0)
    assert kinds(path) == ["budget", "reserve", "charge", "reserve", "charge"]
    first.verify()


def test_an_exception_gives_the_share_back(path):
    ledger = SharedLedger.create(path, mu_budget=1.0)
    with pytest.raises(KeyError), ledger.reserve(1.0):
        raise KeyError("failed")
    with ledger.reserve(1.0):
        pass
    assert ledger.mu_remaining == 1.0
    assert kinds(path) == ["budget", *["reserve", "cancel"] * 2]


def test_the_budget_keeps_its_target_and_relation(path):
    SharedLedger.create(
        path, target_epsilon=1.1, target_delta=1e-7, neighboring_relation="replace_one"
    )
    ledger = SharedLedger(path)
    assert (ledger.target_epsilon, ledger.target_delta) == (1.1, 1e-7)
    assert ledger.mu_budget == qexp.calibrate_mu(1.1, 1e-7)
    ledger.charge(0.01)
    assert ledger.mu_spent == 0.02
    assert read_ledger(path).neighboring_relation == "replace_one"


def test_any_label_survives(path):
    ledger = SharedLedger.create(path, mu_budget=1.0)
    label = 'with "quotes", ünïcode\n and \ud800'
    ledger.charge(5e-324, label)
    assert SharedLedger(path).entries[0].label == label


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["charge", "cancel", "abandon", "resume", "release", "reopen", "tear"]),
        st.floats(1e-3, 1.0),
        st.integers(0, 5),
    ),
    max_size=25,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, budget=st.floats(0.5, 2.0))
def test_it_adds_up_exactly_whatever_happens(tmp_path_factory, steps, budget):
    """Against exact rational bookkeeping in a few lines."""
    path = tmp_path_factory.mktemp("model") / "ledger"
    ledger = SharedLedger.create(path, mu_budget=budget)
    spent, held = Fraction(0), {}
    for number, (what, mu, pick) in enumerate(steps):
        square, label = Fraction(mu) ** 2, f"draw {number}"
        fits = spent + sum((Fraction(m) ** 2 for m in held.values()), square) <= (
            Fraction(budget) ** 2
        )
        refused = contextlib.nullcontext() if fits else pytest.raises(BudgetExceededError)
        if what == "charge":
            with refused:
                ledger.charge(mu, label)
                spent += square
        elif what == "cancel":
            with refused, ledger.reserve(mu, label):
                pass
        elif what == "abandon":
            with refused:
                abandon(ledger, mu, label)
                held[label] = mu
        elif what == "reopen":
            ledger = SharedLedger(path)
        elif what == "tear":
            with open(path, "ab") as file:
                file.write(b'{"kind":"charge","of":1,'[: 4 * pick])
        elif held:
            label = list(held)[pick % len(held)]
            if what == "resume":
                ledger.charge(held[label], label, resume=True)
                spent += Fraction(held[label]) ** 2
            else:
                number = next(r.number for r in ledger.open_reservations if r.label == label)
                ledger.release(number, "the test says so")
            del held[label]
        assert sum(Fraction(entry.mu) ** 2 for entry in ledger.entries) == spent
        assert {r.label: r.mu for r in ledger.open_reservations} == held
        left = Fraction(budget) ** 2 - spent - sum(Fraction(m) ** 2 for m in held.values())
        assert Fraction(ledger.mu_remaining) ** 2 <= left
    ledger.verify()
    summary = read_ledger(path)
    assert summary.mu_spent == ledger.mu_spent
    assert (summary.lines, summary.head) == ledger.head


# -------------------------------------------------------------------------------------- races

RACER = """
import sys, numpy as np
from qexp.ledger_file import SharedLedger
from qexp.ledger import BudgetExceededError
ledger = SharedLedger(sys.argv[1])
chance = np.random.default_rng(int(sys.argv[2]))
sys.stdin.readline()
for attempt in range(40):
    try:
        with ledger.reserve(0.125, sys.argv[2]) as reservation:
            if chance.random() < 0.7:
                reservation.commit()
                print("paid", flush=True)
    except BudgetExceededError:
        print("refused", flush=True)
"""


def start(script, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_racing_processes_never_overspend_and_lose_no_charge(path):
    ledger = SharedLedger.create(path, mu_budget=1.0)
    racers = [start(RACER, path, number) for number in range(4)]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate()[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert ledger.mu_spent <= 1.0
    paid = [words.count("paid") for words in said]
    charged = [entry.label for entry in ledger.entries]
    assert [charged.count(str(number)) for number in range(4)] == paid
    assert sum(paid) == 64 or sum(words.count("refused") for words in said) == 0
    assert ledger.open_reservations == ()
    ledger.verify()
    for _ in range(64 - sum(paid)):
        ledger.charge(0.125)
    assert (ledger.mu_spent, ledger.mu_remaining) == (1.0, 0.0)


def test_racing_threads_of_one_process_never_overspend(path):
    SharedLedger.create(path, mu_budget=1.0)

    def race():
        own = SharedLedger(path)
        with contextlib.suppress(BudgetExceededError):
            for _ in range(12):
                own.charge(0.25)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = SharedLedger(path)
    assert (len(ledger.entries), ledger.mu_spent) == (16, 1.0)
    ledger.verify()


def test_processes_killed_at_any_moment_lose_no_charge(path):
    """What was acknowledged is there; what was open goes on counting; the file stays whole."""
    ledger = SharedLedger.create(path, mu_budget=1.0)
    chance = np.random.default_rng(0)
    paid = 0
    for number in range(5):
        racer = start(RACER, path, number)
        racer.stdin.write("go\n")
        racer.stdin.flush()
        first = racer.stdout.readline()
        time.sleep(chance.uniform(0, 0.02))
        racer.kill()
        paid += (first + racer.communicate()[0]).split().count("paid")
    assert paid <= len(ledger.entries) <= paid + 5
    assert len(ledger.open_reservations) <= 5
    ledger.verify()
    before = ledger.mu_spent
    for held in ledger.open_reservations:
        ledger.release(held.number, "killed by the test")
    assert ledger.mu_spent == before <= 1.0


HOLDER = """
import sys
from qexp.ledger_file import SharedLedger
ledger = SharedLedger(sys.argv[1])
if sys.argv[2] == "lock":
    ledger._lock.__enter__()
else:
    ledger.reserve(0.5, "held").__enter__()
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_lock_that_is_not_freed_is_reported_with_its_holder(path):
    SharedLedger.create(path, mu_budget=1.0)
    process = start(HOLDER, path, "lock")
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(TimeoutError, match=f"process {process.pid} started") as caught:
        SharedLedger(path, lock_timeout=0.2)
    assert os.uname().nodename in str(caught.value)
    assert "was locked for 0.2 s" in str(caught.value)
    process.kill()
    process.communicate()
    assert SharedLedger(path, lock_timeout=0.2).mu_spent == 0.0


def test_what_a_running_process_holds_is_neither_resumed_nor_released(path):
    ledger = SharedLedger.create(path, mu_budget=0.6)
    process = start(HOLDER, path, "reserve")
    assert process.stdout.readline() == "ready\n"
    (held,) = ledger.open_reservations
    for attempt in (
        lambda: ledger.charge(0.5, "held", resume=True),
        lambda: ledger.release(held.number),
    ):
        with pytest.raises(BlockingIOError, match=f"process {process.pid} .*which is running"):
            attempt()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with pytest.raises(BudgetExceededError):
        ledger.charge(0.5, "held")
    ledger.charge(0.5, "held", resume=True)
    assert (ledger.mu_spent, ledger.open_reservations) == (0.5, ())
    assert kinds(path) == ["budget", "reserve", "resume", "charge"]


def test_a_reservation_is_resumed_for_the_same_mu_only(path):
    ledger = SharedLedger.create(path, mu_budget=1.0)
    abandon(ledger, 0.5)
    with pytest.raises(ValueError, match=r"asks for mu = 0\.25 and has reserved 0\.5"):
        ledger.charge(0.25, "gone", resume=True)


def test_a_share_that_was_released_too_early_is_paid_for_all_the_same(path):
    ledger = SharedLedger.create(path, mu_budget=1.0)
    with ledger.reserve(0.5, "slow") as slow:
        SharedLedger(path).release(1, "thought dead")
        slow.commit()
    assert ledger.mu_spent == 0.5
    with ledger.reserve(0.5, "slower") as slower:
        SharedLedger(path).release(5)
        ledger.charge(ledger.mu_remaining)
        with pytest.raises(BudgetExceededError):
            slower.commit()
    ledger.verify()


@pytest.mark.parametrize("number", [0, 7, True, "1"])
def test_only_open_reservations_can_be_released(path, number):
    ledger = SharedLedger.create(path, mu_budget=1.0)
    abandon(ledger, 0.5)
    with pytest.raises(ValueError, match="open are: 1"):
        ledger.release(number)
    ledger.release(1)
    with pytest.raises(ValueError, match="open are: none"):
        ledger.release(1)


# ------------------------------------------------------------------------------ crash and damage


def some_file(path):
    ledger = SharedLedger.create(path, target_epsilon=2.0, target_delta=1e-5)
    ledger.charge(0.1, "first")
    abandon(ledger, 0.2)
    ledger.charge(0.05, "last")
    return path.read_bytes()


def test_a_torn_last_line_is_mended_at_every_byte(path):
    data = some_file(path)
    begin = data.rstrip(b"\n").rfind(b"\n") + 1
    ledger = SharedLedger(path)
    for end in range(begin, len(data)):
        path.unlink()
        path.write_bytes(data[:end])
        assert read_ledger(path).torn_bytes == end - begin
        ledger = SharedLedger(path)
        labels = [entry.label for entry in ledger.entries]
        # Whole but for its line feed, it counts; else it was never acknowledged.
        assert labels == ["first", "last"] if end == len(data) - 1 else ["first"]
        assert path.read_bytes() == (data if end == len(data) - 1 else data[:begin])
        if end != len(data) - 1:
            assert [held.label for held in ledger.open_reservations] == ["gone", "last"]
    path.unlink()
    path.write_bytes(data[:begin] + bytes(40))
    SharedLedger(path).charge(0.05, "last", resume=True)
    assert [entry.label for entry in SharedLedger(path).entries] == ["first", "last"]


def test_any_other_damage_is_refused(path):
    data = some_file(path)
    expected = read_ledger(path)
    chance = np.random.default_rng(3)
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for position in chance.choice(last, 200, replace=False).tolist():
        changed = bytearray(data)
        changed[position] ^= 1 << int(chance.integers(8))
        path.write_bytes(bytes(changed))
        with pytest.raises(DamagedFileError, match="damaged or was edited"):
            SharedLedger(path)
        with pytest.raises(DamagedFileError):
            read_ledger(path)
        assert path.read_bytes() == bytes(changed)
    lines = data.splitlines(keepends=True)
    for wrong in (
        lines[1:],
        lines[:2] + lines[3:],
        [lines[0], *lines],
        [*lines, lines[-1]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [b"\n", *lines],
        [],
        [b"{}\n"],
        [b"[]\n"],
        [b"[" * 100_000 + b"\n"],
        [b'{"format":"qexp privacy ledger"}\n'],
    ):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(DamagedFileError):
            SharedLedger(path)
    path.write_bytes(data)
    assert read_ledger(path) == expected


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "charge", "of": 99},
        {"kind": "cancel", "of": 1},
        {"kind": "gift", "of": 2},
        {"kind": "reserve", "mu": "0x1p+9", "label": "", "holder": ""},
        {"kind": "reserve", "mu": "-0x1p-9", "label": "", "holder": ""},
        {"kind": "reserve", "mu": "0x1p-9", "label": 3, "holder": ""},
        {"kind": "reserve", "mu": "0x1p-9"},
        {"kind": "budget", "mu_budget": "0x1p+9"},
    ],
)
def test_impossible_lines_with_a_fitting_checksum_are_refused(path, body):
    some_file(path)
    lines, head = SharedLedger(path).head
    line, _ = ledger_file._render({"sequence": lines, "time": "", **body}, head)
    with open(path, "ab") as file:
        file.write(line)
    with pytest.raises(DamagedFileError, match=f"line {lines}"):
        SharedLedger(path)


def test_a_file_that_is_changed_or_cut_while_in_use_is_noticed(path):
    data = some_file(path)
    ledger = SharedLedger(path)
    path.write_bytes(data[: data.rstrip(b"\n").rfind(b"\n") + 1])
    with pytest.raises(DamagedFileError, match="replaced or cut"):
        ledger.charge(0.01)
    path.write_bytes(data)
    copy = path.with_name("copy")
    copy.write_bytes(data)
    other = SharedLedger(path)
    os.replace(copy, path)
    with pytest.raises(DamagedFileError, match="replaced or cut"):
        other.charge(0.01)


def test_a_full_disk_refuses_before_a_draw_and_loses_nothing(path):
    """A limit on the file size makes real writes fail half way, as a full disk does."""
    some_file(path)
    script = (
        "import resource, sys\n"
        "from qexp.ledger_file import SharedLedger\n"
        "ledger = SharedLedger(sys.argv[1])\n"
        "size = int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "try:\n"
        "    with ledger.reserve(0.01, 'x' * 100) as reservation:\n"
        "        print('drawing')\n"
        "        try:\n"
        "            reservation.commit()\n"
        "        finally:\n"
        "            print(ledger.mu_reserved > 0.2)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    # No room for the reservation; then room for it, but not for its charge.
    for room, before in ((60, ""), (460, "drawing\nTrue\n")):
        data = path.read_bytes()
        done = subprocess.run(
            [sys.executable, "-c", script, str(path), str(len(data) + room)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith(before + "[Errno 27]"), done.stdout
        assert "free some space" in done.stdout
        assert path.read_bytes().startswith(data)
    ledger = SharedLedger(path)
    assert [entry.label for entry in ledger.entries] == ["first", "last"]
    # The draw whose charge failed may exist: its reservation counts until somebody decides.
    assert [held.label for held in ledger.open_reservations] == ["gone", "x" * 100]


def test_a_cancellation_that_fails_hides_no_error(path, monkeypatch):
    ledger = SharedLedger.create(path, mu_budget=1.0)

    def fail():
        with ledger.reserve(0.5):
            monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
            raise KeyError("the reason")

    with pytest.raises(KeyError, match="the reason") as caught:
        fail()
    assert "stays open and counts" in caught.value.__notes__[0]
    monkeypatch.undo()
    assert ledger.mu_reserved == 0.5


def test_creation_never_replaces_a_file(path):
    SharedLedger.create(path, mu_budget=1.0)
    data = path.read_bytes()
    with pytest.raises(FileExistsError, match="forget what was spent"):
        SharedLedger.create(path, mu_budget=2.0)
    assert path.read_bytes() == data
    with pytest.raises(FileNotFoundError, match="create the folder first"):
        SharedLedger.create(path.parent / "none" / "ledger", mu_budget=1.0)
    with pytest.raises(ValueError, match="give either mu_budget"):
        SharedLedger.create(path.parent / "other")
    assert not (path.parent / "other").exists()


def test_other_uses_are_refused_with_a_message(path):
    with pytest.raises(FileNotFoundError, match="qexp ledger create"):
        SharedLedger(path)
    ledger = SharedLedger.create(path, mu_budget=1.0)
    with pytest.raises(TypeError, match="nothing to save"):
        ledger.save(path)
    with pytest.raises(TypeError, match="cannot be copied"):
        __import__("pickle").dumps(ledger)
    assert SharedLedger.load(path).mu_budget == 1.0
    assert repr(ledger) == f"SharedLedger({str(path)!r})"


FORKER = """
import os, sys, threading
from qexp.ledger_file import SharedLedger
ledger = SharedLedger(sys.argv[1], lock_timeout=0.3)
entered, leave = threading.Event(), threading.Event()
def hold():
    with ledger._lock:
        entered.set()
        leave.wait(20)
thread = threading.Thread(target=hold)
thread.start()
entered.wait(20)
if os.fork() == 0:
    try:
        ledger.charge(0.5)
    except TimeoutError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
leave.set()
thread.join()
if os.fork() == 0:
    ledger.charge(0.25)
    os._exit(0)
os.wait()
print(ledger.mu_spent)
"""


def test_a_forked_child_has_no_lock_of_its_parent_and_no_deadlock(path):
    SharedLedger.create(path, mu_budget=1.0)
    process = start("import warnings; warnings.simplefilter('ignore')" + FORKER, path)
    refused, spent = process.communicate(timeout=60)[0].splitlines()
    assert f"last by {os.uname().nodename}, process {process.pid}" in refused
    assert spent == "0.25"


# ------------------------------------------------------------------ rounds, checkpoint and ledger


@pytest.fixture(scope="module")
def task():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(200, 4)).astype(np.float32)
    y = (X[:, 0] > 0).astype(np.int64)
    model = mlp((4, 2), seed=1)
    return model, X, y, qexp.KroneckerCurvature.from_model(model, X[:100], damping=1e-2)


def tune(task, folder, ledger, share=0.0, **changes):
    model, X, y, curvature = task
    return fine_tune(
        model, X, y,
        schedule=Schedule(
            rounds=4, clipping_norm=3.0, step_size=0.5, damping=1e-2, curvature_share=share
        ),
        curvature=curvature, target_epsilon=2.0, target_delta=1e-5,
        rng=insecure_test_generator(5), checkpoint=folder / "job.npz", ledger=ledger, **changes,
    )  # fmt: skip


class Killed(BaseException):
    """Ends a job so that nothing of it cleans up."""


@pytest.mark.parametrize("place", ["private_step", "save_state", "_pay", "after _pay"])
@pytest.mark.parametrize("exact_budget", [True, False])
def test_a_job_killed_anywhere_pays_every_round_once(
    task, tmp_path, monkeypatch, place, exact_budget
):
    (tmp_path / "whole").mkdir()
    expected = tune(task, tmp_path / "whole", None)
    mu = expected.release.mu if exact_budget else 5.0
    ledger = SharedLedger.create(tmp_path / "ledger", mu_budget=mu)
    owner = SharedLedger if "_pay" in place else _job
    name = place.removeprefix("after ")
    work, calls = getattr(owner, name), 0

    def dying(*arguments, **options):
        nonlocal calls
        calls += 1
        third = calls == (4 if name == "save_state" else 3)
        if third and place == "_pay":
            raise Killed
        value = work(*arguments, **options)
        if third:
            raise Killed
        return value

    monkeypatch.setattr(owner, name, dying)
    monkeypatch.setattr(SharedLedger, "_give_back", lambda *_: None)  # as after kill -9
    with pytest.raises(Killed):
        tune(task, tmp_path, ledger)
    monkeypatch.undo()
    paid_before = 3 if place == "after _pay" else 2
    assert len(ledger.entries) == paid_before
    assert len(ledger.open_reservations) == 3 - paid_before
    assert ledger.mu_spent < ledger.mu_budget

    result = tune(task, tmp_path, SharedLedger(tmp_path / "ledger"))
    assert np.array_equal(result.release.weights, expected.release.weights)
    assert ledger.mu_spent == result.release.mu == expected.release.mu
    assert len({entry.label for entry in ledger.entries}) == len(ledger.entries) == 4
    assert ledger.open_reservations == ()
    again = tune(task, tmp_path, ledger)
    assert np.array_equal(again.release.weights, expected.release.weights)
    assert len(ledger.entries) == 4


def test_private_curvature_that_was_killed_resumes_on_an_exact_budget(task, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    expected = tune(task, tmp_path / "whole", None, share=0.2)
    ledger = SharedLedger.create(tmp_path / "ledger", mu_budget=expected.release.mu)

    def die(*_):
        raise Killed

    monkeypatch.setattr(SharedLedger, "_pay", die)
    monkeypatch.setattr(SharedLedger, "_give_back", lambda *_: None)
    with pytest.raises(Killed):
        tune(task, tmp_path, ledger, share=0.2)
    monkeypatch.undo()
    assert len(ledger.open_reservations) == 1
    result = tune(task, tmp_path, SharedLedger(tmp_path / "ledger"), share=0.2)
    assert np.array_equal(result.release.weights, expected.release.weights)
    assert ledger.mu_spent == expected.release.mu
    assert len(ledger.entries) == 5


def test_a_round_whose_share_was_released_is_not_free_when_its_job_resumes(
    task, tmp_path, monkeypatch
):
    ledger = SharedLedger.create(tmp_path / "ledger", mu_budget=5.0)

    def die(*_):
        raise Killed

    monkeypatch.setattr(SharedLedger, "_pay", die)
    monkeypatch.setattr(SharedLedger, "_give_back", lambda *_: None)
    with pytest.raises(Killed):
        tune(task, tmp_path, ledger)
    monkeypatch.undo()
    ledger.release(1, "not so")
    result = tune(task, tmp_path, ledger)
    assert ledger.mu_spent == result.release.mu
    assert len(ledger.entries) == 4


def test_jobs_on_one_ledger_stop_where_it_is_empty(task, tmp_path):
    ledger = SharedLedger.create(tmp_path / "ledger", mu_budget=qexp.calibrate_mu(2.0, 1e-5) * 1.3)
    for name, reason in (("a", "finished"), ("b", "ledger empty")):
        (tmp_path / name).mkdir()
        result = tune(task, tmp_path / name, SharedLedger(tmp_path / "ledger"))
        assert result.stopped_because == reason
    assert result.rounds_done == 2
    assert ledger.mu_spent <= ledger.mu_budget


def test_a_single_draw_is_charged_in_the_file(path):
    ledger = SharedLedger.create(path, mu_budget=1.0)
    release = qexp.sample_private_weights(
        np.zeros(3),
        np.ones((10, 3)),
        curvature=qexp.IdentityCurvature(3),
        target_epsilon=1.0,
        target_delta=1e-5,
        clipping_norm=1.0,
        ledger=ledger,
        rng=insecure_test_generator(0),
    )
    assert SharedLedger(path).mu_spent == release.mu


def test_the_estimator_pays_into_the_file(path):
    from sklearn.linear_model import LogisticRegression

    from qexp.estimator import PrivateFineTuner

    chance = np.random.default_rng(0)
    X = chance.normal(size=(200, 3))
    y = (X[:, 0] > 0).astype(int)
    tuner = PrivateFineTuner(
        LogisticRegression().fit(X[:50], y[:50]),
        target_epsilon=1.0,
        target_delta=1e-5,
        public_data=(X[:50], y[:50]),
        rounds=2,
    )
    tuner.fit(X[50:], y[50:], ledger=SharedLedger.create(path, mu_budget=1.0))
    assert SharedLedger(path).mu_spent == tuner.release_.mu
