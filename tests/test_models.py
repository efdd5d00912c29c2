"""Perceptrons: right gradients and curvature, and rows that depend on their record alone."""

import json
import pickle
import warnings

import bad_records
import numpy as np
import pytest
from helpers import all_rows, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from qexp import _core
from qexp.models import (
    CurvatureSource,
    GradientSource,
    MultilayerPerceptron,
    SoftmaxRegression,
    mlp,
    softmax_regression,
)
from qexp.models._records import with_dtype

ARCHITECTURES = ([5, 3], [5, 2], [6, 7, 4], [4, 9, 8, 3])


def make(sizes, activation="tanh", dtype=np.float64, seed=1):
    model = mlp(sizes, activation=activation, dtype=dtype, seed=seed)
    biases = np.random.default_rng(seed).normal(size=model.n_parameters)
    return model.with_weights(model.weights + 0.3 * biases)


def data(model, n, seed=2, dtype=np.float64):
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, model.n_features)).astype(dtype)
    return X, generator.integers(0, model.n_classes, n)


def bits(x):
    return x.view(np.dtype(f"u{x.itemsize}"))


def assert_one_is_spoilt(rows, clean, record):
    others = np.arange(len(clean)) != record
    assert np.isnan(rows[record]).all()
    np.testing.assert_array_equal(bits(rows[others]), bits(clean[others]))


def matrices(model, theta=None):
    flat = (model.weights if theta is None else theta).astype(np.float64)
    out = []
    for shape in model.layer_shapes:
        out.append(flat[: shape[0] * shape[1]].reshape(shape))
        flat = flat[shape[0] * shape[1] :]
    return out


def reference_outputs(model, x, theta=None):
    """Inputs of every layer with their trailing 1, and the outputs, of one record."""
    inputs, a = [], np.asarray(x, np.float64)
    layers = matrices(model, theta)
    for i, layer in enumerate(layers):
        inputs.append(np.append(a, 1.0))
        a = layer @ inputs[-1]
        if i + 1 < len(layers):
            a = np.tanh(a) if model.activation == "tanh" else np.maximum(a, 0)
    return inputs, a


def reference_jacobian(model, x):
    """(K, p): derivatives of the outputs in the weights, by the chain rule, output by output."""
    inputs, outputs = reference_outputs(model, x)
    layers = matrices(model)
    delta = np.eye(len(outputs))
    parts = []
    for i in range(len(layers) - 1, -1, -1):
        parts.insert(0, np.einsum("ko,a->koa", delta, inputs[i]).reshape(len(outputs), -1))
        if i > 0:
            a = inputs[i][:-1]
            slope = 1 - a**2 if model.activation == "tanh" else (a > 0).astype(float)
            delta = delta @ layers[i][:, :-1] * slope
    return np.concatenate(parts, axis=1)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def reference_gradient(model, x, label):
    p = softmax(reference_outputs(model, x)[1])
    return reference_jacobian(model, x).T @ (p - np.eye(len(p))[label])


# ---------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", ARCHITECTURES)
def test_gradients_agree_with_central_differences(sizes, activation):
    model = make(sizes, activation)
    X, y = data(model, 3)
    rows = all_rows(model.gradient_blocks(X, y))
    step = 1e-6
    for i in range(len(X)):
        record = X[i : i + 1], y[i : i + 1]
        differences = [
            model.with_weights(model.weights + e).loss(*record)
            - model.with_weights(model.weights - e).loss(*record)
            for e in step * np.eye(model.n_parameters)
        ]
        np.testing.assert_allclose(rows[i], np.array(differences) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-5)])
def test_gradients_agree_with_the_chain_rule(sizes, activation, dtype, tolerance):
    model = make(sizes, activation, dtype)
    X, y = data(model, 60, dtype=dtype)
    rows = all_rows(model.gradient_blocks(X, y))
    assert rows.dtype == dtype
    expected = [reference_gradient(model, x, label) for x, label in zip(X, y, strict=True)]
    np.testing.assert_allclose(rows, expected, atol=tolerance, rtol=tolerance)


def test_losses_and_probabilities_agree_with_the_definition():
    model = make([6, 7, 4])
    X, y = data(model, 30)
    outputs = np.array([reference_outputs(model, x)[1] for x in X])
    expected = np.array([softmax(z) for z in outputs])
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=1e-12)
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(expected), atol=1e-12)
    np.testing.assert_array_equal(model.predict(X), outputs.argmax(axis=1))
    assert model.score(X, y) == np.mean(outputs.argmax(axis=1) == y)
    assert model.loss(X, y) == pytest.approx(-np.log(expected[np.arange(30), y]).mean())


