"""Find and read a data set's files, and say plainly what to do when one is not there."""

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "QEXP_DATA"


@dataclass(frozen=True)
class Source:
    """A data set's folder under the data root, and where its publisher offers the files."""

    title: str
    folder: str
    publisher: str

    def find(self, root: str | os.PathLike[str] | None, *names: str) -> Path:
        """Return the first of `names` that exists in this data set's folder.

        Parameters
        ----------
        root
            The folder that holds one folder a data set; by default that in ``QEXP_DATA``.
        *names
            File names that would serve, the preferred one first.

        Raises
        ------
        FileNotFoundError
            If there is no such file, folder or root; the message says where it looked, what the
            file is called and where to get it.
        """
        wanted = " or ".join(names)
        advice = f"Get {wanted} of {self.title} from {self.publisher}"
        if root is None:
            root = os.environ.get(ENVIRONMENT_VARIABLE) or None
        if root is None:
            raise FileNotFoundError(
                f"{self.title}: {ENVIRONMENT_VARIABLE} is not set. {advice}, put it in a folder "
                f"named {self.folder}, and set {ENVIRONMENT_VARIABLE} (or pass root=) to the "
                f"folder that holds {self.folder}."
            )
        folder = Path(root) / self.folder
        for name in names:
            if (folder / name).is_file():
                return folder / name
        lacking = next((part for part in (Path(root), folder) if not part.is_dir()), None)
        what = f"there is no folder {lacking}" if lacking else f"{folder} holds no file {wanted}"
        raise FileNotFoundError(f"{self.title}: {what}. {advice} and put it in {folder}.")


def read_plain(path: Path) -> bytes:
    """Read a whole file, decompressed if its name ends in ``.gz``.

    Raises
    ------
    ValueError
        If it is not a complete gzip file.
    """
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error})") from error
