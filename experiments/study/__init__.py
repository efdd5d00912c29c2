"""The study: every method on every task at every budget, at equal terms."""

from experiments.study import report, results
from experiments.study.cells import DEFAULT_EPSILONS, Cell, run_cell
from experiments.study.methods import METHODS
from experiments.study.runner import run_all

__all__ = [
    "DEFAULT_EPSILONS",
    "METHODS",
    "Cell",
    "report",
    "results",
    "run_all",
    "run_cell",
]
