"""The boundary, against a reference in exact integers, and its invariances bit for bit."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from helpers import run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from qexp import _core
from qexp.bits import insecure_test_generator
from qexp.privacy import calibrate_mu
from qexp.private_sum import Lattice, lattice_for, private_sum

MARGIN = 1 - 2.0**-20


def lattice_vectors(rows, lattice):
    """What each row adds to the sum, alone."""
    vectors = []
    for row in rows:
        total = np.zeros(len(row), dtype=np.int64)
        _core.lattice_sum(
            np.ascontiguousarray(row[None, :], dtype=float),
            total,
            units_per_norm=lattice.units_per_norm,
            clipping_norm=lattice.clipping_norm,
            bound=lattice.bound,
        )
        vectors.append(total)
    return np.array(vectors)


def noisy(rows, lattice, seed=0, block=64, n_records=None):
    blocks = (rows[i : i + block] for i in range(0, len(rows), block))
    return private_sum(
        blocks,
        n_components=rows.shape[1],
        n_records=len(rows) if n_records is None else n_records,
        lattice=lattice,
        bits=insecure_test_generator(seed),
    )


def exact_squared_norm(z):
    return sum(int(v) ** 2 for v in z)


# -------------------------------------------------------------------------------- lattice


@given(
    mu=st.floats(1e-7, 20),
    clipping_norm=st.floats(1e-6, 1e6),
    n_records=st.integers(1, 10**9),
)
def test_a_lattice_never_claims_more_than_mu_and_hardly_less(mu, clipping_norm, n_records):
    if mu * n_records > 2**29:
        n_records = 1
    lattice = lattice_for(mu, clipping_norm, n_records)
    assert Fraction(lattice.bound, 2**lattice.bits) <= Fraction(mu)
    assert lattice.mu == Fraction(lattice.bound, 2**lattice.bits)
    assert lattice.mu >= mu * (1 - 2.0**-24)
    assert 2**24 <= lattice.bound <= 2**51
    assert n_records * lattice.bound + 12 * 2**lattice.bits < 2**63


def test_usual_lattices_have_32_bits():
    assert lattice_for(0.268, 1.0, 7291).bits == 32


def test_small_mu_takes_a_finer_lattice_and_many_records_a_coarser_one():
    assert lattice_for(1e-6, 1.0, 1000).bits > 40
    assert lattice_for(1.0, 1.0, 2**36).bits < 32


def test_a_lattice_without_room_is_refused():
    with pytest.raises(ValueError, match=r"lattice overflows.*larger target_epsilon"):
        lattice_for(1.0, 1.0, 2**40)
    with pytest.raises(ValueError, match="lattice overflows"):
        lattice_for(1e-300, 1.0, 1)


@pytest.mark.parametrize("n_records", [1, 300, 2**12, 2**13, 2**30, 2**38 - 1])
def test_the_largest_mu_is_named_and_has_a_lattice(n_records):
    most = min(2**51 - 1, (2**63 - 13) // n_records)
    lattice = lattice_for(float(most), 1.0, n_records)
    assert lattice.mu == most
    assert n_records * lattice.bound + 12 * 2**lattice.bits < 2**63
    for mu in (math.nextafter(float(most), math.inf) + 1, 1e20, 1e150, 1e308):
        with pytest.raises(
            ValueError, match=r"lattice overflows.*smaller target_epsilon"
        ) as caught:
            lattice_for(mu, 1.0, n_records)
        named = re.search(r"at most (\S+): .* of at most (\S+);", str(caught.value))
        assert most * (1 - 1e-5) <= float(named[1]) <= most
        # What is named will do, at any delta that is of use.
        assert calibrate_mu(float(named[2]), 0.1) <= most


@pytest.mark.parametrize("mu", [1e-300, 1.0, 1e10, 1e308])
def test_too_many_records_have_no_lattice_whatever_mu(mu):
    with pytest.raises(ValueError, match=r"lattice overflows.*sum fewer records"):
        lattice_for(mu, 1.0, 2**40)


# ---------------------------------------------------------------------------- one record

finite = st.floats(-1e3, 1e3, allow_subnormal=False)
lattices = st.builds(
    lattice_for,
    st.floats(1e-5, 10),
    st.floats(1e-3, 1e3),
    st.just(1),
)


@given(row=arrays(float, st.integers(1, 40), elements=finite), lattice=lattices)
def test_a_record_is_clipped_and_truncated_within_the_bound(row, lattice):
    (z,) = lattice_vectors([row], lattice)
    assert exact_squared_norm(z) <= lattice.bound**2
    norm = math.sqrt(math.fsum(row * row))
    limit = lattice.clipping_norm * MARGIN
    exact = row * (lattice.units_per_norm * (min(1.0, limit / norm) if norm > 0 else 1.0))
    # Truncation towards zero, up to the rounding of the product.
    slack = 1e-14 * np.abs(exact)
    assert np.all(np.abs(z) <= np.abs(exact) + slack)
    assert np.all(np.abs(z) > np.abs(exact) - 1 - slack)
    assert np.all(z * np.sign(row) >= 0)


@given(
    row=arrays(
        float,
        st.integers(1, 40),
        elements=st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True),
    ),
    lattice=lattices,
)
@settings(max_examples=300)
def test_no_row_of_doubles_whatever_passes_the_bound(row, lattice):
    (z,) = lattice_vectors([row], lattice)
    assert exact_squared_norm(z) <= lattice.bound**2
    if not np.all(np.isfinite(row)):
        assert not z.any()


def test_records_do_not_pass_the_bound_where_floating_point_alone_would():
    # Norms at the clip, in many directions: without margin half of them would exceed c.
    rng = np.random.default_rng(0)
    lattice = Lattice(bits=32, bound=2**32, units_per_norm=2.0**32, clipping_norm=1.0)
    rows = rng.normal(size=(500, 300)) * 1e3
    norms = [exact_squared_norm(z) for z in lattice_vectors(rows, lattice)]
    assert max(norms) <= lattice.bound**2
    assert min(norms) >= lattice.bound**2 * (1 - 2.5e-6)


def test_the_exact_check_stands_behind_the_floating_point_clip():
    # A lattice that promises less than the clip gives stands for any fault before the check.
    lattice = Lattice(bits=32, bound=2**30, units_per_norm=2.0**32, clipping_norm=1.0)
    short, long = np.full((1, 4), 0.1), np.full((1, 4), 0.2)
    assert lattice_vectors(short, lattice).any()
    assert not lattice_vectors(long, lattice).any()


# ---------------------------------------------------------------------------- invariance


@pytest.fixture
def rows():
    return np.random.default_rng(1).normal(size=(300, 157))


@pytest.fixture
def lattice():
    return lattice_for(0.5, 3.0, 300)


def test_the_sum_is_noise_plus_every_records_vector(rows, lattice):
    noise = noisy(np.zeros_like(rows), lattice).values * lattice.units_per_norm - 0.5
    total = noisy(rows, lattice).values * lattice.units_per_norm - 0.5
    vectors = lattice_vectors(rows, lattice)
    assert np.allclose(total - noise, vectors.sum(axis=0), rtol=1e-12, atol=1e-3)


def test_nulling_a_record_leaves_every_other_vector_as_it_was(rows, lattice):
    """Against each value that a record can take: other records' integers stay, bit for bit."""
    whole = np.zeros(rows.shape[1], dtype=np.int64)
    arguments = {
        "units_per_norm": lattice.units_per_norm,
        "clipping_norm": lattice.clipping_norm,
        "bound": lattice.bound,
    }
    _core.lattice_sum(rows, whole, **arguments)
    vectors = lattice_vectors(rows, lattice)
    for i in (0, 63, 64, 299):
        for value in (0.0, np.nan, np.inf, 1e300, -5.0):
            changed = rows.copy()
            changed[i] = value
            total = np.zeros_like(whole)
            _core.lattice_sum(changed, total, **arguments)
            (replaced,) = lattice_vectors(changed[i : i + 1], lattice)
            assert np.array_equal(total, whole - vectors[i] + replaced)
            if value == 0.0 or not np.isfinite(value):
                assert not replaced.any()


