"""Private curvature: its sum, what is read out of it, and what it costs."""

from fractions import Fraction

import numpy as np
import pytest

import qexp
from qexp.bits import insecure_test_generator
from qexp.finetune import Schedule, fine_tune
from qexp.layered import LayeredCurvature
from qexp.models import mlp
from qexp.privacy import calibrate_mu
from qexp.private_curvature import (
    input_moments,
    input_scales,
    kept_directions,
    n_moments,
    refined_curvature,
)
from qexp.private_sum import lattice_for

TARGET = {"target_epsilon": 2.0, "target_delta": 1e-5}


@pytest.fixture(scope="module")
def task():
    generator = np.random.default_rng(0)
    model = mlp((6, 4, 3), seed=1, dtype=np.float64)
    X_public = generator.normal(size=(400, 6))
    X = generator.normal(size=(600, 6)) * [4, 1, 1, 1, 1, 1]
    y = generator.integers(0, 3, 600)
    return model, X, y, qexp.KroneckerCurvature.from_model(model, X_public, damping=1e-2)


def schedule(**changes):
    settings = {"rounds": 2, "clipping_norm": 3.0, "step_size": 0.3, "damping": 1e-2}
    return Schedule(**{**settings, "curvature_share": 0.2, **changes})


def moments(task, mu=1e3, X=None):
    model, X_private, y, curvature = task
    X = X_private if X is None else X
    lattice = lattice_for(mu, np.sqrt(len(input_scales(curvature))), len(X))
    noisy = input_moments(
        model.gradient_blocks(X, y[: len(X)]),
        curvature,
        lattice=lattice,
        bits=insecure_test_generator(3),
    )
    return noisy, lattice


def parts(values):
    return values[: 7 * 7].reshape(7, 7), values[7 * 7 :].reshape(5, 5)


# ---------------------------------------------------------------------------------- the sum


def test_the_sum_is_that_of_the_clipped_whitened_moments(task):
    model, X, y, curvature = task
    assert n_moments(curvature) == 7 * 7 + 5 * 5
    noisy, lattice = moments(task)
    expected = [np.zeros((7, 7)), np.zeros((5, 5))]
    for factors in model.gradient_blocks(X, y).factor_blocks():
        for total, (inputs, _), layer, scale in zip(
            expected, factors, curvature.layers, input_scales(curvature), strict=True
        ):
            for a in inputs @ layer._inverse_a.matrix.T:
                total += np.outer(a, a) / max(a @ a, scale)
    for found, total in zip(parts(noisy.values), expected, strict=True):
        np.testing.assert_allclose(found, total, atol=6 * lattice.noise_std + 1e-4)


def test_one_records_part_has_at_most_the_claimed_norm(task):
    """Null one record, and the integers move by no more than B."""
    _, X, _, _ = task
    for scale in (1e-3, 1.0, 1e6):
        some = X[:20] * scale
        without = some.copy()
        without[7] = np.nan
        one, lattice = moments(task, mu=0.5, X=some)
        other, _ = moments(task, mu=0.5, X=without)
        moved = np.rint((one.values - other.values) * lattice.units_per_norm)
        squares = sum(Fraction(int(z)) ** 2 for z in moved)
        assert 0 < squares <= Fraction(lattice.bound) ** 2


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200, 1e308])
def test_values_of_records_raise_nothing(task, value):
    model, X, y, curvature = task
    strange, no_class = X.copy(), y.copy()
    strange[3, 2], no_class[3] = value, 3
    found, nulled = (
        fine_tune(
            model,
            features,
            labels,
            schedule=schedule(),
            curvature=curvature,
            rng=insecure_test_generator(0),
            **TARGET,
        ).release.weights
        for features, labels in ((strange, y), (X, no_class))
    )
    assert np.isfinite(found).all()
    if not np.isfinite(value):
        assert np.array_equal(found, nulled)


