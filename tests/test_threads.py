"""Limiting the kernels' threads from outside."""

import subprocess
import sys

import pytest
import threadpoolctl

from qexp import _core, _threads


@pytest.fixture(autouse=True)
def three_threads(set_threads):
    set_threads(3)


def test_threadpoolctl_limits_the_kernels_and_restores_them():
    _threads.register_threadpool_controller()
    with threadpoolctl.threadpool_limits(1):
        assert _core.get_num_threads() == 1
    assert _core.get_num_threads() == 3


def test_the_kernels_can_be_selected_alone():
    _threads.register_threadpool_controller()
    with threadpoolctl.threadpool_limits(2, user_api="qexp"):
        assert _core.get_num_threads() == 2
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert _core.get_num_threads() == 3


def test_registering_twice_lists_the_kernels_once():
    _threads.register_threadpool_controller()
    _threads.register_threadpool_controller()
    found = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "qexp"]
    assert len(found) == 1
    assert found[0]["num_threads"] == 3
    assert found[0]["version"] == _core.__version__


def test_importing_does_not_load_threadpoolctl():
    code = "import sys, qexp, qexp._threads; assert 'threadpoolctl' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_missing_threadpoolctl_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ImportError, match="pip install threadpoolctl"):
        _threads.register_threadpool_controller()


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_thread_is_refused(count):
    with pytest.raises(ValueError, match="at least 1"):
        _core.set_num_threads(count)
