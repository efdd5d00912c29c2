"""Run the study: any task, method, budget and seed, everything, or the tables and figures.

    python -m experiments mnist_to_usps --method qexp --epsilon 1 --seed 0
    python -m experiments all --jobs 2
    python -m experiments all --jobs 2 --tasks … [--methods …] [--epsilons …] [--seeds 10]
    python -m experiments all --only membership one_run_audit
    python -m experiments report
    python -m experiments repeat --lines 40

The first prints one JSON line. `all` fills experiments/results, shows progress, leaves out what is
there already, and may be stopped at any moment: the study of every method on every task first, then
all other measurements, or the parts that `--only` names. `report` writes the tables and figures
of the docs from what is there, `repeat` runs some lines of the study again. Settings are planned on
public records alone. Noise comes from reproducible test generators, so that the releases of a study
are not private.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys

from experiments import everything
from experiments.study import DEFAULT_EPSILONS, METHODS, Cell, repeat, results, run_all, run_cell
from experiments.tasks import TASKS

# The open sample of MIMIC-III holds 27 public stays, fewer than a plan takes.
_ON_REQUEST = {
    "mimic_mortality": "whose open sample is too small to plan with,",
    "mnist_to_usps_augmented": "for which mnist_few_500_augmented stands",
}
_STUDY = "study"


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "report":
        argparse.ArgumentParser(prog="python -m experiments report").parse_args(sys.argv[2:])
        for path in everything.write():
            print(path)
    elif len(sys.argv) > 1 and sys.argv[1] == "all":
        fill(sys.argv[2:])
    elif len(sys.argv) > 1 and sys.argv[1] == "repeat":
        again(sys.argv[2:])
    else:
        one(sys.argv[1:])


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
    arguments = parser.parse_args(argv)
    cell = Cell(
        arguments.task, arguments.method, arguments.epsilon, arguments.delta, arguments.seed
    )
    print(json.dumps(run_cell(cell, effort=arguments.effort)))


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
    given = parser.parse_args(argv)
    of_the_study = given.tasks or given.methods or given.epsilons
    if of_the_study and given.only not in (None, [_STUDY]):
        parser.error("--tasks, --methods and --epsilons are the study's, and --only names others")
    parts = given.only or ([_STUDY] if of_the_study else [_STUDY, *everything.PARTS])
    # As Ctrl-C: the processes that work for this one end with it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed, left_out = 0, []
    try:
        if _STUDY in parts:
            failed = _run_all(given)
        for message in everything.measure([part for part in parts if part != _STUDY]):
            print(f"left out: {message}", file=sys.stderr)
            left_out.append(message)
    except KeyboardInterrupt:
        sys.exit("stopped; what is done is in experiments/results, and the same command goes on")
    finally:
        signal.signal(signal.SIGTERM, before)
    if failed:
        sys.exit(f"{failed} task(s) and method(s) failed; the others are in experiments/results")
    if left_out:
        sys.exit(f"{len(left_out)} part(s) left out; the others are in experiments/results")


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
    given = parser.parse_args(argv)
    some = repeat.drawn(
        results.Store().all_lines(), given.lines, seconds=given.seconds, seed=given.seed
    )
    if not some:
        sys.exit("there is nothing to repeat: --lines is below 1 or all runs took longer")
    differences = []
    for line, value in repeat.repeated(some):
        differences.append(abs(value - line["value"]))
        names = f"{line['task']} {line['method']}", f"ε = {line['epsilon']}, seed {line['seed']}"
        print(f"{names[0]:<44} {names[1]:<22} {line['value']:.6f} {value:.6f}", flush=True)
    same = sum(difference == 0 for difference in differences)
    print(f"{same} of {len(some)} are the same; the largest difference is {max(differences):.6f}")
    if max(differences) > given.tolerance:
        sys.exit(f"some differ by more than {given.tolerance:g}")


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
    )


if __name__ == "__main__":
    main()
