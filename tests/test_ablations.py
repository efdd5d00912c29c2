"""Ablations: parts put in place of qexp's do what they are said to, and the page says it."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("dp_accounting")

from experiments import ablations
from experiments.ablations import PreconditionedSettings, SketchedCurvature, preconditioned
from experiments.study.variants import lines_at
from qexp import DenseCurvature, KroneckerCurvature, KroneckerSRHT
from qexp.bits import insecure_test_generator
from qexp.finetune import Schedule, fine_tune
from qexp.models import mlp


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    X = (3 * np.eye(3, 5)[y] + rng.normal(size=(200, 5))).astype(np.float32)
    return X, y


@pytest.fixture(scope="module")
def model(records):
    return mlp((5, 6, 3), seed=0).fit(*records, epochs=1)


def test_without_noise_and_clipping_both_kronecker_steps_are_one(model, records):
    X, y = records
    at = {"clipping_norm": 30.0, "step_size": 0.5, "damping": 0.1}
    private = {"target_epsilon": 1e5, "target_delta": 1e-5}
    theirs = preconditioned(
        model,
        X,
        y,
        public_data=(X, y),
        settings=PreconditionedSettings(rounds=2, **at),
        rng=insecure_test_generator(0),
        **private,
    )
    ours = fine_tune(
        model,
        X,
        y,
        schedule=Schedule(rounds=2, **at),
        curvature=KroneckerCurvature.from_model(model, X, damping=0.1),
        rng=insecure_test_generator(0),
        **private,
    )
    moved = ours.model.weights - model.weights
    error = np.linalg.norm(theirs.model.weights - ours.model.weights)
    assert error < 0.1 * np.linalg.norm(moved)


def test_preconditioning_spends_what_gradient_descent_does(model, records):
    X, y = records
    result = preconditioned(
        model,
        X,
        y,
        target_epsilon=1.0,
        target_delta=1e-5,
        public_data=(X, y),
        settings=PreconditionedSettings(rounds=3, clipping_norm=1, step_size=0.1, damping=0.1),
        rng=insecure_test_generator(0),
    )
    certificate = result.release.certificate()
    assert (certificate["sums"], certificate["mu_is"]) == (3, "exact")
    with pytest.raises(ValueError, match="public records"):
        preconditioned.algorithm(model, None, None, None)


def test_sketched_curvature_is_dense_curvature_behind_the_sketch(model, records):
    X, y = records
    k, p = 16, len(model.weights)
    made = SketchedCurvature(model, X, k, 0.1)
    projection = KroneckerSRHT(model.layer_shapes, k, seed=0)
    dense = DenseCurvature.from_model(model, X, projection=projection, damping=0.1)
    assert (made.n_components, made.n_parameters) == (k, p)
    rows = np.random.default_rng(1).normal(size=(4, p))
    np.testing.assert_array_equal(made.whiten(rows), dense.whiten(projection.forward(rows)))
    whole = np.concatenate(list(model.gradient_blocks(X, y).blocks()))
    factors = next(iter(model.gradient_blocks(X, y).factor_blocks()))
    some = made.whiten_factors(factors)
    np.testing.assert_allclose(some, made.whiten(whole)[: len(some)], rtol=1e-3, atol=1e-4)
    assert made.unwhiten(np.ones(k)).shape == (p,)
    assert made.describe() == {**dense.describe(), "projection": projection.describe()}


def test_variants_change_one_part():
    made = ablations.variants()
    assert len(made) == len({id(variant) for variant in made.values()})
    groups = {name.partition("/")[0] for name in made}
    assert groups == set(ablations._TITLES)
    borrowed = {name: made[name].settings_of for name in made if made[name].settings_of}
    assert all(made[lender].settings_of is None for lender in borrowed.values())
    assert all(list(made).index(lender) < list(made).index(n) for n, lender in borrowed.items())
    assert next(iter(made)) == ablations._KRONECKER
    assert {s.momentum for s in ablations._with_momentum(0.8)} == {0.8}


def test_plans_of_the_ladder_are_taken_over_once(tmp_path):
    ladders, lines = lines_at(tmp_path / "ladders.jsonl"), lines_at(tmp_path / "lines.jsonl")
    cell = {"task": "a", "epsilon": 1.0, "delta": 1e-5}
    for method, seed in (("qexp/1 round", None), ("qexp/1 round", 0), ("dp_gd/8 steps", None)):
        ladders.add({**cell, "method": method, "seed": seed, "hyperparameters": {"rounds": 1}})
    lines.add({**cell, "method": "rounds/2", "seed": None, "hyperparameters": {"rounds": 2}})
    for _ in range(2):
        ablations.adopt_rounds(lines, ladders)
    assert [line["method"] for line in lines.read()] == ["rounds/1", "rounds/2"]


def test_the_page_has_a_table_for_each_part(tmp_path):
    lines = lines_at(tmp_path / "lines.jsonl")
    values = {
        "damping/λ = 0.01": 0.9,
        "damping/λ = 0.1": 0.8,
        "rounds/8": 0.85,
        "rounds/16": 0.86,
        "shrinkage/none": 0.7,
    }
    for method, value in values.items():
        for seed in (None, 0, 1):
            lines.add(
                {
                    "task": "a",
                    "method": method,
                    "epsilon": 1.0,
                    "delta": 1e-5,
                    "seed": seed,
                    "metric": "accuracy",
                    "value": value,
                    "seconds": 1.0,
                }
            )
    page, figure = ablations.write(lines, tmp_path)
    text = page.read_text("utf-8")
    assert "| λ = 0.01 | **90.0 ± 0.0** |" in text
    assert "| λ = 0.1 | 80.0 ± 0.0 |" in text
    assert text.index("| 8 |") < text.index("| 16 |")
    assert "## Shrinkage" in text
    assert "## Momentum" not in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert ablations.write(lines_at(tmp_path / "none.jsonl"), tmp_path / "other") == []
