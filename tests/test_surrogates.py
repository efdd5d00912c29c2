import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexp.datasets import images, load_digits
from qexp.models import mlp
from qexp.surrogates import (
    ImageShift,
    OtherRecords,
    TableShift,
    image_surrogates,
    record_surrogates,
    table_surrogates,
)

RNG = np.random.default_rng(0)
STACK = RNG.uniform(size=(40, 9, 7)).astype(np.float32)
FLAT = STACK.reshape(40, -1)
LABELS = np.arange(40) % 10


def shifted(**settings):
    X, y = ImageShift(image_shape=(9, 7), **settings)(FLAT, LABELS, np.random.default_rng(1))
    assert y is LABELS
    return X.reshape(STACK.shape)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    data = load_digits()
    X = (data.images.reshape(len(data.images), -1) / 16).astype(np.float32)
    return mlp((64, 24, 10)).fit(X, data.labels, epochs=15), X, np.asarray(data.labels)


def test_no_shift_changes_nothing():
    np.testing.assert_allclose(shifted(), STACK, atol=1e-6)


@pytest.mark.parametrize("degrees", [-30.0, 12.5, 90.0])
def test_rotation_is_that_of_images(degrees):
    # The two differ beyond the border, where images.rotate takes the whole neighbourhood as 0.
    expected = images.rotate(STACK, degrees)[:, 3:6, 2:5]
    np.testing.assert_allclose(shifted(rotation=degrees)[:, 3:6, 2:5], expected, atol=1e-5)


def test_shift_goes_down_and_right():
    moved = shifted(shift=(2 / 9, 1 / 7))
    np.testing.assert_allclose(moved[:, 2:, 1:], STACK[:, :-2, :-1], atol=1e-5)
    np.testing.assert_allclose(moved[:, :2], 0, atol=1e-5)


def test_stretch_magnifies_about_the_centre():
    line = np.zeros((1, 9, 7), np.float32)
    line[0, 3:6] = 1
    X, _ = ImageShift(image_shape=(9, 7), stretch=(math.log(2), 0.0))(
        line.reshape(1, -1), LABELS[:1], RNG
    )
    assert X.sum() == pytest.approx(2 * line.sum(), rel=0.05)


def test_blur_and_contrast_are_those_of_images():
    np.testing.assert_allclose(shifted(blur=0.1), images.blur(STACK, 0.7), atol=1e-6)
    np.testing.assert_allclose(shifted(contrast=math.log(2)), images.contrast(STACK, 2), atol=1e-6)


@given(st.floats(-5, 5), st.floats(0.1, 10), st.floats(-40, 40))
def test_values_scale_along(low, width, degrees):
    shift = ImageShift(image_shape=(9, 7), rotation=degrees, contrast=0.3)
    wide = ImageShift(image_shape=(9, 7), rotation=degrees, contrast=0.3, low=low, high=low + width)
    rng = np.random.default_rng
    expected, _ = shift(FLAT, LABELS, rng(0))
    got, _ = wide(FLAT * width + low, LABELS, rng(0))
    np.testing.assert_allclose(got, expected * width + low, atol=1e-4 * (width + abs(low)))


def test_images_differ_in_how_they_are_shifted():
    same = np.repeat(FLAT[:1], 30, axis=0)
    shift = ImageShift(image_shape=(9, 7), rotation=10, spread=0.5)
    X, _ = shift(same, LABELS[:30], np.random.default_rng(0))
    assert 2 <= len(np.unique(X, axis=0)) <= 8
    assert shift.views > 1
    assert ImageShift(image_shape=(9, 7), rotation=10).views == 1


@pytest.mark.parametrize("asked", [None, (0.8, 0.95)])
def test_surrogates_leave_the_accuracy_they_are_to_leave(digits, asked):
    model, X, y = digits
    given = {} if asked is None else {"keeps": asked}
    least, most = asked or (0.4, 0.75)
    shifts = image_surrogates(model, X, y, count=4, seed=3, **given)
    kept = [
        (model.score(*shift(X, y, np.random.default_rng(0))) - 0.1) / (model.score(X, y) - 0.1)
        for shift in shifts
    ]
    np.testing.assert_allclose(kept, np.linspace(most, least, 4), atol=0.06)


