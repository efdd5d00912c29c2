import warnings

import numpy as np
import pytest
from helpers import all_rows, outer_rows, random_factors
from scipy.linalg import hadamard

from qexp import DenseCurvature, IdentityCurvature, sample_private_weights
from qexp.bits import insecure_test_generator
from qexp.kronecker_srht import KroneckerSRHT, _unpacked
from qexp.models import mlp

SHAPES = ((5, 9), (3, 8), (1, 1))


def factors(m, dtype=np.float64, positions=None, seed=0):
    return random_factors(SHAPES, m, positions, dtype, seed)


def explicit(projection):
    """P as a matrix (p, k), from Hadamard matrices."""
    blocks = []
    for layer in projection._layers:
        (out, inp), (out_padded, inp_padded) = layer.shape, layer.padded
        left = hadamard(out_padded)[:, :out] * (1 - 2.0 * _unpacked(layer.left_signs, out))
        right = hadamard(inp_padded)[:, :inp] * (1 - 2.0 * _unpacked(layer.right_signs, inp))
        blocks.append(np.kron(left, right)[layer.kept].T / np.sqrt(len(layer.kept)))
    p, k = projection.n_parameters, projection.n_components
    matrix = np.zeros((p, k))
    i = j = 0
    for block in blocks:
        matrix[i : i + block.shape[0], j : j + block.shape[1]] = block
        i, j = i + block.shape[0], j + block.shape[1]
    return matrix


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forward_and_adjoint_are_the_explicit_matrix(dtype):
    projection = KroneckerSRHT(SHAPES, 40, seed=3)
    matrix = explicit(projection)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(4, projection.n_parameters)).astype(dtype)
    u = rng.normal(size=(2, 40)).astype(dtype)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    assert np.allclose(projection.forward(rows), rows @ matrix, atol=tolerance, rtol=tolerance)
    assert np.allclose(projection.adjoint(u), u @ matrix.T, atol=tolerance, rtol=tolerance)
    assert projection.forward(rows).dtype == dtype


@pytest.mark.parametrize("positions", [None, 1, 4])
def test_factors_give_what_their_outer_products_give(positions):
    projection = KroneckerSRHT(SHAPES, 30, seed=4)
    pairs = factors(6, positions=positions)
    dense = projection.forward(outer_rows(pairs))
    assert np.allclose(projection.forward_factors(pairs), dense, atol=1e-12)


def test_adjoint_identity():
    projection = KroneckerSRHT(((17, 33), (10, 18)), 200, seed=5)
    rng = np.random.default_rng(2)
    x, u = rng.normal(size=projection.n_parameters), rng.normal(size=200)
    left, right = projection.forward(x) @ u, x @ projection.adjoint(u)
    assert abs(left - right) <= 1e-12 * np.linalg.norm(x) * np.linalg.norm(u)


def test_lengths_are_kept_on_average():
    x = np.random.default_rng(3).normal(size=70)
    ratios = []
    for seed in range(400):
        sketch = KroneckerSRHT(SHAPES, 30, seed=seed).forward(x)
        ratios.append(float(sketch @ sketch) / float(x @ x))
    assert abs(np.mean(ratios) - 1) < 4 * np.std(ratios) / np.sqrt(len(ratios))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_records_sketch_does_not_depend_on_its_company(dtype, set_threads):
    projection = KroneckerSRHT(SHAPES, 30, seed=4)
    pairs = factors(50, dtype, positions=3)
    set_threads(1)
    whole = projection.forward_factors(pairs)
    for count in (1, 2, 3):
        set_threads(count)
        assert np.array_equal(projection.forward_factors(pairs), whole)
        for i in (0, 7, 49):
            alone = [(a[i : i + 1], d[i : i + 1]) for a, d in pairs]
            assert np.array_equal(projection.forward_factors(alone)[0], whole[i])
    pairs[0][0][9] = np.nan
    with_nan = projection.forward_factors(pairs)
    others = np.arange(50) != 9
    assert np.array_equal(with_nan[others], whole[others])
    assert np.isnan(with_nan[9]).any()


@pytest.mark.parametrize(
    "signalling",
    [
        np.array(0x7FA00000, np.uint32).view(np.float32),
        np.array(0x7FF4000000000000, np.uint64).view(np.float64),
    ],
)
def test_a_signalling_nan_warns_of_nothing(signalling):
    projection = KroneckerSRHT(SHAPES, 30, seed=4)
    rows = outer_rows(factors(5, signalling.dtype)).astype(signalling.dtype)
    rows[2, 3] = signalling
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sketch = projection.forward(rows)
    assert np.isnan(sketch[2]).any()
    assert np.isfinite(sketch[[0, 1, 3, 4]]).all()


