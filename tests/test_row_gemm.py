"""row_gemm: right products, and rows whose bits depend on themselves and on B alone."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from helpers import run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp import _core

DTYPES = (np.float32, np.float64)
PAIRS = ((np.float32, np.float32), (np.float64, np.float64), (np.float32, np.float64))


def random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def product(a, b, *, triangle="full", packed=None, start=None):
    packed = _core.PackedMatrix(b, triangle=triangle) if packed is None else packed
    if start is None:
        out = np.full((a.shape[0], packed.shape[1]), np.nan, packed.dtype)
    else:
        out = start.copy()
    packed.multiply(a, out, accumulate=start is not None)
    return out


def bits(x):
    return x.view(np.dtype(f"u{x.itemsize}"))


def rounded(x, dtype):
    """Round the rational x to the nearest dtype, ties to even; no overflow, no subnormals."""
    if x == 0:
        return dtype(0)
    digits = np.finfo(dtype).nmant + 1
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length() - digits
    while abs(x) / Fraction(2) ** exponent >= 2**digits:
        exponent += 1
    while abs(x) / Fraction(2) ** exponent < 2 ** (digits - 1):
        exponent -= 1
    # round() of a Fraction rounds halves to even.
    return dtype(float(round(x / Fraction(2) ** exponent) * Fraction(2) ** exponent))


def fma_chain(a, b, start):
    dtype = b.dtype.type
    out = np.empty((a.shape[0], b.shape[1]), dtype)
    for i, j in np.ndindex(*out.shape):
        c = start[i, j]
        for x, y in zip(a[i], b[:, j], strict=True):
            c = rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(c)), dtype)
        out[i, j] = c
    return out


@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (13, 33, 17), (200, 500, 130)])
def test_product_agrees_with_numpy_in_float64(a_type, b_type, shape):
    m, k, n = shape
    a, b, c = random((m, k), a_type), random((k, n), b_type, 1), random((m, n), b_type, 2)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    tolerance = 2 * np.finfo(b_type).eps * k * (np.abs(wide_a) @ np.abs(wide_b)).max() + 1e-15
    assert np.abs(product(a, b) - wide_a @ wide_b).max() <= tolerance
    assert np.abs(product(a, b, start=c) - (c + wide_a @ wide_b)).max() <= 2 * tolerance
    upper = product(a, b, triangle="upper")
    assert np.abs(upper - wide_a @ np.triu(wide_b)).max() <= tolerance


@pytest.mark.skipif(_core.isa() == "baseline", reason="has no fused multiply-add")
@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
@pytest.mark.parametrize("k", [1, 9, 197, 385])
def test_every_element_is_one_fma_chain_in_order(a_type, b_type, k):
    a, b, c = random((3, k), a_type), random((k, 4), b_type, 1), random((3, 4), b_type, 2)
    np.testing.assert_array_equal(product(a, b), fma_chain(a, b, np.zeros_like(c)))
    np.testing.assert_array_equal(product(a, b, start=c), fma_chain(a, b, c))
    upper = np.triu(b)
    np.testing.assert_array_equal(
        product(a, b, triangle="upper"), fma_chain(a, upper, np.zeros_like(c))
    )


@pytest.mark.parametrize("triangle", ["full", "upper"])
@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
def test_a_row_does_not_know_its_neighbours(a_type, b_type, triangle):
    k, n = 211, 213
    a = random((40, k), a_type)
    packed = _core.PackedMatrix(random((k, n), b_type, 1), triangle=triangle)
    alone = np.concatenate([product(row[None], None, packed=packed) for row in a])
    for m in range(1, 41):
        for offset in {0, (40 - m) // 2, 40 - m}:
            rows = slice(offset, offset + m)
            together = product(a[rows], None, packed=packed)
            np.testing.assert_array_equal(bits(together), bits(alone[rows]))
    order = np.random.default_rng(3).permutation(40)
    np.testing.assert_array_equal(bits(product(a[order], None, packed=packed)), bits(alone[order]))


@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
def test_threads_do_not_change_bits(a_type, b_type, set_threads):
    a, b = random((401, 300), a_type), random((300, 257), b_type, 1)
    results = []
    for threads in (1, 2, 3, 7):
        set_threads(threads)
        results.append(product(a, b))
    for other in results[1:]:
        np.testing.assert_array_equal(bits(other), bits(results[0]))


DIGEST = """
import hashlib, numpy as np
from qexp import _core
digest = hashlib.sha256()
for a_type, b_type in (("f4", "f4"), ("f8", "f8"), ("f4", "f8")):
    for m, k, n in ((1, 5, 1), (13, 200, 70), (50, 401, 333)):
        rng = np.random.default_rng(m)
        a = rng.standard_normal((m, k)).astype(a_type)
        b = rng.standard_normal((k, n)).astype(b_type)
        for triangle in ("full", "upper"):
            out = rng.standard_normal((m, n)).astype(b_type)
            packed = _core.PackedMatrix(b, triangle=triangle)
            packed.multiply(a, out, accumulate=True)
            digest.update(out.tobytes())
            packed.multiply(a, out)
            digest.update(out.tobytes())