def test_surrogates_are_reproducible_and_differ(digits):
    first, again, other = (image_surrogates(*digits, count=2, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[0] != first[1]


def test_wrong_images_are_refused(digits):
    model, X, y = digits
    with pytest.raises(ValueError, match="image_shape"):
        image_surrogates(model, X[:, :-1], y)
    with pytest.raises(ValueError, match="image_shape"):
        image_surrogates(model, X, y, image_shape=(8, 9))
    with pytest.raises(ValueError, match="differ"):
        image_surrogates(model, np.zeros_like(X), y)
    with pytest.raises(ValueError, match="count"):
        image_surrogates(model, X, y, count=0)
    for keeps in ((0.0, 0.5), (0.8, 0.4), (0.5, 1.0)):
        with pytest.raises(ValueError, match=r"two shares in \(0, 1\)"):
            image_surrogates(model, X, y, keeps=keeps)


def table_shift(**settings):
    ones = np.ones(3)
    defaults = {"scale": ones, "offset": 0 * ones, "noise": 0 * ones, "centre": 0 * ones}
    return TableShift(**{**defaults, **settings})


def test_a_table_is_scaled_about_its_centre_and_moved():
    X = RNG.normal(size=(5, 3))
    shift = table_shift(scale=np.full(3, 2.0), offset=np.arange(3.0), centre=np.ones(3))
    got, _ = shift(X, np.zeros(5), RNG)
    np.testing.assert_allclose(got, 1 + 2 * (X - 1) + np.arange(3))


def test_table_noise_has_its_deviation():
    got, _ = table_shift(noise=np.array([0.0, 1.0, 3.0]))(
        np.zeros((20_000, 3)), np.zeros(20_000), np.random.default_rng(0)
    )
    np.testing.assert_allclose(got.std(axis=0), [0, 1, 3], rtol=0.03)


def test_groups_are_thinned_out_at_their_rates():
    group = np.array(["a", "b"] * 5000)
    y = np.arange(10_000)
    shift = table_shift(group=group, keep={"a": 1.0, "b": 0.25})
    X, kept = shift(np.tile(y[:, None], 3).astype(float), y, np.random.default_rng(0))
    np.testing.assert_array_equal(X[:, 0], kept)
    assert np.sum(group[kept] == "a") == 5000
    assert np.sum(group[kept] == "b") == pytest.approx(1250, abs=120)


def test_table_surrogates_lower_the_accuracy_with_groups_and_without(digits):
    model, X, y = digits
    for group in (None, y % 3):
        before = model.score(X, y)
        for shift in table_surrogates(model, X, y, group=group, count=2):
            after = model.score(*shift(X, y, np.random.default_rng(0)))
            assert 0.3 < after < 0.85 * before


def test_wrong_groups_are_refused(digits):
    model, X, y = digits
    with pytest.raises(ValueError, match="one entry for each"):
        table_surrogates(model, X, y, group=y[:-1])
    with pytest.raises(ValueError, match="one a record"):
        table_shift(group=np.zeros(3), keep={0.0: 1.0})(np.zeros((4, 3)), np.zeros(4), RNG)


def test_of_two_classes_either_may_be_rarer():
    X, y = RNG.normal(size=(300, 63)), np.arange(300) % 3
    assert [shift.keep for shift in record_surrogates(X, y)] == [None]
    shifts = record_surrogates(X, 5 * (y == 0))
    assert [shift.keep for shift in shifts] == [{5: 0.5}, None, {0: 0.5}]
    assert all(shift.X is X for shift in shifts)
    with pytest.raises(ValueError, match=r"\(300, 63\) and y \(299,\)"):
        record_surrogates(X, y[1:])


def test_other_records_take_the_place_of_those_given():
    others = RNG.normal(size=(4000, 63))
    labels = np.arange(4000) % 4
    X, y = OtherRecords(others, labels)(FLAT, LABELS, np.random.default_rng(0))
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, others.astype(np.float32))
    assert y.tolist() == labels.tolist()
    shift = OtherRecords(others, labels, keep={1: 0.5, 2: 0.0})
    X, y = shift(FLAT, LABELS, np.random.default_rng(0))
    counts = np.bincount(y, minlength=4)
    assert counts[[0, 2, 3]].tolist() == [1000, 0, 1000]
    assert 430 < counts[1] < 570
    with pytest.raises(ValueError, match="they need the same"):
        shift(FLAT[:, :5], LABELS, np.random.default_rng(0))
