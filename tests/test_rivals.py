"""Rivals of qexp: their releases, privacy, and that they learn."""

import json
import math
import warnings
from dataclasses import replace

import bad_records
import numpy as np
import pytest

from qexp.bits import insecure_test_generator
from qexp.datasets import load_digits
from qexp.models import mlp, softmax_regression
from qexp.privacy import calibrate_mu
from qexp.release import PrivateRelease
from qexp.rivals import (
    METHODS,
    AdaMixSettings,
    FeatureCovarianceSettings,
    GradientDescentSettings,
    LeastSquaresSettings,
    NewtonSettings,
    NonPrivateSettings,
    OutputPerturbationSettings,
    PublicOnlySettings,
    SGDSettings,
    SpartaSettings,
    _boundary,
    _method,
    adamix,
    dp_fc,
    dp_gd,
    dp_ls,
    dp_newton,
    dp_sgd,
    non_private,
    output_perturbation,
    public_only,
    sparta,
)
from qexp.rivals._accounting import Target, poisson_epsilon
from qexp.rivals._descent import Descent, Diverged, one_cycle
from qexp.rivals._leading_vectors import KeptRows
from qexp.rivals._parts import InputSubspace, SomeRowsAndColumns
from qexp.rivals.output_perturbation import sensitivity

pytest.importorskip("sklearn")
pytest.importorskip("dp_accounting")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6)).astype(np.float32)
Y = RNG.integers(3, size=60)
X_PUBLIC = RNG.normal(size=(50, 6)).astype(np.float32)
Y_PUBLIC = RNG.integers(3, size=50)
MODEL = mlp((6, 5, 3), seed=1)
HEAD = softmax_regression(6, 3)

# Short runs of every method, with Poisson samples where it has any.
SHORT = {
    "dp_gd": GradientDescentSettings(steps=3),
    "dp_sgd": SGDSettings(steps=8, sampling_rate=0.5),
    "adamix": AdaMixSettings(steps=3, rank=2),
    "sparta": SpartaSettings(epochs=4, warm_up_epochs=0, sampling_rate=0.5),
    "dp_ls": LeastSquaresSettings(),
    "dp_newton": NewtonSettings(start="pretrained"),
    "dp_fc": FeatureCovarianceSettings(steps=2),
    "output_perturbation": OutputPerturbationSettings(steps=20),
}
# The sums before the first step, which are at the same weights whatever the records.
FIRST_SUMS = {"dp_ls": 3, "dp_newton": 2, "dp_fc": 2}


PUBLIC = X_PUBLIC, Y_PUBLIC


def run(name, X=X, y=Y, *, seed=0, model=MODEL, settings=None, eps=2.0, public=PUBLIC, **more):
    return METHODS[name](
        model,
        X,
        y,
        target_epsilon=eps,
        target_delta=1e-5,
        public_data=public,
        settings=SHORT.get(name) if settings is None else settings,
        rng=insecure_test_generator(seed),
        **more,
    )


def run_exactly(monkeypatch, name, settings, **more):
    """Run with next to no noise."""
    monkeypatch.setattr(Target, "sampled_noise", lambda *_: 1e-5)
    monkeypatch.setattr(Target, "full_batch_noise", lambda _, shares: [1e-5] * len(shares))
    monkeypatch.setattr(_boundary.PrivateBoundary, "is_within_target", lambda _: True)
    return run(name, settings=settings, **more)


def rows(model, X=X, y=Y):
    blocks = [block.astype(np.float64) for block in model.gradient_blocks(X, y).blocks()]
    return np.concatenate(blocks)


def clipped_mean(model, norm, n=60):
    g = rows(model)
    norms = np.linalg.norm(g, axis=1, keepdims=True)
    return (g * np.minimum(1, norm / norms)).sum(axis=0) / (norm * n)


# ----------------------------------------------------------------------------------- releases


@pytest.mark.parametrize("name", sorted(SHORT))
@pytest.mark.parametrize("relation", ["replace_special", "replace_one"])
def test_release_says_what_it_cost(name, relation, tmp_path):
    result = run(name, neighboring_relation=relation)
    release = result.release
    certificate = release.certificate()
    assert (release.epsilon, release.delta) == (2.0, 1e-5)
    assert release.neighboring_relation == relation
    assert certificate["method"] == name
    assert certificate["sums"] == len(result.history) > 0
    assert not release.generator_is_secure
    np.testing.assert_array_equal(result.model.weights, release.weights)
    release.save(tmp_path / "release.npz")
    assert PrivateRelease.load(tmp_path / "release.npz").certificate()["method"] == name

    # An auditor's recomputation from the certificate alone.
    factor = 2 if relation == "replace_one" else 1
    events = certificate["event"]["events"]
    sampled = [e for e in events if e["event"]["type"] == "PoissonSampledDpEvent"]
    if sampled:
        (event,) = sampled
        rate = event["event"]["sampling_probability"]
        sigma = event["event"]["event"]["noise_multiplier"]
        assert certificate["accountant"].startswith("dp_accounting")
        spent = poisson_epsilon(rate, event["count"], sigma, 1e-5, relation)
        assert 0.995 * 2.0 < spent <= 2.0
    else:
        squares = sum(e["count"] / e["event"]["noise_multiplier"] ** 2 for e in events)
        mu = factor * math.sqrt(squares)
        assert mu == pytest.approx(release.mu)
        best = calibrate_mu(2.0, 1e-5)
        assert 0.999 * best < mu <= best * (1 + 1e-12)


