"""Files that are either the old one or the new one, whole, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import stat
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DamagedFileError",
    "advice",
    "atomic_write",
    "atomic_write_bytes",
    "read_archive",
    "regular_mode",
    "remove_leftovers",
]

# File systems that cannot sync a folder say so with one of these; the rename is still atomic there.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}
_TEMPORARY_END = ".tmp"


class DamagedFileError(ValueError):
    """A file that qexp wrote is not as it was written."""


def advice(number: int | None) -> str:
    """Say what to do about an operating-system error while writing."""
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space, or choose a folder on another disk"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder that this user may write to"
    if number in (errno.ENOENT, errno.ENOTDIR):
        return "create the folder first, or correct the path"
    if number == errno.EISDIR:
        return "give the name of a file, not of a folder"
    if number == errno.ESPIPE:
        return "give the name of a file on a disk"
    return "check the path and its disk"


def _sync_folder(folder: str) -> None:
    """Make a rename inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _temporary_stem(target: str) -> str:
    folder, name = os.path.split(target)
    # Names have 255 bytes at most.
    return os.path.join(folder, f".qexp-{os.fsencode(name)[:150].decode(errors='ignore')}-")


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of writing a file.

    Only while no other process may be writing it.

    Raises
    ------
    OSError
        If there is such a file and it cannot be removed.
    """
    stem = _temporary_stem(os.path.realpath(path))
    for leftover in glob.glob(f"{glob.escape(stem)}{'[0-9a-f]' * 16}{_TEMPORARY_END}"):
        os.unlink(leftover)


def regular_mode(path: str | os.PathLike[str]) -> int | None:
    """Give the permissions of a regular file, and None where there is nothing.

    Raises
    ------
    OSError
        If it is a folder, or a device, a pipe or a socket: a rename over one of these would
        replace it for every program of the machine, and reading one need not end.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.ESPIPE, "it is a device, a pipe or a socket")
    return stat.S_IMODE(mode)


def _write_and_replace(target: str, write: Callable[[BinaryIO], object], most: int) -> None:
    """Write a temporary file beside ``target``, then rename it over ``target``."""
    before = regular_mode(target)
    kept = None if before is None else before & most
    folder = os.path.dirname(target)
    # Not tempfile: its files are readable by the owner alone, which a replaced file need not be.
    temporary = f"{_temporary_stem(target)}{secrets.token_hex(8)}{_TEMPORARY_END}"
    # Never wider than it will be: who opens it too early reads what is written later.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(temporary, flags, most & 0o666 if kept is None else kept & 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if kept is not None:
                os.fchmod(file.fileno(), kept)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def atomic_write(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], object], *, mode: int = 0o777
) -> None:
    """Write a file so that a reader finds the old or the new content, never a part.

    The content goes to a temporary file in the same folder, which is synced to disk and then
    renamed over ``path``. When anything fails before the rename, the temporary file is removed
    and the old file is untouched. Only a killed process can leave a temporary file behind,
    ``.qexp-<name>-<digits>.tmp``; see :func:`remove_leftovers`.

    Parameters
    ----------
    path : str or os.PathLike
        The file to write. A symbolic link is followed. The folder must exist. The permissions of
        a file that is replaced are kept; a device, a pipe or a socket is not replaced.
    write : callable
        Called once with the temporary file, opened for binary writing.
    mode : int
        The most permissions that the file may have, of a file that is replaced, too. 0o600 keeps
        it and the temporary file to their owner.

    Raises
    ------
    OSError
        The disk is full, the folder cannot be written or does not exist, …; the message names
        the path and what to do, and the class fits the error number (`PermissionError`, …).
    """
    target = os.path.realpath(path)
    try:
        _write_and_replace(target, write, mode)
    except OSError as error:
        reason = error.strerror or str(error)
        # OSError(number, text) turns itself into the subclass of that number.
        raise OSError(
            error.errno or errno.EIO,
            f"could not write {target!r}: {reason}; the file there before, if any, is whole: "
            f"{advice(error.errno)}",
        ) from error


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes so: whole, or not at all."""
    atomic_write(path, lambda file: file.write(data))


def read_archive(file: BinaryIO, text: str) -> tuple[Any, dict[str, NDArray[Any]]]:
    """Read an NPZ archive of arrays without pickle, one of which holds JSON.

    A damaged archive sets off almost any exception in zipfile, NumPy and json.

    Parameters
    ----------
    file : binary file
    text : str
        Name of the array that holds the JSON.

    Returns
    -------
    document, arrays
        What the JSON says, and all other arrays by name.
    """
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it is a bare array")
    # Every part of the archive has a checksum, which reading it verifies.
    with archive:
        document = json.loads(archive[text].tobytes())
        return document, {name: archive[name] for name in archive.files if name != text}
