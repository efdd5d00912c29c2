import os

import pytest

# Child processes of the tests import the installed package, too, not the folder they start in.
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(autouse=True)
def _data_sets(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("data") and not os.environ.get("QEXP_DATA"):
        pytest.skip("QEXP_DATA is not set: the real data sets are not at hand")
