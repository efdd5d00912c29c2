"""Whitened inputs that are kept from round to round: the same bits, and only where they may be."""

import itertools

import numpy as np
import pytest

import qexp
from qexp.bits import insecure_test_generator
from qexp.finetune import Schedule, _kept_inputs, fine_tune
from qexp.finetune._kept_inputs import KeptInputs
from qexp.layered import KroneckerLayer
from qexp.models import mlp

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 6)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)
MODEL = mlp((6, 5, 4, 2), seed=1)
ELSEWHERE = MODEL.with_weights(RNG.normal(size=MODEL.n_parameters))
CURVATURE = qexp.KroneckerCurvature.from_model(MODEL, X[:100], damping=1e-2)
WHOLE = qexp.Identity(MODEL.n_parameters)
SCHEDULE = Schedule(rounds=4, clipping_norm=1.0, step_size=0.5, damping=1e-2)


def source(model=MODEL, X=X, block_size=70):
    return model.gradient_blocks(X, Y[: len(X)], block_size=block_size)


def copied(blocks):
    return [[(left.copy(), right.copy()) for left, right in block] for block in blocks]


@pytest.fixture
def products(monkeypatch):
    """Count the records whose inputs to the first layer are whitened."""
    seen, real = [], KroneckerLayer.whiten_inputs

    def counted(self, inputs):
        if self is CURVATURE.layers[0]:
            seen.append(len(inputs))
        return real(self, inputs)

    monkeypatch.setattr(KroneckerLayer, "whiten_inputs", counted)
    return seen


def test_every_round_has_the_bits_of_the_curvature(products):
    kept = KeptInputs(CURVATURE)
    for model in (MODEL, ELSEWHERE, MODEL):
        expected = copied(map(CURVATURE.whiten_factors, source(model).factor_blocks()))
        products.clear()
        found = copied(kept.whitened(source(model).factor_blocks()))
        assert len(found) == len(expected) == 5
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(itertools.chain(*one), itertools.chain(*other), strict=True):
                assert np.array_equal(a, b)
    assert products == []  # of the last round
    assert len(kept._inputs) == 5


def test_a_round_that_was_broken_off_is_not_taken_for_a_whole_one(products):
    kept = KeptInputs(CURVATURE)
    begun = kept.whitened(source().factor_blocks())
    next(begun)
    begun.close()
    products.clear()
    assert sum(len(block[0][0]) for block in kept.whitened(source().factor_blocks())) == len(X)
    assert sum(products) == len(X)


def tuned(X=X, **changes):
    arguments = {"curvature": CURVATURE, "schedule": SCHEDULE, "target_epsilon": 2.0} | changes
    rng = insecure_test_generator(5)
    return fine_tune(MODEL, X, Y, target_delta=1e-5, rng=rng, **arguments).release.weights


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, 3e38])
def test_a_job_has_the_same_bits_with_and_without(monkeypatch, products, bad):
    records = X.copy()
    if bad is not None:
        records[7, 2] = bad
    weights = tuned(records)
    assert sum(products) == len(X)
    monkeypatch.setattr(_kept_inputs, "_MOST_BYTES", 0)
    products.clear()
    assert np.array_equal(tuned(records), weights)
    assert sum(products) == 4 * len(X)


def test_refreshed_curvature_keeps_nothing(monkeypatch):
    monkeypatch.setattr(KeptInputs, "for_job", lambda *_: pytest.fail("kept"))
    refreshed = Schedule(
        rounds=2, clipping_norm=1.0, step_size=0.5, damping=1e-2, refresh_curvature=True
    )
    tuned(
        schedule=refreshed,
        curvature=lambda m: qexp.KroneckerCurvature.from_model(m, X[:100], damping=1e-2),
    )


def test_private_curvature_is_kept_by_once_it_is_known(monkeypatch):
    shared = Schedule(rounds=3, clipping_norm=1.0, step_size=0.5, damping=1e-2, curvature_share=0.3)
    weights = tuned(schedule=shared)
    monkeypatch.setattr(_kept_inputs, "_MOST_BYTES", 0)
    assert np.array_equal(tuned(schedule=shared), weights)


def test_only_what_public_shapes_allow_is_kept(monkeypatch, tmp_path):
    def made(X=X, source=source(), projection=WHOLE, curvature=CURVATURE):  # noqa: B008
        return KeptInputs.for_job(X, source, projection, curvature)

    assert made() is not None
    path = tmp_path / "x.npy"
    np.save(path, X)
    assert made(X=np.load(path, mmap_mode="r")) is None
    assert made(X=X.tolist()) is None
    assert made(source=qexp.records.ArrayRecords(np.zeros((3, MODEL.n_parameters)))) is None
    assert made(projection=qexp.CoordinateMask(MODEL.n_parameters, np.arange(3))) is None
    for kinds in (["frozen", "kronecker", "kronecker"], "diagonal"):
        other = qexp.LayeredCurvature.from_model(MODEL, X[:100], damping=1e-2, kinds=kinds)
        assert made(curvature=other) is None
    assert made(curvature=qexp.IdentityCurvature(MODEL.n_parameters)) is None
    monkeypatch.setattr(_kept_inputs, "_MOST_BYTES", len(X) * 7 * 8 - 1)
    assert made() is None
