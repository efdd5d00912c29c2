"""Fine-tuning in rounds: accounting, bits, early stops, interruptions and resumption."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qexp
from qexp import finetune
from qexp.bits import insecure_test_generator
from qexp.finetune import Schedule, fine_tune
from qexp.models import mlp

TARGET = {"target_epsilon": 2.0, "target_delta": 1e-5}


@pytest.fixture(scope="module")
def task():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(300, 6)).astype(np.float32)
    y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)
    model = mlp((6, 4, 2), seed=1)
    return model, X, y, qexp.KroneckerCurvature.from_model(model, X[:100], damping=1e-2)


def plan(rounds=3, **changes):
    settings = {"rounds": rounds, "clipping_norm": 3.0, "step_size": 0.5, "damping": 1e-2}
    return Schedule(**{**settings, **changes})


def tune(task, schedule=None, **changes):
    model, X, y, curvature = task
    arguments = {"curvature": curvature, "rng": insecure_test_generator(5), **TARGET, **changes}
    return fine_tune(model, X, y, schedule=schedule or plan(), **arguments)


# ------------------------------------------------------------------------------- one round


def test_one_round_gives_the_bits_of_a_single_draw(task):
    model, X, y, curvature = task
    release = qexp.sample_private_weights(
        model.weights,
        model.gradient_blocks(X, y),
        curvature=curvature,
        clipping_norm=3.0,
        step_size=0.5,
        rng=insecure_test_generator(5).spawn(1),
        **TARGET,
    )
    result = tune(task, plan(1))
    assert np.array_equal(result.release.weights, release.weights)
    assert result.release.mu == release.mu
    assert result.release.epsilon == 2.0


# ------------------------------------------------------------------------------ accounting


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=20),
    mu=st.floats(0.01, 5),
)
def test_the_rounds_claims_compose_to_at_most_mu_and_hardly_less(shares, mu):
    lattices = finetune._lattices(plan(len(shares), budget=tuple(shares)), mu, 1000)
    squares = sum(Fraction(lattice.mu) ** 2 for lattice in lattices)
    assert squares <= Fraction(mu) ** 2
    assert math.sqrt(squares) >= mu * (1 - 1e-6)
    for share, lattice in zip(shares, lattices, strict=True):
        assert lattice.mu == pytest.approx(mu * math.sqrt(share / sum(shares)), rel=1e-6)


@pytest.mark.parametrize("relation", ["replace_special", "replace_one"])
def test_all_rounds_together_cost_the_target(task, relation):
    ledger = qexp.PrivacyLedger(**TARGET, neighboring_relation=relation)
    result = tune(task, ledger=ledger, neighboring_relation=relation)
    target = qexp.calibrate_mu(2.0, 1e-5)
    assert result.release.mu <= target
    assert result.release.mu == pytest.approx(target, rel=1e-6)
    assert ledger.mu_spent == result.release.mu
    assert len(ledger.entries) == result.rounds_done == 3
    assert result.stopped_because == "finished"
    assert [numbers["round"] for numbers in result.history] == [1, 2, 3]