@pytest.mark.parametrize("name", sorted(SHORT))
def test_runs_repeat_with_a_test_generator_and_differ_without(name):
    one, two, other = run(name), run(name), run(name, seed=1)
    np.testing.assert_array_equal(one.release.weights, two.release.weights)
    assert not np.array_equal(one.release.weights, other.release.weights)
    secure = METHODS[name](
        MODEL,
        X,
        Y,
        target_epsilon=2.0,
        target_delta=1e-5,
        public_data=(X_PUBLIC, Y_PUBLIC),
        settings=SHORT[name],
    )
    assert secure.release.generator_is_secure
    assert "the probability of that conclusion is at most" in secure.release.statement


@pytest.mark.parametrize("name", sorted(SHORT))
def test_candidates_are_settings(name):
    candidates = METHODS[name].candidates()
    assert len(set(candidates)) == len(candidates) >= 30
    assert all(isinstance(s, METHODS[name].settings_type) for s in candidates)
    for settings in METHODS[name].neighbours(candidates[0]):
        assert isinstance(settings, METHODS[name].settings_type)


def test_public_only_reads_no_private_record():
    bad = np.full_like(X, np.nan)
    result = run("public_only", X=bad)
    assert (result.release.epsilon, result.release.mu) == (0.0, 0.0)
    np.testing.assert_array_equal(result.model.weights, MODEL.weights)
    further = run("public_only", settings=PublicOnlySettings(epochs=2))
    expected = MODEL.fit(X_PUBLIC, Y_PUBLIC, epochs=2).weights
    np.testing.assert_array_equal(further.model.weights, expected)
    with pytest.raises(ValueError, match="give public_data"):
        public_only(
            MODEL,
            X,
            Y,
            target_epsilon=1.0,
            target_delta=1e-5,
            settings=PublicOnlySettings(epochs=1),
        )


def test_non_private_has_no_release():
    result = run("non_private", settings=NonPrivateSettings(epochs=3))
    assert result.release is None
    np.testing.assert_array_equal(result.model.weights, MODEL.fit(X, Y, epochs=3).weights)


# ------------------------------------------------------------------------------------ privacy


def captured(monkeypatch, name, X, y, model):
    """Give the integer sums before the first step, with their lattices."""
    sums = []
    original = _boundary.private_sum

    def spy(*arguments, lattice, **more):
        noisy = original(*arguments, lattice=lattice, **more)
        integers = np.rint(noisy.values * lattice.units_per_norm - 0.5)
        sums.append((integers, lattice))
        return noisy

    with monkeypatch.context() as patch:
        patch.setattr(_boundary, "private_sum", spy)
        result = run(name, X=X, y=y, model=model)
    return sums[: FIRST_SUMS.get(name, 1)], result


@pytest.mark.parametrize("model", [MODEL, HEAD], ids=["mlp", "softmax"])
@pytest.mark.parametrize("name", sorted(SHORT))
def test_one_null_record_moves_sums_by_at_most_their_bound(monkeypatch, name, model):
    whole, result = captured(monkeypatch, name, X, Y, model)
    moves = []
    for record in range(12):
        nulled = X.copy()
        nulled[record] = np.nan
        sums, other = captured(monkeypatch, name, nulled, Y, model)
        assert other.stopped_because == result.stopped_because
        for (before, lattice), (after, again) in zip(whole, sums, strict=True):
            assert lattice == again
            # Doubles of noisy sums keep 53 bits.
            rounding = np.abs(before).max() * 2.0**-51 * math.sqrt(len(before)) + 1
            moved = np.linalg.norm(before - after)
            allowed = (
                lattice.units_per_norm
                * sensitivity(SHORT[name], len(X), model.layer_shapes[-1][1], 10.0)
                + math.sqrt(len(before))
                if name == "output_perturbation"
                else lattice.bound
            )
            assert moved <= allowed + rounding
            moves.append(moved / allowed)
    # The bound is met where clipping is at work, and reached for within reason elsewhere.
    assert max(moves) > 0.2


@pytest.mark.parametrize("name", sorted(set(SHORT) - {"dp_sgd", "sparta", "output_perturbation"}))
def test_order_of_records_does_not_matter(name):
    order = np.random.default_rng(1).permutation(len(X))
    np.testing.assert_array_equal(
        run(name).release.weights, run(name, X=X[order], y=Y[order]).release.weights
    )


