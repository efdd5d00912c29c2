"""Curvature that is paid for: what the private records' inputs add to a public curvature.

Where public records mislead, a share of the budget buys second moments of the private ones. A
Kronecker layer's inputs are whitened by the public factor, ã = L⁻¹ a, so that Σ ã ãᵀ / n would be
the identity, less the damping, if the private inputs were like the public ones. The sum is one more
draw of the boundary: each record gives ã ⊗ ã, clipped, and the noisy sum is symmetrised.

Noise moves every eigenvalue, up to a known edge. Only directions beyond it are taken over, at what
their eigenvalues are worth without the noise (Benaych-Georges and Nadakuditi, "The eigenvalues and
eigenvectors of finite, low rank perturbations of large random matrices", Adv. Math. 2011); in all
others the public curvature stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qexp._communicator import Communicator
from qexp.bits import BitGenerator
from qexp.curvature import Curvature
from qexp.layered import KroneckerLayer, LayeredCurvature
from qexp.private_sum import Lattice, NoisySum, private_sum
from qexp.records import RecordSource

__all__ = [
    "MOST_OF_MEAN",
    "input_moments",
    "input_scales",
    "kept_directions",
    "n_moments",
    "refined_curvature",
]

# A record counts with at most so many times the mean squared norm of public records.
MOST_OF_MEAN: Final = 2.0
# The noise's own extreme eigenvalues pass the semicircle's edge by about d^(-1/6) times a number of
# Tracy and Widom's distribution ("On orthogonal and symplectic matrix ensembles", 1996), which is
# above this once in a thousand.
_BEYOND_EDGE: Final = 3.3
# No direction is thought to have less than this share of its public curvature.
_LEAST_SHARE: Final = 0.1


def n_moments(curvature: LayeredCurvature) -> int:
    """Give the number of components of :func:`input_moments`."""
    return sum(layer.shape[1] ** 2 for layer in _refinable(curvature))


def input_scales(curvature: Curvature) -> list[float]:
    """Give the largest ‖ã‖² that a record counts with, a Kronecker layer.

    Raises
    ------
    TypeError, ValueError
        If the curvature has no Kronecker layer.
    """
    return [MOST_OF_MEAN * layer.input_dimension for layer in _refinable(curvature)]


def input_moments(
    source: RecordSource,
    curvature: LayeredCurvature,
    *,
    lattice: Lattice,
    bits: BitGenerator,
    n_records: int | None = None,
    communicator: Communicator | None = None,
) -> NoisySum | None:
    """Draw the noisy sum of the private records' whitened second moments.

    Parameters
    ----------
    source : RecordSource
        Private; with ``factor_blocks``.
    curvature : LayeredCurvature
        Public.
    lattice : Lattice
        Of clipping norm √(number of Kronecker layers): each layer's part has a norm of at most 1.
    bits : BitGenerator
    n_records : int, optional
        Of all ranks. Default: the source's.
    communicator : Communicator, optional
        As in :func:`qexp.private_sum.private_sum`.

    Returns
    -------
    NoisySum, or None on all ranks but the root
        One in x in matrix a Kronecker layer, over the scale of :func:`input_scales`.
    """
    return private_sum(
        _moment_blocks(source, curvature),
        n_components=n_moments(curvature),
        n_records=source.n_records if n_records is None else n_records,
        lattice=lattice,
        bits=bits,
        communicator=communicator,
    )


def refined_curvature(
    curvature: LayeredCurvature, values: NDArray[np.float64], *, noise_std: float, n_records: int
) -> LayeredCurvature:
    """Add what a draw of :func:`input_moments` shows beyond its noise to the public curvature.

    Parameters
    ----------
    curvature : LayeredCurvature
        The one that the draw was made with.
    values : ndarray of float64
        The noisy sum.
    noise_std : float
        Standard deviation of its noise.
    n_records : int

    Returns
    -------
    LayeredCurvature
        Post-processing of the draw: as private as it.
    """
    refined: list[Any] = list(curvature.layers)
    start = 0
    scales = iter(input_scales(curvature))
    for place, layer in enumerate(curvature.layers):
        if not isinstance(layer, KroneckerLayer):
            continue
        d, scale = layer.shape[1], next(scales) / n_records
        moments = values[start : start + d * d].reshape(d, d) * scale
        start += d * d
        excess = (moments + moments.T) / 2 - layer.expected_moments()
        refined[place] = layer.with_inputs_beyond(*kept_directions(excess, noise_std * scale))
    return LayeredCurvature(refined)


def kept_directions(
    excess: NDArray[np.float64], noise_std: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the directions that stand out of the noise.

    Parameters
    ----------
    excess : ndarray, shape (d, d)
        Symmetric: a matrix of low rank plus the symmetric part of noise of independent entries.
    noise_std : float
        Standard deviation of an entry of the noise before it was symmetrised.

    Returns
    -------
    values : ndarray, shape (r,)
        Eigenvalues without what the noise adds to them, at least 0.1 - 1.
    vectors : ndarray, shape (d, r)
    """
    values, vectors = np.linalg.eigh(excess)
    # Off the diagonal the symmetric part has half the variance.
    d, std = len(excess), noise_std / math.sqrt(2)
    radius = std * math.sqrt(d)
    beyond = np.abs(values) > 2 * radius + std * _BEYOND_EDGE * d ** (-1 / 6)
    found = values[beyond]
    without_noise = np.sign(found) * (np.abs(found) + np.sqrt(found**2 - 4 * radius**2)) / 2
    return np.maximum(without_noise, _LEAST_SHARE - 1), vectors[:, beyond]


def _refinable(curvature: Curvature) -> list[KroneckerLayer]:
    if not isinstance(curvature, LayeredCurvature):
        raise TypeError(
            f"curvature is a {type(curvature).__name__}; a share of the budget for private "
            "curvature needs one in layers, such as qexp.KroneckerCurvature"
        )
    layers = [layer for layer in curvature.layers if isinstance(layer, KroneckerLayer)]
    if not layers:
        raise ValueError(
            "no layer has Kronecker curvature; a share of the budget for private curvature needs "
            "at least one"
        )
    return layers


def _moment_blocks(
    source: RecordSource, curvature: LayeredCurvature
) -> Iterator[list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    scales = input_scales(curvature)
    for factors in source.factor_blocks():  # type: ignore[attr-defined]
        yield [
            _clipped_moments(inputs, scale)
            for inputs, scale in zip(_whitened_inputs(curvature, factors), scales, strict=True)
        ]


def _whitened_inputs(
    curvature: LayeredCurvature, factors: Sequence[tuple[NDArray[Any], NDArray[Any]]]
) -> Iterator[NDArray[np.float64]]:
    for layer, (inputs, _) in zip(curvature.layers, factors, strict=True):
        if isinstance(layer, KroneckerLayer):
            if inputs.ndim != 2 or inputs.shape[1] != layer.shape[1]:
                raise ValueError(
                    "a share of the budget for private curvature needs Kronecker layers with one "
                    "position a record; give other kinds of curvature to convolutions"
                )
            yield layer.whiten_inputs(inputs)


def _clipped_moments(
    whitened: NDArray[np.float64], scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Row by row, and silent: a warning about one record's overflow would tell of it.
    with np.errstate(all="ignore"):
        squares = np.square(whitened).sum(axis=1, keepdims=True)
        left = whitened / np.maximum(squares, scale)
    return left, whitened