def test_a_shuffle_changes_no_bit(task):
    _, X, _, _ = task
    one, _ = moments(task)
    other, _ = moments(task, X=X[::-1].copy())
    assert np.array_equal(one.values, other.values)


# ------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("d", [2, 7, 40, 200])
def test_noise_alone_hardly_ever_shows_a_direction(d):
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        noise = generator.normal(size=(d, d))
        values, vectors = kept_directions((noise + noise.T) / 2, 1.0)
        assert vectors.shape == (d, len(values))
        found += len(values)
    assert found <= 3


@pytest.mark.parametrize("strength", [60.0, 25.0])
def test_a_planted_direction_is_found_at_its_strength(strength):
    generator = np.random.default_rng(1)
    planted = np.linalg.qr(generator.normal(size=(200, 1)))[0]
    noise = generator.normal(size=(200, 200))
    values, vectors = kept_directions(strength * planted @ planted.T + (noise + noise.T) / 2, 1.0)
    assert len(values) == 1
    # Its eigenvalue fluctuates by the noise of one entry.
    assert values[0] == pytest.approx(strength, abs=4)
    radius = np.sqrt(200 / 2)
    assert (planted[:, 0] @ vectors[:, 0]) ** 2 == pytest.approx(
        1 - (radius / strength) ** 2, abs=0.06
    )


def test_no_direction_loses_more_than_nine_tenths():
    values, _ = kept_directions(np.diag([-50.0, 0.0, 3.0]), 1e-6)
    assert sorted(values) == pytest.approx([-0.9, 3.0])


def test_much_privacy_budget_gives_the_private_inputs_curvature(task):
    """With hardly any noise the first layer is whitened by the private second moments."""
    model, X, y, _ = task
    X_public = X / [4, 1, 1, 1, 1, 1]
    public = qexp.KroneckerCurvature.from_model(model, X_public, damping=1e-2)
    noisy, lattice = moments((model, X, y, public), mu=1e6)
    refined = refined_curvature(public, noisy.values, noise_std=lattice.noise_std, n_records=len(X))
    before, after = (c.layers[0]._inverse_a.matrix for c in (public, refined))
    assert np.array_equal(after, np.tril(after))
    inputs = np.column_stack([X, np.ones(len(X))])
    spread = [
        np.linalg.eigvalsh((inputs @ w.T).T @ (inputs @ w.T) / len(X)) for w in (before, after)
    ]
    assert spread[0].max() > 10
    # Clipping makes long records count less, so that it stays an estimate.
    assert spread[1].max() < 5
    assert np.array_equal(public.layers[1]._inverse_b.matrix, refined.layers[1]._inverse_b.matrix)
    y_unit = np.random.default_rng(0).normal(size=refined.n_components)
    # The two maps stay each other's transposes.
    gradients = next(iter(model.gradient_blocks(X[:30], y[:30]).blocks()))
    np.testing.assert_allclose(
        refined.whiten(gradients) @ y_unit, gradients @ refined.unwhiten(y_unit), rtol=1e-9
    )


def test_like_inputs_leave_the_public_curvature_alone(task):
    model, X, y, _ = task
    public = qexp.KroneckerCurvature.from_model(model, X, damping=1e-2)
    noisy, lattice = moments((model, X, y, public), mu=0.3)
    refined = refined_curvature(public, noisy.values, noise_std=lattice.noise_std, n_records=len(X))
    for one, other in zip(public.layers, refined.layers, strict=True):
        np.testing.assert_allclose(one._inverse_a.matrix, other._inverse_a.matrix, atol=1e-12)


def test_layers_of_other_kinds_stay_public(task):
    model, X, y, _ = task
    mixed = LayeredCurvature.from_model(model, X, damping=1e-2, kinds=["diagonal", "kronecker"])
    assert n_moments(mixed) == 25
    noisy, lattice = moments((model, X, y, mixed), mu=10.0)
    refined = refined_curvature(mixed, noisy.values, noise_std=lattice.noise_std, n_records=len(X))
    assert refined.layers[0] is mixed.layers[0]


