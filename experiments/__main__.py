"""Run the study: any task, method, budget and seed, all of them, or their tables and figures.

    python -m experiments mnist_to_usps --method qexp --epsilon 1 --seed 0
    python -m experiments all --jobs 2 [--tasks …] [--methods …] [--epsilons …] [--seeds 10]
    python -m experiments report

The first prints one JSON line. The second fills experiments/results, shows progress, leaves out
what is there already, and may be stopped at any moment. The third writes docs/study.md,
docs/time-to-accuracy.md, docs/ablations.md and their figures from what is there. Settings are
planned on public records alone. Noise comes from reproducible test generators, so that the releases
of a study are not private.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys

from experiments import ablations, time_to_accuracy
from experiments.study import DEFAULT_EPSILONS, METHODS, Cell, report, results, run_all, run_cell
from experiments.tasks import TASKS

# The open sample of MIMIC-III holds 27 public stays, fewer than a plan takes.
_UNPLANNED = ("mimic_mortality",)


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "report":
        argparse.ArgumentParser(prog="python -m experiments report").parse_args(sys.argv[2:])
        for write in (report.write, time_to_accuracy.write, ablations.write):
            for path in write():
                print(path)
    elif len(sys.argv) > 1 and sys.argv[1] == "all":
        everything(sys.argv[2:])
    else:
        one(sys.argv[1:])


def one(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__.splitlines()[0],
        epilog="\n".join(__doc__.splitlines()[2:5]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=[*sorted(TASKS), "all", "report"])
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


def everything(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments all")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        choices=sorted(TASKS),
        default=[task for task in sorted(TASKS) if task not in _UNPLANNED],
        help=f"of {', '.join(sorted(TASKS))}; default: all but {', '.join(_UNPLANNED)}, whose open "
        "sample is too small to plan with",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        choices=sorted(METHODS),
        default=list(METHODS),
        help=f"of {', '.join(sorted(METHODS))}; default: all",
    )
    parser.add_argument(
        "--epsilons",
        nargs="+",
        metavar="EPSILON",
        type=float,
        default=list(DEFAULT_EPSILONS),
        help=f"default: {' '.join(f'{value:g}' for value in DEFAULT_EPSILONS)}",
    )
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, default=10, help="0 up to this number less one")
    parser.add_argument("--effort", choices=["quick", "full"], default="quick")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args(argv)
    # As Ctrl-C: the processes that work for this one end with it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = _run_all(arguments)
    except KeyboardInterrupt:
        sys.exit("stopped; what is done is in experiments/results, and the same command goes on")
    finally:
        signal.signal(signal.SIGTERM, before)
    if failed:
        sys.exit(f"{failed} task(s) and method(s) failed; the others are in experiments/results")


def _run_all(arguments: argparse.Namespace) -> int:
    return run_all(
        tasks=arguments.tasks,
        methods=arguments.methods,
        epsilons=arguments.epsilons,
        delta=arguments.delta,
        seeds=range(arguments.seeds),
        effort=arguments.effort,
        jobs=arguments.jobs,
        store=results.Store(),
    )


if __name__ == "__main__":
    main()
