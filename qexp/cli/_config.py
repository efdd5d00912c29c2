"""``qexp config``."""

from __future__ import annotations

import argparse

from qexp.cli._commands import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the command."""
    commands.add(
        "config",
        _config,
        help="show versions, instruction set, BLAS and threads",
        description="Show how qexp was built and what it runs on, for reports of problems.",
        examples=["qexp config"],
    )


def _config(options: argparse.Namespace) -> None:
    from qexp._config import show_config

    show_config()
