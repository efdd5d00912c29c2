"""Private curvature of a job: bought for a share of its budget, before the first round."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qexp._communicator import Communicator
from qexp.bits import BitGenerator
from qexp.curvature import Curvature
from qexp.layered import LayeredCurvature
from qexp.private_curvature import input_moments, input_scales, refined_curvature
from qexp.private_sum import Lattice, NoisySum, lattice_for
from qexp.projections import Identity, Projection

__all__ = ["CurvatureShare"]

# The rounds' lattices keep to the rest of the budget; rounding of this share's root goes down.
_ROUNDED_DOWN: Final = 1 - 2.0**-50


class CurvatureShare:
    """What the share buys: noisy moments of the layers' inputs, which refine the public curvature.

    Parameters
    ----------
    share : float
        Of the job's μ², 0 < share < 1.
    mu : float
        Of the whole job, under "replace_special".
    curvature : Curvature
        Public.
    projection : Projection
    source : RecordSource
        Of the pretrained model.
    n_records : int
        Of all ranks.
    by_user : bool
        Whether users are protected, and not single records.

    Attributes
    ----------
    lattice : Lattice
        Of the one draw.

    Raises
    ------
    ValueError
        If the job cannot have private curvature.
    """

    def __init__(
        self,
        share: float,
        mu: float,
        *,
        curvature: Curvature,
        projection: Projection,
        source: Any,
        n_records: int,
        by_user: bool,
    ) -> None:
        if by_user:
            raise ValueError(
                "schedule.curvature_share is above 0 with groups; private curvature knows records "
                "only, so that a user with several would get less privacy: choose one of the two"
            )
        if not isinstance(projection, Identity):
            raise ValueError(
                "schedule.curvature_share is above 0 with a projection; private curvature needs "
                "the layers' own gradients: give no projection"
            )
        if not hasattr(source, "factor_blocks"):
            raise ValueError(
                "schedule.curvature_share is above 0, and the model's gradients come without "
                "their factors; private curvature needs a model of layers"
            )
        parts = len(input_scales(curvature))
        assert isinstance(curvature, LayeredCurvature)
        self._public, self._n_records = curvature, n_records
        self.lattice: Lattice = lattice_for(
            mu * math.sqrt(share) * _ROUNDED_DOWN, math.sqrt(parts), n_records
        )
        self._refined: Curvature | None = None

    def draw(self, source: Any, bits: BitGenerator, ranks: Communicator) -> NoisySum | None:
        """Draw the moments on the root; give this rank's records to them on the others."""
        return input_moments(
            source,
            self._public,
            n_records=self._n_records,
            lattice=self.lattice,
            bits=bits,
            communicator=ranks,
        )

    def refined(self, moments: NDArray[np.float64]) -> Curvature:
        """Give the curvature that the drawn moments make. No more privacy is spent."""
        if self._refined is None:
            self._refined = refined_curvature(
                self._public,
                moments,
                noise_std=self.lattice.noise_std,
                n_records=self._n_records,
            )
        return self._refined