# ---------------------------------------------------------------------------------- the cost


@pytest.mark.parametrize("relation", ["replace_special", "replace_one"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_curvature_and_rounds_compose_to_at_most_the_target_and_hardly_less(task, share, relation):
    model, X, y, curvature = task
    ledger = qexp.PrivacyLedger(neighboring_relation=relation, **TARGET)
    result = fine_tune(
        model,
        X,
        y,
        schedule=schedule(curvature_share=share),
        curvature=curvature,
        neighboring_relation=relation,
        ledger=ledger,
        rng=insecure_test_generator(0),
        **TARGET,
    )
    mu = calibrate_mu(**TARGET)
    assert mu * (1 - 1e-8) < result.release.mu <= mu
    certificate = result.release.certificate()
    events = certificate["event"]["events"]
    factor = 2 if relation == "replace_one" else 1
    squares = sum(Fraction(1 / event["noise_multiplier"]) ** 2 for event in events)
    assert float(squares) == pytest.approx((mu / factor) ** 2, rel=1e-7)
    assert len(events) == 3
    assert certificate["private_curvature"]["mu"] ** 2 == pytest.approx(
        share * (mu / factor) ** 2, rel=1e-6
    )
    assert [entry.label.split(", ")[1] for entry in ledger.entries] == [
        "private curvature",
        "round 1 of 2",
        "round 2 of 2",
    ]
    assert ledger.mu_spent == result.release.mu


def test_a_ledger_without_room_for_a_round_after_it_is_not_charged(task):
    model, X, y, curvature = task
    ledger = qexp.PrivacyLedger(mu_budget=0.5 * calibrate_mu(**TARGET))
    with pytest.raises(qexp.BudgetExceededError):
        fine_tune(model, X, y, schedule=schedule(), curvature=curvature, ledger=ledger, **TARGET)
    assert ledger.entries == ()


def test_without_a_share_the_bits_are_those_of_before(task):
    model, X, y, curvature = task
    result = fine_tune(
        model,
        X,
        y,
        schedule=schedule(curvature_share=0.0, rounds=1),
        curvature=curvature,
        rng=insecure_test_generator(0),
        **TARGET,
    )
    release = qexp.sample_private_weights(
        model.weights,
        model.gradient_blocks(X, y),
        curvature=curvature,
        clipping_norm=3.0,
        step_size=0.3,
        rng=insecure_test_generator(0).spawn(1),
        **TARGET,
    )
    assert np.array_equal(result.release.weights, release.weights)
    assert result.release.certificate()["private_curvature"] is None


# -------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("share", [-0.1, 1.0, 2, np.nan, "half"])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises((ValueError, TypeError), match="curvature_share"):
        schedule(curvature_share=share)


def test_what_private_curvature_cannot_work_with_is_refused(task):
    model, X, y, _ = task
    with pytest.raises(ValueError, match="choose one of the two"):
        schedule(refresh_curvature=True)
    with pytest.raises(TypeError, match="KroneckerCurvature"):
        fine_tune(
            model,
            X,
            y,
            schedule=schedule(),
            curvature=qexp.IdentityCurvature(model.n_parameters),
            **TARGET,
        )
    with pytest.raises(ValueError, match="no layer has Kronecker"):
        fine_tune(
            model,
            X,
            y,
            schedule=schedule(),
            curvature=qexp.DiagonalCurvature.from_model(model, X, damping=1.0),
            **TARGET,
        )
    with pytest.raises(ValueError, match="give no projection"):
        fine_tune(
            model,
            X,
            y,
            schedule=schedule(),
            curvature=qexp.IdentityCurvature(8),
            projection=qexp.SRHT(model.n_parameters, 8, seed=0),
            **TARGET,
        )
