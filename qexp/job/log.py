"""What a job says while it runs: words on a terminal, JSON lines elsewhere. Public things only."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from typing import Any

from qexp._json import strict_json

__all__ = ["Log"]


class Log:
    """Standard error of a job.

    What it is given must be public or released: it never sees a record.

    Parameters
    ----------
    silent : bool
        For all ranks but the root.
    timed : bool
        Whether lines say when they were written: not where the time of a round is private.
    """

    def __init__(self, *, silent: bool, timed: bool = True) -> None:
        self._timed = timed
        self._stream = None if silent else sys.stderr
        self.is_terminal = self._stream is not None and self._stream.isatty()

    def event(self, name: str, words: str, **facts: Any) -> None:
        """Say something: `words` to a person; `name` and `facts` to a program.

        Parameters
        ----------
        name : str
        words : str
        **facts
            JSON-able.
        """
        if self._stream is None:
            return
        line = f"qexp: {words}"
        if not self.is_terminal:
            stamp = {"time": datetime.now(UTC).isoformat(timespec="seconds")} if self._timed else {}
            line = strict_json({**stamp, "event": name, "message": words, **facts})
        # The work goes on when nobody reads any more.
        with contextlib.suppress(OSError):
            self._stream.write(line + "\n")
            self._stream.flush()