@pytest.mark.parametrize("name", sorted(SHORT))
def test_private_values_raise_nothing(name):
    bad, labels = X.copy(), Y.astype(np.float64)
    bad[3] = np.nan
    bad[4] = np.inf
    bad[5] = 3e38
    labels[6], labels[7] = 99, np.nan
    result = run(name, X=bad, y=labels)
    assert np.all(np.isfinite(result.model.weights))
    everything = run(name, X=np.full_like(X, np.nan))
    assert np.all(np.isfinite(everything.model.weights))


@pytest.mark.parametrize("name", ["dp_gd", "dp_sgd"])
@pytest.mark.parametrize("kind", bad_records.ROWS)
def test_a_bad_row_of_a_list_is_a_null_record(name, kind):
    nulled, rows = X.copy(), X.tolist()
    nulled[7] = np.nan
    rows[7] = bad_records.ROWS[kind](rows[7])
    np.testing.assert_array_equal(
        run(name, X=rows, y=Y.tolist()).release.weights, run(name, X=nulled).release.weights
    )


@pytest.mark.parametrize("name", ["dp_gd", "dp_sgd"])
@pytest.mark.parametrize("kind", bad_records.LABELS)
def test_a_bad_label_of_a_list_is_a_null_record(name, kind):
    nulled, labels = Y.copy(), Y.tolist()
    nulled[7], labels[7] = -1, bad_records.LABELS[kind]
    np.testing.assert_array_equal(
        run(name, X=X.tolist(), y=labels).release.weights, run(name, y=nulled).release.weights
    )


def test_lists_need_a_model_with_a_public_width():
    class Foreign:
        weights = MODEL.weights
        with_weights = MODEL.with_weights
        gradient_blocks = MODEL.gradient_blocks

    run("dp_gd", model=Foreign())
    with pytest.raises(TypeError, match="X is a list; for a model without n_features it must be"):
        run("dp_gd", model=Foreign(), X=X.tolist())
    with pytest.raises(TypeError, match="y is a list; for a model without n_features it must be"):
        run("dp_gd", model=Foreign(), y=Y.tolist())


def test_memory_maps_stay_on_disk(tmp_path, monkeypatch):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    seen = []

    def boundary(features, *arguments, **more):
        seen.append(features)
        return _boundary.PrivateBoundary(features, *arguments, **more)

    monkeypatch.setattr(_method, "PrivateBoundary", boundary)
    expected = run("dp_gd").release.weights
    np.testing.assert_array_equal(run("dp_gd", X=mapped).release.weights, expected)
    assert np.shares_memory(seen[1], mapped)


def test_output_perturbation_at_the_limit():
    settings = OutputPerturbationSettings(regularisation=0.05, steps=5000)
    assert sensitivity(settings, 1000, 7, 1.0) == pytest.approx(
        math.sqrt(2) / (1000 * 0.05), rel=1e-6
    )
    few = replace(settings, steps=1)
    assert sensitivity(few, 1000, 7, 1.0) == pytest.approx(math.sqrt(2) / (0.55 * 1000), rel=1e-6)


# --------------------------------------------------------------------------------- algorithms


def test_dp_gd_against_its_formula(monkeypatch):
    settings = GradientDescentSettings(steps=4, learning_rate=0.2, clipping_norm=0.7, momentum=0.6)
    result = run_exactly(monkeypatch, "dp_gd", settings)
    theta, velocity = MODEL.weights.astype(np.float64), 0.0
    for _ in range(4):
        velocity = 0.6 * velocity + clipped_mean(MODEL.with_weights(theta), 0.7)
        theta = theta - 0.2 * velocity
    np.testing.assert_allclose(result.model.weights, theta, atol=2e-5)


