"""Sums of rivals: their noise, samples, null records, and their simulation."""

import math

import numpy as np
import pytest
from helpers import all_rows
from scipy import stats

from qexp.bits import insecure_test_generator
from qexp.models import mlp
from qexp.rivals import _boundary
from qexp.rivals._accounting import Target
from qexp.rivals._boundary import (
    PrivateBoundary,
    SimulatedBoundary,
    poisson_sample,
    public_normals,
    row_norms,
)
from qexp.rivals._parts import (
    InputSubspace,
    SomeEntries,
    SomeRowsAndColumns,
    WholeSpace,
    gradients,
    layer_factors,
)

TARGET = Target(1.0, 1e-5, "replace_special")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = RNG.integers(3, size=40)
MODEL = mlp((6, 5, 3), seed=1)
SHAPES = list(MODEL.layer_shapes)
P = MODEL.n_parameters


def private(X=X, y=Y, target=TARGET, seed=0):
    return PrivateBoundary(X, y, target, insecure_test_generator(seed))


def rows(X, y):
    return all_rows(MODEL.gradient_blocks(X, y))


def zeros(X, y):
    yield [(np.zeros((len(y), 1)), np.zeros((len(y), 5000)))]


def dense(pairs):
    return np.concatenate(
        [(left[:, :, None] * right[:, None, :]).reshape(len(left), -1) for left, right in pairs],
        axis=1,
    )


def parts():
    rng = np.random.default_rng(2)
    entries = rng.random(P) < 0.3
    masks = [rng.random(out) < 0.6 for out, _ in SHAPES]
    columns = [rng.random(inp - 1) < 0.6 for _, inp in SHAPES]
    bases = [np.linalg.qr(rng.normal(size=(inp, 2)))[0] for _, inp in SHAPES]
    return [
        WholeSpace(MODEL),
        SomeEntries(SHAPES, entries),
        SomeRowsAndColumns(SHAPES, masks, columns),
        SomeRowsAndColumns(SHAPES, masks, columns, biases=False),
        InputSubspace(SHAPES, bases),
    ]


@pytest.mark.statistical
@pytest.mark.parametrize("norm", [0.3, 4.0])
def test_noise_has_the_planned_size(norm):
    boundary = private()
    boundary.plan_full_batch([1.0] * 4)
    draws = np.concatenate(
        [
            boundary.noisy_sum(zeros, n_components=5000, clipping_norm=norm, label="zero")
            for _ in range(4)
        ]
    )
    sigma = math.sqrt(4) / TARGET.mu * norm
    chi2 = np.square(draws / sigma).sum()
    assert 1e-4 < stats.chi2.cdf(chi2, len(draws)) < 1 - 1e-4
    assert abs(draws.mean()) < 5 * sigma / math.sqrt(len(draws))


@pytest.mark.statistical
def test_sampled_noise_has_the_planned_size(monkeypatch):
    monkeypatch.setattr(Target, "sampled_noise", lambda *_: 1.7)
    boundary = private()
    boundary.plan_sampled(0.3, 3)
    draws = np.concatenate(
        [
            boundary.noisy_sum(zeros, n_components=5000, clipping_norm=2.0, label="zero")
            for _ in range(3)
        ]
    )
    chi2 = np.square(draws / (2.0 * 1.7)).sum()
    assert 1e-4 < stats.chi2.cdf(chi2, len(draws)) < 1 - 1e-4


@pytest.mark.statistical
def test_samples_are_poisson():
    sizes, together = [], 0
    for seed in range(400):
        chosen = poisson_sample(1000, 0.2, insecure_test_generator(seed))
        assert np.all(np.diff(chosen) > 0)
        sizes.append(len(chosen))
        together += bool({3, 4} <= set(chosen[:10].tolist()))
    mean, variance = np.mean(sizes), np.var(sizes)
    assert abs(mean - 200) < 5 * math.sqrt(160 / 400)
    assert 0.75 * 160 < variance < 1.3 * 160
    assert abs(together - 16) < 5 * math.sqrt(16)


def test_samples_of_more_records_than_words_at_once(monkeypatch):
    whole = poisson_sample(1000, 0.5, insecure_test_generator(1))
    monkeypatch.setattr(_boundary, "_WORDS_AT_ONCE", 64)
    np.testing.assert_array_equal(poisson_sample(1000, 0.5, insecure_test_generator(1)), whole)


def test_an_empty_sample_gives_noise_alone(monkeypatch):
    monkeypatch.setattr(_boundary, "poisson_sample", lambda *_: np.empty(0, np.intp))
    monkeypatch.setattr(Target, "sampled_noise", lambda *_: 2.0)
    boundary = private()
    boundary.plan_sampled(0.1, 1)
    part = WholeSpace(MODEL)
    values = boundary.noisy_sum(
        gradients(MODEL, part), n_components=P, clipping_norm=1.0, label="empty"
    )
    assert 1.0 < values.std() < 3.0


