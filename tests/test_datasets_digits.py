import sys

import numpy as np
import pytest

from qexp.datasets import load_digits


def test_digits():
    digits = load_digits()
    assert digits.images.shape == (1797, 8, 8)
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    assert set(digits.labels.tolist()) == set(range(10))
    assert digits.labels.dtype == np.uint8


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"qexp\[demo\]"):
        load_digits()
