"""How commands look: examples and exit codes after the options, tracebacks on demand."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

__all__ = ["EXIT_CODES", "Commands", "new_parser"]

EXIT_CODES: Final = """\
exit codes:
  0 done   1 failed, with one message   2 wrong arguments   130 interrupted by Ctrl-C
"""


def new_parser(
    make: Callable[..., Any],
    *names: str,
    examples: list[str],
    scripted: bool = False,
    codes: str = EXIT_CODES,
    **texts: Any,
) -> Any:
    """Make a parser with `make`, whose help ends in examples and exit codes."""
    if scripted:
        from qexp.job.exit_codes import EXIT_CODES as codes
    epilog = "examples:\n" + "".join(f"  {line}\n" for line in examples) + "\n" + codes
    return make(
        *names,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **texts,
    )


class Commands:
    """The commands of a parser.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    metavar : str
        What a command is called in the parser's help.
    """

    def __init__(self, parser: argparse.ArgumentParser, metavar: str) -> None:
        self._commands = parser.add_subparsers(metavar=metavar, required=True)

    def add(
        self,
        name: str,
        run: Callable[[argparse.Namespace], int | None],
        *,
        scripted: bool = False,
        **texts: Any,
    ) -> Any:
        """Add a command that `run` carries out, and give its parser.

        `scripted` ones are called by scripts, which tell failures apart by their exit codes.
        """
        parser = new_parser(self._commands.add_parser, name, scripted=scripted, **texts)
        parser.add_argument(
            "--debug", action="store_true", help="show the traceback when something fails"
        )
        parser.set_defaults(run=run, scripted=scripted)
        return parser

    def group(self, name: str, metavar: str, **texts: Any) -> Commands:
        """Add a command that is followed by one of its own."""
        return Commands(new_parser(self._commands.add_parser, name, **texts), metavar)
