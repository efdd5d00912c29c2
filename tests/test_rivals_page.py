"""docs/rivals.md: its example runs, and it tells of every rival and of tests that there are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qexp.rivals import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "rivals.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="a package without its docs")

TOLD = """
print(pretrained.score(X_private, y_private), private.score(X_private, y_private))
"""


def test_the_example_runs(tmp_path):
    pytest.importorskip("sklearn")
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block + TOLD],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *statement, scores = done.stdout.splitlines()
    assert "897 records" in " ".join(statement)
    before, after = map(float, scores.split())
    assert after > before + 0.05


def test_every_rival_has_a_place():
    heads = " ".join(re.findall(r"^### (.*)$", PAGE.read_text("utf-8"), re.M))
    assert set(re.findall(r"`(\w+)`", heads)) == set(METHODS)


def test_the_tests_that_it_names_exist():
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text("utf-8")))
    defined = {
        name
        for file in (ROOT / "tests").glob("test_rivals*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.M)
    }
    assert named <= defined
    assert len(named) > 20
