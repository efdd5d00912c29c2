"""The transfer tasks of the experiments, which are not part of the package."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.tasks import TASKS


def test_names():
    assert set(TASKS) == {
        *("mnist_to_usps", "mnist_rotated", "usps_to_mnist"),
        *("mnist_few_250", "mnist_few_500", "mnist_few_1000", "mnist_few_2000"),
        *("mnist_to_usps_augmented", "mnist_few_500_augmented"),
        *("icu_cardiac", "icu_cardiac_mlp", "icu_time", "adult_work"),
        *("mimic_mortality", "mimic_mortality_full"),
    }


def check(task, name, sizes):
    """Check what all tasks have in common; `sizes` are of private and test records."""
    assert task.name == name
    assert (len(task.X_private), len(task.X_test)) == sizes
    rehearsals = task.planned_on()
    d = task.model.layer_sizes[0]
    for X, y in (
        (task.X_public, task.y_public),
        task.public_records(),
        (task.X_private, task.y_private),
        (task.X_test, task.y_test),
        *((move.X_public, move.y_public) for move in rehearsals),
    ):
        assert X.dtype == np.float32
        assert X.shape == (len(y), d)
        assert np.isfinite(X).all()
        assert y.max() < task.model.layer_sizes[-1]
    assert all(move.model.layer_sizes == task.model.layer_sizes for move in rehearsals)
    assert (task.image_shape is None) == (task.surrogate != "images")
    if task.planning_group is not None:
        assert len(task.planning_group) == len(rehearsals[0].X_public)
    measures = task.measures(task.model)
    expected = {"accuracy"} | (
        {"auroc", "auprc", "calibration_error"} if task.metric == "auroc" else set()
    )
    assert set(measures) == expected
    assert all(0 <= value <= 1 for value in measures.values())
    assert task.value(task.model) == measures[task.metric]


def apart(*blocks):
    """Whether no record is in two of the blocks."""
    seen = [{hashlib.sha256(row.tobytes()).digest() for row in X} for X in blocks]
    return len(set.union(*seen)) == sum(len(block) for block in seen)


@pytest.mark.data
def test_few_digits_are_the_first_of_more():
    task, more = TASKS["mnist_few_500"](0), TASKS["mnist_few_1000"](0)
    check(task, "mnist_few_500", (500, 2007))
    assert more.X_private[:500].tobytes() == task.X_private.tobytes()
    assert len(np.unique(task.y_private)) == 10
    assert task.non_private().score(task.X_test, task.y_test) > task.value(task.model) + 0.1


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("icu_cardiac", (1451, 1372)),
        ("icu_time", (2000, 2000)),
        ("adult_work", (3657, 1900)),
    ],
)
def test_tables(name, sizes):
    task = TASKS[name](0)
    check(task, name, sizes)
    if name == "icu_cardiac":  # elsewhere there are stays without a value, or people, alike
        assert apart(task.X_public, task.X_private, task.X_test)
    gained = task.value(task.non_private()) - task.value(task.model)
    assert gained > (0.01 if name != "icu_time" else -0.01)


@pytest.mark.data
def test_only_the_model_of_an_augmented_task_differs():
    from qexp.surrogates import image_surrogates

    task, plain = TASKS["mnist_few_500_augmented"](0), TASKS["mnist_few_500"](0)
    check(task, "mnist_few_500_augmented", (500, 2007))
    assert task.X_private.tobytes() == plain.X_private.tobytes()
    assert task.X_held_out.tobytes() == plain.X_held_out.tobytes()
    X, y = task.X_held_out[:2000], task.y_held_out[:2000]
    for shift in image_surrogates(plain.model, X, y, image_shape=(16, 16), count=3):
        shifted = shift(X, y, np.random.default_rng(0))
        assert task.model.score(*shifted) > plain.model.score(*shifted) + 0.1


@pytest.mark.data
def test_the_hidden_layer_is_the_only_difference():
    task = TASKS["icu_cardiac_mlp"](0)
    check(task, "icu_cardiac_mlp", (1451, 1372))
    assert len(task.model.layer_sizes) == 3


@pytest.mark.data
def test_mimic_from_tables_to_a_release():
    pytest.importorskip("duckdb", reason="DuckDB (the extra qexp[mimic]) is not installed")
    if not Path(os.environ["QEXP_DATA"], "mimic3_demo").is_dir():
        pytest.skip("the open MIMIC-III sample is not in QEXP_DATA/mimic3_demo")
    from qexp import KroneckerCurvature, Schedule, fine_tune
    from qexp.bits import insecure_test_generator

    task = TASKS["mimic_mortality"](0)
    check(task, "mimic_mortality", (14, 13))
    assert apart(task.X_public, task.X_private, task.X_test)
    result = fine_tune(
        task.model,
        task.X_private,
        task.y_private,
        schedule=Schedule(rounds=2, clipping_norm=1.0, step_size=0.1, damping=0.1),
        curvature=KroneckerCurvature.from_model(task.model, task.public_records()[0], damping=0.1),
        target_epsilon=1.0,
        target_delta=1e-5,
        rng=insecure_test_generator(0),
    )
    assert set(task.measures(result.model)) == set(task.measures(task.model))
    assert not np.array_equal(result.model.weights, task.model.weights)