def test_threads_blocks_and_order_change_no_bit(rows, lattice, set_threads):
    many = np.tile(rows, (20, 1))
    expected = noisy(many, lattice).values
    shuffled = many[np.random.default_rng(2).permutation(len(many))]
    for count in (1, 2, 3):
        set_threads(count)
        for block in (1, 64, 1000, len(many)):
            assert np.array_equal(noisy(many, lattice, block=block).values, expected)
            assert np.array_equal(noisy(shuffled, lattice, block=block).values, expected)


# Rows of one number, of some registers and a rest, and too long to go in groups; factors that fill
# their tiles and that do not; and records that are null.
DIGEST = """
import hashlib
import numpy as np
from qexp import _core

scale = {"units_per_norm": 2.0**30 / 3.0, "clipping_norm": 3.0, "bound": 2**30}
bad = [np.nan, np.inf, -np.inf, 1e300, 5e-324]
digest = hashlib.sha256()
for k in (1, 7, 157, 1100, 9001):
    rows = np.random.default_rng(k).standard_normal((40, k)) * np.geomspace(1e-3, 1e3, 40)[:, None]
    rows[3:8, k // 2] = bad
    total = np.zeros(k, np.int64)
    _core.lattice_sum(rows, total, **scale)
    digest.update(total.tobytes())
for shapes in ([(1, 1)], [(4, 32), (3, 31)], [(5, 3), (40, 1), (33, 6), (9, 70)]):
    rng = np.random.default_rng(len(shapes))
    factors = [tuple(rng.standard_normal((40, n)) for n in shape) for shape in shapes]
    factors[-1][0][3:8, 0] = bad
    total = np.zeros(sum(a * b for a, b in shapes), np.int64)
    _core.lattice_sum_outer(factors, total, **scale)
    digest.update(total.tobytes())
print(_core.isa(), digest.hexdigest())
"""


