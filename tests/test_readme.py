"""The Python of the README runs as it stands there, from top to bottom."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qexp.release import PrivateRelease

README = Path(__file__).resolve().parents[1] / "README.md"

TOLD = """
import json
models = (pretrained, private, result.model)
print(json.dumps({
    "scores": [model.score(X_private, y_private) for model in models],
    "rounds": chosen.schedule.rounds,
    "charges": len(ledger.entries),
}))
"""


@pytest.mark.skipif(not README.is_file(), reason="a package without its README")
def test_the_readme_runs(tmp_path):
    pytest.importorskip("sklearn")
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 2
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join([*blocks, TOLD])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *statement, last = done.stdout.splitlines()
    told = json.loads(last)
    # The noise is never the same twice; a plan of many rounds is far from its start.
    assert told["scores"][2] > told["scores"][0] + 0.05
    assert told["charges"] == 1 + told["rounds"]
    assert "897 records" in " ".join(statement)
    release = PrivateRelease.load(tmp_path / "release.npz")
    assert release.generator_is_secure
