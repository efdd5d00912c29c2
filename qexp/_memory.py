"""How much memory this process has taken at most."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_mebibytes"]

_STATUS = Path("/proc/self/status")


def peak_mebibytes() -> float:
    """Give the peak of this process's resident memory, in MiB, since its program began."""
    # Linux' ru_maxrss begins with the peak of the process that started this one.
    if _STATUS.exists():
        return int(_STATUS.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    import resource  # Not on every system.

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