@pytest.mark.parametrize("part", parts(), ids=lambda part: type(part).__name__)
def test_parts_against_dense_rows(part):
    factors = next(iter(layer_factors(MODEL, X, Y)))
    components = dense(part.pairs(factors))
    assert components.shape == (40, part.n_components)
    embedded = np.stack([part.embed(row.astype(np.float64)) for row in components])
    full = rows(X, Y).astype(np.float64)
    if isinstance(part, InputSubspace):
        # The projection onto the subspace: nothing of the rest is left, nothing of it is lost.
        again = [part.embed(dense(part.pairs(f))[0]) for f in [_as_factors(embedded[0])]]
        np.testing.assert_allclose(again[0], embedded[0], atol=1e-6)
        assert np.all(np.linalg.norm(embedded, axis=1) <= np.linalg.norm(full, axis=1) + 1e-6)
    else:
        kept = part.embed(np.ones(part.n_components)) > 0
        np.testing.assert_allclose(embedded[:, kept], full[:, kept], atol=1e-6)
        assert not embedded[:, ~kept].any()
        assert kept.sum() == part.n_components


def _as_factors(row):
    """Give a weight vector as one record's factors: layer rows, then their inputs by SVD."""
    factors, start = [], 0
    for out, inp in SHAPES:
        u, s, vt = np.linalg.svd(row[start : start + out * inp].reshape(out, inp))
        factors.append((vt[:1], s[0] * u[:, :1].T))
        start += out * inp
    return factors


def test_automatic_clipping():
    pairs = next(iter(gradients(MODEL, WholeSpace(MODEL), automatic=True)(X, Y)))
    full = rows(X, Y).astype(np.float64)
    norms = np.linalg.norm(full, axis=1, keepdims=True)
    np.testing.assert_allclose(dense(pairs), full / (norms + 0.01), rtol=1e-4, atol=1e-6)
    assert np.all(row_norms(pairs) < 1)


