import os
import signal
from collections.abc import Callable, Iterator

import hypothesis
import pytest

# A deadline would be a test of the machine's load.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

# Child processes of the tests import the installed package, too, not the folder they start in.
os.environ["PYTHONSAFEPATH"] = "1"

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


@pytest.fixture(autouse=True)
def _data_sets(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("data") and not os.environ.get("QEXP_DATA"):
        pytest.skip("QEXP_DATA is not set: the real data sets are not at hand")
