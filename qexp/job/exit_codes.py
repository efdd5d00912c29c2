"""What the exit code of a job says to the script that started it."""

from __future__ import annotations

import errno
from enum import IntEnum

from qexp._files import DamagedFileError
from qexp.ledger import BudgetExceededError

__all__ = ["EXIT_CODES", "ExitCode", "exit_code"]


class ExitCode(IntEnum):
    """Exit codes of ``qexp run`` and ``qexp ledger``."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    BUDGET_EXCEEDED = 3
    INTERRUPTED = 4
    DIVERGED = 5
    DAMAGED = 6
    DISK = 7
    BUSY = 8


EXIT_CODES = """\
exit codes:
  0  done
  1  failed for another reason, with one message
  2  bad input: arguments, job file, or a data file that is missing or of the wrong kind
  3  budget exceeded; what was paid for, if anything, is released in the output folder
  4  interrupted by a signal or the wall time; `--resume` goes on, no round is paid for twice
  5  diverged: released are the weights before the step that left the range; try a smaller step
  6  a checkpoint, plan or ledger is damaged
  7  the disk is full or fails; `--resume` goes on
  8  busy: another process holds the ledger or the checkpoint; try again
"""

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def exit_code(error: BaseException) -> ExitCode:
    """Give the exit code that an error has."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, BudgetExceededError):
        return ExitCode.BUDGET_EXCEEDED
    if isinstance(error, DamagedFileError):
        return ExitCode.DAMAGED
    if isinstance(error, TimeoutError | BlockingIOError):
        return ExitCode.BUSY
    if isinstance(error, OSError) and error.errno in _DISK:
        return ExitCode.DISK
    if isinstance(error, OSError | ValueError | TypeError | ImportError):
        return ExitCode.BAD_INPUT
    return ExitCode.FAILED