def test_magnitudes():
    pairs = next(iter(gradients(MODEL, WholeSpace(MODEL), magnitudes=True)(X, Y)))
    np.testing.assert_allclose(dense(pairs), np.abs(rows(X, Y)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", [0.05, 0.5, 50.0])
def test_clipped_sum_against_dense_rows(norm):
    boundary = private(target=Target(1e9, 1e-5, "replace_special"))
    boundary.plan_full_batch([1.0])
    values = boundary.noisy_sum(
        gradients(MODEL, WholeSpace(MODEL)), n_components=P, clipping_norm=norm, label="step"
    )
    full = rows(X, Y).astype(np.float64)
    norms = np.linalg.norm(full, axis=1, keepdims=True)
    expected = (full * np.minimum(1, norm / norms)).sum(axis=0)
    np.testing.assert_allclose(values, expected, atol=2e-3 * norm)


@pytest.mark.parametrize("automatic", [False, True])
@pytest.mark.parametrize("part", parts(), ids=lambda part: type(part).__name__)
def test_records_are_independent_bit_for_bit(part, automatic):
    pairs_of = gradients(MODEL, part, automatic=automatic)

    def flat(X, y):
        return np.concatenate([dense(pairs) for pairs in pairs_of(X, y)])

    whole = flat(X, Y)
    order = np.random.default_rng(3).permutation(len(X))
    np.testing.assert_array_equal(flat(X[order], Y[order]), whole[order])
    np.testing.assert_array_equal(flat(X[7:8], Y[7:8])[0], whole[7])
    bad = X.copy()
    bad[11] = np.nan
    others = np.arange(len(X)) != 11
    np.testing.assert_array_equal(flat(bad, Y)[others], whole[others])


def test_a_record_that_is_not_finite_counts_as_null():
    bad = X.copy()
    bad[5, 2] = np.inf
    without = np.delete(X, 5, axis=0), np.delete(Y, 5)
    sums = []
    for records in ((bad, Y), without):
        boundary = private(*records)
        boundary.plan_full_batch([1.0])
        sums.append(
            boundary.noisy_sum(
                gradients(MODEL, WholeSpace(MODEL), automatic=True),
                n_components=P,
                clipping_norm=1.0,
                label="step",
            )
        )
    np.testing.assert_array_equal(*sums)


def test_sums_are_those_announced():
    boundary = private()
    with pytest.raises(RuntimeError, match="have been made"):
        boundary.noisy_sum(zeros, n_components=5000, clipping_norm=1.0, label="x")
    boundary.plan_full_batch([1.0])
    with pytest.raises(RuntimeError, match="once"):
        boundary.plan_full_batch([1.0])
    boundary.noisy_sum(zeros, n_components=5000, clipping_norm=1.0, label="x")
    with pytest.raises(RuntimeError, match="all of the 1 sums"):
        boundary.noisy_sum(zeros, n_components=5000, clipping_norm=1.0, label="x")
    assert boundary.is_within_target()
    boundary.claims.append(boundary.claims[0])
    assert not boundary.is_within_target()


def test_sampled_sums_are_no_more_than_announced():
    boundary = private()
    boundary.plan_sampled(0.5, 1)
    boundary.noisy_sum(zeros, n_components=5000, clipping_norm=1.0, label="x")
    assert boundary.is_within_target()
    boundary.claims.append(boundary.claims[0])
    assert not boundary.is_within_target()


def test_a_norm_depends_on_its_row_alone():
    left, right = RNG.normal(size=(50, 900)), RNG.normal(size=(50, 40))
    chosen = RNG.permutation(900)[:700]
    whole = row_norms([(left[:, chosen], right)])
    alone = [row_norms([(left[i : i + 1][:, chosen], right[i : i + 1])])[0] for i in range(50)]
    np.testing.assert_array_equal(whole, alone)


def test_a_vector_is_released_within_its_claim():
    boundary = private(target=Target(2.0, 1e-5, "replace_one"))
    boundary.plan_full_batch([1.0])
    vector = RNG.normal(size=300)
    values = boundary.noisy_vector(
        lambda X, y: vector, bound=100.0, sensitivity=0.01, label="vector"
    )
    lattice, (_, claim) = boundary.lattices[0], boundary.claims[0]
    moved = lattice.units_per_norm * 0.01 + math.sqrt(300)
    assert math.ldexp(moved, -lattice.bits) <= claim
    assert boundary.is_within_target()
    sigma = 0.01 / boundary.target.mu
    assert 0.85 * sigma < (values - vector).std() < 1.15 * sigma


def simulated(seed, n_records, rate=1.0, norm=0.3, part=None):
    part = WholeSpace(MODEL) if part is None else part
    boundary = SimulatedBoundary(X, Y, TARGET, n_records, np.random.default_rng(seed))
    boundary.plan_sampled(rate, 2)
    return boundary.noisy_sum(
        gradients(MODEL, part), n_components=part.n_components, clipping_norm=norm, label="step"
    )


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_simulated_sums_are_as_the_private_ones(rate, monkeypatch):
    monkeypatch.setattr(Target, "sampled_noise", lambda *_: 1.5)
    monkeypatch.setattr(Target, "full_batch_noise", lambda *_: [1.5, 1.5])
    part = WholeSpace(MODEL)

    def real(seed):
        boundary = private(seed=seed)
        boundary.plan_sampled(rate, 2)
        return boundary.noisy_sum(
            gradients(MODEL, part), n_components=P, clipping_norm=0.3, label="step"
        )

    draws = 600
    ours = np.stack([real(seed) for seed in range(draws)])
    theirs = np.stack([simulated(seed, 40, rate) for seed in range(draws)])
    spread = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / draws)
    assert np.abs((ours.mean(axis=0) - theirs.mean(axis=0)) / spread).max() < 4.5
    ratio = ours.var(axis=0).mean() / theirs.var(axis=0).mean()
    assert 0.95 < ratio < 1.05


def test_few_simulated_records_stand_for_many():
    few = np.mean([simulated(seed, 400) for seed in range(400)], axis=0)
    full = rows(X, Y).astype(np.float64)
    norms = np.linalg.norm(full, axis=1, keepdims=True)
    expected = 10 * (full * np.minimum(1, 0.3 / norms)).sum(axis=0)
    sigma = 0.3 * math.sqrt(2) / TARGET.mu
    assert np.abs(few - expected).max() < 5 * sigma / math.sqrt(400)


def test_simulated_records_that_are_not_finite_count_as_null(monkeypatch):
    monkeypatch.setattr(Target, "full_batch_noise", lambda *_: [1e-9])
    bad = X.copy()
    bad[5] = np.nan
    boundary = SimulatedBoundary(bad, Y, TARGET, 40, np.random.default_rng(0))
    boundary.plan_full_batch([1.0])
    values = boundary.noisy_sum(
        gradients(MODEL, WholeSpace(MODEL)), n_components=P, clipping_norm=100.0, label="step"
    )
    expected = np.delete(rows(X, Y), 5, axis=0).sum(axis=0)
    np.testing.assert_allclose(values, expected, atol=1e-4)


@pytest.mark.statistical
def test_public_normals_are_normal():
    drawn = public_normals(np.random.default_rng(0), 200_001)
    assert (drawn.dtype, drawn.shape) == (np.float32, (200_001,))
    assert stats.kstest(drawn.astype(np.float64), stats.norm.cdf).pvalue > 1e-3
    half = len(drawn) // 2
    pairs = np.stack([drawn[:half], drawn[half + 1 :]]).astype(np.float64)
    for power in (1, 2):
        assert abs(np.corrcoef(pairs**power)[0, 1]) < 5 / math.sqrt(half)
    assert np.isfinite(drawn).all()
    assert 3 < np.abs(drawn).max() < 6
