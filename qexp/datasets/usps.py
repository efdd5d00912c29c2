"""USPS handwritten digits: 16 x 16 grey images from postal envelopes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexp.datasets._locate import Source

_SOURCE = Source(
    title="USPS",
    folder="usps",
    publisher="the zip-code data of Hastie, Tibshirani and Friedman, The Elements of Statistical "
    "Learning (hastie.su.domains/ElemStatLearn), in its usual HDF5 form (groups train and test, "
    "each with data and target)",
)


@dataclass(frozen=True, eq=False)
class Usps:
    """The USPS digits.

    Attributes
    ----------
    x_train, x_test
        Grey images, row after row, shape (7291, 256) and (2007, 256), float32, 0 to 1 (ink).
    y_train, y_test
        The digits, shape (7291,) and (2007,), uint8, 0 to 9.
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.uint8]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.uint8]


def load_usps(root: str | os.PathLike[str] | None = None) -> Usps:
    """Read the USPS digits from ``usps.npz`` or, where there is none, ``usps.h5``.

    Parameters
    ----------
    root
        The folder that holds ``usps/``; by default that in the environment variable
        ``QEXP_DATA``.

    Raises
    ------
    FileNotFoundError
        If neither file is there.
    ImportError
        If only ``usps.h5`` is there and h5py (the extra ``qexp[hdf5]``) is not installed.
    ValueError
        If the file is damaged, or its arrays are not the USPS digits.

    References
    ----------
    J. J. Hull, "A database for handwritten text recognition research", IEEE Transactions on
    Pattern Analysis and Machine Intelligence 16(5), 1994.
    """
    path = _SOURCE.find(root, "usps.npz", "usps.h5")
    arrays = _read_hdf5(path) if path.suffix == ".h5" else _read_npz(path)
    x_train, y_train = _check(path, "train", arrays)
    x_test, y_test = _check(path, "test", arrays)
    return Usps(x_train, y_train, x_test, y_test)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {
                f"{kind}_{split}": archive[f"{kind}_{split}"]
                for kind in "xy"
                for split in ("train", "test")
            }
    except Exception as error:  # each layer below np.load has errors of its own
        raise ValueError(
            f"{path}: not an .npz file with x_train, y_train, x_test, y_test ({error})"
        ) from error


def _read_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"reading {path.name} takes h5py: pip install 'qexp[hdf5]'", name="h5py"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            return {
                f"{kind}_{split}": np.asarray(file[split][name])
                for kind, name in (("x", "data"), ("y", "target"))
                for split in ("train", "test")
            }
    except Exception as error:  # HDF5 raises nearly anything on a damaged file
        raise ValueError(
            f"{path}: not an HDF5 file with groups train, test of data, target ({error})"
        ) from error


def _check(
    path: Path, split: str, arrays: dict[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if x.dtype.kind != "f" or x.ndim != 2 or x.shape[1] != 256:
        raise ValueError(
            f"{path}: {split} images are floats of shape (n, 256); "
            f"this file holds {x.dtype} of shape {x.shape}"
        )
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(
            f"{path}: expected one integer label for each of the {len(x)} {split} images; "
            f"this file holds {y.dtype} of shape {y.shape}"
        )
    if not np.all((x >= 0) & (x <= 1)):
        raise ValueError(f"{path}: {split} pixels lie in [0, 1], and some here do not")
    if not np.all((y >= 0) & (y <= 9)):
        raise ValueError(f"{path}: {split} labels are 0 to 9, and some here are not")
    return x.astype(np.float32, copy=False), y.astype(np.uint8, copy=False)