def test_automatic_clipping_and_averaging_against_their_formulas(monkeypatch):
    settings = SGDSettings(
        steps=3, sampling_rate=1.0, learning_rate=0.3, clipping="automatic", averaging=0.5
    )
    result = run_exactly(monkeypatch, "dp_sgd", settings)
    theta = average = MODEL.weights.astype(np.float64)
    for t in (1, 2, 3):
        g = rows(MODEL.with_weights(theta))
        g /= np.linalg.norm(g, axis=1, keepdims=True) + 0.01
        theta = theta - 0.3 * g.mean(axis=0)
        decay = min(0.5, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * theta
    np.testing.assert_allclose(result.model.weights, average, atol=2e-5)


def test_sampled_means_divide_by_the_expected_size(monkeypatch):
    settings = SGDSettings(steps=1, sampling_rate=0.5, learning_rate=1.0)
    result = run_exactly(monkeypatch, "dp_sgd", settings)
    chosen = _boundary.poisson_sample(60, 0.5, insecure_test_generator(0).spawn(2))
    g = rows(MODEL)[chosen]
    norms = np.linalg.norm(g, axis=1, keepdims=True)
    expected = MODEL.weights - (g * np.minimum(1, 1 / norms)).sum(axis=0) / 30
    np.testing.assert_allclose(result.model.weights, expected, atol=1e-4)


def test_adam_against_its_formula():
    descent = Descent(np.zeros(2), optimizer="adam")
    gradients = np.array([[1.0, -2.0], [0.5, 0.1]])
    mean, square, theta = 0.0, 0.0, np.zeros(2)
    for t, g in enumerate(gradients, 1):
        descent.step(g, 0.1)
        mean = 0.9 * mean + 0.1 * g
        square = 0.999 * square + 0.001 * g**2
        theta -= 0.1 * mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(descent.theta, theta)


def test_divergence_keeps_the_weights_before():
    descent = Descent(np.ones(2))
    with pytest.raises(Diverged):
        descent.step(np.array([1.0, 1e9]), 1.0)
    np.testing.assert_array_equal(descent.theta, 1.0)
    result = run("dp_gd", settings=GradientDescentSettings(steps=3, learning_rate=1e9))
    assert result.stopped_because == "diverged"
    # It was the sums' outcomes that stopped it: all that were announced are promised.
    release = result.release
    assert release.epsilon == 2.0
    assert release.mu == pytest.approx(calibrate_mu(2.0, 1e-5), rel=1e-9)
    certificate = release.certificate()
    assert sum(event["count"] for event in certificate["event"]["events"]) > certificate["sums"]
    assert np.all(np.isfinite(result.model.weights))
    assert result.release.epsilon == 2.0


def test_one_cycle_rises_and_falls():
    rates = [one_cycle(t, 100) for t in range(100)]
    assert np.argmax(rates) <= 2
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert np.all(np.diff(rates[2:]) < 0)
    assert rates[-1] < 0.01


@pytest.mark.parametrize("subspace", ["total", "per_example", "none"])
def test_adamix_against_its_formula(monkeypatch, subspace):
    settings = AdaMixSettings(
        steps=3, learning_rate=0.8, rank=2, public_share=0.3, weight_decay=0.1, subspace=subspace
    )
    result = run_exactly(monkeypatch, "adamix", settings)
    layers = [(slice(0, 35), (5, 7)), (slice(35, 53), (3, 6))]
    start = theta = MODEL.weights.astype(np.float64)
    for _ in range(3):
        model = MODEL.with_weights(theta.astype(np.float32))
        public, private = rows(model, X_PUBLIC, Y_PUBLIC), rows(model)
        tau = np.quantile(np.linalg.norm(public, axis=1), 0.9)
        norms = np.linalg.norm(private, axis=1, keepdims=True)
        total, clipped = public.sum(axis=0), (private * np.minimum(1, tau / norms)).sum(axis=0)
        for where, shape in layers:
            lies_in = {
                "total": total[where].reshape(shape),
                "per_example": public[:, where].reshape(-1, shape[1]),
                "none": np.eye(shape[1]),
            }[subspace]
            rank = shape[1] if subspace == "none" else 2
            basis = np.linalg.svd(lies_in, full_matrices=False)[2][:rank].T
            clipped[where] = (clipped[where].reshape(shape) @ basis @ basis.T).ravel()
        mixed = 0.7 * clipped / 60 + 0.3 * total / 50
        theta = theta - 0.8 * (mixed + 0.1 * (theta - start))
    np.testing.assert_allclose(result.model.weights, theta, atol=2e-5)


@pytest.mark.parametrize("subspace", ["total", "per_example", "none"])
def test_adamix_dimensions(subspace):
    settings = AdaMixSettings(steps=1, subspace=subspace, rank=4)
    result = run("adamix", settings=settings)
    # Layers (5, 7) and (3, 6): four inputs each, or as many as there are outputs.
    expected = {"total": 5 * 4 + 3 * 3, "per_example": 5 * 4 + 3 * 4, "none": 35 + 18}
    assert result.history[0]["n_components"] == expected[subspace]


def test_leading_vectors_of_a_trial_hold_what_the_exact_ones_hold():
    scales = 0.97 ** np.arange(120)
    rows = np.random.default_rng(0).normal(size=(300, 120)) * scales
    kept = KeptRows()
    for block in np.split(rows.astype(np.float32), 3):
        kept.add(block, np.ones((len(block), 1), np.float32))
    basis = kept.leading(20).astype(float)
    np.testing.assert_allclose(basis.T @ basis, np.eye(20), atol=1e-5)
    singular = np.linalg.svd(rows, compute_uv=False)
    held = np.linalg.norm(rows @ basis) ** 2 / np.sum(singular[:20] ** 2)
    assert 0.99 < held < 1 + 1e-6


@pytest.mark.parametrize("record", [0, 59])
def test_a_signalling_nan_warns_of_nothing(monkeypatch, record):
    class Signalling:
        """Gradients of which one record's hold a signalling NaN."""

        def __init__(self, source):
            self._source = source

        def __getattr__(self, name):
            return getattr(self._source, name)

        def factor_blocks(self):
            first = 0
            for factors in self._source.factor_blocks():
                inputs = factors[0][0].copy()
                if first <= record < first + len(inputs):
                    inputs[record - first, 0] = np.uint32(0x7FA00000).view(np.float32)
                first += len(inputs)
                yield [(inputs, factors[0][1]), *factors[1:]]

    blocks = type(MODEL).gradient_blocks
    monkeypatch.setattr(
        type(MODEL), "gradient_blocks", lambda *arguments: Signalling(blocks(*arguments))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(run("dp_gd").release.weights).all()


@pytest.mark.parametrize("name", ["dp_ls", "dp_newton", "dp_fc"])
def test_a_head_whose_matrix_is_singular_diverges(name, monkeypatch):
    def singular(matrix, right):
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(np.linalg, "solve", singular)
    result = run(name)
    assert result.stopped_because == "diverged"
    assert np.isfinite(result.release.weights).all()


def test_adamix_can_train_on_public_records_first():
    settings = AdaMixSettings(steps=1, public_steps=30, learning_rate=1e-9)
    before = HEAD.loss(X_PUBLIC, Y_PUBLIC)
    assert run("adamix", settings=settings, model=HEAD).model.loss(X_PUBLIC, Y_PUBLIC) < before


@pytest.mark.parametrize(
    ("groups", "kept", "size"), [("row", 2, 12), ("column", 3, 15), ("element", 12, 12)]
)
@pytest.mark.parametrize("scores", ["magnitudes", "squares"])
def test_sparta_trains_only_what_it_selected(groups, kept, size, scores, monkeypatch):
    monkeypatch.setattr(Target, "sampled_noise", lambda *_: 2.0)
    settings = SpartaSettings(
        epochs=5, warm_up_epochs=1, sampling_rate=0.5, kept=0.4, groups=groups, scores=scores
    )
    result = run("sparta", settings=settings)
    labels = [row["label"] for row in result.history]
    assert labels == ["warm-up"] * 2 + ["selection"] * 2 + ["sparse step"] * 6
    moved = (result.model.weights != MODEL.weights)[:35].reshape(5, 7)
    assert moved[:, -1].all()
    body = moved[:, :-1]
    count = {"row": body.any(axis=1).sum(), "column": body.any(axis=0).sum(), "element": body.sum()}
    # ⌊m(1 - s)⌋ groups are dropped.
    assert count[groups] == kept
    assert result.history[-1]["n_components"] == size + 5 + 18


@pytest.mark.parametrize("scores", ["magnitudes", "squares"])
def test_sparta_selects_the_largest_groups(monkeypatch, scores):
    settings = SpartaSettings(
        epochs=2,
        warm_up_epochs=0,
        sampling_rate=1.0,
        kept=0.4,
        clipping_norm=100.0,
        scores=scores,
    )
    result = run_exactly(monkeypatch, "sparta", settings)
    g = rows(MODEL)
    of_weights = np.abs(g).sum(axis=0) if scores == "magnitudes" else g.sum(axis=0) ** 2
    totals = of_weights[:35].reshape(5, 7)[:, :-1].sum(axis=1)
    moved = (result.model.weights != MODEL.weights)[:35].reshape(5, 7)[:, :-1].any(axis=1)
    assert set(np.flatnonzero(moved)) == set(np.argsort(totals)[-2:])


def test_sparta_masks_before_it_clips(monkeypatch):
    settings = SpartaSettings(
        epochs=2,
        warm_up_epochs=0,
        sampling_rate=1.0,
        kept=0.4,
        clipping_norm=0.2,
        learning_rate=1.0,
        momentum=0.0,
    )
    result = run_exactly(monkeypatch, "sparta", settings)
    moved = result.model.weights != MODEL.weights
    g = rows(MODEL) * moved
    clipped = g * np.minimum(1, 0.2 / np.linalg.norm(g, axis=1, keepdims=True))
    expected = MODEL.weights - one_cycle(0, 2) * clipped.sum(axis=0) / (0.2 * 60)
    np.testing.assert_allclose(result.model.weights, expected, atol=1e-4)


def test_sparta_with_groups_of_ones_own():
    groups = np.where(np.arange(53) < 30, np.arange(53) // 10, -1)
    settings = SpartaSettings(
        epochs=3, warm_up_epochs=0, sampling_rate=1.0, kept=0.34, groups=tuple(groups)
    )
    result = run("sparta", settings=settings)
    moved = result.model.weights != MODEL.weights
    assert moved[30:].all()
    assert moved[:30].reshape(3, 10).all(axis=1).sum() == 2
    assert moved[:30].sum() == 20
    json.dumps(result.release.certificate()["settings"])


def test_sparta_of_a_head_alone():
    settings = SpartaSettings(
        epochs=3, warm_up_epochs=0, sampling_rate=1.0, kept=0.5, groups="column"
    )
    moved = run("sparta", settings=settings, model=HEAD).model.weights.reshape(3, 7) != 0
    assert moved.all(axis=0).sum() == 4
    assert moved.sum() == 12


def test_centred_features(monkeypatch):
    settings = LeastSquaresSettings(ridge=2.0, feature_norm=3.0, centred=True)
    result = run_exactly(monkeypatch, "dp_ls", settings, model=HEAD)
    centre = np.append(X_PUBLIC.mean(axis=0, dtype=np.float64), 0.0)
    z = np.concatenate([X, np.ones((60, 1))], axis=1) - centre
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 3.0)
    scores = HEAD.with_weights(result.model.weights).predict_log_proba(X)
    expected = []
    for c in range(3):
        own = z[c == Y]
        a = own.T @ own + 2.0 * z.T @ z + 2.0 * np.eye(7)
        expected.append(
            (np.concatenate([X, np.ones((60, 1))], axis=1) - centre)
            @ np.linalg.solve(a, own.sum(axis=0))
            / 3.0
        )
    expected = np.stack(expected, axis=1)
    np.testing.assert_allclose(
        scores - scores[:, :1], expected - expected[:, :1], rtol=1e-3, atol=1e-3
    )


def test_centred_features_start_at_the_pretrained_head():
    settings = NewtonSettings(
        start="pretrained", centred=True, learning_rate=1e-9, feature_norm=2.0
    )
    result = run("dp_newton", settings=settings)
    np.testing.assert_allclose(result.model.weights, MODEL.weights, atol=1e-6)
    with pytest.raises(ValueError, match="take a public mean"):
        dp_newton(MODEL, X, Y, target_epsilon=1.0, target_delta=1e-5, settings=settings)


def unit_features(norm=1.0):
    features = np.concatenate([X, np.ones((60, 1))], axis=1).astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), norm)


