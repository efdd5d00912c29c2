import os

import pytest


@pytest.fixture(autouse=True)
def _data_sets(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("data") and not os.environ.get("QEXP_DATA"):
        pytest.skip("QEXP_DATA is not set: the real data sets are not at hand")
