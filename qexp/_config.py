"""Report how qexp was built and what it runs on."""

import os
import platform
import sys
from typing import Any, Final, TextIO

import numpy as np
import scipy

from qexp import _blas, _core

__all__ = ["check_instruction_set", "config", "show_config", "software"]

_ISAS: Final = ("baseline", "avx2", "avx512")


def check_instruction_set() -> None:
    """Raise where QEXP_ISA names none: ranks of a mixed cluster would not agree to the bit."""
    isa = os.environ.get("QEXP_ISA", _ISAS[0])
    if isa not in _ISAS:
        raise ValueError(
            f"the environment variable QEXP_ISA is {isa!r}; it needs one of {', '.join(_ISAS)}, or "
            "not to be set"
        )


def config() -> dict[str, Any]:
    """Describe the build of qexp and the libraries that this process uses.

    Returns
    -------
    dict
        ``qexp``, ``python``, ``numpy``, ``scipy``: versions; ``compiler``: what compiled the
        kernels; ``isa``: the instruction set they run on (``QEXP_ISA`` can lower it); ``threads``:
        how many threads they use; ``blas``: a dict of the ``provider``, the ``library`` behind it
        and the width ``integer_bits`` of its integers. Where `threadpoolctl` is installed,
        ``libraries`` names every BLAS library loaded, with the kernels it chose and its threads.

    Raises
    ------
    ImportError, RuntimeError
        As `qexp._blas.ensure_bound`, since it has to look at the library.
    """
    result = software()
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return result
    result["libraries"] = [
        {
            "name": info["internal_api"],
            "version": info["version"],
            "architecture": info.get("architecture"),
            "threads": info["num_threads"],
            "path": info["filepath"],
        }
        for info in threadpool_info()
        if info["user_api"] == "blas"
    ]
    return result


def software() -> dict[str, Any]:
    """Give the part of `config` that certificates hold: nothing of one machine's folders."""
    _blas.ensure_bound()
    blas: dict[str, Any] = dict(_core.blas_config() or {})
    blas["library"] = _scipy_library() if blas["provider"] == "scipy" else "linked at build time"
    return {
        "qexp": _core.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "compiler": _core.compiler,
        "isa": _core.isa(),
        "threads": _core.get_num_threads(),
        "blas": blas,
    }


def show_config(file: TextIO | None = None) -> None:
    """Print `config`, one line an entry, to be pasted into a report of a problem.

    Parameters
    ----------
    file : file object, optional
        Where to print to, standard output by default.
    """
    file = sys.stdout if file is None else file
    for key, value in config().items():
        if key == "libraries":
            for library in value:
                print("loaded:", _line(library), file=file)
        else:
            print(f"{key}:", _line(value) if isinstance(value, dict) else value, file=file)


def _line(entries: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in entries.items() if value is not None)


def _scipy_library() -> str:
    """Name the library that SciPy was built with."""
    build: Any = scipy.show_config(mode="dicts")
    found = build.get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()
