"""Curvatures against explicit matrices, and whitening whose rows know nothing of each other."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from helpers import all_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_triangular

from qexp import (
    SRHT,
    CoordinateMask,
    DenseCurvature,
    IdentityCurvature,
    NotPositiveDefiniteError,
)
from qexp.models import mlp, softmax_regression

K, DAMPING = 37, 0.05


def rows_of(m=90, k=K, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(m, k)) * np.linspace(0.1, 3, k)).astype(dtype)


def blocks_of(rows, size=16):
    return (rows[i : i + size] for i in range(0, len(rows), size))


def factor_of(h, damping=DAMPING):
    return np.linalg.cholesky(h + damping * np.eye(len(h)))


def assert_curvature_is(curvature, h, damping=DAMPING, rtol=1e-9):
    """Whitening, unwhitening and effective dimension are those of H + λI."""
    k = len(h)
    factor = factor_of(h, damping)
    gradients = np.random.default_rng(5).normal(size=(11, k))
    whitened = solve_triangular(factor, gradients.T, lower=True).T
    unwhitened = solve_triangular(factor, gradients[0], lower=True, trans="T")
    scale = np.abs(whitened).max()
    assert np.allclose(curvature.whiten(gradients), whitened, rtol=rtol, atol=rtol * scale)
    assert np.allclose(
        curvature.unwhiten(gradients[0]),
        unwhitened,
        rtol=rtol,
        atol=rtol * np.abs(unwhitened).max(),
    )
    effective_dimension = np.trace(h @ np.linalg.inv(h + damping * np.eye(k)))
    assert curvature.effective_dimension == pytest.approx(effective_dimension, rel=rtol, abs=1e-9)
    assert curvature.n_components == k


# ------------------------------------------------------------------------------ accumulation


def test_from_rows_is_the_mean_outer_product():
    rows = rows_of()
    curvature = DenseCurvature.from_rows(blocks_of(rows), n_records=30, damping=DAMPING)
    assert_curvature_is(curvature, rows.T @ rows / 30)
    assert curvature.damping == DAMPING


def test_float32_rows_are_accumulated_well():
    rows = rows_of(m=500, dtype=np.float32)
    curvature = DenseCurvature.from_rows(blocks_of(rows, 100), n_records=500, damping=DAMPING)
    exact = rows.astype(np.float64)
    assert_curvature_is(curvature, exact.T @ exact / 500, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 90])
def test_from_rows_does_not_mind_how_rows_are_cut_into_blocks(size):
    rows = rows_of()
    curvature = DenseCurvature.from_rows(blocks_of(rows, size), n_records=90, damping=DAMPING)
    assert_curvature_is(curvature, rows.T @ rows / 90)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_block_may_be_overwritten_once_the_next_is_asked_for(dtype):
    rows = rows_of(dtype=dtype)

    def one_buffer():
        buffer = np.empty((16, K), dtype)
        for block in blocks_of(rows):
            buffer[: len(block)] = block
            yield buffer[: len(block)]
            buffer[...] = np.nan

    reused = DenseCurvature.from_rows(one_buffer(), n_records=90, damping=DAMPING)
    apart = DenseCurvature.from_rows(blocks_of(rows), n_records=90, damping=DAMPING)
    assert reused.describe() == apart.describe()


def test_rows_need_not_be_contiguous():
    rows = rows_of()
    strided = [np.asfortranarray(rows[:50]), np.repeat(rows[50:], 2, axis=1)[:, ::2]]
    curvature = DenseCurvature.from_rows(strided, n_records=90, damping=DAMPING)
    assert_curvature_is(curvature, rows.T @ rows / 90)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_from_matrix_takes_h_as_it_is_and_leaves_it_alone(dtype):
    rows = rows_of()
    h = (rows.T @ rows / 90).astype(dtype)
    h = (h + h.T) / 2
    before = h.copy()
    curvature = DenseCurvature.from_matrix(h, damping=DAMPING)
    assert np.array_equal(h, before)
    assert_curvature_is(curvature, before.astype(np.float64))


def test_from_matrix_takes_nested_lists():
    assert_curvature_is(
        DenseCurvature.from_matrix([[2.0, 0.5], [0.5, 1.0]], damping=DAMPING),
        np.array([[2.0, 0.5], [0.5, 1.0]]),
    )


def test_a_matrix_may_be_the_first_thing_in_a_process():
    """The BLAS is bound at first use, whichever use that is."""
    script = (
        "import numpy as np\n"
        "from qexp.curvature import DenseCurvature\n"
        "print(DenseCurvature.from_matrix(np.eye(3), damping=1.0).effective_dimension)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert float(result.stdout) == pytest.approx(1.5)


@pytest.fixture(scope="module")
def model():
    return mlp((5, 4, 3), dtype=np.float64, seed=1)


@pytest.fixture(scope="module")
def public_records():
    return np.random.default_rng(2).normal(size=(150, 5))


@pytest.mark.parametrize("labels", ["sampled", "expected"])
@pytest.mark.parametrize("kind", ["none", "srht", "mask"])
def test_from_model_is_its_rows_projected(model, public_records, labels, kind):
    p = model.n_parameters
    projection = {
        "none": None,
        "srht": SRHT(p, 13, seed=4),
        "mask": CoordinateMask(p, np.arange(0, p, 2)),
    }[kind]
    source = model.curvature_blocks(public_records, labels=labels, seed=9)
    rows = all_rows(source)
    if projection is not None:
        rows = rows @ projection.adjoint(np.eye(projection.n_components)).T
    curvature = DenseCurvature.from_model(
        model, public_records, projection=projection, damping=DAMPING, labels=labels, seed=9
    )
    assert_curvature_is(curvature, rows.T @ rows / len(public_records))


def test_expected_labels_give_the_gauss_newton_matrix(model, public_records):
    """JᵀΛJ with the Jacobian from finite differences of the log-probabilities."""
    p, n = model.n_parameters, len(public_records)
    step = 1e-5
    log_probabilities = model.predict_log_proba(public_records)
    jacobian = np.empty((n, model.n_classes, p))
    for j in range(p):
        ahead, behind = model.weights.copy(), model.weights.copy()
        ahead[j] += step
        behind[j] -= step
        jacobian[:, :, j] = (
            model.with_weights(ahead).predict_log_proba(public_records)
            - model.with_weights(behind).predict_log_proba(public_records)
        ) / (2 * step)
    # E over the model's own labels of ∇log π ∇log πᵀ, which is JᵀΛJ for the softmax.
    h = np.einsum("nc,nci,ncj->ij", np.exp(log_probabilities), jacobian, jacobian) / n
    curvature = DenseCurvature.from_model(model, public_records, damping=DAMPING, labels="expected")
    assert_curvature_is(curvature, h, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weighted_rows_are_weighted_outer_products(dtype):
    rows = rows_of(m=600, dtype=dtype)
    weights = np.random.default_rng(3).random(600)
    weights[::7] = 0.0
    curvature = DenseCurvature.from_rows(
        blocks_of(rows, 100),
        n_records=600,
        damping=DAMPING,
        weights=blocks_of(weights, 100),
    )
    exact = rows.astype(np.float64)
    h = exact.T @ (weights[:, None] * exact) / 600
    assert_curvature_is(curvature, h, rtol=1e-5 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([np.ones(5)], "row_weights has 5 numbers, but rows has 4 rows"),
        ([-np.ones(4)], "negative"),
        ([np.full(4, np.nan)], "weights of a block"),
        ([np.ones(4), np.ones(4)], "zip"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        DenseCurvature.from_rows([np.eye(4)], n_records=4, damping=1.0, weights=weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_a_softmax_regression_needs_no_rows(dtype, n_classes):
    """The curvature by blocks is the Hessian JᵀΛJ, and that of the rows of every class."""
    n, d = 140, 6
    rng = np.random.default_rng(n_classes)
    x = rng.normal(size=(n, d)).astype(dtype)
    model = softmax_regression(d, n_classes, dtype=dtype).with_weights(
        rng.normal(size=n_classes * (d + 1)).astype(dtype)
    )
    proba = model.predict_proba(x).astype(np.float64)
    inputs = np.column_stack([x.astype(np.float64), np.ones(n)])
    hessian = np.zeros((n_classes * (d + 1), n_classes * (d + 1)))
    for pi, xi in zip(proba, inputs, strict=True):
        hessian += np.kron(np.diag(pi) - np.outer(pi, pi), np.outer(xi, xi)) / n

    rtol = 1e-5 if dtype == np.float32 else 1e-9
    curvature = DenseCurvature.from_model(model, x, damping=DAMPING, labels="expected")
    assert_curvature_is(curvature, hessian, rtol=rtol)
    by_rows = DenseCurvature.from_rows(
        model.curvature_blocks(x, labels="expected").blocks(), n_records=n, damping=DAMPING
    )
    assert_curvature_is(by_rows, hessian, rtol=rtol)


def test_a_softmax_regression_sure_of_its_labels_has_a_curvature():
    model = softmax_regression(3, 4).with_weights(np.full(16, 1e4) * np.arange(16))
    curvature = DenseCurvature.from_model(model, np.eye(3), damping=DAMPING, labels="expected")
    assert curvature.effective_dimension == pytest.approx(0.0, abs=1e-6)


def test_sampled_labels_follow_the_seed(model, public_records):
    def digest(seed):
        curvature = DenseCurvature.from_model(model, public_records, damping=DAMPING, seed=seed)
        return curvature.describe()["digest"]

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


# ------------------------------------------------------------------------------- refusals


def test_a_matrix_that_is_not_positive_definite_names_its_pivot():
    h = np.diag([1.0, 2.0, -3.0, 4.0])
    with pytest.raises(NotPositiveDefiniteError, match=r"pivot 3 of 4.*larger damping"):
        DenseCurvature.from_matrix(h, damping=0.5)
    assert DenseCurvature.from_matrix(h, damping=3.5).n_components == 4


def test_too_few_rows_without_damping_are_not_positive_definite():
    rows = rows_of(m=3, k=8)
    with pytest.raises(NotPositiveDefiniteError, match=r"pivot \d+ of 8"):
        DenseCurvature.from_rows([np.eye(8)[:5]], n_records=5, damping=0)
    assert DenseCurvature.from_rows([rows], n_records=3, damping=1e-3).effective_dimension < 3


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("column", [0, K - 1])
def test_public_rows_that_are_not_finite_are_refused(value, column):
    rows = rows_of()
    rows[40, column] = value
    with pytest.raises(ValueError, match="NaN or infinite values"):
        DenseCurvature.from_rows(blocks_of(rows), n_records=90, damping=DAMPING)


# ------------------------------------------------------------------------ effective dimension


def test_effective_dimension_falls_from_the_rank_to_zero():
    rows = rows_of()
    h = rows.T @ rows / 90
    values = [
        DenseCurvature.from_matrix(h, damping=damping).effective_dimension
        for damping in (0, 1e-3, 1, 1e3, 1e9)
    ]
    assert values[0] == K
    assert all(a > b for a, b in itertools.pairwise(values))
    assert 0 <= values[-1] < 1e-6


def test_the_identity_is_the_identity():
    curvature = IdentityCurvature(6)
    rows = rows_of(m=4, k=6, dtype=np.float32)
    whitened = curvature.whiten(rows)
    assert whitened.dtype == np.float64
    assert whitened.flags.c_contiguous
    assert np.array_equal(whitened, rows)
    assert np.array_equal(curvature.unwhiten(np.arange(6.0)), np.arange(6.0))
    assert curvature.n_components == curvature.effective_dimension == 6
    assert curvature.describe() == {"kind": "identity", "n_components": 6}


# ---------------------------------------------------------------------------- independence


@given(
    m=st.integers(1, 70),
    k=st.integers(1, 50),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_whitening_a_row_gives_the_same_bits_in_any_company(m, k, dtype, seed):
    rng = np.random.default_rng(seed)
    curvature = DenseCurvature.from_rows([rng.normal(size=(2 * k, k))], n_records=k, damping=0.1)
    rows = rng.normal(size=(m, k)).astype(dtype)
    whole = curvature.whiten(rows)
    alone = np.concatenate([curvature.whiten(rows[i : i + 1]) for i in range(m)])
    assert whole.tobytes() == alone.tobytes()
    order = rng.permutation(m)
    assert curvature.whiten(rows[order]).tobytes() == whole[order].tobytes()
    neighbours = rows.copy()
    i = int(rng.integers(m))
    neighbours[np.arange(m) != i] = np.nan
    assert curvature.whiten(neighbours)[i].tobytes() == whole[i].tobytes()


def test_whitening_gives_the_same_bits_on_any_number_of_threads(set_threads):
    rng = np.random.default_rng(3)
    k = 300
    curvature = DenseCurvature.from_rows([rng.normal(size=(k, k))], n_records=k, damping=0.1)
    rows = rng.normal(size=(2000, k))
    whitened = []
    for count in (1, 2, 5):
        set_threads(count)
        whitened.append(curvature.whiten(rows).tobytes())
    assert whitened[1:] == whitened[:1] * 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, "largest"])
def test_whitening_says_nothing_of_a_row_that_is_not_finite(dtype, value, capfd):
    rows = rows_of(m=5, dtype=dtype)
    rows[2] = np.finfo(dtype).max if value == "largest" else value
    curvature = DenseCurvature.from_rows([rows_of()], n_records=90, damping=1e-6)
    for one in (curvature, IdentityCurvature(K)):
        assert np.isfinite(one.whiten(rows)[[0, 1, 3, 4]]).all()
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------- description


def test_the_description_tells_curvatures_apart():
    h = np.diag([1.0, 2.0, 3.0])
    one = DenseCurvature.from_matrix(h, damping=0.1).describe()
    assert one == DenseCurvature.from_matrix(h, damping=0.1).describe()
    other = DenseCurvature.from_matrix(h, damping=0.2).describe()
    assert one["kind"] == "dense"
    assert one["n_components"] == 3
    assert one["damping"] == 0.1
    assert one["digest"] != other["digest"]
