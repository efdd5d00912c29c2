"""The peak of memory is this process's own."""

import subprocess
import sys

import numpy as np
import pytest

_HELD_ONCE = """
import numpy as np
from qexp._memory import peak_mebibytes
before = peak_mebibytes()
held = np.ones(2**25)
del held
print(before, peak_mebibytes())
"""


def peaks():
    """Give the peak of a new process before and after it holds 256 MiB."""
    said = subprocess.run(
        [sys.executable, "-c", _HELD_ONCE], capture_output=True, text=True, check=True
    )
    return [float(word) for word in said.stdout.split()]


def test_what_was_held_once_counts():
    before, after = peaks()
    assert before + 200 < after < before + 300


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child counts its parent's peak")
def test_a_parent_s_memory_does_not_count():
    held = np.ones(2**26)
    assert peaks()[0] < held.nbytes / 2**20
