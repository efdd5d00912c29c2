"""The report of how qexp was built."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy

from qexp import _config, _core


def test_config_names_versions_and_library():
    config = _config.config()
    assert config["qexp"] == _core.__version__
    assert config["numpy"] == np.__version__
    assert config["scipy"] == scipy.__version__
    assert config["isa"] in ("baseline", "avx2", "avx512")
    assert config["threads"] == _core.get_num_threads()
    assert config["blas"]["provider"] in ("scipy", "system")
    assert config["blas"]["integer_bits"] in (32, 64)
    assert config["blas"]["library"]


def test_config_without_threadpoolctl(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert "libraries" not in _config.config()


def test_show_config_prints_every_entry(capsys):
    _config.show_config()
    printed = capsys.readouterr().out
    for key in ("qexp:", "python:", "compiler:", "isa:", "threads:", "blas: provider"):
        assert key in printed
    into = io.StringIO()
    _config.show_config(into)
    assert into.getvalue() == printed
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("isa", ["AVX2", "avx-2", "neon", ""])
def test_an_instruction_set_that_there_is_not_is_refused(isa):
    done = subprocess.run(
        [sys.executable, "-c", "import qexp"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "QEXP_ISA": isa},
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert f"QEXP_ISA is {isa!r}; it needs one of baseline, avx2, avx512" in said
