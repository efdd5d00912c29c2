"""The perceptron of simulations is the model itself, but for rounding."""

import numpy as np
import pytest

from qexp.bits import insecure_test_generator
from qexp.layered import KroneckerCurvature
from qexp.models import mlp, softmax_regression
from qexp.models._public_perceptron import PublicPerceptron
from qexp.rivals._accounting import Target
from qexp.rivals._boundary import PrivateBoundary, SimulatedBoundary
from qexp.rivals._parts import layer_factors
from qexp.rivals.adamix import AdaMixSettings, _Public

RNG = np.random.default_rng(0)
# More than one block of rows.
X = RNG.normal(size=(1100, 6)).astype(np.float32)
Y = RNG.integers(3, size=1100)
MODELS = [
    mlp((6, 5, 4, 3), seed=1),
    mlp((6, 5, 3), activation="relu", seed=2),
    mlp((6, 5, 3), dtype=np.float64, seed=3),
    softmax_regression(6, 3).with_weights(RNG.normal(size=21)),
]


def rows(model, X, y):
    """Give per-record gradients."""
    return np.concatenate(
        [
            np.concatenate(
                [np.einsum("ij,ik->ijk", d, a).reshape(len(d), -1) for a, d in factors], 1
            )
            for factors in layer_factors(model, X, y)
        ]
    )


@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_the_models(model):
    fast = PublicPerceptron(model)
    expected = rows(model, X, Y)
    np.testing.assert_allclose(rows(fast, X, Y), expected, atol=3e-6)
    elsewhere = RNG.normal(size=model.n_parameters)
    np.testing.assert_allclose(
        rows(fast.with_weights(elsewhere), X, Y),
        rows(model.with_weights(elsewhere), X, Y),
        atol=3e-5,
    )
    np.testing.assert_allclose(rows(fast, X, Y), expected, atol=3e-6)


@pytest.mark.parametrize("model", MODELS)
def test_scores_are_the_models(model):
    fast = PublicPerceptron(model)
    assert fast.score(X, Y) == pytest.approx(model.score(X, Y), abs=2e-3)
    assert fast.loss(X, Y) == pytest.approx(model.loss(X, Y), abs=1e-5)
    np.testing.assert_allclose(fast.predict_proba(X), model.predict_proba(X), atol=3e-6)
    far = 300 * model.weights
    assert fast.with_weights(far).loss(X, Y) == pytest.approx(
        model.with_weights(far).loss(X, Y), rel=1e-3
    )


def test_a_label_that_is_no_class_has_no_gradient_and_no_loss():
    model, labels = MODELS[0], np.where(np.arange(len(Y)) == 7, 9, Y)
    fast = PublicPerceptron(model)
    unusable = np.isnan(rows(fast, X, labels)).any(axis=1)
    assert np.flatnonzero(unusable).tolist() == [7]
    assert np.isnan(fast.loss(X, labels))
    assert fast.score(X, labels) == pytest.approx(model.score(X, labels), abs=2e-3)


def test_gradients_are_kept_for_these_records_at_these_weights_alone():
    fast = PublicPerceptron(MODELS[0])
    before = rows(fast, X, Y)
    fast.keep(X, Y)
    kept = [factors[0][0] for factors in fast.gradient_blocks(X, Y).factor_blocks()]
    again = [factors[0][0] for factors in fast.gradient_blocks(X, Y).factor_blocks()]
    assert all(a is b for a, b in zip(kept, again, strict=True))
    np.testing.assert_array_equal(rows(fast, X, Y), before)
    some = X[:9].copy()
    np.testing.assert_allclose(rows(fast, some, Y[:9]), before[:9], atol=3e-6)
    zero = fast.with_weights(np.zeros(MODELS[0].n_parameters))
    np.testing.assert_allclose(rows(zero, X, Y)[:, :35], 0, atol=1e-7)


# A total gradient of three classes, whose deltas sum to zero, has rank 2.
@pytest.mark.parametrize(
    ("subspace", "rank"), [("total", 2), ("per_example", 2), ("per_example", 9)]
)
def test_adamix_finds_the_same_subspaces_in_a_trial(subspace, rank):
    model, settings = MODELS[1], AdaMixSettings(subspace=subspace, rank=rank)
    target = Target(1.0, 1e-5, "replace_special")
    private = PrivateBoundary(X, Y, target, insecure_test_generator(0))
    simulated = SimulatedBoundary(X, Y, target, len(Y), np.random.default_rng(0))
    assert simulated.records_are_public
    assert not private.records_are_public
    slow, fast = (
        _Public(kind, X, Y, settings, boundary).part._bases
        for kind, boundary in ((model, private), (PublicPerceptron(model), simulated))
    )
    for expected, found in zip(slow, fast, strict=True):
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-5)
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)


@pytest.mark.parametrize("model", MODELS)
def test_its_curvature_is_the_perceptron_s(model):
    weights = (1.5 * model.weights).astype(np.float32)
    expected = KroneckerCurvature.from_model(model.with_weights(weights), X, damping=0.1, seed=3)
    public = PublicPerceptron(model).with_weights(weights)
    found = KroneckerCurvature.from_model(public, X, damping=0.1, seed=3)
    assert found.describe() == expected.describe()