def test_a_seed_means_the_same_map_everywhere():
    projection = KroneckerSRHT(SHAPES, 12, seed=1)
    assert projection.split == (7, 4, 1)
    first = projection._layers[0]
    assert (first.left_signs.tolist(), first.right_signs.tolist()) == ([31], [47])
    assert first.kept.tolist() == [0, 7, 53, 54, 56, 72, 124]
    assert projection.describe()["digest"] == (
        "f7474dac26d85882f49ffa80ae5ae87235470b83cdcd7fa782bf937285e1e594"
    )
    assert KroneckerSRHT(SHAPES, 12, seed=1).describe() == projection.describe()
    assert KroneckerSRHT(SHAPES, 12, seed=2).describe() != projection.describe()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 2}, "3 layers need at least one coordinate each"),
        ({"k": 10**6}, "have at most 161"),
        ({"k": 10, "split": (5, 5)}, "3 numbers that add up to k = 10"),
        ({"k": 200, "split": (199, 32, 1)}, "add up to k = 200"),
        ({"k": 162, "split": (128, 32, 2)}, "2 coordinates to a layer of shape"),
        ({"k": 10, "seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments(arguments, message):
    k, rest = arguments["k"], {n: v for n, v in arguments.items() if n != "k"}
    with pytest.raises(ValueError, match=message):
        KroneckerSRHT(SHAPES, k, **({"seed": 0} | rest))


@pytest.mark.parametrize("labels", ["sampled", "expected"])
def test_a_models_curvature_is_that_of_its_projected_rows(labels):
    model = mlp((6, 5, 3), dtype=np.float64, seed=1)
    X = np.random.default_rng(2).normal(size=(50, 6))
    projection = KroneckerSRHT(model.layer_shapes, 20, seed=3)
    curvature = DenseCurvature.from_model(
        model, X, projection=projection, damping=0.1, labels=labels
    )
    rows = all_rows(model.curvature_blocks(X, labels=labels))
    expected = DenseCurvature.from_rows([projection.forward(rows)], n_records=50, damping=0.1)
    y = np.random.default_rng(4).normal(size=20)
    assert np.allclose(curvature.unwhiten(y), expected.unwhiten(y), rtol=1e-9)


def test_a_draw_by_factors_is_the_draw_by_rows():
    model = mlp((6, 5, 3), dtype=np.float64, seed=1)
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
    projection = KroneckerSRHT(model.layer_shapes, 20, seed=3)
    source = model.gradient_blocks(X, y)
    rows = all_rows(source)
    by_factors, by_rows = (
        sample_private_weights(
            model.weights,
            records,
            curvature=IdentityCurvature(20),
            projection=projection,
            target_epsilon=1.0,
            target_delta=1e-5,
            clipping_norm=1.0,
            rng=insecure_test_generator(6),
        ).weights
        for records in (source, rows)
    )
    # Rounding may move a record's integers by a unit of 2⁻³².
    assert np.allclose(by_factors, by_rows, rtol=0, atol=1e-8)


def test_bad_factors():
    projection = KroneckerSRHT(SHAPES, 30, seed=4)
    with pytest.raises(ValueError, match="factors are for 2 layers, not 3"):
        projection.forward_factors(factors(2)[:2])
    swapped = [(d, a) for a, d in factors(2)]
    with pytest.raises(ValueError, match=r"needs \(2, 9\) and \(2, 5\)"):
        projection.forward_factors(swapped)
    mixed = [(a.astype(np.float32), d) for a, d in factors(2)]
    with pytest.raises(ValueError, match="types float32 and float64"):
        projection.forward_factors(mixed)
    for shape in [(1, 30), (2, 29), (60,)]:
        with pytest.raises(ValueError, match="needs at least 2 rows of 30"):
            projection.forward_factors(factors(2), out=np.empty(shape))


def test_blocks_may_share_their_result():
    projection = KroneckerSRHT(SHAPES, 30, seed=4)
    buffer = np.full((9, 40), 7.0)[:, :30]
    for m in (9, 4):
        pairs = factors(m)
        shared = projection.forward_factors(pairs, out=buffer)
        assert np.shares_memory(shared, buffer)
        assert np.array_equal(shared, projection.forward_factors(pairs))


def test_layers_larger_than_a_cache():
    projection = KroneckerSRHT(((20_000, 3),), 25, seed=4)
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(2, 3)), rng.normal(size=(2, 20_000)))]
    dense = projection.forward(np.einsum("mo,mi->moi", pairs[0][1], pairs[0][0]).reshape(2, -1))
    assert np.allclose(projection.forward_factors(pairs), dense, rtol=1e-9, atol=1e-9)
