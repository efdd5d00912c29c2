"""James-Stein shrinkage of noisy sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qexp.shrinkage import james_stein

finite = st.floats(-1e6, 1e6)


@given(
    values=arrays(float, st.integers(3, 30), elements=finite),
    noise_std=st.floats(0, 1e6),
    cut=st.integers(0, 30),
)
def test_each_block_is_scaled_by_its_factor_between_zero_and_one(values, noise_std, cut):
    blocks = [slice(0, cut), slice(cut, len(values))]
    shrunk, factors = james_stein(values, noise_std, blocks=blocks)
    for block, factor in zip(blocks, factors, strict=True):
        assert 0 <= factor <= 1
        assert np.array_equal(shrunk[block], factor * values[block])


def test_the_factor_is_the_one_of_james_and_stein():
    y = np.array([3.0, -4.0, 12.0, 0.0, 0.0])
    shrunk, (factor,) = james_stein(y, 5.0)
    assert factor == 1 - 3 * 25 / 169
    assert np.array_equal(shrunk, factor * y)
    assert np.array_equal(y, [3.0, -4.0, 12.0, 0.0, 0.0]), "the argument was changed"


def test_a_block_of_noise_alone_is_shrunk_to_zero_and_no_further():
    shrunk, factors = james_stein(np.full(10, 0.1), 1.0)
    assert factors == (0.0,)
    assert not shrunk.any()
    assert james_stein(np.zeros(10), 1.0)[1] == (0.0,)


def test_components_in_no_block_and_small_blocks_stay():
    y = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    shrunk, factors = james_stein(y, 10.0, blocks=[slice(0, 2), slice(2, 5), slice(2, 2)])
    assert factors == (1.0, 0.0, 1.0)
    assert np.array_equal(shrunk, [0.1, 0.2, 0.0, 0.0, 0.0, 0.6])


def test_without_noise_nothing_is_shrunk():
    y = np.arange(5.0)
    assert np.array_equal(james_stein(y, 0.0)[0], y)


@pytest.mark.statistical
@pytest.mark.parametrize("length", [0.0, 1.0, 5.0, 20.0, 200.0])
def test_the_squared_error_is_smaller_for_every_signal(length):
    # Dominance is a theorem; with 2,000 draws of the seed its smallest margin here is many
    # standard errors wide, since both errors are of the same draws.
    k, sigma = 20, 2.0
    generator = np.random.default_rng(0)
    signal = np.zeros(k)
    signal[0] = length
    draws = signal + sigma * generator.standard_normal((2000, k))
    raw = np.sum((draws - signal) ** 2, axis=1)
    shrunk = np.array([np.sum((james_stein(y, sigma)[0] - signal) ** 2) for y in draws])
    gain = raw - shrunk
    assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        james_stein(np.array([1.0, np.nan]), 1.0)
    with pytest.raises(ValueError, match="noise_std is -1"):
        james_stein(np.ones(3), -1.0)
    with pytest.raises(TypeError, match="float32 or float64"):
        james_stein(np.ones(3, dtype=int), 1.0)
    with pytest.raises(ValueError, match="1 dimension"):
        james_stein(np.ones((3, 1)), 1.0)