def test_least_squares_against_its_formula(monkeypatch):
    settings = LeastSquaresSettings(global_weight=0.5, ridge=2.0, feature_norm=3.0)
    result = run_exactly(monkeypatch, "dp_ls", settings, model=HEAD)
    z = unit_features(3.0)
    for c in range(3):
        own = z[c == Y]
        a = own.T @ own + 0.5 * z.T @ z + 2.0 * np.eye(7)
        expected = np.linalg.solve(a, own.sum(axis=0)) / 3.0
        np.testing.assert_allclose(
            result.model.weights.reshape(3, 7)[c], expected, rtol=1e-3, atol=1e-4
        )


def test_newton_against_its_formula(monkeypatch):
    settings = NewtonSettings(steps=2, learning_rate=0.7, ridge=1.0)
    result = run_exactly(monkeypatch, "dp_newton", settings, model=HEAD)
    z = unit_features()
    for c in range(3):
        w = np.zeros(7)
        for _ in range(2):
            p = 1 / (1 + np.exp(-z @ w))
            hessian = (z * (p * (1 - p))[:, None]).T @ z + np.eye(7)
            w = w - 0.7 * np.linalg.solve(hessian, z.T @ (p - (c == Y)))
        np.testing.assert_allclose(result.model.weights.reshape(3, 7)[c], w, rtol=1e-3, atol=1e-3)


