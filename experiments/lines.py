"""Files of JSON lines, which results are kept in."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qexp._files import atomic_write_bytes

__all__ = ["Lines", "key_of"]


def key_of(names: Sequence[str]) -> Callable[[Mapping[str, Any]], str]:
    """Give a key of lines that such fields tell apart, whatever JSON holds in them."""
    return lambda line: json.dumps([line[name] for name in names])


class Lines:
    """A file of lines, one a cell, sorted. It is replaced as a whole or not at all."""

    def __init__(self, path: Path, key: Callable[[dict[str, Any]], Any]) -> None:
        self.path, self._key = path, key

    def read(self) -> list[dict[str, Any]]:
        """Read what is known."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def add(self, new: dict[str, Any]) -> None:
        """Put a line in, in place of another of the same cell."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Of the folder, as the file is another one after every line.
        with _locked(self.path.parent):
            known = {self._key(old): old for old in self.read()}
            known[self._key(new)] = new
            text = "".join(json.dumps(known[key]) + "\n" for key in sorted(known))
            atomic_write_bytes(self.path, text.encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from adding lines meanwhile, which would be lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
