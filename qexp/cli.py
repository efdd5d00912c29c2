"""The command line ``qexp``.

Exit codes: 0 done; 1 it failed, with one message on standard error; 2 the arguments are wrong;
130 interrupted by Ctrl-C. Output files are whole or not there.
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
        0 done, 1 failed, 130 interrupted. Wrong arguments raise SystemExit with code 2, and
        ``--help`` and ``--version`` with code 0, as argparse does.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nqexp: interrupted; no file was left half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        print(f"qexp: {_message(error)}", file=sys.stderr)
        return 1
    return 0


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

    def command(name: str, run: Callable[[argparse.Namespace], None], **texts: Any) -> Any:
        sub = _new_parser(commands.add_parser, name, **texts)
        sub.add_argument(
            "--debug", action="store_true", help="show the traceback when something fails"
        )
        sub.set_defaults(run=run)
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
    return parser


def _new_parser(make: Callable[..., Any], *names: str, examples: list[str], **texts: Any) -> Any:
    epilog = "examples:\n" + "".join(f"  {line}\n" for line in examples) + "\n" + _EXIT_CODES
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


if __name__ == "__main__":
    raise SystemExit(main())
