import numpy as np
import pytest

from qexp._bounds import UNCLIPPED, clip_shares, within_bounds


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shares_bring_norms_within_the_bound(dtype):
    norms = np.array([0.0, 1e-20, 0.5, 1.0, 2.0, np.inf], dtype)
    shares = clip_shares(norms, 1.0)
    assert shares.dtype == dtype
    assert shares.tolist() == [1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    # Nor does a null gradient overflow where nothing is to be clipped.
    assert clip_shares(norms[:-1], UNCLIPPED).tolist() == [1.0] * 5


@pytest.mark.parametrize("far", [1e6, -1e7, np.inf, np.nan])
def test_weights_that_diverged_are_out_of_bounds(far):
    assert within_bounds(np.array([0.0, -9e5]))
    assert not within_bounds(np.array([0.0, far]))
