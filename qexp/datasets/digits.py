"""The small handwritten digits that come with scikit-learn: a data set with nothing to fetch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Digits:
    """The scikit-learn digits.

    Attributes
    ----------
    images
        Shape (1797, 8, 8), float32, 0 (paper) to 1 (ink).
    labels
        The digits, shape (1797,), uint8, 0 to 9.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.uint8]


def load_digits() -> Digits:
    """Return the digits of `sklearn.datasets.load_digits`, scaled to [0, 1].

    Raises
    ------
    ImportError
        If scikit-learn (the extra ``qexp[demo]``) is not installed.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning
    Repository, 1998.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "load_digits takes scikit-learn: pip install 'qexp[demo]'", name="sklearn"
        ) from error
    bunch = datasets.load_digits()
    images = np.asarray(bunch.images, dtype=np.float32) / np.float32(16)
    return Digits(images, np.asarray(bunch.target, dtype=np.uint8))
