"""Layered curvature against explicit matrices, and the lattice sum of outer products."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from helpers import all_rows, random_factors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import qexp
from qexp import _core
from qexp.bits import insecure_test_generator
from qexp.layered import DiagonalCurvature, KroneckerCurvature, LayeredCurvature
from qexp.models import mlp
from qexp.private_sum import lattice_for, private_sum

DAMPING = 3e-2
TARGET = {"target_epsilon": 1.0, "target_delta": 1e-5}


@pytest.fixture(scope="module")
def model():
    start = mlp((4, 3, 2), dtype=np.float64, seed=1)
    return start.with_weights(
        start.weights + 0.3 * np.random.default_rng(1).normal(size=start.n_parameters)
    )


@pytest.fixture(scope="module")
def public(model):
    return np.random.default_rng(2).normal(size=(60, 4))


def records(model, n=25, seed=3):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, 4)), generator.integers(0, 2, n)


def gradient_rows(model, X, y):
    return all_rows(model.gradient_blocks(X, y))


def layer_matrices(model, public, kind, labels):
    """Every layer's (H, A) in its plainest form, weights in the model's order."""
    factors = [[], []]
    source = model.curvature_blocks(public, labels=labels, seed=0)
    r = source.rows_per_record
    for block in source.factor_blocks():
        for layer, (inputs, deltas) in zip(factors, block, strict=True):
            layer.append((inputs.copy(), deltas.copy()))
    matrices = []
    for parts in factors:
        a = np.concatenate([inputs for inputs, _ in parts])
        d = np.concatenate([deltas for _, deltas in parts])
        n, p = len(a), a.shape[1] * d.shape[1]
        rows = np.einsum("ri,rj->rij", d, np.repeat(a, r, axis=0)).reshape(len(d), p)
        h = rows.T @ rows / n
        if kind == "kronecker":
            A, B = a.T @ a / n, d.T @ d / n
            pi = math.sqrt((np.trace(A) / len(A)) / (np.trace(B) / len(B)))
            damped_a = A + pi * math.sqrt(DAMPING) * np.eye(len(A))
            damped_b = B + math.sqrt(DAMPING) / pi * np.eye(len(B))
            matrices.append((np.kron(B, A), np.kron(damped_b, damped_a)))
        elif kind == "dense":
            matrices.append((h, h + DAMPING * np.eye(p)))
        elif kind == "diagonal":
            h = np.diag(np.diag(h))
            matrices.append((h, h + DAMPING * np.eye(p)))
        else:
            matrices.append((np.eye(p), np.eye(p)))
    return matrices


def block_diagonal(blocks):
    size = sum(len(block) for block in blocks)
    whole, start = np.zeros((size, size)), 0
    for block in blocks:
        whole[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return whole


KINDS = [
    ("kronecker", "kronecker"),
    ("dense", "dense"),
    ("diagonal", "diagonal"),
    ("identity", "identity"),
    ("kronecker", "dense"),
    ("diagonal", "kronecker"),
    ("identity", "dense"),
]


@pytest.mark.parametrize("labels", ["sampled", "expected"])
@pytest.mark.parametrize("kinds", KINDS)
def test_a_layered_curvature_is_its_explicit_matrix(model, public, kinds, labels):
    curvature = LayeredCurvature.from_model(
        model, public, damping=DAMPING, kinds=kinds, labels=labels
    )
    blocks = [
        layer_matrices(model, public, kind, labels)[place] for place, kind in enumerate(kinds)
    ]
    h, a = block_diagonal([h for h, _ in blocks]), block_diagonal([a for _, a in blocks])
    lower = np.linalg.cholesky(a)
    g = gradient_rows(model, *records(model))
    y = np.random.default_rng(4).normal(size=len(a))
    tight = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(curvature.whiten(g), np.linalg.solve(lower, g.T).T, **tight)
    np.testing.assert_allclose(curvature.unwhiten(y), np.linalg.solve(lower.T, y), **tight)
    assert curvature.effective_dimension == pytest.approx(np.trace(h @ np.linalg.inv(a)))
    assert curvature.n_components == curvature.n_parameters == len(a) == model.n_parameters


@pytest.mark.parametrize("kinds", [*KINDS, ("frozen", "kronecker"), ("dense", "frozen")])
def test_whitened_factors_are_the_whitened_rows(model, public, kinds):
    curvature = LayeredCurvature.from_model(model, public, damping=DAMPING, kinds=kinds)
    X, y = records(model)
    dense = curvature.whiten(gradient_rows(model, X, y))
    (factors,) = model.gradient_blocks(X, y).factor_blocks()
    parts = [
        np.einsum("mi,mj->mij", left, right).reshape(len(X), -1)
        for left, right in curvature.whiten_factors(factors)
    ]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), dense, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kinds", ["kronecker", "diagonal", ("kronecker", "dense")])
def test_the_draw_is_the_same_from_factors_and_from_rows(model, public, kinds):
    curvature = LayeredCurvature.from_model(model, public, damping=DAMPING, kinds=kinds)
    X, y = records(model, 200)

    def draw(gradients):
        return qexp.sample_private_weights(
            model.weights,
            gradients,
            curvature=curvature,
            clipping_norm=1.0,
            rng=insecure_test_generator(0),
            **TARGET,
        )

    np.testing.assert_allclose(
        draw(model.gradient_blocks(X, y)).weights,
        draw(gradient_rows(model, X, y)).weights,
        atol=1e-6,
    )


def test_whitening_undone_by_unwhitening_is_the_inverse_curvature(model, public):
    curvature = KroneckerCurvature.from_model(model, public, damping=DAMPING)
    g = gradient_rows(model, *records(model))[0]
    whole = block_diagonal([a for _, a in layer_matrices(model, public, "kronecker", "sampled")])
    np.testing.assert_allclose(
        curvature.unwhiten(curvature.whiten(g[None])[0]), np.linalg.solve(whole, g), rtol=1e-9
    )


def test_classes_are_named_after_their_kinds(model, public):
    for make, kind in ((KroneckerCurvature, "kronecker"), (DiagonalCurvature, "diagonal")):
        described = make.from_model(model, public, damping=DAMPING).describe()
        assert [layer["kind"] for layer in described["layers"]] == [kind, kind]


def test_curvature_does_not_depend_on_the_blocks_of_its_rows(model, public):
    for kinds in ("kronecker", "dense", "diagonal"):
        made = []
        for size in (1, 7, 60):
            source = model.curvature_blocks(public, block_size=size)
            made.append(
                LayeredCurvature.from_factors(
                    source.factor_blocks(),
                    layer_shapes=source.layer_shapes,
                    n_records=60,
                    damping=DAMPING,
                    kinds=kinds,
                )
            )
        g = gradient_rows(model, *records(model))
        for other in made[1:]:
            np.testing.assert_allclose(other.whiten(g), made[0].whiten(g), rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------- layers


def test_frozen_layers_keep_their_weights_bit_for_bit(model, public):
    X, y = records(model, 100)
    for frozen in (0, 1):
        kinds = ["kronecker", "kronecker"]
        kinds[frozen] = "frozen"
        curvature = LayeredCurvature.from_model(model, public, damping=DAMPING, kinds=kinds)
        release = qexp.sample_private_weights(
            model.weights,
            model.gradient_blocks(X, y),
            curvature=curvature,
            clipping_norm=1.0,
            **TARGET,
        )
        first = slice(0, 15)
        second = slice(15, None)
        kept, tuned = (first, second) if frozen == 0 else (second, first)
        assert np.array_equal(release.weights[kept], model.weights[kept])
        assert np.all(release.weights[tuned] != model.weights[tuned])


def test_a_frozen_layer_takes_no_part_of_the_norm(model, public):
    kinds = ("frozen", "identity")
    curvature = LayeredCurvature.from_model(model, public, damping=DAMPING, kinds=kinds)
    g = gradient_rows(model, *records(model))
    assert np.array_equal(curvature.whiten(g), g[:, 15:])
    assert curvature.n_components == 8
    assert curvature.n_parameters == 23


def test_layer_slices_are_the_layers_places(model, public):
    curvature = KroneckerCurvature.from_model(model, public, damping=DAMPING)
    assert curvature.layer_slices() == [slice(0, 15), slice(15, 23)]
    frozen = LayeredCurvature.from_model(model, public, damping=DAMPING, kinds=("frozen", "dense"))
    assert frozen.layer_slices() == [slice(0, 0), slice(0, 8)]


# ------------------------------------------------------------------- records on their own


@pytest.mark.parametrize("kinds", ["kronecker", "dense", "diagonal", ("identity", "kronecker")])
def test_a_records_whitened_bits_do_not_depend_on_its_neighbours(model, public, kinds):
    curvature = LayeredCurvature.from_model(model, public, damping=DAMPING, kinds=kinds)
    X, y = records(model, 70)
    rows = gradient_rows(model, X, y)
    whole = curvature.whiten(rows)
    (factors,) = model.gradient_blocks(X, y).factor_blocks()
    whole_factors = curvature.whiten_factors(factors)
    for some in (slice(0, 1), slice(13, 14), slice(5, 38), slice(69, None, -1)):
        assert np.array_equal(curvature.whiten(rows[some]), whole[some])
        part = curvature.whiten_factors([(a[some], d[some]) for a, d in factors])
        for (left, right), (whole_left, whole_right) in zip(part, whole_factors, strict=True):
            assert np.array_equal(left, whole_left[some])
            assert np.array_equal(right, whole_right[some])


@pytest.mark.parametrize("kinds", ["kronecker", "diagonal", ("dense", "kronecker")])
def test_a_record_that_is_not_finite_nulls_itself_alone(model, public, kinds):
    curvature = LayeredCurvature.from_model(model, public, damping=DAMPING, kinds=kinds)
    X, y = records(model, 40)

    def total(features, labels):
        lattice = lattice_for(1.0, 1.0, 40)
        source = model.gradient_blocks(features, labels, block_size=16)
        return private_sum(
            (curvature.whiten_factors(block) for block in source.factor_blocks()),
            n_components=curvature.n_components,
            n_records=40,
            lattice=lattice,
            bits=insecure_test_generator(0),
        ).values

    broken = []
    for value in (np.nan, np.inf, -np.inf):
        bad = X.copy()
        bad[17, 2] = value
        broken.append(total(bad, y))
    no_class = y.copy()
    no_class[17] = 5
    broken.append(total(X, no_class))
    assert np.isfinite(broken[0]).all()
    for other in broken[1:]:
        assert np.array_equal(other, broken[0])
    # What went missing is one record's clipped gradient, and no more.
    missing = total(X, y) - broken[0]
    alone = curvature.whiten(gradient_rows(model, X[17:18], y[17:18]))[0]
    alone *= min(1.0, 1 / np.linalg.norm(alone))
    np.testing.assert_allclose(missing, alone, atol=1e-5)


@pytest.mark.parametrize("kinds", ["identity", "kronecker", "diagonal"])
def test_a_signalling_nan_warns_of_nothing(model, public, kinds):
    curvature = LayeredCurvature.from_model(model, public, damping=DAMPING, kinds=kinds)
    rows = gradient_rows(model, *records(model, 4)).astype(np.float32)
    rows[2, 3] = np.array(0x7FA00000, np.uint32).view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whitened = curvature.whiten(rows)
    assert np.isnan(whitened[2]).any()
    assert np.isfinite(whitened[[0, 1, 3]]).all()


# ------------------------------------------------------------- the sum of outer products

SHAPES = ((5, 3), (40, 1), (33, 6))


def outer_sum(factors, lattice):
    total = np.zeros(sum(left.shape[1] * right.shape[1] for left, right in factors), np.int64)
    _core.lattice_sum_outer(
        factors,
        total,
        units_per_norm=lattice.units_per_norm,
        clipping_norm=lattice.clipping_norm,
        bound=lattice.bound,
    )
    return total


def take(factors, which):
    return [
        (np.ascontiguousarray(left[which]), np.ascontiguousarray(right[which]))
        for left, right in factors
    ]


@pytest.mark.parametrize("clipping_norm", [0.5, 20.0, 1e3])
def test_each_record_adds_its_clipped_truncated_outer_products(clipping_norm):
    lattice = lattice_for(0.3, clipping_norm, 10)
    factors = random_factors(SHAPES, 6)
    for i in range(6):
        z = outer_sum(take(factors, [i]), lattice)
        s = np.concatenate([np.outer(left[i], right[i]).ravel() for left, right in factors])
        factor = min(1.0, clipping_norm * (1 - 2.0**-20) / np.linalg.norm(s))
        exact = lattice.units_per_norm * factor * s
        assert np.all(np.abs(z - exact) <= 1 + 1e-12 * np.abs(exact))
        assert np.all(np.abs(z) <= np.abs(exact) * (1 + 1e-12))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 7, 64, 150])
def test_the_sum_has_the_same_bits_for_any_blocks_threads_and_order(set_threads, threads, block):
    lattice = lattice_for(0.3, 5.0, 150)
    factors = random_factors(SHAPES, 150)
    expected = sum(outer_sum(take(factors, [i]), lattice) for i in range(150))
    set_threads(threads)
    order = np.random.default_rng(block).permutation(150)
    shuffled = take(factors, order)
    total = np.zeros_like(expected)
    for start in range(0, 150, block):
        total += outer_sum(take(shuffled, slice(start, start + block)), lattice)
    assert np.array_equal(total, expected)


extreme = st.one_of(
    st.floats(-1e6, 1e6),
    st.sampled_from([0.0, 1e-320, 1e-200, -1e-160, 1e150, 1e200, -1e308, 1e-308, 5e-324]),
)


@settings(max_examples=150)
@given(
    left=arrays(float, (1, 3), elements=extreme),
    right=arrays(float, (1, 4), elements=extreme),
    other=arrays(float, (1, 5), elements=extreme),
    mu=st.floats(1e-3, 10),
    clipping_norm=st.floats(1e-3, 1e3),
)
def test_no_record_is_longer_than_the_bound(left, right, other, mu, clipping_norm):
    lattice = lattice_for(mu, clipping_norm, 1)
    z = outer_sum([(left, right), (np.ones((1, 1)), other)], lattice)
    assert sum(int(v) ** 2 for v in z) <= lattice.bound**2
    assert Fraction(lattice.bound, 2**lattice.bits) <= Fraction(mu)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308])
@pytest.mark.parametrize("side", [0, 1])
def test_a_record_that_is_not_finite_adds_zero_to_every_layer(value, side):
    lattice = lattice_for(0.3, 5.0, 20)
    factors = random_factors(SHAPES, 20)
    others = outer_sum(take(factors, np.arange(20) != 8), lattice)
    factors[1][side][8, 0] = value
    assert np.array_equal(outer_sum(factors, lattice), others)


def test_a_zero_record_adds_zero():
    lattice = lattice_for(0.3, 5.0, 1)
    assert not outer_sum([(np.zeros((1, 3)), np.ones((1, 4)))], lattice).any()


def test_sums_wrap():
    lattice = lattice_for(0.3, 5.0, 3)
    factors = random_factors(SHAPES, 3)
    plain = outer_sum(factors, lattice)
    top = np.full(len(plain), np.iinfo(np.int64).max)
    _core.lattice_sum_outer(
        factors,
        top,
        units_per_norm=lattice.units_per_norm,
        clipping_norm=lattice.clipping_norm,
        bound=lattice.bound,
    )
    with np.errstate(over="ignore"):
        assert np.array_equal(top, plain + np.iinfo(np.int64).max)


# -------------------------------------------------------------------------------- bad input


def test_outer_products_of_wrong_shapes_are_refused():
    scale = {"units_per_norm": 2.0**22, "clipping_norm": 1.0, "bound": 2**22}
    one, two = np.ones((2, 3)), np.ones((3, 4))
    with pytest.raises(ValueError, match="different numbers of records"):
        _core.lattice_sum_outer([(one, two)], np.zeros(12, np.int64), **scale)
    with pytest.raises(ValueError, match="the factors make 12 entries, total has 11"):
        _core.lattice_sum_outer([(one, np.ones((2, 4)))], np.zeros(11, np.int64), **scale)
    with pytest.raises(TypeError):
        _core.lattice_sum_outer(
            [(one.astype(np.float32), np.ones((2, 4)))], np.zeros(12, np.int64), **scale
        )
    good = [(one, np.ones((2, 4)))], np.zeros(12, np.int64)
    with pytest.raises(ValueError, match=r"bound is 1000; it needs 2\^21 to 2\^51"):
        _core.lattice_sum_outer(*good, **{**scale, "bound": 1000})
    with pytest.raises(ValueError, match="exceeds bound"):
        _core.lattice_sum_outer(*good, **{**scale, "clipping_norm": 2.0})


def test_settings_that_make_no_sense_are_refused(model, public):
    make = LayeredCurvature.from_model
    with pytest.raises(ValueError, match="damping is 0"):
        make(model, public, damping=0)
    with pytest.raises(ValueError, match=r"kinds names 1 layers, the model has 2"):
        make(model, public, damping=1e-2, kinds=["dense"])
    with pytest.raises(ValueError, match=r"kinds holds \['full'\]"):
        make(model, public, damping=1e-2, kinds="full")
    with pytest.raises(ValueError, match="every layer is frozen"):
        make(model, public, damping=1e-2, kinds="frozen")
    with pytest.raises(ValueError, match="n_records is 0"):
        LayeredCurvature.from_factors([], layer_shapes=[(2, 3)], n_records=0, damping=1e-2)


def test_public_records_that_are_not_finite_are_named(model, public):
    bad = public.copy()
    bad[9, 1] = np.nan
    for kinds in ("kronecker", "dense", "diagonal"):
        with pytest.raises(ValueError, match="record 9 of X holds a NaN"):
            LayeredCurvature.from_model(model, bad, damping=1e-2, kinds=kinds)


def test_public_factors_that_are_not_finite_are_refused():
    inputs, deltas = np.ones((4, 3)), np.ones((4, 2))
    inputs[1, 1] = np.inf
    for kinds in ("kronecker", "dense", "diagonal"):
        with (
            np.errstate(all="ignore"),
            pytest.raises(ValueError, match=r"NaN or infinite|not positive and finite|above 0"),
        ):
            LayeredCurvature.from_factors(
                [[(inputs, deltas)]],
                layer_shapes=[(2, 3)],
                n_records=4,
                damping=1e-2,
                kinds=kinds,
            )


def test_a_layer_that_public_records_do_not_reach_is_named():
    with pytest.raises(ValueError, match="freeze a layer that the public records do not reach"):
        LayeredCurvature.from_factors(
            [[(np.ones((4, 3)), np.zeros((4, 2)))]],
            layer_shapes=[(2, 3)],
            n_records=4,
            damping=1e-2,
            kinds="kronecker",
        )
