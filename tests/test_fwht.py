"""The Walsh-Hadamard kernel against an explicit matrix and the textbook loop."""

import numpy as np
import pytest
import scipy.linalg
from helpers import run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp import _core

DTYPES = [np.float32, np.float64]


def textbook(x):
    """The same butterflies in the same order, so the same bits."""
    x = x.copy()
    n = x.shape[-1]
    h = 1
    while h < n:
        pairs = x.reshape(*x.shape[:-1], n // (2 * h), 2, h)
        a, b = pairs[..., 0, :].copy(), pairs[..., 1, :].copy()
        pairs[..., 0, :] = a + b
        pairs[..., 1, :] = a - b
        h *= 2
    return x


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 512, 1024])
def test_it_is_the_hadamard_matrix(n):
    rows = np.random.default_rng(n).standard_normal((5, n))
    expected = rows @ scipy.linalg.hadamard(n)
    _core.fwht(rows)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-12 * n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log2n", range(22))
def test_every_size_has_the_bits_of_the_textbook_loop(set_threads, dtype, log2n):
    rows = np.random.default_rng(log2n).standard_normal((1, 1 << log2n)).astype(dtype)
    expected = textbook(rows)
    for count in (1, 2, 3):
        set_threads(count)
        actual = rows.copy()
        _core.fwht(actual)
        assert actual.tobytes() == expected.tobytes()


@pytest.mark.usefixtures("set_threads")
@given(
    dtype=st.sampled_from(DTYPES),
    log2n=st.integers(0, 13),
    count=st.integers(0, 6),
    gap=st.integers(0, 5),
    step=st.sampled_from([-2, -1, 1, 2]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_strided_rows_and_the_gaps_between_them(dtype, log2n, count, gap, step, threads, seed):
    n = 1 << log2n
    whole = np.random.default_rng(seed).standard_normal((2 * count, n + gap)).astype(dtype)
    before = whole.copy()
    rows = whole[::step, :n]
    expected = textbook(rows)
    _core.set_num_threads(threads)
    _core.fwht(rows)
    assert rows.tobytes() == expected.tobytes()
    before[::step, :n] = expected
    assert whole.tobytes() == before.tobytes()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree_bit_for_bit(isa):
    program = """
import hashlib, numpy as np
from qexp import _core
digest = hashlib.sha256()
for dtype in (np.float32, np.float64):
    for log2n in (0, 3, 5, 8, 11, 14, 18):
        rows = np.random.default_rng(log2n).standard_normal((2, 1 << log2n)).astype(dtype)
        _core.fwht(rows)
        digest.update(rows.tobytes())
print(digest.hexdigest())
"""
    assert run_python(program, QEXP_ISA=isa) == run_python(program)


def test_not_a_number_stays_in_its_row():
    rows = np.ones((3, 4096), dtype=np.float32)
    rows[1, 17] = np.nan
    _core.fwht(rows)
    assert np.isnan(rows[1]).all()
    assert np.isfinite(rows[[0, 2]]).all()


def test_bad_input():
    with pytest.raises(ValueError, match="power of two"):
        _core.fwht(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="power of two"):
        _core.fwht(np.zeros((2, 0)))
    with pytest.raises(ValueError, match="dimensions"):
        _core.fwht(np.zeros(4))
    with pytest.raises(ValueError, match="not contiguous"):
        _core.fwht(np.zeros((2, 8))[:, ::2])
    with pytest.raises(ValueError, match="overlap"):
        _core.fwht(np.lib.stride_tricks.as_strided(np.zeros(16), (3, 8), (8, 8)))
    frozen = np.zeros((2, 4))
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _core.fwht(frozen)
    with pytest.raises(TypeError):
        _core.fwht(np.zeros((2, 4), dtype=np.int64))
    with pytest.raises(TypeError):
        _core.fwht([[1.0, 2.0]])
