"""MNIST handwritten digits, and the IDX format that they come in."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexp.datasets._locate import Source, read_plain

_SOURCE = Source(
    title="MNIST",
    folder="mnist",
    publisher="the MNIST database of Y. LeCun, C. Cortes and C. J. C. Burges "
    "(yann.lecun.com/exdb/mnist)",
)

# The third byte of an IDX file names the type of its values; all are big-endian.
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_MOST_DIMENSIONS = 32  # NumPy's own limit before version 2


@dataclass(frozen=True, eq=False)
class Mnist:
    """The MNIST digits.

    Attributes
    ----------
    x_train, x_test
        Grey images, shape (60000, 28, 28) and (10000, 28, 28), uint8, 0 (paper) to 255 (ink).
    y_train, y_test
        The digits, shape (60000,) and (10000,), uint8, 0 to 9.
    """

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.uint8]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.uint8]


def load_mnist(root: str | os.PathLike[str] | None = None) -> Mnist:
    """Read MNIST from its four IDX files, compressed or not.

    Parameters
    ----------
    root
        The folder that holds ``mnist/``; by default that in the environment variable
        ``QEXP_DATA``.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If a file is damaged, or images and labels do not belong together.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE 86(11), 1998.
    """
    x_train, y_train = _read_split(root, "train")
    x_test, y_test = _read_split(root, "t10k")
    return Mnist(x_train, y_train, x_test, y_test)


def _read_split(
    root: str | os.PathLike[str] | None, split: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    names = f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"
    image_path, label_path = (_SOURCE.find(root, f"{name}.gz", name) for name in names)
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"{image_path}: MNIST images are uint8 of shape (n, 28, 28); "
            f"this file holds {images.dtype} of shape {images.shape}"
        )
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{label_path}: expected one uint8 label for each of the {len(images)} images of "
            f"{image_path.name}; this file holds {labels.dtype} of shape {labels.shape}"
        )
    if np.any(labels > 9):
        raise ValueError(f"{label_path}: MNIST labels are 0 to 9, and some here are not")
    return images, labels


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an IDX file, the format of MNIST and its relatives.

    Two zero bytes, a byte for the type of the values, a byte for the number of dimensions, the
    dimensions as big-endian 32-bit integers, the values in C order, big-endian.

    Parameters
    ----------
    path
        The file; gzip-compressed if its name ends in ``.gz``.

    Returns
    -------
    ndarray
        The values in the machine's own byte order: uint8, int8, int16, int32, float32 or float64.

    Raises
    ------
    ValueError
        If the file is not IDX, or is shorter or longer than its header says.
    """
    path = Path(path)
    raw = read_plain(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_DTYPES:
        raise ValueError(f"{path}: not an IDX file: it begins {raw[:4].hex(' ') or 'nowhere'}")
    dimensions = raw[3]
    if not 1 <= dimensions <= _IDX_MOST_DIMENSIONS:
        raise ValueError(
            f"{path}: {dimensions} dimensions, where 1 to {_IDX_MOST_DIMENSIONS} are supported"
        )
    start = 4 + 4 * dimensions
    if len(raw) < start:
        raise ValueError(f"{path}: ends within its header, after {len(raw)} of {start} bytes")
    shape = tuple(np.frombuffer(raw, ">u4", dimensions, 4).tolist())
    dtype = np.dtype(_IDX_DTYPES[raw[2]])
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) - start != expected:
        fault = "short" if len(raw) - start < expected else "long"
        raise ValueError(
            f"{path}: too {fault}: shape {shape} of {dtype.newbyteorder('=')} takes {expected} "
            f"bytes after the header, the file has {len(raw) - start}"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
