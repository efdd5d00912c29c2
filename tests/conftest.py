import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# A deadline would be a test of the machine's load.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

# Child processes of the tests import the installed package, too, not the folder they start in.
os.environ["PYTHONSAFEPATH"] = "1"

# For the experiments; appended, so that qexp comes from where it is installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# A shell without job control lets what it starts in the background ignore Ctrl-C, and so would
# every process that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Set the kernels' number of threads, for one test."""
    from qexp import _core

    before = _core.get_num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """Open an address in headless Chromium, with more arguments; give what it prints."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("chromium is not installed")

    def browse(address: str, *arguments: str) -> str:
        return subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={tmp_path / 'profile'}", *arguments, address],
            capture_output=True, text=True, timeout=120,
        ).stdout  # fmt: skip

    return browse


@pytest.fixture(autouse=True)
def _data_sets(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("data") and not os.environ.get("QEXP_DATA"):
        pytest.skip("QEXP_DATA is not set: the real data sets are not at hand")
