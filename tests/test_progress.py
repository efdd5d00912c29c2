"""The progress bar on a pseudo-terminal, with a clock of its own."""

import errno
import io
import os
import pty
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import qexp
from qexp import _progress
from qexp._progress import progress_bar
from qexp.bits import insecure_test_generator

CLEAR = "\r\x1b[K"


END = "\x04"


class Terminal:
    """A pseudo-terminal, read all the while, since its buffer is small."""

    def __init__(self):
        self.master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self.content = b""
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        while not self.content.endswith(END.encode()):
            self.content += os.read(self.master, 65536)

    def shown(self):
        if self.reader.is_alive():
            self.file.write(END)
            self.file.flush()
            self.reader.join()
        return self.content.decode().removesuffix(END)

    def close(self):
        self.shown()
        self.file.close()
        os.close(self.master)


@pytest.fixture
def standard_error(monkeypatch):
    """Replace standard error for the bar alone: pytest puts its own in place for each test."""

    def replace(file):
        monkeypatch.setattr(_progress, "sys", SimpleNamespace(stderr=file))

    return replace


@pytest.fixture
def terminal(standard_error):
    terminal = Terminal()
    standard_error(terminal.file)
    yield terminal
    terminal.close()


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass at every look at the clock."""

    class Clock:
        now, step = 100.0, 0.0

        def __call__(self):
            self.now += self.step
            return self.now

    clock = Clock()
    monkeypatch.setattr(_progress.time, "monotonic", clock)
    return clock


def test_slow_work_on_a_terminal_shows_a_bar_and_clears_it(terminal, clock):
    clock.step = 1.0
    with progress_bar(4, "records") as advance:
        for _ in range(4):
            advance(1)
    shown = terminal.shown()
    assert "1/4 records, 3 s left" in shown
    assert "4/4 records, 0 s left" in shown
    assert "█" * 30 in shown
    assert shown.endswith(CLEAR)
    assert "\n" not in shown


def test_short_work_shows_nothing(terminal, clock):
    clock.step = 0.01
    with progress_bar(40, "records") as advance:
        for _ in range(40):
            advance(1)
    assert terminal.shown() == ""


def test_the_bar_is_not_redrawn_for_every_step(terminal, clock):
    clock.step = 0.001
    with progress_bar(10_000, "records") as advance:
        for _ in range(10_000):
            advance(1)
    # Ten seconds, ten times a second, after the first half second.
    assert 80 <= terminal.shown().count("s left") <= 100


def test_switched_off_it_shows_nothing(terminal, clock):
    clock.step = 1.0
    with progress_bar(4, "records", show=False) as advance:
        advance(4)
    assert terminal.shown() == ""


def test_without_a_terminal_it_shows_nothing(standard_error, clock):
    clock.step = 1.0
    file = io.StringIO()
    standard_error(file)
    with progress_bar(4, "records") as advance:
        advance(4)
    assert file.getvalue() == ""


def test_without_standard_error_it_shows_nothing(standard_error, clock):
    clock.step = 1.0
    standard_error(None)
    with progress_bar(4, "records") as advance:
        advance(4)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_clears_the_bar_and_passes(terminal, clock, kind):
    clock.step = 1.0

    def work():
        with progress_bar(4, "records") as advance:
            advance(1)
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        work()
    shown = terminal.shown()
    assert "1/4 records" in shown
    assert shown.endswith(CLEAR)


def test_work_goes_on_when_its_terminal_is_gone(standard_error, clock):
    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    standard_error(Gone())
    clock.step = 1.0
    done = 0
    with progress_bar(4, "records") as advance:
        for _ in range(4):
            advance(1)
            done += 1
    assert done == 4


def test_more_or_no_steps_than_announced_do_no_harm(terminal, clock):
    clock.step = 1.0
    with progress_bar(0, "records") as advance:
        advance(0)
        advance(5)
    with progress_bar(2, "records") as advance:
        advance(5)
    assert "5/2 records, 0 s left" in terminal.shown()


# ------------------------------------------------------------------------------ in a draw


class Source:
    n_records, n_parameters = 12, 3

    def __init__(self, fail_at=None):
        self.fail_at = fail_at

    def blocks(self):
        for i in range(4):
            if i == self.fail_at:
                raise OSError("disk gone")
            yield np.zeros((3, 3))


def draw(source, **changes):
    arguments = {
        "curvature": qexp.IdentityCurvature(3),
        "target_epsilon": 1.0,
        "target_delta": 1e-5,
        "clipping_norm": 1.0,
        "rng": insecure_test_generator(0),
    }
    return qexp.sample_private_weights(np.zeros(3), source, **(arguments | changes))


def test_a_slow_draw_counts_its_records_and_gives_the_same_bits(terminal, clock):
    clock.step = 1.0
    with_bar = draw(Source(), progress=True)
    without = draw(Source())
    shown = terminal.shown()
    assert "3/12 records" in shown
    assert "12/12 records" in shown
    assert shown.endswith(CLEAR)
    assert shown.count("12/12") == 1
    assert np.array_equal(with_bar.weights, without.weights)


def test_a_draw_is_silent_by_default(terminal, clock):
    clock.step = 1.0
    draw(Source())
    assert terminal.shown() == ""


def test_a_source_that_fails_leaves_no_bar(terminal, clock):
    clock.step = 1.0
    with pytest.raises(OSError, match="disk gone"):
        draw(Source(fail_at=2), progress=True)
    assert terminal.shown().endswith(CLEAR)


def test_an_interrupt_inside_the_sum_leaves_no_bar(terminal, clock, monkeypatch):
    clock.step = 1.0
    calls = []

    def interrupted(*_, **__):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("qexp.private_sum._core.lattice_sum", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        draw(Source(), progress=True)
    # While the traceback, and with it every frame, is still alive.
    assert caught.tb is not None
    assert terminal.shown().endswith(CLEAR)
