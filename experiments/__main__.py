"""Run the study: any task, method, budget and seed, everything, or the tables and figures.

    python -m experiments mnist_to_usps --method qexp --epsilon 1 --seed 0
    python -m experiments all --jobs 2 --report
    python -m experiments all --jobs 2 --tasks … [--methods …] [--epsilons …] [--seeds 10]
    python -m experiments all --only membership one_run_audit
    python -m experiments report
    python -m experiments repeat --lines 40

The first prints one JSON line. `all` fills experiments/results, shows progress, leaves out what is
there already, and may be stopped at any moment: the study of every method on every task first, then
all other measurements, or the parts that `--only` names. `report` writes the tables and figures
of the docs from what is there, as `all --report` does at its end; `repeat` runs some lines of the
study again. Settings are planned on public records alone. Noise comes from reproducible test
generators, so that the releases of a study are not private. What cannot be run ends in one line and
exit code 2; `--debug` shows where.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from experiments import everything
from experiments.study import DEFAULT_EPSILONS, METHODS, Cell, repeat, results, run_all, run_cell
from experiments.study.runner import EXPECTED_ERRORS
from experiments.tasks import TASKS

_ON_REQUEST = {
    "mimic_mortality": "whose open sample is too small to plan with,",
    "mimic_mortality_full": "whose tables credentialed users alone have (docs/mimic.md),",
    "mnist_to_usps_augmented": "for which mnist_few_500_augmented stands",
}
_STUDY = "study"


def main() -> None:
    commands = {"report": write, "all": fill, "repeat": again}
    first, others = sys.argv[1:2], sys.argv[2:]
    if first and first[0] in commands:
        commands[first[0]](others)
    else:
        one(sys.argv[1:])


def write(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments report")
    with _told_in_a_line(parser, _parsed(parser, argv).debug):
        _write()


def one(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__.splitlines()[0],
        epilog="\n".join(__doc__.splitlines()[2:8]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=[*sorted(TASKS), "all", "report", "repeat"])
    parser.add_argument("--method", choices=sorted(METHODS), default="qexp")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", choices=["quick", "full"], default="quick")
    given = _parsed(parser, argv)
    cell = Cell(given.task, given.method, given.epsilon, given.delta, given.seed)
    with _told_in_a_line(parser, given.debug):
        print(json.dumps(run_cell(cell, effort=given.effort)))


def fill(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments all")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        choices=[_STUDY, *everything.PARTS],
        help=f"of {_STUDY}, {', '.join(everything.PARTS)}; default: all, or the study if one of "
        "its tasks, methods or budgets is named",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        choices=sorted(TASKS),
        help=f"of {', '.join(sorted(TASKS))}; default: all but "
        + " and ".join(f"{task}, {why}" for task, why in _ON_REQUEST.items()),
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        choices=sorted(METHODS),
        help=f"of {', '.join(sorted(METHODS))}; default: all",
    )
    parser.add_argument(
        "--epsilons",
        nargs="+",
        metavar="EPSILON",
        type=float,
        help=f"default: {' '.join(f'{value:g}' for value in DEFAULT_EPSILONS)}",
    )
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, default=10, help="0 up to this number less one")
    parser.add_argument("--effort", choices=["quick", "full"], default="quick")
    parser.add_argument("--jobs", type=int, default=1, help="processes of the study")
    parser.add_argument("--report", action="store_true", help="then write the docs, as `report`")
    given = _parsed(parser, argv)
    of_the_study = given.tasks or given.methods or given.epsilons
    if of_the_study and given.only not in (None, [_STUDY]):
        parser.error("--tasks, --methods and --epsilons are the study's, and --only names others")
    parts = given.only or ([_STUDY] if of_the_study else [_STUDY, *everything.PARTS])
    with _told_in_a_line(parser, given.debug):
        failed, left_out = _fill(given, parts)
        if not (failed or left_out):
            if given.report:
                _write()
            return
    what = f"{failed} task(s) and method(s) failed" if failed else f"{left_out} part(s) left out"
    rest = ", and no report was written" if given.report else ""
    sys.exit(f"{what}; the others are in experiments/results{rest}")


def _fill(given: argparse.Namespace, parts: list[str]) -> tuple[int, int]:
    """Measure, and give how many of the study's groups failed and how many parts were left out."""
    # As Ctrl-C: the processes that work for this one end with it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed, left_out = 0, 0
    try:
        if _STUDY in parts:
            failed = _run_all(given)
        for message in everything.measure([part for part in parts if part != _STUDY]):
            print(f"left out: {message}", file=sys.stderr)
            left_out += 1
    except KeyboardInterrupt:
        sys.exit("stopped; what is done is in experiments/results, and the same command goes on")
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed, left_out


def again(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments repeat",
        description="Run lines of the study again that are drawn at random, by their plans.",
    )
    parser.add_argument("--lines", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0, help="the longest run to repeat")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="how far values may differ (default 0)"
    )
    given = _parsed(parser, argv)
    some = repeat.drawn(
        results.Store().all_lines(), given.lines, seconds=given.seconds, seed=given.seed
    )
    if not some:
        sys.exit("there is nothing to repeat: --lines is below 1 or all runs took longer")
    differences = []
    with _told_in_a_line(parser, given.debug):
        for line, value in repeat.repeated(some):
            differences.append(abs(value - line["value"]))
            what = f"{line['task']} {line['method']}", f"ε = {line['epsilon']}, seed {line['seed']}"
            print(f"{what[0]:<44} {what[1]:<22} {line['value']:.6f} {value:.6f}", flush=True)
    same = sum(difference == 0 for difference in differences)
    print(f"{same} of {len(some)} are the same; the largest difference is {max(differences):.6f}")
    if max(differences) > given.tolerance:
        sys.exit(f"some differ by more than {given.tolerance:g}")


def _parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("--debug", action="store_true", help="show tracebacks of what fails")
    return parser.parse_args(argv)


@contextmanager
def _told_in_a_line(parser: argparse.ArgumentParser, debug: bool) -> Iterator[None]:
    try:
        yield
    except EXPECTED_ERRORS as error:
        if debug:
            raise
        parser.exit(2, f"{parser.prog}: {error}\n")


def _write() -> None:
    for path in everything.write():
        print(path)


def _run_all(arguments: argparse.Namespace) -> int:
    return run_all(
        tasks=arguments.tasks or [task for task in sorted(TASKS) if task not in _ON_REQUEST],
        methods=arguments.methods or list(METHODS),
        epsilons=arguments.epsilons or list(DEFAULT_EPSILONS),
        delta=arguments.delta,
        seeds=range(arguments.seeds),
        effort=arguments.effort,
        jobs=arguments.jobs,
        store=results.Store(),
        debug=arguments.debug,
    )


if __name__ == "__main__":
    main()