print(_core.isa(), digest.hexdigest())
"""


@pytest.mark.skipif(_core.isa() != "avx512", reason="needs a processor with AVX-512")
def test_avx2_and_avx512_give_the_same_bits():
    narrow, wide = (run_python(DIGEST, QEXP_ISA=isa).split() for isa in ("avx2", "avx512"))
    assert (narrow[0], wide[0]) == ("avx2", "avx512")
    assert narrow[1] == wide[1]
    assert len(wide[1]) == 2 * hashlib.sha256().digest_size


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
def test_what_is_not_finite_stays_in_its_row(a_type, b_type, poison):
    a, b = random((30, 90), a_type), random((90, 40), b_type, 1)
    clean = product(a, b)
    for row in (0, 5, 12, 29):
        dirty = a.copy()
        dirty[row, 17] = poison
        out = product(dirty, b)
        others = np.arange(30) != row
        assert not np.isfinite(out[row]).any()
        np.testing.assert_array_equal(bits(out[others]), bits(clean[others]))


def test_triangle_never_reads_below_the_diagonal():
    b = random((130, 130), np.float64)
    a = random((9, 130), np.float64, 1)
    garbage = b.copy()
    garbage[np.tril_indices(130, -1)] = np.nan
    np.testing.assert_array_equal(
        product(a, garbage, triangle="upper"), product(a, np.triu(b), triangle="upper")
    )
    assert _core.PackedMatrix(b, triangle="upper").nbytes < _core.PackedMatrix(b).nbytes


@pytest.mark.parametrize("triangle", ["full", "upper"])
@pytest.mark.parametrize("shape", [(70, 20), (20, 70)])
def test_triangle_need_not_be_square(triangle, shape):
    b = random(shape, np.float64)
    a = random((3, shape[0]), np.float64, 1)
    expected = a @ (np.triu(b) if triangle == "upper" else b)
    np.testing.assert_allclose(product(a, b, triangle=triangle), expected, atol=1e-12)


@pytest.mark.usefixtures("set_threads")
@settings(max_examples=60)
@given(
    m=st.integers(0, 30),
    k=st.integers(0, 220),
    n=st.integers(0, 70),
    pair=st.sampled_from(PAIRS),
    triangle=st.sampled_from(["full", "upper"]),
    accumulate=st.booleans(),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    backwards=st.booleans(),
    threads=st.integers(1, 3),
)
def test_shapes_strides_and_surroundings(
    m, k, n, pair, triangle, accumulate, padding, backwards, threads
):
    _core.set_num_threads(threads)
    a_type, b_type = pair
    frame_a = random((m, k + padding[0]), a_type)
    frame_c = random((m, n + padding[1]), b_type, 2)
    before = frame_c.copy()
    b = random((n, k), b_type, 1).T
    a, c = frame_a[:, :k], frame_c[:, :n]
    if backwards:
        a, c = a[::-1], c[::-1]
    start = c.copy()
    _core.PackedMatrix(b, triangle=triangle).multiply(a, c, accumulate=accumulate)
    wide = np.triu(b) if triangle == "upper" else b
    expected = a.astype(np.float64) @ wide.astype(np.float64) + (start if accumulate else 0)
    tolerance = 1e-3 if b_type is np.float32 else 1e-11
    np.testing.assert_allclose(c, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(frame_c[:, n:], before[:, n:])


def test_properties():
    packed = _core.PackedMatrix(random((40, 7), np.float32))
    assert packed.shape == (40, 7)
    assert packed.dtype == np.float32
    assert packed.nbytes >= 40 * 7 * 4


def read_only(x):
    x.flags.writeable = False
    return x


F8 = random((6, 8), np.float64)
SHARED = np.zeros((12, 8))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: _core.PackedMatrix(np.zeros(3)), ValueError, "needs 2"),
        (lambda: _core.PackedMatrix(np.zeros((3, 3), int)), TypeError, "float32 or float64"),
        (lambda: _core.PackedMatrix(F8, triangle="lower"), ValueError, "'full' or 'upper'"),
        (lambda: product(np.zeros((4, 5)), F8), ValueError, "rows of 5 numbers; it needs 6"),
        (lambda: product(np.zeros(6)[:, None], F8), ValueError, "rows of 1 numbers; it needs 6"),
        (lambda: product(np.zeros((4, 6), int), F8), TypeError, "a is int64"),
        (lambda: product(np.zeros((4, 6)), F8.astype(np.float32)), TypeError, "a is float64"),
        (lambda: product(np.zeros((6, 4)).T, F8), ValueError, "not contiguous"),
        (lambda: product(np.zeros((4, 12))[:, ::2], F8), ValueError, "not contiguous"),
        (
            lambda: product(np.zeros((4, 6)), F8, start=np.zeros((3, 8))),
            ValueError,
            "a has 4 rows but out has 3",
        ),
        (
            lambda: product(np.zeros((4, 6)), F8, start=np.zeros((4, 9))),
            ValueError,
            "rows of 9 numbers; it needs 8",
        ),
        (
            lambda: _core.PackedMatrix(F8).multiply(np.zeros((4, 6)), read_only(np.zeros((4, 8)))),
            ValueError,
            "read-only",
        ),
        (
            lambda: _core.PackedMatrix(F8).multiply(
                np.zeros((4, 6)), np.lib.stride_tricks.as_strided(np.zeros(20), (4, 8), (16, 8))
            ),
            ValueError,
            "rows that overlap",
        ),
        (
            lambda: _core.PackedMatrix(F8).multiply(SHARED[:4, :6], SHARED[2:6]),
            ValueError,
            "share memory",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
