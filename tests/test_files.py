from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from qexp._files import atomic_write, remove_leftovers


def write_bytes(path: Path | str, data: bytes) -> None:
    def write(file: BinaryIO) -> None:
        file.write(data)

    atomic_write(path, write)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    assert path.read_bytes() == b"old"
    write_bytes(str(path), b"new content")
    assert path.read_bytes() == b"new content"
    assert names(tmp_path) == ["a.bin"]


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bytes("a.bin", b"x")
    assert (tmp_path / "a.bin").read_bytes() == b"x"


def test_permissions_follow_the_umask_and_survive_a_replacement(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    umask = os.umask(0o027)
    try:
        write_bytes(path, b"1")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    write_bytes(path, b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@pytest.mark.parametrize(
    ("before", "after"), [(None, 0o600), (0o644, 0o600), (0o600, 0o600), (0o400, 0o400)]
)
def test_a_private_file_is_its_owners_from_the_first_byte_on(tmp_path, before, after):
    path, seen = tmp_path / "a.bin", []
    if before is not None:
        path.write_bytes(b"old")
        path.chmod(before)

    def write(file: BinaryIO) -> None:
        (temporary,) = tmp_path.glob(".qexp-*")
        seen.append(stat.S_IMODE(temporary.stat().st_mode))
        file.write(b"new")

    umask = os.umask(0)
    try:
        atomic_write(path, write, mode=0o600)
    finally:
        os.umask(umask)
    assert seen == [after]
    assert stat.S_IMODE(path.stat().st_mode) == after
    assert path.read_bytes() == b"new"


def test_a_temporary_file_is_never_wider_than_the_file_it_replaces(tmp_path, monkeypatch):
    path, modes, true_open = tmp_path / "a.bin", [], os.open
    write_bytes(path, b"old")
    path.chmod(0o640)

    def spying(name, flags, mode=0o777, **options):
        if flags & os.O_CREAT:
            modes.append(mode)
        return true_open(name, flags, mode, **options)

    monkeypatch.setattr(os, "open", spying)
    write_bytes(path, b"new")
    assert modes == [0o640]


def test_follows_a_symbolic_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_file(tmp_path: Path, kind: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise kind("stop")

    with pytest.raises(kind, match="stop"):
        atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="free some space") as caught:
        atomic_write(path, write)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_write_that_the_kernel_refuses(tmp_path: Path) -> None:
    """A limit on the file size makes a real write fail half way, as a full disk does."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    script = (
        "import resource, sys\n"
        "from qexp._files import atomic_write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    atomic_write(sys.argv[1], lambda file: file.write(bytes(100_000)))\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-B", "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "free some space" in result.stdout
    assert str(path) in result.stdout
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create the folder first"):
        write_bytes(tmp_path / "none" / "a.bin", b"x")


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="correct the path"):
        write_bytes(tmp_path / "file" / "a.bin", b"x")


def test_path_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="not of a folder"):
        write_bytes(tmp_path, b"x")


def test_what_is_no_file_on_a_disk_is_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(OSError, match=r"a device, a pipe or a socket.*on a disk") as caught:
            write_bytes(path, b"x")
        assert str(pipe) in str(caught.value)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"]


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this user may not make devices")
    with pytest.raises(OSError, match="a device, a pipe or a socket"):
        write_bytes(device, b"x")
    assert stat.S_ISCHR(device.stat().st_mode)
    assert names(tmp_path) == ["null"]


def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop a superuser, so the refusal is made here."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(PermissionError, match="may write to") as caught:
            write_bytes(path, b"new")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"


def test_what_a_killed_process_left_is_removed(tmp_path):
    target, other = tmp_path / "state [1].npz", tmp_path / "state [1].npz-2"
    for path in (target, other):
        process = os.fork()
        if process == 0:
            os.replace = lambda *paths: os._exit(9)
            atomic_write(path, lambda file: file.write(b"unpaid"))
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    target.write_bytes(b"paid")
    left = {path.name for path in tmp_path.iterdir()} - {target.name}
    assert len(left) == 2
    remove_leftovers(target)
    assert target.read_bytes() == b"paid"
    (kept,) = {path.name for path in tmp_path.iterdir()} - {target.name}
    assert kept.startswith(f".qexp-{other.name}-")
    remove_leftovers(other)
    assert {path.name for path in tmp_path.iterdir()} == {target.name}


def test_long_names_leave_room_for_the_temporary_ones(tmp_path):
    path = tmp_path / ("ä" * 125)
    atomic_write(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"
