"""Features on one scale, fitted on public rows alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Centre, scale and impute features by figures of public rows.

    Attributes
    ----------
    mean, scale
        Mean and standard deviation of each column's recorded public values, shape (d,), float64;
        1 in place of a standard deviation of 0.
    indicated
        The columns that get a missing-value indicator: those with a missing public value,
        shape (k,), int64.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    indicated: NDArray[np.int64]

    def transform(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return (features - mean) / scale with 0 where a value is missing, then the indicators.

        Each row of the result depends on the same row of `features` and on this object alone. A
        value that is not finite counts as missing.

        Parameters
        ----------
        features
            Shape (n, d), real, NaN for missing.

        Returns
        -------
        ndarray
            Shape (n, d + k), float64.

        Raises
        ------
        ValueError
            If `features` does not have d columns.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"features must have shape (n, {len(self.mean)}), the columns that the "
                f"standardiser was fitted on; got shape {features.shape}"
            )
        recorded = np.isfinite(features)
        scaled = (np.where(recorded, features, self.mean) - self.mean) / self.scale
        return np.hstack([scaled, ~recorded[:, self.indicated]])


def standardise(public_features: NDArray[Any], *, indicators: bool = True) -> Standardiser:
    """Fit a `Standardiser` on public rows; apply it to any rows with its ``transform``.

    Parameters
    ----------
    public_features
        Shape (n, d), real, NaN for missing. Never private rows: means and scales would leak them.
    indicators
        Whether columns with a missing public value get an indicator of it; features that tell of
        themselves what was measured need none.

    Raises
    ------
    ValueError
        If `public_features` is not a matrix with at least one row.
    """
    if public_features.ndim != 2 or len(public_features) == 0:
        raise ValueError(
            "public_features must have shape (n, d) with at least one row; "
            f"got shape {public_features.shape}"
        )
    recorded = np.isfinite(public_features)
    count = np.maximum(recorded.sum(axis=0), 1)
    mean = np.where(recorded, public_features, 0.0).sum(axis=0) / count
    scale = np.sqrt(np.square(np.where(recorded, public_features - mean, 0.0)).sum(axis=0) / count)
    indicated = np.flatnonzero(~recorded.all(axis=0) & indicators).astype(np.int64)
    return Standardiser(mean, np.where(scale > 0, scale, 1.0), indicated)