def test_shared_covariance_against_its_formula(monkeypatch):
    settings = FeatureCovarianceSettings(steps=3, learning_rate=5.0, ridge=1.0)
    result = run_exactly(monkeypatch, "dp_fc", settings, model=HEAD)
    z = unit_features()
    w = np.zeros((3, 7))
    for _ in range(3):
        p = 1 / (1 + np.exp(10 - z @ w.T))
        g = ((p - (Y[:, None] == np.arange(3))) / 3).T @ z
        w = w - 5.0 * g @ np.linalg.inv(z.T @ z + np.eye(7))
    np.testing.assert_allclose(result.model.weights.reshape(3, 7), w, rtol=1e-3, atol=1e-3)


def test_classes_have_noise_of_their_own():
    result = run("dp_ls", model=HEAD, settings=LeastSquaresSettings(ridge=1e3), eps=0.1)
    w = result.model.weights.reshape(3, 7)
    # Shared noise would cancel in differences.
    differences = np.linalg.norm(w - w[[1, 2, 0]], axis=1)
    assert differences.min() > 0.5 * np.linalg.norm(w, axis=1).min()


def test_output_perturbation_against_its_formula(monkeypatch):
    settings = OutputPerturbationSettings(regularisation=0.1, steps=200, start="zero")
    monkeypatch.setattr(Target, "full_batch_noise", lambda *_: [1e-2])
    monkeypatch.setattr(_boundary.PrivateBoundary, "is_within_target", lambda _: True)
    result = run("output_perturbation", settings=settings, model=HEAD)
    z = unit_features(6.0)
    w = np.zeros((3, 7))
    for _ in range(2000):
        p = np.exp(z @ w.T)
        p /= p.sum(axis=1, keepdims=True)
        w -= (p - (Y[:, None] == np.arange(3))).T @ z / 60 + 0.1 * w
    noise = 1e-2 * sensitivity(settings, 60, 7, 1.0) / 6
    np.testing.assert_allclose(result.model.weights.reshape(3, 7), w / 6, atol=6 * noise + 1e-3)


