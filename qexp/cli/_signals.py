"""Signals before a job can stop by itself: its imports alone take seconds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from qexp.job.exit_codes import ExitCode
from qexp.job.signals import SIGNALS

__all__ = ["end", "interrupt", "on_signals"]


@contextmanager
def on_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have `handler` called on the signals that stop a job; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """End the process, which has written nothing yet, with the exit code of an interruption."""
    # No exception: compiled modules turn one that comes while they are imported into others.
    name = signal.Signals(number).name
    os.write(2, f"qexp: interrupted by {name} before the job began\n".encode())
    os._exit(ExitCode.INTERRUPTED)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Interrupt as Ctrl-C does."""
    raise KeyboardInterrupt
