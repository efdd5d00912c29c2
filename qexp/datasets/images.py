"""Images resized and disturbed: common shapes, and surrogates of a shifted private domain.

Every function takes images of shape (n, h, w), any real dtype, and returns float32; uint8 images
are scaled from 0..255 to [0, 1]. All are deterministic, and each image of the result depends on
the same image of the argument alone.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_BLOCK = 1024


def _as_float(images: NDArray[Any]) -> NDArray[np.float32]:
    if images.ndim != 3:
        raise ValueError(f"images must have shape (n, h, w), got shape {images.shape}")
    if images.dtype.kind not in "buif":
        raise ValueError(f"images must hold real numbers, got dtype {images.dtype}")
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    return images.astype(np.float32) / scale


def _overlaps(old: int, new: int) -> NDArray[np.float64]:
    """Return the share of each of `old` equal cells in each of `new` equal cells of one line."""
    edges = np.arange(old + 1) * new  # in units of 1 / (old * new): exact
    starts = (np.arange(new) * old)[:, None]
    covered = np.minimum(starts + old, edges[1:]) - np.maximum(starts, edges[:-1])
    shares: NDArray[np.float64] = np.maximum(covered, 0) / old
    return shares


def resize(images: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Resize by exact area averaging: a new pixel is the mean of the area it covers.

    Parameters
    ----------
    images
        Shape (n, h, w).
    shape
        New height and width, at least 1 each; larger than before is allowed.

    Returns
    -------
    ndarray
        Shape (n, *shape), float32.

    Raises
    ------
    ValueError
        If `images` is not a stack of images with pixels, or `shape` is not two positive numbers.
    """
    pixels = _as_float(images)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be two numbers of at least 1, got {shape!r}")
    if min(pixels.shape[1:]) < 1:
        raise ValueError(f"images have no pixels: shape {images.shape}")
    rows = _overlaps(pixels.shape[1], shape[0])
    columns = _overlaps(pixels.shape[2], shape[1]).T
    resized = np.empty((len(pixels), *shape), dtype=np.float32)
    for start in range(0, len(pixels), _BLOCK):
        block = slice(start, start + _BLOCK)
        # matmul multiplies image by image: no image's bits depend on its neighbours.
        resized[block] = rows @ pixels[block].astype(np.float64) @ columns
    return resized


def rotate(images: NDArray[Any], degrees: float) -> NDArray[np.float32]:
    """Rotate counterclockwise about the centre, bilinear; what comes in from outside is 0.

    Parameters
    ----------
    images
        Shape (n, h, w).
    degrees
        The angle.
    """
    pixels = _as_float(images)
    if not np.isfinite(degrees):
        raise ValueError(f"degrees must be finite, got {degrees!r}")
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    centre = (np.array(pixels.shape[1:]) - 1) / 2
    return _resample(pixels, matrix, centre - matrix @ centre)


def shift(images: NDArray[Any], rows: float, columns: float) -> NDArray[np.float32]:
    """Move down by `rows` and right by `columns` pixels, bilinear; what comes in is 0.

    Parameters
    ----------
    images
        Shape (n, h, w).
    rows, columns
        How far, in pixels; fractions and negative numbers are allowed.
    """
    pixels = _as_float(images)
    if not (np.isfinite(rows) and np.isfinite(columns)):
        raise ValueError(f"rows and columns must be finite, got {rows!r} and {columns!r}")
    return _resample(pixels, np.eye(2), -np.array([rows, columns], dtype=np.float64))


def _resample(
    pixels: NDArray[np.float32], matrix: NDArray[np.float64], offset: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Fill each pixel p of each image with the image's value at ``matrix @ p + offset``."""
    resampled = np.empty_like(pixels)
    for image, output in zip(pixels, resampled, strict=True):
        ndimage.affine_transform(image, matrix, offset, output=output, order=1)
    return resampled


def blur(images: NDArray[Any], sigma: float) -> NDArray[np.float32]:
    """Blur with a Gaussian of standard deviation `sigma` pixels; the border is mirrored.

    Parameters
    ----------
    images
        Shape (n, h, w).
    sigma
        At least 0.
    """
    pixels = _as_float(images)
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be finite and at least 0, got {sigma!r}")
    blurred: NDArray[np.float32] = ndimage.gaussian_filter(pixels, (0, sigma, sigma))
    return blurred


def contrast(images: NDArray[Any], factor: float) -> NDArray[np.float32]:
    """Stretch the values about 0.5 by `factor` and cut them off at 0 and 1.

    Parameters
    ----------
    images
        Shape (n, h, w), in [0, 1] (or uint8).
    factor
        At least 0; 1 changes nothing, less flattens, more sharpens.
    """
    pixels = _as_float(images)
    if not (np.isfinite(factor) and factor >= 0):
        raise ValueError(f"factor must be finite and at least 0, got {factor!r}")
    half = np.float32(0.5)
    stretched = half + np.float32(factor) * (pixels - half)
    return stretched.clip(np.float32(0), np.float32(1))