def test_instruction_sets_agree_bit_for_bit():
    default, baseline, avx2 = (
        run_python(DIGEST, **chosen).split()
        for chosen in ({}, {"QEXP_ISA": "baseline"}, {"QEXP_ISA": "avx2"})
    )
    assert baseline[0] == "baseline"
    assert default[1] == baseline[1] == avx2[1]


def test_noise_is_drawn_before_the_first_record_is_read(lattice):
    order = []

    class Watched:
        name, secure = "watched", False

        def words(self, count):
            order.append("words")
            return insecure_test_generator(0).words(count)

    def blocks():
        order.append("records")
        yield np.ones((3, 5))

    private_sum(blocks(), n_components=5, n_records=3, lattice=lattice, bits=Watched())
    assert order[-1] == "records"
    assert order.count("records") == 1


def test_sums_wrap_and_stay_right(lattice):
    near_the_end = np.full(3, 2**63 - 5, dtype=np.int64)
    _core.lattice_sum(
        np.full((1, 3), 0.01),
        near_the_end,
        units_per_norm=1000.0,
        clipping_norm=1.0,
        bound=1000,
    )
    assert near_the_end.tolist() == [-(2**63) + 5] * 3


def test_bad_records_are_silent(rows, lattice, recwarn, capfd):
    bad = rows.copy()
    bad[5] = np.nan
    bad[6, 3] = np.inf
    clean = rows.copy()
    clean[5:7] = 0
    assert np.array_equal(noisy(bad, lattice).values, noisy(clean, lattice).values)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("announced", [299, 301])
def test_the_public_number_of_records_must_be_right(rows, lattice, announced):
    with pytest.raises(ValueError, match=f"gave 300 records and announced {announced}"):
        noisy(rows, lattice, n_records=announced)


def test_the_kernel_refuses_arrays_that_it_would_have_to_copy(rows):
    total = np.zeros(157, dtype=np.int64)
    scale = {"units_per_norm": 1.0, "clipping_norm": 1.0, "bound": 1}
    with pytest.raises(TypeError):
        _core.lattice_sum(rows.astype(np.float32), total, **scale)
    with pytest.raises(ValueError, match="not C-contiguous"):
        _core.lattice_sum(np.asfortranarray(rows), total, **scale)
    with pytest.raises(ValueError, match="rows have 157 entries, total has 3"):
        _core.lattice_sum(rows, total[:3].copy(), **scale)
    with pytest.raises(ValueError, match=r"0 to 2\^52"):
        _core.lattice_sum(rows, total, **(scale | {"bound": 2**52 + 1}))
    total.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _core.lattice_sum(rows, total, **scale)


# --------------------------------------------------------------------------------- noise


def test_noise_does_not_depend_on_the_portions_of_words(monkeypatch):
    from qexp import private_sum as module

    whole = module._noise(5000, 32, insecure_test_generator(4))
    for portion in (1, 7, 100):
        monkeypatch.setattr(module, "_MOST_WORDS_AT_ONCE", portion)
        assert np.array_equal(module._noise(500, 32, insecure_test_generator(4)), whole[:500])


def test_noise_has_the_standard_deviation_that_is_claimed():
    lattice = lattice_for(0.25, 2.0, 1)
    y = noisy(np.zeros((1, 200_000)), lattice, seed=5).values
    # c/μ = 8, and half a lattice unit keeps the mean at zero.
    assert stats.kstest(y / 8.0, "norm").pvalue > 1e-3
