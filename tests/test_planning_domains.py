"""Simulated private and test records, made of public ones."""

import numpy as np
import pytest

from qexp.planning._domains import split_shifted

X = np.arange(100, dtype=np.float32)[:, None]
Y = np.arange(100)


class Noise:
    """A shift that differs from call to call."""

    views = 3

    def __call__(self, X, y, rng):
        return X + rng.uniform(-0.4, 0.4, X.shape).astype(X.dtype), y


@pytest.mark.parametrize(
    ("n_records", "views"), [(30, 1), (60, 1), (119, 1), (120, 2), (180, 3), (10_000, 3)]
)
def test_few_public_records_are_viewed_several_times(n_records, views):
    X_private, y_private, X_test, y_test = split_shifted(Noise(), X, Y, n_records, seed=0)
    distinct = min(n_records, 60)
    assert len(X_private) == len(y_private) == views * distinct
    np.testing.assert_array_equal(y_private, np.tile(y_private[:distinct], views))
    assert len(np.unique(X_private)) == len(X_private)
    # Every view is one of the record that its label names, and no tested record is among them.
    np.testing.assert_array_equal(np.rint(X_private[:, 0]), y_private)
    np.testing.assert_array_equal(np.rint(X_test[:, 0]), y_test)
    assert not set(y_test) & set(y_private)


def test_a_shift_that_tells_no_views_is_called_once():
    def shift(X, y, rng):
        calls.append(len(X))
        return X[:80], y[:80]

    calls = []
    X_private, _, X_test, _ = split_shifted(shift, X, Y, 10_000, seed=0)
    assert (len(X_private), len(X_test), calls) == (48, 32, [100])


def test_more_records_have_the_first_ones_of_fewer():
    few = split_shifted(Noise(), X, Y, 60, seed=0)
    many = split_shifted(Noise(), X, Y, 180, seed=0)
    for one, other in zip(few, many, strict=True):
        np.testing.assert_array_equal(one, other[: len(one)])
