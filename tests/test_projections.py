import hashlib
import json
import os
import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from helpers import run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp import _core
from qexp.projections import SRHT, Basis, CoordinateMask, Identity, Projection

DTYPES = [np.float32, np.float64]


def random(seed, *shape, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def every_projection(p=100):
    return [
        SRHT(p, 60, seed=3),
        Identity(p),
        CoordinateMask(p, [7, 3, p - 1, 0]),
        Basis(random(1, p, 9)),
    ]


KINDS = pytest.mark.parametrize("projection", every_projection(), ids=lambda q: q.kind)


def srht_matrix(projection):
    """P, entry by entry from its definition, by an explicit Hadamard matrix and Python integers."""
    p, k = projection.n_parameters, projection.n_components
    padded = 1 << (p - 1).bit_length()
    word = projection.signs.tolist()
    flips = np.array([-1.0 if word[j // 64] >> (j % 64) & 1 else 1.0 for j in range(p)])
    hadamard = scipy.linalg.hadamard(padded) / np.sqrt(padded)
    return np.sqrt(padded / k) * flips[:, None] * hadamard[:p, projection.indices]


# ------------------------------------------------------------------------- every projection


@KINDS
def test_it_follows_the_protocol(projection):
    assert isinstance(projection, Projection)
    facts = json.loads(json.dumps(projection.describe()))
    assert facts["kind"] == projection.kind
    assert facts["n_parameters"] == projection.n_parameters == 100
    assert facts["n_components"] == projection.n_components
    assert f"k={projection.n_components}" in repr(projection)


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_dtypes(projection, dtype):
    p, k = projection.n_parameters, projection.n_components
    for m in (0, 1, 5):
        y = projection.forward(random(0, m, p, dtype=dtype))
        assert (y.shape, y.dtype) == ((m, k), dtype)
        x = projection.adjoint(random(0, m, k, dtype=dtype))
        assert (x.shape, x.dtype) == ((m, p), dtype)
    rows, u = random(1, 3, p, dtype=dtype), random(2, 3, k, dtype=dtype)
    assert np.array_equal(projection.forward(rows[1]), projection.forward(rows)[1])
    assert projection.adjoint(u[1]).shape == (p,)
    np.testing.assert_allclose(projection.adjoint(u[1]), projection.adjoint(u)[1], rtol=1e-5)
    assert not np.shares_memory(projection.forward(rows), rows)


@KINDS
def test_the_adjoint_is_the_transpose(projection):
    x, u = random(1, 4, projection.n_parameters), random(2, 4, projection.n_components)
    left = np.einsum("ij,ij->i", projection.forward(x), u)
    right = np.einsum("ij,ij->i", x, projection.adjoint(u))
    size = np.einsum("ij,ij->i", abs(x), abs(projection.adjoint(u)))
    assert (abs(left - right) <= 1e-12 * size).all()


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_know_its_neighbours(projection, dtype, set_threads):
    rows = random(5, 13, projection.n_parameters, dtype=dtype)
    alone = b"".join(projection.forward(row).tobytes() for row in rows)
    for count in (1, 2, 3):
        set_threads(count)
        assert projection.forward(rows).tobytes() == alone
        parts = [projection.forward(part) for part in (rows[:4], rows[4:5], rows[5:])]
        assert b"".join(part.tobytes() for part in parts) == alone
        assert projection.forward(rows[::-1])[::-1].tobytes() == alone


@KINDS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308])
def test_no_value_raises_or_reaches_another_row(projection, value):
    rows = random(6, 4, projection.n_parameters)
    expected = projection.forward(rows)
    rows[2] = value
    actual = projection.forward(rows)
    others = [0, 1, 3]
    assert actual[others].tobytes() == expected[others].tobytes()


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_give_the_same_bits(projection, dtype):
    p = projection.n_parameters
    rows = random(7, 6, p, dtype=dtype)
    expected = projection.forward(rows)
    wide = np.zeros((6, p + 3), dtype=dtype)
    wide[:, 1 : p + 1] = rows
    gaps = np.zeros((6, 2 * p), dtype=dtype)
    gaps[:, ::2] = rows
    unaligned = np.frombuffer(b"x" + rows.tobytes(), dtype=np.uint8)[1:].view(dtype).reshape(6, p)
    for layout in (wide[:, 1 : p + 1], np.asfortranarray(rows), gaps[:, ::2], unaligned):
        assert projection.forward(layout).tobytes() == expected.tobytes()
    assert projection.forward(rows[::-2]).tobytes() == expected[::-2].tobytes()
    same = np.broadcast_to(rows[0], (3, p))
    assert projection.forward(same).tobytes() == expected[[0, 0, 0]].tobytes()
    u = random(8, 6, projection.n_components, dtype=dtype)
    lifted = projection.adjoint(np.asfortranarray(u))
    np.testing.assert_array_equal(lifted, projection.adjoint(u))


@KINDS
def test_out_is_filled_and_returned(projection):
    p, k = projection.n_parameters, projection.n_components
    rows = random(9, 5, p)
    out = np.full((5, k), np.nan)
    assert projection.forward(rows, out=out) is out
    assert out.tobytes() == projection.forward(rows).tobytes()
    row_out = np.full(k, np.nan)
    assert projection.forward(rows[0], out=row_out) is row_out
    assert row_out.tobytes() == out[0].tobytes()


@KINDS
def test_bad_arrays(projection):
    p, k = projection.n_parameters, projection.n_components
    rows = np.zeros((2, p))
    for bad in (np.int64, np.float16, np.complex128, bool, ">f8"):
        with pytest.raises(TypeError, match="float32 or float64"):
            projection.forward(rows.astype(bad))
        with pytest.raises(TypeError, match="float32 or float64"):
            projection.adjoint(np.zeros(k, dtype=bad))
    for shape in ((p + 1,), (2, p + 1), (1, 2, p), ()):
        with pytest.raises(ValueError, match="rows has shape"):
            projection.forward(np.zeros(shape))
    with pytest.raises(ValueError, match="u has shape"):
        projection.adjoint(np.zeros(k + 1))
    with pytest.raises(ValueError, match="out has shape"):
        projection.forward(rows, out=np.zeros((3, k)))
    with pytest.raises(TypeError, match="out is float32"):
        projection.forward(rows, out=np.zeros((2, k), dtype=np.float32))
    with pytest.raises(TypeError, match="out is list"):
        projection.forward(rows, out=[0.0] * k)
    with pytest.raises(ValueError, match="C-contiguous"):
        projection.forward(rows, out=np.zeros((2, 2 * k))[:, ::2])
    whole = np.zeros(2 * p + 2 * k)
    with pytest.raises(ValueError, match="shares memory"):
        projection.forward(whole[: 2 * p].reshape(2, p), out=whole[: 2 * k].reshape(2, k))


# ------------------------------------------------------------------------------------ SRHT


@pytest.mark.parametrize(
    ("p", "k"), [(1, 1), (2, 1), (3, 4), (5, 2), (64, 64), (100, 30), (257, 90)]
)
def test_srht_is_its_matrix(p, k):
    projection = SRHT(p, k, seed=p)
    matrix = srht_matrix(projection)
    np.testing.assert_allclose(projection.adjoint(np.eye(k)).T, matrix, rtol=1e-14)
    np.testing.assert_allclose(projection.forward(np.eye(p)), matrix, rtol=1e-14)
    x = random(p, 3, p)
    np.testing.assert_allclose(projection.forward(x), x @ matrix, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 32, 4096])
def test_srht_has_orthogonal_columns_without_padding(p):
    k = max(1, p // 3)
    projection = SRHT(p, k, seed=11)
    gram = projection.forward(projection.adjoint(np.eye(k)))
    np.testing.assert_allclose(gram, p / k * np.eye(k), rtol=0, atol=1e-12 * p / k)


def test_srht_keeping_every_row_preserves_lengths():
    projection = SRHT(100, 128, seed=1)
    x = random(3, 5, 100)
    np.testing.assert_allclose(projection.adjoint(projection.forward(x)), x, rtol=0, atol=1e-13)


@given(
    p=st.integers(1, 20_000),
    fraction=st.floats(0, 1),
    m=st.integers(1, 3),
    seed=st.integers(0, 2**64),
)
@settings(max_examples=40)
def test_srht_adjoint_identity_at_any_size(p, fraction, m, seed):
    padded = 1 << (p - 1).bit_length()
    projection = SRHT(p, max(1, min(int(fraction * padded), 500)), seed=seed)
    x, u = random(1, m, p), random(2, m, projection.n_components)
    y, z = projection.forward(x), projection.adjoint(u)
    assert abs((y * u).sum() - (x * z).sum()) <= 1e-12 * (abs(x) * abs(z)).sum()


@pytest.mark.parametrize("p", [4097, 40_000, 150_000, 1 << 18])
@pytest.mark.parametrize("dtype", DTYPES)
def test_srht_of_large_rows_ignores_threads_and_block_size(p, dtype, set_threads):
    projection = SRHT(p, 300, seed=2)
    rows, u = random(1, 5, p, dtype=dtype), random(2, 2, 300, dtype=dtype)
    set_threads(1)
    y, z = projection.forward(rows), projection.adjoint(u)
    for count in (2, 7):
        set_threads(count)
        assert projection.forward(rows).tobytes() == y.tobytes()
        assert projection.forward(rows[3]).tobytes() == y[3].tobytes()
        assert projection.adjoint(u[1]).tobytes() == z[1].tobytes()


@pytest.mark.statistical
def test_srht_keeps_squared_lengths_on_average():
    """Mean of ‖Pᵀx‖²/‖x‖² over 2,000 fixed seeds: 1, within 4 standard errors (level 6e-5)."""
    x = random(4, 50)
    x[0] = 20  # far from isotropic
    ratios = [(SRHT(50, 16, seed=s).forward(x) ** 2).sum() / (x**2).sum() for s in range(2000)]
    error = np.std(ratios, ddof=1) / np.sqrt(len(ratios))
    assert abs(np.mean(ratios) - 1) <= 4 * error
    assert error < 0.02


@pytest.mark.statistical
def test_srht_keeps_every_row_equally_often():
    """χ² over 32 rows, 4,000 fixed seeds, each keeping 8: below its 1e-6 quantile's bound."""
    counts = np.zeros(32)
    for seed in range(4000):
        counts[SRHT(32, 8, seed=seed).indices] += 1
    expected = 4000 * 8 / 32
    # Rows of one draw are negatively correlated, which only makes the statistic smaller.
    assert ((counts - expected) ** 2 / expected).sum() < scipy.stats.chi2(31).isf(1e-6)


def test_srht_seed_means_the_same_map_everywhere():
    projection = SRHT(1000, 37, seed=5)
    assert projection.signs[:2].tolist() == [13535223855206698129, 10893183200674769480]
    assert projection.indices[:5].tolist() == [20, 26, 43, 62, 65]
    assert projection.describe()["digest"] == (
        "0303050e605b440bfe430cca0792c9a82f25bcd2e27b6775b80d1aa4e26a16d0"
    )
    values = hashlib.sha256(projection.signs.astype("<u8").tobytes())
    values.update(projection.indices.astype("<i8").tobytes())
    assert values.hexdigest() == KNOWN_VALUES


KNOWN_VALUES = "78fa716be00dfa24772b448af7864abc8707e805adc1066b3033ffa083d2eb07"


def test_srht_map_is_fixed_and_depends_on_the_seed():
    a, b, c = (SRHT(300, 40, seed=s) for s in (1, 1, 2**128 - 1))
    assert a.describe() == b.describe()
    assert a.describe()["digest"] != c.describe()["digest"]
    assert (np.diff(a.indices) > 0).all()
    assert a.indices[0] >= 0
    assert a.indices[-1] < 512
    with pytest.raises(ValueError, match="read-only"):
        a.signs[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        a.indices[0] = 0


def test_srht_bad_arguments():
    with pytest.raises(ValueError, match="p' = 128"):
        SRHT(100, 129, seed=0)
    with pytest.raises(ValueError, match="components"):
        SRHT(100, 0, seed=0)
    with pytest.raises(ValueError, match="parameters"):
        SRHT(0, 1, seed=0)
    for seed in (-1, 2**128):
        with pytest.raises(ValueError, match="seed"):
            SRHT(100, 10, seed=seed)
    with pytest.raises(TypeError):
        SRHT(100, 10, seed=0.5)
    with pytest.raises(TypeError):
        SRHT(100.0, 10, seed=0)


def test_srht_kernel_checks_its_arguments():
    rows, out = np.zeros((2, 100)), np.zeros((2, 3))
    signs, indices = np.zeros(2, dtype=np.uint64), np.array([0, 5, 127])
    _core.srht_forward(rows, signs, indices, 1.0, out)
    for bad in ([0, 5, 128], [-1, 5, 7], [0, 5, 5], [5, 0, 7]):
        with pytest.raises(ValueError, match="ascend"):
            _core.srht_forward(rows, signs, np.array(bad), 1.0, out)
        with pytest.raises(ValueError, match="ascend"):
            _core.srht_adjoint(out, signs, np.array(bad), 1.0, rows)
    with pytest.raises(ValueError, match="signs has 1 words"):
        _core.srht_forward(rows, signs[:1], indices, 1.0, out)
    with pytest.raises(ValueError, match="out has shape"):
        _core.srht_forward(rows, signs, indices, 1.0, np.zeros((2, 4)))
    with pytest.raises(ValueError, match="out has shape"):
        _core.srht_adjoint(out, signs, indices, 1.0, np.zeros((3, 100)))
    with pytest.raises(ValueError, match="u has 2 columns"):
        _core.srht_adjoint(np.zeros((2, 2)), signs, indices, 1.0, rows)
    with pytest.raises(ValueError, match="not contiguous"):
        _core.srht_forward(np.zeros((2, 200))[:, ::2], signs, indices, 1.0, out)
    with pytest.raises(TypeError):
        _core.srht_forward(rows.astype(np.float32), signs, indices, 1.0, out)
    with pytest.raises(TypeError):
        _core.srht_forward(rows, signs.astype(np.int64), indices, 1.0, out)


def test_srht_instruction_sets_agree_bit_for_bit():
    program = """
import hashlib, numpy as np
from qexp.projections import SRHT
digest = hashlib.sha256()
for dtype in (np.float32, np.float64):
    for p in (1, 30, 1000, 70_000):
        projection = SRHT(p, min(p, 100), seed=p)
        rows = np.random.default_rng(p).standard_normal((2, p)).astype(dtype)
        y = projection.forward(rows)
        digest.update(y.tobytes())
        digest.update(projection.adjoint(y).tobytes())
print(digest.hexdigest())
"""
    digests = {run_python(program, QEXP_ISA=isa) for isa in ("baseline", "avx2", "avx512")}
    assert len(digests) == 1


# --------------------------------------------------------------------------------- memory


def test_srht_forward_allocates_no_copy_of_the_block():
    p, k = 1 << 17, 64
    projection = SRHT(p - 100, k, seed=1)
    block = np.zeros((64, p), dtype=np.float32)[:, 50 : p - 50]
    out = np.empty((64, k), dtype=np.float32)
    projection.forward(block, out=out)
    tracemalloc.start()
    projection.forward(block, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_srht_peak_memory_is_one_padded_row_a_thread():
    """512 rows of 2^17 - 7 numbers are 268 MB; the resident peak may grow by a few rows alone."""
    program = """
import re, sys
import numpy as np
from qexp import _core
from qexp.projections import SRHT
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
p, k, m = 2**17 - 7, 2000, 512
_core.set_num_threads(2)
projection = SRHT(p, k, seed=1)
block = np.ones((m, p + 9), dtype=np.float32)[:, :p]
out = np.ones((m, k), dtype=np.float32)
before = peak()
projection.forward(block, out=out)
print(peak() - before)
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("peak resident memory is read from /proc")
    grown = int(run_python(program))
    assert grown < 8 * 2**17 * 4


# ----------------------------------------------------------------------- the other projections


def test_identity_copies():
    rows = random(1, 3, 10)
    assert Identity(10).forward(rows).tobytes() == rows.tobytes()
    assert Identity(10).adjoint(rows).tobytes() == rows.tobytes()


def test_mask_picks_and_places():
    projection = CoordinateMask(5, [4, 1])
    rows = np.arange(10.0).reshape(2, 5)
    assert projection.forward(rows).tolist() == [[4, 1], [9, 6]]
    assert projection.adjoint(np.array([7.0, 8.0])).tolist() == [0, 8, 0, 0, 7]
    assert CoordinateMask(5, [1, 4]).describe()["digest"] != projection.describe()["digest"]


def test_mask_bad_indices():
    for bad in ([0, 5], [-1]):
        with pytest.raises(ValueError, match="can run from 0 to 4"):
            CoordinateMask(5, bad)
    with pytest.raises(ValueError, match="repeat"):
        CoordinateMask(5, [1, 1])
    with pytest.raises(ValueError, match="components"):
        CoordinateMask(5, [])
    with pytest.raises(ValueError, match="one dimension"):
        CoordinateMask(5, [[1, 2]])
    with pytest.raises(TypeError, match="flatnonzero"):
        CoordinateMask(5, [True, False, True, False, False])
    with pytest.raises(TypeError, match="integers"):
        CoordinateMask(5, [1.0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_basis_is_its_matrix(dtype):
    matrix = random(1, 40, 7)
    projection = Basis(matrix)
    rows, u = random(2, 6, 40, dtype=dtype), random(3, 6, 7, dtype=dtype)
    tolerance = 1e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(projection.forward(rows), rows @ matrix, rtol=0, atol=tolerance)
    np.testing.assert_allclose(projection.adjoint(u), u @ matrix.T, rtol=0, atol=tolerance)


def test_basis_keeps_its_own_copy():
    matrix = random(1, 4, 2)
    projection = Basis(matrix)
    before = projection.describe()["digest"]
    matrix[:] = 0
    assert projection.describe()["digest"] == before
    assert (projection.forward(np.ones(4)) != 0).all()


@KINDS
def test_pickling_keeps_the_map(projection):
    rows = random(1, 3, projection.n_parameters)
    expected = projection.forward(rows)
    copy = pickle.loads(pickle.dumps(projection))
    assert copy.describe() == projection.describe()
    assert copy.forward(rows).tobytes() == expected.tobytes()


def test_basis_bad_matrix():
    for bad in (np.nan, np.inf):
        matrix = np.ones((4, 2))
        matrix[1, 1] = bad
        with pytest.raises(ValueError, match="finite"):
            Basis(matrix)
    with pytest.raises(ValueError, match="two dimensions"):
        Basis(np.ones(4))
    with pytest.raises(ValueError, match="components"):
        Basis(np.ones((4, 0)))
    with pytest.raises(TypeError, match="float32 or float64"):
        Basis(np.ones((4, 2), dtype=int))
