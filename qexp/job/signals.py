"""Stopping a job where nothing is lost: on a signal, or before its time is over."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Final, Self

__all__ = ["SIGNALS", "StopBetweenRounds", "Stopper"]

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What stops a job."""

# A round may take a little longer than the longest one so far.
_MARGIN: Final = 1.1
# Ctrl-C reaches a process from its terminal and from its launcher, within moments.
_ECHO_SECONDS: Final = 1.0


class StopBetweenRounds(KeyboardInterrupt):
    """Ends a fine-tuning after a round that is paid for and saved."""


class Stopper:
    """Turns signals and the wall time into an end of the job.

    Before the rounds, a signal ends the job at once: nothing is paid for yet. During the rounds,
    it lets the round under way finish, but no longer than the grace; another signal a second
    later or more does not wait. After them, while the outputs are written, no signal helps.

    Parameters
    ----------
    grace : float
        Seconds.
    wall_time : float or None
        Seconds from now on.
    follower : bool
        True on all ranks but the root, which ignore signals: the root decides, and tells them.
    """

    def __init__(self, *, grace: float, wall_time: float | None, follower: bool) -> None:
        self._grace, self._follower = grace, follower
        self._began = time.monotonic()
        self._wall_time = wall_time
        self._phase = "before"
        self._round_began = 0.0
        self._longest_round = 0.0
        self._told = 0.0
        self._old: dict[int, Any] = {}
        self.reason: str | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (*SIGNALS, signal.SIGALRM):
                self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._old:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def begin_rounds(self) -> None:
        """From now on a round may be under way; end the job where its time is over already."""
        self._round_began = time.monotonic()
        spent = self._round_began - self._began
        if self._wall_time is not None and spent > self._wall_time and not self._follower:
            self.reason = "wall time"
            raise StopBetweenRounds
        self._phase = "rounds"

    def end_rounds(self) -> None:
        """From now on there is nothing to interrupt."""
        self._phase = "after"
        if self._old:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def between_rounds(self, *, is_last: bool) -> None:
        """End the job here if it was asked to, or would not finish the next round in time."""
        now = time.monotonic()
        self._longest_round = max(self._longest_round, now - self._round_began)
        self._round_began = now
        if is_last:
            self.end_rounds()
            return
        if self._wall_time is not None:
            end = now - self._began + _MARGIN * self._longest_round
            if end > self._wall_time and self.reason is None:
                self.reason = "wall time"
        if self.reason is not None:
            raise StopBetweenRounds

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._follower or self._phase == "after":
            return
        now = time.monotonic()
        first = self.reason is None
        if number != signal.SIGALRM and first:
            self.reason = signal.Signals(number).name
            self._told = now
        if self._phase == "rounds" and first:
            signal.setitimer(signal.ITIMER_REAL, self._grace)
            return
        if first or number == signal.SIGALRM or now - self._told > _ECHO_SECONDS:
            raise KeyboardInterrupt
