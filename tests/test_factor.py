"""Gram, Cholesky and triangular kernels against NumPy in float64."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexp import _blas, _core

_blas.ensure_bound()

DTYPES = [np.float32, np.float64]
SIZES = [0, 1, 2, 3, 16, 17, 63, 64, 65, 95, 96, 97, 130, 193, 257]


def tolerance(dtype):
    return 200 * np.finfo(dtype).eps


def spd(n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, n + 3))
    return (a @ a.T / max(n, 1) + np.eye(n)).astype(dtype)


def lower(n, dtype, seed=0):
    """Well conditioned, with values above the diagonal that no kernel may read."""
    rng = np.random.default_rng(seed)
    matrix = np.tril(rng.standard_normal((n, n)), -1) / np.sqrt(max(n, 1))
    matrix += np.diag(rng.uniform(1, 2, n))
    return with_poison(matrix.astype(dtype))


def with_poison(matrix):
    matrix[np.triu_indices_from(matrix, 1)] = np.nan
    return matrix


def padded(matrix, extra=5):
    """The same values as a slice of a wider array, so that rows lie further apart."""
    wide = np.full((matrix.shape[0], matrix.shape[1] + extra), np.nan, matrix.dtype)
    view = wide[:, 2 : 2 + matrix.shape[1]]
    view[...] = matrix
    return view


# ---------------------------------------------------------------------------------------- Gram


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 5, 255, 256, 257, 600])
@pytest.mark.parametrize("k", [0, 1, 2, 31, 256, 257, 530])
def test_gram_matches_numpy(dtype, m, k):
    rng = np.random.default_rng(m * 1000 + k)
    rows = rng.standard_normal((m, k)).astype(dtype)
    start = rng.standard_normal((k, k))
    h = with_poison(start.copy())
    _core.gram_accumulate(h, rows, 0.75)
    wide = rows.astype(np.float64)
    expected = start + 0.75 * wide.T @ wide
    np.testing.assert_allclose(
        np.tril(h), np.tril(expected), atol=tolerance(dtype) * np.sqrt(m + 1), rtol=0
    )
    assert np.isnan(h[np.triu_indices(k, 1)]).all()


@given(
    m=st.integers(0, 40),
    k=st.integers(0, 40),
    weight=st.floats(-4, 4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_gram_of_slices_matches_numpy(m, k, weight, dtype, seed):
    rows = padded(np.random.default_rng(seed).standard_normal((m, k)).astype(dtype))
    h = padded(np.zeros((k, k)))
    _core.gram_accumulate(h, rows, weight)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(h, np.tril(weight * wide.T @ wide), atol=tolerance(dtype) * 40)


@given(
    m=st.integers(0, 40),
    k=st.integers(0, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_gram_of_weighted_rows_matches_numpy(m, k, dtype, seed):
    rng = np.random.default_rng(seed)
    rows = padded(rng.standard_normal((m, k)).astype(dtype))
    weights = rng.integers(0, 5, m) / 2
    h = padded(np.zeros((k, k)))
    _core.gram_accumulate(h, rows, 2.0, row_weights=weights)
    wide = rows.astype(np.float64)
    expected = np.tril(2.0 * wide.T @ (weights[:, None] * wide))
    np.testing.assert_allclose(h, expected, atol=tolerance(dtype) * 40)


def test_float32_rows_do_not_lose_accuracy_with_the_number_of_rows():
    rng = np.random.default_rng(3)
    rows = (rng.standard_normal((20_000, 8)) + 1).astype(np.float32)
    h = np.zeros((8, 8))
    _core.gram_accumulate(h, rows, 1.0)
    wide = rows.astype(np.float64)
    expected = np.tril(wide.T @ wide)
    assert np.max(np.abs(h - expected)) < 1e-6 * np.max(np.abs(expected))


# ------------------------------------------------------------------------------------ Cholesky


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_cholesky_matches_numpy(dtype, n):
    a = spd(n, dtype)
    factor = with_poison(a.copy())
    assert _core.cholesky_inplace(factor) == 0
    expected = np.linalg.cholesky(a.astype(np.float64)) if n else np.zeros((0, 0))
    np.testing.assert_allclose(np.tril(factor), expected, atol=tolerance(dtype))
    assert np.isnan(factor[np.triu_indices(n, 1)]).all()


@given(n=st.integers(1, 130), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1))
def test_cholesky_of_a_slice_reconstructs(n, dtype, seed):
    a = spd(n, dtype, seed)
    factor = padded(a.copy())
    assert _core.cholesky_inplace(factor) == 0
    f = np.tril(factor).astype(np.float64)
    np.testing.assert_allclose(f @ f.T, a, atol=tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 96, 97, 200, 300])
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_cholesky_names_the_failing_pivot(dtype, n, bad):
    for pivot in {0, n // 3, n // 2, 95 % n, 96 % n, n - 1}:
        a = spd(n, dtype)
        a[pivot, pivot] = bad
        assert _core.cholesky_inplace(a) == pivot + 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("position", [(1, 0), (95, 3), (96, 95), (150, 149), (199, 0), (199, 100)])
def test_cholesky_finds_bad_values_off_the_diagonal(dtype, bad, position):
    a = spd(200, dtype)
    a[position] = bad
    assert _core.cholesky_inplace(a) == position[0] + 1


@pytest.mark.parametrize("n", [3, 100, 210])
def test_the_failing_pivot_is_the_order_of_the_first_indefinite_leading_minor(n):
    for order in {2, n // 2, n}:
        a = spd(n, np.float64)
        # Make the Schur complement of the leading minor exactly −1/2.
        lead, column = a[: order - 1, : order - 1], a[: order - 1, order - 1]
        a[order - 1, order - 1] = column @ np.linalg.solve(lead, column) - 0.5
        assert _core.cholesky_inplace(a) == order


# ----------------------------------------------------------------------------- triangular solve


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("others", [0, 1, 7, 70])
def test_solve_matches_numpy(dtype, side, transpose, n, others):
    factor = lower(n, dtype)
    shape = (n, others) if side == "left" else (others, n)
    b = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    x = b.copy()
    before = factor.copy()
    _core.triangular_solve(factor, x, side=side, transpose=transpose)
    np.testing.assert_array_equal(factor, before)
    op = np.tril(factor).astype(np.float64)
    op = op.T if transpose else op
    wide = b.astype(np.float64)
    expected = np.linalg.solve(op, wide) if side == "left" else np.linalg.solve(op.T, wide.T).T
    np.testing.assert_allclose(x, expected, atol=4 * tolerance(dtype), rtol=4 * tolerance(dtype))


@given(
    n=st.integers(1, 140),
    others=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    left=st.booleans(),
    transpose=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_solve_is_adjoint_to_the_transposed_solve(n, others, dtype, left, transpose, seed):
    """<solve(b), c> = <b, solveᵀ(c)>, on slices."""
    factor = padded(lower(n, dtype, seed))
    rng = np.random.default_rng(seed)
    shape = (n, others) if left else (others, n)
    b, c = (padded(rng.standard_normal(shape).astype(dtype)) for _ in range(2))
    x, y = padded(b), padded(c)
    side = "left" if left else "right"
    _core.triangular_solve(factor, x, side=side, transpose=transpose)
    _core.triangular_solve(factor, y, side=side, transpose=not transpose)
    one = np.sum(x.astype(np.float64) * c)
    other = np.sum(b.astype(np.float64) * y)
    scale = np.linalg.norm(b) * np.linalg.norm(c)
    assert abs(one - other) <= tolerance(dtype) * scale


def test_solve_leaves_the_surroundings_of_a_slice_alone():
    wide = np.full((100, 20), np.nan)
    wide[:, 3:9] = 1.0
    _core.triangular_solve(lower(100, np.float64), wide[:, 3:9], side="left", transpose=False)
    assert np.isnan(wide[:, :3]).all()
    assert np.isnan(wide[:, 9:]).all()
    assert np.isfinite(wide[:, 3:9]).all()


# -------------------------------------------------------------------------------------- inverse


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_inverse_matches_numpy(dtype, n):
    factor = padded(lower(n, dtype))
    expected = np.linalg.inv(np.tril(factor).astype(np.float64))
    _core.triangular_inverse_inplace(factor)
    np.testing.assert_allclose(np.tril(factor), expected, atol=4 * tolerance(dtype))
    assert np.isnan(factor[np.triu_indices(n, 1)]).all()


# ------------------------------------------------------------------------------------ bad input


def test_other_dtypes_and_layouts_are_refused_rather_than_copied():
    square = np.eye(4)
    with pytest.raises(TypeError):
        _core.cholesky_inplace(np.eye(4, dtype=np.int64))
    with pytest.raises(TypeError):
        _core.cholesky_inplace(np.eye(4, dtype=np.float16))
    with pytest.raises(TypeError):
        _core.gram_accumulate(np.eye(4, dtype=np.float32), square, 1.0)
    with pytest.raises(TypeError):
        _core.triangular_solve(np.eye(4, dtype=np.float32), square, side="left", transpose=False)
    with pytest.raises(ValueError, match="not contiguous"):
        _core.cholesky_inplace(np.asfortranarray(np.arange(16.0).reshape(4, 4)))
    with pytest.raises(ValueError, match="not contiguous"):
        _core.gram_accumulate(square, np.ones((3, 8))[:, ::2], 1.0)
    with pytest.raises(ValueError, match="run backwards"):
        _core.gram_accumulate(square, np.ones((3, 4))[::-1], 1.0)
    with pytest.raises(ValueError, match="overlap"):
        _core.gram_accumulate(square, np.broadcast_to(np.ones(4), (3, 4)), 1.0)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(4,\).*two dimensions"):
        _core.cholesky_inplace(np.ones(4))
    with pytest.raises(ValueError, match=r"3 by 4.*square"):
        _core.cholesky_inplace(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"5 columns.*4 by 4"):
        _core.gram_accumulate(np.eye(4), np.ones((3, 5)), 1.0)
    with pytest.raises(ValueError, match=r"\(5, 2\).*\(4, 4\).*'left'"):
        _core.triangular_solve(np.eye(4), np.ones((5, 2)), side="left", transpose=False)
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(4, 4\).*'right'"):
        _core.triangular_solve(np.eye(4), np.ones((4, 2)), side="right", transpose=False)
    with pytest.raises(ValueError, match="'top'"):
        _core.triangular_solve(np.eye(4), np.ones((4, 2)), side="top", transpose=False)


def test_read_only_output_is_refused():
    matrix = np.eye(3)
    matrix.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _core.cholesky_inplace(matrix)
    with pytest.raises(ValueError, match="read-only"):
        _core.triangular_solve(np.eye(3), matrix, side="left", transpose=False)


def test_a_singular_triangle_is_refused():
    factor = lower(70, np.float64)
    factor[66, 66] = 0
    with pytest.raises(ValueError, match="zero at row 66"):
        _core.triangular_solve(factor, np.ones((70, 2)), side="left", transpose=True)
    with pytest.raises(ValueError, match="zero at row 66"):
        _core.triangular_inverse_inplace(factor)


# -------------------------------------------------------------------------------------- threads


def test_kernels_run_in_two_python_threads_at_once():
    rows = np.random.default_rng(0).standard_normal((300, 220))

    def work(results, at):
        h = np.eye(220)
        _core.gram_accumulate(h, rows, 1.0)
        assert _core.cholesky_inplace(h) == 0
        x = np.ones((220, 40))
        _core.triangular_solve(h, x, side="left", transpose=False)
        _core.triangular_inverse_inplace(h)
        results[at] = (h, x)

    alone = [None]
    work(alone, 0)
    together = [None] * 4
    threads = [threading.Thread(target=work, args=(together, i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for h, x in together:
        np.testing.assert_allclose(h, alone[0][0], atol=1e-12)
        np.testing.assert_allclose(x, alone[0][1], atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_number_of_threads(dtype, set_threads):
    if _core.isa() != "avx512":
        pytest.skip("the products are BLAS's, which promises nothing here")
    rows = np.random.default_rng(0).standard_normal((300, 700)).astype(dtype)

    def work(threads):
        set_threads(threads)
        h = np.eye(700)
        _core.gram_accumulate(h, rows, 1.0)
        factor = h.astype(dtype)
        assert _core.cholesky_inplace(factor) == 0
        x = np.tile(rows.T, (1, 4))
        _core.triangular_solve(factor, x, side="left", transpose=False)
        y = np.tile(rows, (4, 1))
        _core.triangular_solve(factor, y, side="right", transpose=True)
        _core.triangular_inverse_inplace(factor)
        return h, factor, x, y

    alone = work(1)
    for threads in (2, 3, 5):
        for one, other in zip(alone, work(threads), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_path_without_avx512():
    """This file once more, on BLAS products."""
    if os.environ.get("QEXP_ISA") == "avx2":
        assert _core.isa() in ("baseline", "avx2")
        return
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"QEXP_ISA": "avx2", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