def test_large_outputs_neither_overflow_nor_lose_the_loss():
    model = softmax_regression(1, 2, dtype=np.float64).with_weights([1000.0, 0, -1000.0, 0])
    assert model.loss([[1.0]], [1]) == 2000.0
    np.testing.assert_array_equal(model.predict_proba([[1.0]]), [[1.0, 0.0]])
    row = all_rows(model.gradient_blocks([[1.0]], [1]))[0]
    np.testing.assert_array_equal(row, [1, 1, -1, -1])


# ---------------------------------------------------------------------------------- curvature


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", ARCHITECTURES)
def test_expected_rows_make_the_gauss_newton_matrix(sizes, activation):
    model = make(sizes, activation)
    X, _ = data(model, 25)
    source = model.curvature_blocks(X, labels="expected", block_size=7)
    rows = all_rows(source)
    assert rows.shape == (source.n_rows, model.n_parameters)
    assert source.n_rows == 25 * model.n_classes
    expected = np.zeros((model.n_parameters,) * 2)
    for x in X:
        p = softmax(reference_outputs(model, x)[1])
        jacobian = reference_jacobian(model, x)
        expected += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
    np.testing.assert_allclose(rows.T @ rows, expected, atol=1e-11)


def test_expected_rows_are_scaled_gradients():
    model = make([6, 7, 4])
    X, _ = data(model, 9)
    p = model.predict_proba(X)
    rows = all_rows(model.curvature_blocks(X, labels="expected")).reshape(9, 4, -1)
    for c in range(4):
        gradients = all_rows(model.gradient_blocks(X, np.full(9, c)))
        np.testing.assert_allclose(rows[:, c], np.sqrt(p[:, c, None]) * gradients, atol=1e-14)


def test_sampled_rows_are_gradients_at_labels_of_the_models_own_frequency():
    model = make([3, 4])
    X = np.repeat(data(model, 1)[0], 20_000, axis=0)
    rows = all_rows(model.curvature_blocks(X, seed=5))
    candidates = np.stack(
        [all_rows(model.gradient_blocks(X[:1], [c]))[0] for c in range(model.n_classes)]
    )
    matches = (rows[:, None] == candidates).all(axis=2)
    assert (matches.sum(axis=1) == 1).all()
    p = model.predict_proba(X[:1])[0]
    counts = matches.sum(axis=0)
    # χ² with 3 degrees of freedom exceeds 21.1 with probability 1e-4; the seed is fixed.
    assert ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum() < 21.1


def test_sampled_rows_depend_on_the_seed_and_not_on_blocks():
    model = make([6, 7, 4])
    X, _ = data(model, 50)
    rows = all_rows(model.curvature_blocks(X, seed=3))
    for block_size in (1, 7, 50, 1000):
        source = model.curvature_blocks(X, seed=3, block_size=block_size)
        np.testing.assert_array_equal(all_rows(source), rows)
        np.testing.assert_array_equal(all_rows(source), rows)
    assert not np.array_equal(all_rows(model.curvature_blocks(X, seed=4)), rows)


def test_given_rows_are_gradients():
    model = make([6, 7, 4])
    X, y = data(model, 20)
    np.testing.assert_array_equal(
        all_rows(model.curvature_blocks(X, labels="given", y=y)),
        all_rows(model.gradient_blocks(X, y)),
    )


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("labels", ["sampled", "expected"])
def test_public_records_must_be_finite(labels, poison):
    model = make([6, 4], dtype=np.float32)
    X, _ = data(model, 20)
    X[13, 2] = poison
    source = model.curvature_blocks(X, labels=labels, block_size=6)
    with pytest.raises(ValueError, match="record 13 of X"):
        all_rows(source)
    with pytest.raises(ValueError, match="record 13 of X"):
        list(source.factor_blocks())


# ------------------------------------------------------------------------------------ factors


