"""``qexp run``."""

from __future__ import annotations

import argparse

from qexp.cli._commands import Commands
from qexp.cli._signals import end, interrupt, on_signals

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "run",
        _run,
        scripted=True,
        help="run a batch job from a file, also under mpiexec",
        description="Fine-tune privately as a TOML file says, in rounds that are saved and paid "
        "for, and write weights.npz, certificate.json and report.html. On SIGTERM, SIGINT or "
        "SIGUSR1 it stops after the round under way. See docs/batch-jobs.md.",
        examples=[
            "qexp run --explain",
            "qexp run job.toml --dry-run",
            "qexp run job.toml",
            "mpiexec -n 4 qexp run job.toml --resume",
        ],
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="the job file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, plan, and say what the job would take; reads no private value; "
        "exit code 3 if the ledger has not enough left for all rounds",
    )
    what.add_argument(
        "--resume",
        action="store_true",
        help="go on with the job in the output folder; begin, if there is none",
    )
    what.add_argument("--explain", action="store_true", help="describe every key of a job file")
    parser.add_argument("--output", metavar="FOLDER", help="instead of the one in the job file")


def _run(options: argparse.Namespace) -> int:
    # Scripts submit a job again on the exit code of an interruption, whenever the signal comes.
    with on_signals(interrupt):
        return _stoppable(options)


def _stoppable(options: argparse.Namespace) -> int:
    with on_signals(end):
        from qexp.job.exit_codes import ExitCode
        from qexp.job.run import communicator, dry_run, run_job
        from qexp.job.settings import explain, load_settings

    if options.explain:
        print(explain(), end="")
        return 0
    if options.file is None:
        raise ValueError("give a job file, or --explain; see `qexp run --help`")
    ranks = communicator()
    options.silent = ranks.rank != 0
    settings = load_settings(options.file, output=options.output)
    if options.dry_run:
        if ranks.rank != 0:
            return 0
        text, affordable = dry_run(settings)
        print(text, end="")
        return int(ExitCode.DONE if affordable else ExitCode.BUDGET_EXCEEDED)
    return int(run_job(settings, resume=options.resume, ranks=ranks))