# ------------------------------------------------------------------------------------ learning


@pytest.fixture(scope="module")
def digits():
    """Digits of which the private ones are mirrored."""
    data = load_digits()
    X = (data.images.reshape(len(data.images), -1) / 4).astype(np.float32)
    y = np.asarray(data.labels)
    mirrored = np.ascontiguousarray(X.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, 64))
    model = mlp((64, 32, 10)).fit(X[:500], y[:500], epochs=15)
    private, test = slice(600, 1500), slice(1500, None)
    return (
        model,
        (X[500:600], y[500:600]),
        (mirrored[private], y[private]),
        (
            mirrored[test],
            y[test],
        ),
    )


GOOD = {
    dp_gd: GradientDescentSettings(steps=40, learning_rate=1.0),
    dp_sgd: SGDSettings(steps=120, sampling_rate=0.25, learning_rate=3.0),
    adamix: AdaMixSettings(
        steps=60, learning_rate=3.0, clipping_norm=1.0, public_share=0.1, subspace="none"
    ),
    sparta: SpartaSettings(
        epochs=30, warm_up_epochs=3, sampling_rate=0.25, kept=0.8, learning_rate=0.5
    ),
    dp_ls: LeastSquaresSettings(ridge=10.0),
    dp_newton: NewtonSettings(ridge=10.0, steps=2),
    dp_fc: FeatureCovarianceSettings(ridge=10.0, learning_rate=20.0),
    output_perturbation: OutputPerturbationSettings(
        regularisation=3e-3, feature_norm=3.0, centred=True, start="zero"
    ),
    non_private: NonPrivateSettings(epochs=20),
}


@pytest.mark.parametrize("method", GOOD, ids=lambda method: method.name)
def test_learns(digits, method):
    model, public, private, test = digits
    before = model.score(*test)
    result = method(
        model,
        *private,
        target_epsilon=8.0,
        target_delta=1e-5,
        public_data=public,
        settings=GOOD[method],
        rng=insecure_test_generator(0),
    )
    assert before < 0.3
    assert result.model.score(*test) > (0.4 if method is output_perturbation else 0.6)


# ---------------------------------------------------------------------------------- bad input


def call(**changes):
    arguments = {"target_epsilon": 1.0, "target_delta": 1e-5, "settings": SHORT["dp_gd"]}
    X_given, y_given = changes.pop("X", X), changes.pop("y", Y)
    method = changes.pop("method", dp_gd)
    return method(MODEL, X_given, y_given, **{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"X": X[:0], "y": Y[:0]}, ValueError, "at least one record"),
        ({"y": Y[:5]}, ValueError, "one entry a record"),
        ({"X": X[:, :4]}, ValueError, "must be"),
        ({"target_epsilon": -1.0}, ValueError, "epsilon"),
        ({"target_delta": 2.0}, ValueError, "delta"),
        (
            {"neighboring_relation": "add_or_remove_one"},
            ValueError,
            "the number of records is public",
        ),
        ({"settings": SGDSettings()}, TypeError, "dp_gd needs GradientDescentSettings"),
        ({"rng": np.random.default_rng()}, TypeError, "insecure_test_generator"),
        ({"method": adamix, "settings": None}, ValueError, "give public_data"),
        ({"public_data": (X, Y[:3])}, ValueError, "public_data has shapes"),
        ({"public_data": (np.full_like(X, np.nan), Y)}, ValueError, "must be finite"),
        ({"public_data": (X, Y + 1)}, ValueError, "is none of the classes 0..2; public labels"),
        ({"target_epsilon": None}, TypeError, "target_epsilon must be a real number"),
    ],
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        (SGDSettings, {"steps": 0}, "steps is 0"),
        (SGDSettings, {"sampling_rate": 1.5}, "a probability"),
        (SGDSettings, {"sampling_rate": 0.0}, "above 0"),
        (SGDSettings, {"momentum": 1.0}, r"\[0, 1\)"),
        (SGDSettings, {"clipping": "flat"}, "needs one of"),
        (SGDSettings, {"optimizer": "lamb"}, "needs one of"),
        (GradientDescentSettings, {"clipping_norm": -1.0}, "above 0"),
        (AdaMixSettings, {"subspace": "all"}, "needs one of"),
        (AdaMixSettings, {"rank": 0}, "at least 1"),
        (AdaMixSettings, {"public_share": 1.0}, r"\[0, 1\)"),
        (SpartaSettings, {"epochs": 5, "warm_up_epochs": 4}, "at least one more"),
        (SpartaSettings, {"kept": 1.2}, "a probability"),
        (SpartaSettings, {"groups": "layer"}, "needs one of"),
        (SpartaSettings, {"groups": 5}, "an integer for each weight"),
        (SpartaSettings, {"groups": ("row",)}, "an integer for each weight"),
        (SpartaSettings, {"groups": (0.7, 0.9)}, "an integer for each weight"),
        (NewtonSettings, {"clipping": 1.5}, "a probability"),
        (SpartaSettings, {"scores": "released"}, "needs one of"),
        (LeastSquaresSettings, {"ridge": 0.0}, "above 0"),
        (NewtonSettings, {"start": "random"}, "needs one of"),
        (FeatureCovarianceSettings, {"steps": 0}, "at least 1"),
        (OutputPerturbationSettings, {"regularisation": 0.0}, "above 0"),
        (PublicOnlySettings, {"epochs": -1}, "at least 0"),
        (NonPrivateSettings, {"epochs": 0}, "at least 1"),
    ],
)
def test_bad_settings(settings, arguments, message):
    with pytest.raises(ValueError, match=message):
        settings(**arguments)


