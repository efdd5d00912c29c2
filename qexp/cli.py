"""The command line ``qexp``.

Exit codes: 0 done; 1 it failed, with one message on standard error; 2 the arguments are wrong;
130 interrupted by Ctrl-C. ``run`` and ``ledger``, which scripts call, tell failures apart: see
:mod:`qexp.job.exit_codes`. Output files are whole or not there.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from qexp._core import __version__

__all__ = ["main"]

_EXIT_CODES: Final = """\
exit codes:
  0 done   1 failed, with one message   2 wrong arguments   130 interrupted by Ctrl-C
"""

# The ε at a few customary δ, beside the one that was asked for.
_DELTAS: Final = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8)


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


# --- Arguments -------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _new_parser(
        argparse.ArgumentParser,
        prog="qexp",
        description="Fine-tune pretrained models on private data with an exact "
        "differential-privacy guarantee.",
        examples=["qexp demo", "qexp calibrate --epsilon 1 --delta 1e-5"],
    )
    parser.add_argument("--version", action="version", version=f"qexp {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int | None],
        *,
        among: Any = commands,
        scripted: bool = False,
        **texts: Any,
    ) -> Any:
        sub = _new_parser(among.add_parser, name, scripted=scripted, **texts)
        sub.add_argument(
            "--debug", action="store_true", help="show the traceback when something fails"
        )
        sub.set_defaults(run=run, scripted=scripted)
        return sub

    demo = command(
        "demo",
        _demo,
        help="fine-tune a small model on real data, privately, and draw the result",
        description="Pretrain a small model on public records, fine-tune it privately on records "
        "of another domain, and say what that cost and gained. Writes release.npz, "
        "certificate.json and accuracy-epsilon.png.",
        examples=[
            "qexp demo",
            "qexp demo --epsilon 2 --out my-folder",
            "QEXP_DATA=/path/to/data qexp demo --data mnist-usps",
            "QEXP_DATA=/path/to/data qexp demo --data icu --no-plot",
        ],
    )
    demo.add_argument(
        "--data",
        choices=("digits", "mnist-usps", "icu"),
        default="digits",
        help="digits (default): comes with scikit-learn; mnist-usps, icu: files of MNIST and "
        "USPS, or PhysioNet 2012, in the folder that the environment variable QEXP_DATA names",
    )
    demo.add_argument(
        "--epsilon", type=_epsilon, default=1.0, help="privacy of the release (default 1)"
    )
    demo.add_argument(
        "--delta", type=_delta, default=1e-5, help="privacy of the release (default 1e-5)"
    )
    demo.add_argument(
        "--out", metavar="FOLDER", default="qexp-demo", help="made if need be (default qexp-demo)"
    )
    demo.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="of the split and of pretraining (default 0); never of the noise, which is always "
        "drawn from a cryptographic generator",
    )
    demo.add_argument(
        "--no-plot", action="store_true", help="leave out the curve of accuracy over epsilon"
    )

    calibrate = command(
        "calibrate",
        _calibrate,
        help="translate between epsilon, mu and the noise multiplier",
        description="Give the exact noise that a privacy target takes, or what a given mu is "
        "worth. One record is replaced by a null record, unless it says replace_one.",
        examples=[
            "qexp calibrate --epsilon 1 --delta 1e-5",
            "qexp calibrate --epsilon 1 --delta 1e-5 --rounds 8",
            "qexp calibrate --mu 1 --delta 1e-5 --json",
        ],
    )
    target = calibrate.add_mutually_exclusive_group(required=True)
    target.add_argument("--epsilon", type=_epsilon, help="find the noise for this epsilon")
    target.add_argument("--mu", type=_mu, help="say what this mu is worth")
    calibrate.add_argument("--delta", type=_delta, required=True)
    calibrate.add_argument(
        "--rounds", type=_rounds, default=1, help="split the budget evenly (default 1)"
    )
    calibrate.add_argument("--json", action="store_true", help="print JSON")

    command(
        "config",
        _config,
        help="show versions, instruction set, BLAS and threads",
        description="Show how qexp was built and what it runs on, for reports of problems.",
        examples=["qexp config"],
    )

    certificate = command(
        "certificate",
        _certificate,
        help="print what a saved release guarantees",
        description="Print the statement of a saved release and its certificate, as JSON.",
        examples=["qexp certificate qexp-demo/release.npz"],
    )
    certificate.add_argument("file", metavar="FILE", help="a release.npz")

    job = command(
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
    job.add_argument("file", metavar="FILE", nargs="?", help="the job file")
    what = job.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, plan, and say what the job would take; reads no private value",
    )
    what.add_argument(
        "--resume",
        action="store_true",
        help="go on with the job in the output folder; begin, if there is none",
    )
    what.add_argument("--explain", action="store_true", help="describe every key of a job file")
    job.add_argument("--output", metavar="FOLDER", help="instead of the one in the job file")

    ledger = _new_parser(
        commands.add_parser,
        "ledger",
        scripted=True,
        help="make and look after a privacy ledger that jobs share",
        description="A shared ledger is a file of chained lines that says what may be spent on "
        "some private records, and what was. See docs/batch-jobs.md.",
        examples=[
            "qexp ledger create ledger.jsonl --epsilon 1 --delta 1e-5",
            "qexp ledger show ledger.jsonl",
        ],
    )
    ledgers = ledger.add_subparsers(metavar="action", required=True)

    create = command(
        "create",
        _ledger_create,
        among=ledgers,
        scripted=True,
        help="start a ledger in a new file",
        description="Start a ledger with a budget for all jobs on the same private records.",
        examples=[
            "qexp ledger create ledger.jsonl --epsilon 1 --delta 1e-5",
            "qexp ledger create ledger.jsonl --mu 0.5 --relation replace_one",
        ],
    )
    create.add_argument("path", metavar="PATH", help="a file that does not exist yet")
    budget = create.add_mutually_exclusive_group(required=True)
    budget.add_argument("--epsilon", type=_epsilon, help="the budget, with --delta")
    budget.add_argument("--mu", type=_mu, help="the budget, as Gaussian differential privacy")
    create.add_argument("--delta", type=_delta, help="goes with --epsilon")
    create.add_argument(
        "--relation",
        choices=("replace_special", "replace_one"),
        default="replace_special",
        help="neighbouring data sets: one record is replaced by a null record (default), or by "
        "any other",
    )

    show = command(
        "show",
        _ledger_show,
        among=ledgers,
        scripted=True,
        help="print what was spent, what is left, and open reservations",
        description="Check a ledger and print it. Needs no right but to read it.",
        examples=["qexp ledger show ledger.jsonl", "qexp ledger show ledger.jsonl --json"],
    )
    show.add_argument("path", metavar="PATH")
    show.add_argument("--json", action="store_true", help="print JSON")

    verify = command(
        "verify",
        _ledger_verify,
        among=ledgers,
        scripted=True,
        help="check every line and its checksum",
        description="Check that a ledger is as it was written: exit code 0 if it is, 6 if not.",
        examples=["qexp ledger verify ledger.jsonl"],
    )
    verify.add_argument("path", metavar="PATH")

    release = command(
        "release",
        _ledger_release,
        among=ledgers,
        scripted=True,
        help="give back what a dead job had reserved",
        description="Give back an open reservation of a process that is gone for good. Allowed "
        "only if nothing of that draw was published and nothing will be: nobody saw the job's "
        "outputs or its checkpoint. If its output folder is still there, rather resume the job: "
        "it takes its reservation up again.",
        examples=['qexp ledger release ledger.jsonl 12 --note "node lost, folder removed"'],
    )
    release.add_argument("path", metavar="PATH")
    release.add_argument("id", metavar="ID", type=_seed, help="its number in `qexp ledger show`")
    release.add_argument("--note", default="", help="why; kept in the ledger")
    return parser


def _new_parser(
    make: Callable[..., Any],
    *names: str,
    examples: list[str],
    scripted: bool = False,
    **texts: Any,
) -> Any:
    codes = _EXIT_CODES
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


def _number(text: str, allowed: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; it needs {allowed}") from None


def _positive(text: str) -> float:
    allowed = "a finite number above 0"
    number = _number(text, allowed)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is out of range; it needs {allowed}")
    return number


_epsilon = _mu = _positive


def _delta(text: str) -> float:
    allowed = "a number strictly between 0 and 1, well below 1 / (number of records)"
    number = _number(text, allowed)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range; it needs {allowed}")
    return number


def _integer(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(
            f"{text!r} is out of range; it needs an integer of at least {least}"
        )
    return number


def _rounds(text: str) -> int:
    return _integer(text, 1)


def _seed(text: str) -> int:
    return _integer(text, 0)


# --- Commands --------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> None:
    from qexp.demo import run_demo

    run_demo(
        options.data,
        epsilon=options.epsilon,
        delta=options.delta,
        folder=options.out,
        seed=options.seed,
        plot=not options.no_plot,
    )


def _calibrate(options: argparse.Namespace) -> None:
    import json

    figures = _figures(options.epsilon, options.mu, options.delta, options.rounds)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    rows = [
        ("privacy", f"({figures['epsilon']:.6g}, {options.delta:g})-DP, replace_special"),
        ("mu", f"{figures['mu']:.10g}"),
        ("mu under replace_one", f"{figures['mu_replace_one']:.10g}"),
        ("epsilon under replace_one", f"{figures['epsilon_replace_one']:.6g}"),
        ("noise multiplier (sigma / c)", f"{figures['noise_multiplier']:.10g}"),
        ("zCDP rho", f"{figures['zcdp_rho']:.6g}"),
    ]
    if options.rounds > 1:
        rows += [
            (f"mu of each of {options.rounds} rounds", f"{figures['mu_per_round']:.10g}"),
            ("noise multiplier of each", f"{figures['noise_multiplier_per_round']:.10g}"),
        ]
    rows += [
        (f"epsilon at delta = {float(delta):g}", f"{value:.6g}")
        for delta, value in figures["epsilon_at_delta"].items()
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _figures(epsilon: float | None, mu: float | None, delta: float, rounds: int) -> dict[str, Any]:
    from qexp import privacy

    if mu is None:
        assert epsilon is not None
        mu = privacy.calibrate_mu(epsilon, delta)
    else:
        epsilon = privacy.epsilon(delta, mu)
    # Rounds of the same μ compose to √T μ; a step down pays for the rounding of the quotient.
    per_round = mu / math.sqrt(rounds)
    while privacy.compose_mu([per_round] * rounds) > mu:
        per_round = math.nextafter(per_round, 0.0)
    return {
        "epsilon": epsilon,
        "delta": delta,
        "mu": mu,
        "mu_replace_one": 2 * mu,
        "epsilon_replace_one": privacy.epsilon(delta, 2 * mu),
        "noise_multiplier": 1 / mu,
        "zcdp_rho": mu**2 / 2,
        "rounds": rounds,
        "mu_per_round": per_round,
        "noise_multiplier_per_round": 1 / per_round,
        "epsilon_at_delta": {
            repr(other): privacy.epsilon(other, mu) for other in sorted({*_DELTAS, delta})[::-1]
        },
    }


def _config(options: argparse.Namespace) -> None:
    from qexp._config import show_config

    show_config()


def _certificate(options: argparse.Namespace) -> None:
    import json

    from qexp.release import PrivateRelease

    try:
        release = PrivateRelease.load(options.file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no file {options.file}; it needs a release that `qexp demo` or "
            "PrivateRelease.save wrote"
        ) from None
    document = {"statement": release.statement, "certificate": release.certificate()}
    print(json.dumps(document, indent=2))


def _run(options: argparse.Namespace) -> int:
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
        if ranks.rank == 0:
            print(dry_run(settings), end="")
        return 0
    return int(run_job(settings, resume=options.resume, ranks=ranks))


def _ledger_create(options: argparse.Namespace) -> None:
    from qexp.ledger_file import SharedLedger

    if (options.epsilon is None) != (options.delta is None):
        raise ValueError("--epsilon and --delta go together; --mu needs neither")
    ledger = SharedLedger.create(
        options.path,
        mu_budget=options.mu,
        target_epsilon=options.epsilon,
        target_delta=options.delta,
        neighboring_relation=options.relation,
    )
    print(f"{ledger.path}: mu_budget = {ledger.mu_budget!r}, {ledger.neighboring_relation}")


def _ledger_show(options: argparse.Namespace) -> None:
    import dataclasses
    import json

    from qexp.ledger_file import read_ledger
    from qexp.privacy import epsilon

    found = read_ledger(options.path)
    if options.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return
    target = found.target
    delta = target[1] if target else 1e-6
    budget = f"mu = {found.mu_budget:.8g}"
    if target:
        budget += f", that is epsilon = {target[0]:g} at delta = {target[1]:g}"
    rows = [
        ("budget", f"{budget} ({found.neighboring_relation})"),
        (
            "spent",
            f"mu = {found.mu_spent:.8g} in {len(found.entries)} charge(s), epsilon = "
            f"{epsilon(delta, found.mu_spent):.6g} at delta = {delta:g}",
        ),
        ("reserved", f"mu = {found.mu_reserved:.8g} in {len(found.open_reservations)} draw(s)"),
        ("file", f"{found.lines} lines, head {found.head}"),
    ]
    for name, text in rows:
        print(f"{name:<9} {text}")
    for entry in found.entries:
        print(f"  {entry.time}  mu = {entry.mu:.8g}  {entry.label}")
    if found.open_reservations:
        print("open reservations (resume their jobs, or see `qexp ledger release --help`):")
    for held in found.open_reservations:
        print(f"  ID {held.number}  {held.time}  mu = {held.mu:.8g}  {held.label}  [{held.holder}]")


def _ledger_verify(options: argparse.Namespace) -> None:
    from qexp.ledger_file import read_ledger

    found = read_ledger(options.path)
    torn = (
        f"; {found.torn_bytes} bytes of a line that was never acknowledged follow, and will be "
        "mended by the next job"
        if found.torn_bytes
        else ""
    )
    print(f"{found.path} is whole: {found.lines} lines, head {found.head}{torn}")


def _ledger_release(options: argparse.Namespace) -> None:
    from qexp.ledger_file import SharedLedger

    held = SharedLedger(options.path).release(options.id, options.note)
    print(f"gave back mu = {held.mu!r} of {held.label!r}, which {held.holder} had reserved")


if __name__ == "__main__":
    raise SystemExit(main())
