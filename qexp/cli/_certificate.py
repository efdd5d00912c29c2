"""``qexp certificate``."""

from __future__ import annotations

import argparse

from qexp._json import strict_json
from qexp.cli._commands import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "certificate",
        _certificate,
        help="print what a saved release guarantees",
        description="Print the statement of a saved release and its certificate, as JSON.",
        examples=["qexp certificate qexp-demo/release.npz"],
    )
    parser.add_argument("file", metavar="FILE", help="a release.npz")


def _certificate(options: argparse.Namespace) -> None:
    from qexp.release import PrivateRelease

    try:
        release = PrivateRelease.load(options.file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no file {options.file}; it needs a release that `qexp demo` or "
            "PrivateRelease.save wrote"
        ) from None
    document = {"statement": release.statement, "certificate": release.certificate()}
    print(strict_json(document, indent=2))