@pytest.mark.parametrize(
    "settings", [LeastSquaresSettings, NewtonSettings, FeatureCovarianceSettings]
)
def test_a_flag_is_true_or_false(settings):
    with pytest.raises(TypeError, match="centred is 'no'; it needs True or False"):
        settings(centred="no")


def test_a_regularisation_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="regularisation is 1e"):
        run("output_perturbation", settings=OutputPerturbationSettings(regularisation=1e17))


@pytest.mark.parametrize(("given", "message"), [((3, 4), "has shapes"), (X_PUBLIC, "a pair")])
def test_public_data_are_a_pair(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(method=adamix, settings=SHORT["adamix"], public_data=given)


def test_public_records_count_alike_however_many_there_are(monkeypatch):
    settings = AdaMixSettings(
        steps=2, learning_rate=1.0, subspace="none", clipping_norm=1.0, public_share=0.3
    )
    twice = np.repeat(X_PUBLIC, 2, axis=0), np.repeat(Y_PUBLIC, 2)
    one = run_exactly(monkeypatch, "adamix", settings).release.weights
    other = run_exactly(monkeypatch, "adamix", settings, public=twice).release.weights
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["dp_newton", "dp_fc"])
def test_gradients_of_heads_may_be_clipped_further(monkeypatch, name):
    settings = SHORT[name]
    change = {"clipping": 1e-3} if name == "dp_newton" else {"clipping_norm": 1e-3}
    whole, clipped = (
        run_exactly(monkeypatch, name, replace(settings, start="zero", steps=1, **more))
        for more in ({}, change)
    )
    size = math.prod(MODEL.layer_shapes[-1])
    ends = [np.linalg.norm(result.release.weights[-size:]) for result in (whole, clipped)]
    assert ends[1] < 0.5 * ends[0]


def test_layers_over_places_are_refused_where_they_cannot_be_taken_apart():
    shapes = [(2, 3)]
    factors = [(np.ones((4, 6)), np.ones((4, 1)))]
    every = [np.ones(2, bool)], [np.ones(2, bool)]
    for part in (SomeRowsAndColumns(shapes, *every), InputSubspace(shapes, [np.eye(3)[:, :2]])):
        with pytest.raises(ValueError, match="no outer product of 2 derivatives and 3 inputs"):
            part.pairs(factors)


def test_bad_groups():
    short = SpartaSettings(epochs=3, warm_up_epochs=0, sampling_rate=1.0, groups=(0, 1))
    with pytest.raises(ValueError, match="one for each of the 53"):
        run("sparta", settings=short)
    with pytest.raises(ValueError, match="has no group"):
        run("sparta", settings=replace(short, groups=(-1,) * 53))


class Bare:
    """A model without layers."""

    def __init__(self, weights):
        self.weights = weights

    def with_weights(self, weights):
        return Bare(weights)

    def gradient_blocks(self, X, y):
        source = HEAD.gradient_blocks(X, y)

        class Rows:
            n_records, n_parameters = source.n_records, source.n_parameters

            def blocks(self):
                return source.blocks()

        return Rows()


def test_models_that_only_give_rows():
    layered = run("dp_gd", model=HEAD).release.weights
    np.testing.assert_allclose(
        run(
            "dp_gd", model=Bare(HEAD.weights), settings=GradientDescentSettings(steps=1)
        ).release.weights,
        run("dp_gd", model=HEAD, settings=GradientDescentSettings(steps=1)).release.weights,
        atol=1e-5,
    )
    assert layered.shape == (21,)
    with pytest.raises(ValueError, match="no known last layer"):
        run("dp_ls", model=Bare(HEAD.weights))
