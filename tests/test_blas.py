"""Binding of the BLAS table."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy

from qexp import _blas, _core, _scipy_blas

TYPEDEF = "__pyx_t_5scipy_6linalg_11cython_blas_"


def run(code):
    """Run code in a fresh interpreter, where nothing is bound yet."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def test_import_does_not_load_scipy_linalg():
    result = run("import sys, qexp, qexp._blas; assert 'scipy.linalg' not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_ensure_bound_binds_once():
    result = run(
        "from qexp import _blas, _core\n"
        "before = _core.blas_config()\n"
        "_blas.ensure_bound()\n"
        "config = _core.blas_config()\n"
        "assert before in (None, config)\n"
        "assert config['integer_bits'] in (32, 64)\n"
        "_core.bind_blas = None\n"
        "_blas.ensure_bound()\n"
    )
    assert result.returncode == 0, result.stderr


def test_an_unbound_table_raises_and_names_the_remedy():
    result = run(
        "import numpy as np\n"
        "from qexp import _core\n"
        "a = np.eye(3)\n"
        "calls = [\n"
        "    lambda: _core.gram_accumulate(a, a, 1.0),\n"
        "    lambda: _core.cholesky_inplace(a),\n"
        "    lambda: _core.triangular_solve(a, a, side='left', transpose=False),\n"
        "    lambda: _core.triangular_inverse_inplace(a),\n"
        "]\n"
        "if _core.blas_config() is None:\n"
        "    for call in calls:\n"
        "        try:\n"
        "            call()\n"
        "        except RuntimeError as error:\n"
        "            assert 'ensure_bound' in str(error)\n"
        "        else:\n"
        "            raise AssertionError('ran without a BLAS')\n"
    )
    assert result.returncode == 0, result.stderr


def test_ensure_bound_from_many_threads():
    result = run(
        "import threading\n"
        "from qexp import _blas, _core\n"
        "calls = []\n"
        "bind = _core.bind_blas\n"
        "def counting(*args, **kwargs):\n"
        "    calls.append(args)\n"
        "    bind(*args, **kwargs)\n"
        "_core.bind_blas = counting\n"
        "linked = _core.blas_config() is not None\n"
        "threads = [threading.Thread(target=_blas.ensure_bound) for _ in range(8)]\n"
        "[t.start() for t in threads]\n"
        "[t.join() for t in threads]\n"
        "assert len(calls) == (0 if linked else 1)\n"
        "assert _core.blas_config() is not None\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("integer", "bits"), [("int", 32), ("int64_t", 64), (TYPEDEF + "blas_int", None)]
)
def test_known_signatures_are_accepted(integer, bits):
    signature = f"{TYPEDEF}d ({integer} *, {TYPEDEF}d *, {integer} *)"
    assert _scipy_blas.match_signature("dasum", signature) == bits


@pytest.mark.parametrize(
    "signature",
    [
        f"{TYPEDEF}d (int *, {TYPEDEF}d const *, int *)",
        f"{TYPEDEF}d (int const *, {TYPEDEF}d const *, int const *)",
        f"{TYPEDEF}s (int *, {TYPEDEF}s *, int *)",
        f"{TYPEDEF}d (long *, {TYPEDEF}d *, long *)",
        f"{TYPEDEF}d (int *, {TYPEDEF}d *, int64_t *)",
        f"int (int *, {TYPEDEF}d *, int *)",
        "blas_int",
        "",
    ],
)
def test_unknown_signatures_are_refused_by_name(signature):
    with pytest.raises(ImportError) as caught:
        _scipy_blas.match_signature("dasum", signature)
    assert f"'{signature}'" in str(caught.value)
    assert scipy.__version__ in str(caught.value)


def test_entry_points_covers_what_the_table_needs():
    capsules, bits = _scipy_blas.entry_points()
    assert bits in (32, 64, None)
    assert all(name in str(capsule) for name, capsule in capsules.items())
    for missing in capsules:
        partial = {name: capsule for name, capsule in capsules.items() if name != missing}
        with pytest.raises(ValueError, match=f"no entry point {missing}"):
            _core.bind_blas("partial", partial, integer_bits=32)


def test_a_capsule_of_another_routine_is_refused():
    capsules, bits = _scipy_blas.entry_points()
    swapped = capsules | {"dgemm": capsules["sgemm"]}
    with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
        _core.bind_blas("swapped", swapped, integer_bits=bits)
    with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
        _core.bind_blas("number", capsules | {"dgemm": 1234}, integer_bits=bits)


def test_the_width_of_integers_is_verified_by_a_call():
    _blas.ensure_bound()
    before = _core.blas_config()
    capsules, _ = _scipy_blas.entry_points()
    _core.bind_blas("detected", capsules, integer_bits=None)
    detected = _core.blas_config()
    try:
        assert detected is not None
        assert detected["provider"] == "detected"
        wrong = 96 - detected["integer_bits"]
        with pytest.raises(RuntimeError, match=f"declared with {wrong}-bit"):
            _core.bind_blas("wrong", capsules, integer_bits=wrong)
        with pytest.raises(ValueError, match="integer_bits=16"):
            _core.bind_blas("wrong", capsules, integer_bits=16)
        assert _core.blas_config() == detected
    finally:
        _core.bind_blas(before["provider"], capsules, integer_bits=None)


def test_dimensions_beyond_the_integers_are_refused():
    """Two rows 2³¹ elements apart; without AVX-512 the product is BLAS's, which must not see it."""
    result = run(
        "import os; os.environ['QEXP_ISA'] = 'baseline'\n"
        "import numpy as np\n"
        "from qexp import _blas, _core\n"
        "_blas.ensure_bound()\n"
        "rows = np.lib.stride_tricks.as_strided(np.ones(1), shape=(2, 1), strides=(8 << 31, 8))\n"
        "if _core.blas_config()['integer_bits'] == 32:\n"
        "    try:\n"
        "        _core.gram_accumulate(np.zeros((1, 1)), rows, 1.0)\n"
        "    except ValueError as error:\n"
        "        assert '2147483648 does not fit the 32-bit integers' in str(error)\n"
        "    else:\n"
        "        raise AssertionError('was not refused')\n"
    )
    assert result.returncode == 0, result.stderr


def test_rebinding_while_kernels_run():
    capsules, _ = _scipy_blas.entry_points()
    _blas.ensure_bound()
    provider = _core.blas_config()["provider"]
    stop = threading.Event()

    def rebind():
        while not stop.is_set():
            _core.bind_blas(provider, capsules, integer_bits=None)
            stop.wait(1e-3)

    thread = threading.Thread(target=rebind)
    thread.start()
    try:
        for _ in range(20):
            a = np.eye(150) * 4
            assert _core.cholesky_inplace(a) == 0
            np.testing.assert_array_equal(a, np.eye(150) * 2)
    finally:
        stop.set()
        thread.join()
