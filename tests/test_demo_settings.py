"""The settings of the demonstrations: what their grids are scored on, and by which draw."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

import qexp
from experiments.demo_settings import choose_settings, digits_surrogates, ranking, score_digits
from qexp.bits import insecure_test_generator
from qexp.datasets import load_digits
from qexp.demo import digits
from qexp.demo._task import Settings, Shifted, accuracy


def test_the_settings_are_those_that_public_data_prefer():
    best, *_ = (scores := score_digits(0, epsilon=1.0, delta=1e-5))
    # One seed of the six behind the choice: the choice is within its noise of the best.
    assert scores[digits.SETTINGS] > scores[best] - 0.06
    assert scores[digits.SETTINGS] > np.median(list(scores.values()))


def test_settings_are_scored_by_the_draw_that_will_be_made():
    """The grid's shortcut in whitened coordinates gives the value of the plain draw."""
    task = digits.digits_task(0)
    public = load_digits()
    chosen = digits.split(len(public.labels), 0)[0]
    records = digits.as_records(public.images[chosen])
    settings = task.settings
    scores = choose_settings(
        task.model,
        records,
        [task.private],
        epsilon=1.0,
        delta=1e-5,
        dampings=[settings.damping],
        clipping_norms=[settings.clipping_norm],
        step_sizes=[settings.step_size],
        measure=accuracy,
        generators=lambda: insecure_test_generator(5),
    )
    curvature = qexp.DenseCurvature.from_model(task.model, records, damping=settings.damping)
    release = qexp.sample_private_weights(
        task.model.weights,
        task.model.gradient_blocks(task.private.x_train, task.private.y_train),
        curvature=curvature,
        target_epsilon=1.0,
        target_delta=1e-5,
        clipping_norm=settings.clipping_norm,
        step_size=settings.step_size,
        rng=insecure_test_generator(5),
    )
    plain = task.value(task.model.with_weights(release.weights))
    assert scores == {settings: pytest.approx(plain, abs=2 / len(task.private.y_test))}


def test_surrogates_are_as_many_as_the_private_records_and_made_of_their_argument():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(300, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 10, 300)
    for surrogate in digits_surrogates(images, labels):
        assert isinstance(surrogate, Shifted)
        assert surrogate.x_train.shape == (digits.N_PRIVATE, 64)
        assert set(surrogate.y_train) <= set(labels[:225])
        assert len(surrogate.x_test) == len(surrogate.y_test)


def test_settings_are_ranked_by_their_mean_over_seeds(capsys):
    steady, lucky = (
        Settings(damping=damping, clipping_norm=1.0, step_size=1.0) for damping in (0.1, 0.2)
    )
    found = ranking(lambda seed: {lucky: 0.9 - 0.4 * seed, steady: 0.8}, 2)
    assert found == {
        "seeds": 2,
        "settings": vars(steady),
        "surrogate_value": 0.8,
        "grid_size": 2,
    }
    assert capsys.readouterr().out.splitlines() == [f"0.8000  {steady}", f"0.7000  {lucky}"]
