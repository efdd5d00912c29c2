"""A progress bar: silent when standard error is no terminal, and while the work is short."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]

_WIDTH = 30
_QUIET_SECONDS = 0.5
_REDRAW_SECONDS = 0.1


@contextmanager
def progress_bar(total: int, what: str, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Give a function that moves the bar on by so many steps.

    Parameters
    ----------
    total : int
        Steps in all, public.
    what : str
        What a step is.
    show : bool
        False switches the bar off.

    Yields
    ------
    callable
        ``advance(steps)``.
    """
    terminal = sys.stderr  # None in a process without one
    if not show or terminal is None or not terminal.isatty():
        yield lambda steps: None
        return

    started = time.monotonic()
    done = 0
    next_redraw = started + _QUIET_SECONDS
    drawn = False

    def write(text: str) -> None:
        # The work goes on when its terminal is closed.
        with contextlib.suppress(OSError):
            terminal.write(text)
            terminal.flush()

    def advance(steps: int) -> None:
        nonlocal done, next_redraw, drawn
        done += steps
        now = time.monotonic()
        if now < next_redraw:
            return
        next_redraw = now + _REDRAW_SECONDS
        filled = _WIDTH * min(done, total) // max(total, 1)
        left = (now - started) * (total - done) / max(done, 1)
        bar = "█" * filled + "░" * (_WIDTH - filled)
        write(f"\r{bar} {done}/{total} {what}, {max(left, 0):.0f} s left\033[K")
        drawn = True

    try:
        yield advance
    finally:
        if drawn:
            write("\r\033[K")