@pytest.mark.parametrize("sizes", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["gradient", "sampled", "expected"])
def test_outer_products_of_factors_are_the_rows(sizes, kind):
    model = make(sizes, dtype=np.float32)
    X, y = data(model, 23)
    if kind == "gradient":
        source = model.gradient_blocks(X, y, block_size=8)
    else:
        source = model.curvature_blocks(X, labels=kind, block_size=8)
    rebuilt = []
    for layers in source.factor_blocks():
        parts = []
        for (inputs, deltas), (outs, ins) in zip(layers, source.layer_shapes, strict=True):
            assert inputs.shape[1] == ins
            assert deltas.shape[1] == outs
            assert (inputs[:, -1] == 1).all()
            repeated = np.repeat(inputs, source.rows_per_record, axis=0)
            parts.append(np.einsum("ro,ra->roa", deltas, repeated).reshape(len(deltas), -1))
        rebuilt.append(np.concatenate(parts, axis=1))
    np.testing.assert_array_equal(np.concatenate(rebuilt), all_rows(source))


# ------------------------------------------------------------------- independence of records


@pytest.mark.usefixtures("set_threads")
@settings(max_examples=40)
@given(
    sizes=st.sampled_from(ARCHITECTURES),
    activation=st.sampled_from(["tanh", "relu"]),
    dtype=st.sampled_from([np.float32, np.float64]),
    block_size=st.integers(1, 90),
    threads=st.integers(1, 3),
    order_seed=st.integers(0, 100),
    n=st.integers(1, 80),
)
def test_a_row_does_not_know_its_company(
    sizes, activation, dtype, block_size, threads, order_seed, n
):
    model = make(sizes, activation, dtype)
    X, y = data(model, 80)
    _core.set_num_threads(1)
    reference = all_rows(model.gradient_blocks(X, y))
    chosen = np.random.default_rng(order_seed).permutation(80)[:n]
    _core.set_num_threads(threads)
    rows = all_rows(model.gradient_blocks(X[chosen], y[chosen], block_size=block_size))
    np.testing.assert_array_equal(bits(rows), bits(reference[chosen]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_do_not_change_bits_of_a_larger_model(dtype, set_threads):
    model = make([100, 40, 10], dtype=dtype)
    X, y = data(model, 301)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        gradient = all_rows(model.gradient_blocks(X, y, block_size=150))
        curvature = all_rows(model.curvature_blocks(X[:40], labels="expected"))
        factors = [
            array.copy()
            for layers in model.gradient_blocks(X, y).factor_blocks()
            for pair in layers
            for array in pair
        ]
        results.append([gradient, curvature, *factors])
    alone = np.concatenate([all_rows(model.gradient_blocks(X[[i]], y[[i]])) for i in range(301)])
    np.testing.assert_array_equal(bits(results[0][0]), bits(alone))
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(bits(first), bits(second))


DIGEST = """
import hashlib, numpy as np
from qexp import _core
from qexp.models import mlp
digest = hashlib.sha256()
for dtype in (np.float32, np.float64):
    model = mlp([37, 21, 5], dtype=dtype)
    X = np.random.default_rng(0).normal(size=(50, 37))
    for block in model.gradient_blocks(X, np.arange(50) % 5).blocks():
        digest.update(block.tobytes())
print(_core.isa(), digest.hexdigest())
"""


@pytest.mark.skipif(_core.isa() != "avx512", reason="needs a processor with AVX-512")
def test_avx2_and_avx512_give_the_same_rows():
    narrow, wide = (run_python(DIGEST, QEXP_ISA=isa).split() for isa in ("avx2", "avx512"))
    assert (narrow[0], wide[0]) == ("avx2", "avx512")
    assert narrow[1] == wide[1]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", ARCHITECTURES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e300])
def test_a_record_that_is_not_finite_spoils_its_own_row_alone(sizes, activation, poison):
    model = make(sizes, activation, np.float32)
    X, y = data(model, 30)
    clean = all_rows(model.gradient_blocks(X, y))
    X[11, 1] = poison
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = model.gradient_blocks(X, y, block_size=13)
        rows = all_rows(source)
        deltas = [pair[1].copy() for pair in next(source.factor_blocks())]
    assert np.isnan(rows[11]).all()
    assert all(np.isnan(d[11]).all() for d in deltas)
    others = np.arange(30) != 11
    np.testing.assert_array_equal(bits(rows[others]), bits(clean[others]))


BAD_LABELS = [-1, 4, 2**40, -(2**40), 1.5, np.nan, np.inf, -np.inf, 1e300]


@pytest.mark.parametrize("label", BAD_LABELS)
def test_a_label_that_is_no_class_spoils_its_own_row_alone(label):
    model = make([6, 7, 4])
    X, y = data(model, 30)
    clean = all_rows(model.gradient_blocks(X, y))
    labels = y.astype(type(label) if isinstance(label, int) else np.float64)
    labels[11] = label
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = all_rows(model.gradient_blocks(X, labels))
    assert_one_is_spoilt(rows, clean, 11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_what_is_masked_is_not_there(dtype):
    model = make([6, 7, 4])
    X, y = data(model, 30)
    X = np.round(10 * X).astype(dtype)
    masked = np.ma.masked_array(X.copy(), np.zeros(X.shape, bool))
    masked.data[11, 2] = 9
    masked[11, 2] = np.ma.masked
    rows, clean = all_rows(model.gradient_blocks(masked, y)), all_rows(model.gradient_blocks(X, y))
    assert_one_is_spoilt(rows, clean, 11)


@pytest.mark.parametrize("kind", bad_records.ROWS)
def test_a_bad_row_of_a_list_spoils_itself_alone(kind):
    model = make([6, 7, 4])
    X, y = data(model, 30)
    clean = all_rows(model.gradient_blocks(X.tolist(), y.tolist()))
    np.testing.assert_array_equal(bits(clean), bits(all_rows(model.gradient_blocks(X, y))))
    for as_row in (list, tuple, np.array):
        features = [as_row(row) for row in X.tolist()]
        features[11] = bad_records.ROWS[kind](X[11].tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows = all_rows(model.gradient_blocks(features, y))
        assert_one_is_spoilt(rows, clean, 11)


@pytest.mark.parametrize("kind", bad_records.LABELS)
def test_a_bad_label_of_a_list_spoils_its_own_row_alone(kind):
    model = make([6, 7, 4])
    X, y = data(model, 30)
    clean = all_rows(model.gradient_blocks(X, y))
    for labels in (y.tolist(), [[label] for label in y.tolist()], list(map(np.array, y))):
        np.testing.assert_array_equal(bits(all_rows(model.gradient_blocks(X, labels))), bits(clean))
        labels[11] = bad_records.LABELS[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows = all_rows(model.gradient_blocks(X, labels))
        assert_one_is_spoilt(rows, clean, 11)


def test_lists_alone_are_read_record_by_record():
    array, text = np.arange(6).reshape(2, 3), "abc"
    assert with_dtype(array, 3) is array
    mapped = np.lib.stride_tricks.as_strided(array, writeable=False)
    assert with_dtype(mapped, 3) is mapped
    for neither in (text, 1.5, None, {1: 2}, {3}, iter([1])):
        assert with_dtype(neither, 3).shape == with_dtype(neither).shape == ()
    assert with_dtype([], 3).shape == (0, 3)
    np.testing.assert_array_equal(
        with_dtype([(1, "2", True), range(3), array[1], [1, 2]], 3),
        [[1, 2, 1], [0, 1, 2], [3, 4, 5], [np.nan] * 3],
    )
    np.testing.assert_array_equal(with_dtype((1, "2", [3], text)), [1, 2, 3, np.nan])


def test_a_missing_value_of_a_data_frame_is_not_finite():
    pandas = pytest.importorskip("pandas")
    model = make([6, 7, 4])
    X, y = data(model, 30)
    X = np.rint(8 * X) + 0.0  # No negative zeros, which integers lack.
    clean = all_rows(model.gradient_blocks(X, y))
    frame, labels = pandas.DataFrame(X).astype("Int64"), pandas.Series(y, dtype="Int64")
    np.testing.assert_array_equal(bits(all_rows(model.gradient_blocks(frame, labels))), bits(clean))
    frame.iloc[11, 2] = labels.iloc[17] = pandas.NA
    rows = all_rows(model.gradient_blocks(frame, labels))
    others = ~np.isin(np.arange(30), (11, 17))
    assert np.isnan(rows[~others]).all()
    np.testing.assert_array_equal(bits(rows[others]), bits(clean[others]))


def test_records_that_cannot_be_used_are_marked_in_predictions():
    model = make([6, 7, 4])
    X, y = data(model, 5)
    X[3, 0] = np.nan
    assert model.predict(X)[3] == -1
    assert np.isnan(model.predict_proba(X)[3]).all()
    assert np.isnan(model.loss(X, y))
    y[3] = -1
    assert model.score(X, y) <= 0.8


# ------------------------------------------------------------------------- sources and arrays


def test_blocks_share_one_buffer_and_keep_to_their_size():
    model = make([6, 7, 4])
    X, y = data(model, 20)
    blocks = list(model.gradient_blocks(X, y, block_size=8).blocks())
    assert [len(b) for b in blocks] == [8, 8, 4]
    assert all(b.flags.c_contiguous for b in blocks)
    assert all(np.shares_memory(blocks[0], b) for b in blocks[1:])
    default = list(model.gradient_blocks(X, y).blocks())
    assert [len(b) for b in default] == [20]
    wide = make([20_000, 10], dtype=np.float32)
    X, y = data(wide, 40)
    sizes = [b.nbytes for b in wide.gradient_blocks(X, y).blocks()]
    assert len(sizes) > 1
    assert max(sizes) <= 16 << 20


def test_attributes_of_sources():
    model = make([6, 7, 4], dtype=np.float32)
    X, y = data(model, 20)
    gradients, curvature = model.gradient_blocks(X, y), model.curvature_blocks(X)
    assert isinstance(gradients, GradientSource)
    assert isinstance(curvature, CurvatureSource)
    for source in (gradients, curvature):
        assert source.n_records == source.n_rows == 20
        assert source.rows_per_record == 1
        assert source.n_parameters == model.n_parameters == 7 * 7 + 4 * 8
        assert source.layer_shapes == model.layer_shapes == ((7, 7), (4, 8))
        assert source.dtype == np.float32


def test_no_records_give_no_blocks():
    model = make([6, 4])
    X, y = np.empty((0, 6)), np.empty(0, int)
    assert list(model.gradient_blocks(X, y).blocks()) == []
    assert list(model.gradient_blocks(X, y).factor_blocks()) == []
    assert list(model.curvature_blocks(X, labels="expected").blocks()) == []


def test_memory_maps_integers_and_odd_layouts_give_the_same_rows(tmp_path):
    model = make([6, 7, 4], dtype=np.float32)
    X = np.random.default_rng(0).integers(0, 255, (33, 6)).astype(np.uint8)
    y = np.random.default_rng(1).integers(0, 4, 33)
    expected = all_rows(model.gradient_blocks(X.astype(np.float32), y))
    path = tmp_path / "records"
    # One byte in front, so that the mapped numbers are not aligned.
    path.write_bytes(b"x" + X.astype(np.float32).tobytes())
    mapped = np.memmap(path, np.float32, "r", offset=1, shape=X.shape)
    for features, labels in (
        (X, y.astype(np.uint8)),
        (mapped, y.astype(float)),
        (np.asfortranarray(X, np.float64), list(y)),
        (X.astype(">f8"), y.astype(">i2")),
        (X.tolist(), y),
    ):
        rows = all_rows(model.gradient_blocks(features, labels, block_size=10))
        np.testing.assert_array_equal(bits(rows), bits(expected))


# --------------------------------------------------------------------------- models and fits


def test_weights_are_laid_out_as_documented_and_never_change():
    model = make([2, 3, 2])
    theta = np.arange(17.0)
    other = model.with_weights(theta)
    first, second = matrices(other)
    np.testing.assert_array_equal(first[:, -1], [2, 5, 8])
    np.testing.assert_array_equal(second, [[9, 10, 11, 12], [13, 14, 15, 16]])
    theta[:] = 0
    assert other.weights[16] == 16
    with pytest.raises(ValueError, match="read-only"):
        other.weights[0] = 1
    assert model.weights is not other.weights


def test_softmax_regression_is_a_perceptron_without_hidden_layers():
    model = softmax_regression(4, 3)
    assert isinstance(model, SoftmaxRegression)
    assert isinstance(model.with_weights(np.ones(15)), SoftmaxRegression)
    assert model.weights.dtype == np.float32
    assert not model.weights.any()
    assert model.layer_shapes == ((3, 5),)
    same = mlp([4, 3]).with_weights(np.arange(15.0))
    X, y = data(same, 6)
    np.testing.assert_array_equal(
        all_rows(model.with_weights(np.arange(15.0)).gradient_blocks(X, y)),
        all_rows(same.gradient_blocks(X, y)),
    )


def test_description_is_json_and_models_pickle():
    model = make([6, 7, 4], "relu", np.float32)
    assert json.loads(json.dumps(model.describe())) == {
        "model": "MultilayerPerceptron",
        "layer_sizes": [6, 7, 4],
        "activation": "relu",
        "dtype": "float32",
        "n_parameters": 81,
    }
    assert "relu" in repr(model)
    assert "n_classes=3" in repr(softmax_regression(4, 3))
    X, y = data(model, 5)
    for original in (model, softmax_regression(6, 4)):
        copy = pickle.loads(pickle.dumps(original))
        assert type(copy) is type(original)
        np.testing.assert_array_equal(
            all_rows(copy.gradient_blocks(X, y)), all_rows(original.gradient_blocks(X, y))
        )
        assert not copy.weights.flags.writeable


def digits():
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    test = np.arange(len(y)) % 3 == 0
    return X[~test], y[~test], X[test], y[test]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_fit_learns_digits(activation, schedule):
    X, y, X_test, y_test = digits()
    losses = []
    start = mlp([64, 32, 10], activation=activation)
    before = start.weights.copy()
    model = start.fit(
        X,
        y,
        epochs=30,
        learning_rate=5e-3,
        schedule=schedule,
        callback=lambda epoch, loss: losses.append((epoch, loss)),
    )
    assert model.score(X_test, y_test) > 0.92
    assert [epoch for epoch, _ in losses] == list(range(1, 31))
    assert losses[-1][1] < 0.1 * losses[0][1]
    np.testing.assert_array_equal(start.weights, before)
    assert model.loss(X, y) < start.loss(X, y)


def test_fit_learns_digits_by_softmax_regression_the_same_way_twice():
    X, y, X_test, y_test = digits()
    fits = [softmax_regression(64, 10).fit(X, y, epochs=100, seed=s) for s in (1, 1, 2)]
    assert isinstance(fits[0], SoftmaxRegression)
    assert fits[0].score(X_test, y_test) > 0.9
    np.testing.assert_array_equal(fits[0].weights, fits[1].weights)
    assert not np.array_equal(fits[0].weights, fits[2].weights)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_one_full_batch_step_of_fit_follows_the_mean_gradient(activation):
    model = make([6, 7, 4], activation)
    X, y = data(model, 40)
    mean = all_rows(model.gradient_blocks(X, y)).mean(axis=0)
    fitted = model.fit(X, y, epochs=1, batch_size=40, learning_rate=1e-3, weight_decay=0.0)
    # Adam's first step is the learning rate times the gradient's sign, but for its 1e-8.
    np.testing.assert_allclose(
        fitted.weights - model.weights, -1e-3 * mean / (np.abs(mean) + 1e-8), rtol=1e-6, atol=1e-12
    )


# ---------------------------------------------------------------------------------- bad input

MODEL = make([6, 7, 4])
X, Y = data(MODEL, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mlp([6]), ValueError, "number of features and that of classes"),
        (lambda: mlp([6, 0, 2]), ValueError, "of at least 1"),
        (lambda: mlp([6, 1]), ValueError, "at least 2"),
        (lambda: mlp([6.0, 2]), TypeError, "an integer"),
        (lambda: mlp([6, 2], activation="gelu"), ValueError, "'tanh' or 'relu'"),
        (lambda: mlp([6, 2], dtype=np.float16), TypeError, "float32 or float64"),
        (lambda: softmax_regression(6, 1), ValueError, "at least 2"),
        (lambda: softmax_regression(6, 2, dtype=int), TypeError, "float32 or float64"),
        (lambda: MultilayerPerceptron([6, 2], [1, 2]), TypeError, "float32 or float64"),
        (lambda: MODEL.with_weights(np.zeros(80)), ValueError, r"needs \(81,\)"),
        (lambda: MODEL.with_weights(np.full(81, np.nan)), ValueError, "holds a NaN"),
        (lambda: MODEL.with_weights(np.full(81, "a")), TypeError, "real numbers"),
        (lambda: mlp([1, 2]).with_weights([1e300] * 4), ValueError, "too large for float32"),
        (lambda: MODEL.gradient_blocks(X[:, :5], Y), ValueError, r"must be \(n, 6\)"),
        (lambda: MODEL.gradient_blocks(X[0], Y), ValueError, r"must be \(n, 6\)"),
        (lambda: MODEL.gradient_blocks(X.astype(complex), Y), TypeError, "real numbers"),
        (lambda: MODEL.gradient_blocks(X.astype(object), Y), TypeError, "real numbers"),
        (lambda: MODEL.gradient_blocks(X, Y[:4]), ValueError, r"must be \(5,\)"),
        (lambda: MODEL.gradient_blocks(X, Y[:, None]), ValueError, r"must be \(5,\)"),
        (lambda: MODEL.gradient_blocks(X, Y.astype(str)), TypeError, "classes 0..3"),
        (lambda: MODEL.gradient_blocks(X, Y, block_size=0), ValueError, "of at least 1"),
        (lambda: MODEL.gradient_blocks(X, Y, block_size=1.5), TypeError, "integer"),
        (lambda: MODEL.curvature_blocks(X, labels="true"), ValueError, "'sampled'"),
        (lambda: MODEL.curvature_blocks(X, labels="given"), ValueError, "only with it"),
        (lambda: MODEL.curvature_blocks(X, y=Y), ValueError, "only with it"),
        (
            lambda: MODEL.curvature_blocks(X, seed=-1),
            ValueError,
            "seed is -1; it needs to be from 0",
        ),
        (
            lambda: MODEL.curvature_blocks(X, labels="given", y=[0, 1, 2, 7, 0]),
            ValueError,
            "label of record 3",
        ),
        (lambda: MODEL.predict(X[:, 1:]), ValueError, r"must be \(n, 6\)"),
        (lambda: MODEL.score(X[:0], Y[:0]), ValueError, "no records"),
        (lambda: MODEL.loss(X[:0], Y[:0]), ValueError, "no records"),
        (lambda: MODEL.fit(X[:0], Y[:0]), ValueError, "no records"),
        (lambda: MODEL.fit(X * np.inf, Y), ValueError, "record 0 of X"),
        (lambda: MODEL.fit(X, Y - 9), ValueError, "label of record 0"),
        (lambda: MODEL.fit(X, Y, epochs=0), ValueError, "epochs is 0"),
        (lambda: MODEL.fit(X, Y, batch_size=0), ValueError, "batch_size is 0"),
        (lambda: MODEL.fit(X, Y, learning_rate=0.0), ValueError, "learning_rate is 0.0"),
        (lambda: MODEL.fit(X, Y, weight_decay=-1.0), ValueError, "weight_decay is -1.0"),
        (lambda: MODEL.fit(X, Y, schedule="step"), ValueError, "'cosine' or 'constant'"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


NETWORK = _core.Network([2, 3, 2], "tanh", np.zeros(17))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _core.Network([2], "tanh", np.zeros(0)), ValueError, "at least the numbers"),
        (lambda: _core.Network([2, 0], "tanh", np.zeros(0)), ValueError, "zero"),
        (lambda: _core.Network([2, 2], "sin", np.zeros(6)), ValueError, "'tanh' or 'relu'"),
        (lambda: _core.Network([2, 2], "tanh", np.zeros(5)), ValueError, "need 6"),
        (lambda: _core.Network([2, 2], "tanh", np.zeros(6, int)), TypeError, "float32 or"),
        (
            lambda: NETWORK.log_probabilities(np.zeros((4, 3)), np.zeros((4, 2))),
            ValueError,
            r"x has shape \(4, 3\); it needs \(4, 2\)",
        ),
        (
            lambda: NETWORK.log_probabilities(np.zeros((4, 2), np.float32), np.zeros((4, 2))),
            TypeError,
            "x is float32",
        ),
        (
            lambda: NETWORK.gradient_rows(
                np.zeros((4, 2)), np.zeros(3, np.int64), np.zeros((4, 17))
            ),
            ValueError,
            "labels has 3 entries for 4 records",
        ),
        (
            lambda: NETWORK.gradient_rows(
                np.zeros((4, 2)), np.zeros(4, np.int64), np.zeros((4, 16))
            ),
            ValueError,
            r"out has shape \(4, 16\); it needs \(4, 17\)",
        ),
        (
            lambda: NETWORK.curvature_rows(np.zeros((4, 2)), np.zeros((4, 17))),
            ValueError,
            r"out has shape \(4, 17\); it needs \(8, 17\)",
        ),
        (
            lambda: NETWORK.curvature_factors(np.zeros((4, 2)), [np.zeros((4, 3))], []),
            ValueError,
            "one array a layer, 2",
        ),
    ],
)
def test_bad_arguments_of_the_compiled_network(call, error, message):
    with pytest.raises(error, match=message):
        call()
