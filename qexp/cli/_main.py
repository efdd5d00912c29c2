"""Find the command that the arguments name, run it, and give its exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from qexp._core import __version__
from qexp.cli import _calibrate, _certificate, _config, _demo, _ledger, _run
from qexp.cli._commands import EXIT_CODES, Commands, new_parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    int
        0 done, 1 failed, 130 interrupted; of ``run`` and ``ledger``, an
        :class:`qexp.job.exit_codes.ExitCode`. Wrong arguments raise SystemExit with code 2, and
        ``--help`` and ``--version`` with code 0, as argparse does.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int | None] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nqexp: interrupted; no file was left half-written", file=sys.stderr)
        if options.scripted:
            from qexp.job.exit_codes import ExitCode

            return int(ExitCode.INTERRUPTED)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        if not getattr(options, "silent", False):
            print(f"qexp: {_message(error)}", file=sys.stderr)
        if options.scripted:
            from qexp.job.exit_codes import exit_code

            return int(exit_code(error))
        return 1
    return int(code or 0)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = new_parser(
        argparse.ArgumentParser,
        prog="qexp",
        description="Fine-tune pretrained models on private data with an exact "
        "differential-privacy guarantee.",
        examples=["qexp demo", "qexp calibrate --epsilon 1 --delta 1e-5"],
        codes=EXIT_CODES + "`run` and `ledger` have codes of their own: see their help.\n",
    )
    parser.add_argument("--version", action="version", version=f"qexp {__version__}")
    commands = Commands(parser, "command")
    for command in (_demo, _calibrate, _config, _certificate, _run, _ledger):
        command.add_to(commands)
    return parser
