"""All cells, in several processes, as often as it takes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Final

from experiments.study.cells import Cell, plan_settings, run_planned
from experiments.study.methods import METHODS, NO_BUDGET
from experiments.study.results import Store
from qexp._progress import progress_bar

__all__ = ["EXPECTED_ERRORS", "run_all"]

EXPECTED_ERRORS: Final = (ValueError, OSError, ImportError, MemoryError)
"""What wrong arguments, missing files and missing modules raise; their messages say enough."""

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class _Budget:
    """The seeds that are missing at one ε; settings, where some seed had them planned."""

    epsilon: float
    seeds: tuple[int, ...]
    settings: dict[str, Any] | None


@dataclass(frozen=True)
class _Group:
    """What is missing of a task and method: the cells of one file, which one process writes."""

    task: str
    method: str
    delta: float
    effort: str
    budgets: tuple[_Budget, ...]

    @property
    def n_cells(self) -> int:
        return sum(len(budget.seeds) for budget in self.budgets)


def run_all(
    *,
    tasks: Sequence[str],
    methods: Sequence[str],
    epsilons: Sequence[float],
    delta: float,
    seeds: Iterable[int],
    effort: str,
    jobs: int,
    store: Store,
    debug: bool = False,
) -> int:
    """Run what is missing of the study, and give the number of tasks and methods that failed.

    A cell is stored as soon as it is done: what a stop loses is a cell for each process, or the
    plan that it was at. What fails is told on standard error, with `debug` by a traceback always.
    """
    groups = list(_missing(tasks, methods, epsilons, delta, tuple(seeds), effort, store))
    # One thread each, so that none waits for another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Spawned, so that no thread of BLAS is forked.
    context = multiprocessing.get_context("spawn")
    done_cells = context.SimpleQueue()
    waiting, failed = groups[::-1], 0
    running: list[Any] = []
    with progress_bar(sum(group.n_cells for group in groups), "cells", show=True) as advance:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    arguments = waiting.pop(), store, done_cells, debug
                    process = context.Process(target=_work, args=arguments)
                    process.start()
                    running.append(process)
                connection.wait([process.sentinel for process in running], _SECONDS_BETWEEN_LOOKS)
                while not done_cells.empty():
                    advance(done_cells.get())
                # Asked once, as a process may end between two questions.
                codes = [process.exitcode for process in running]
                failed += sum(code not in (None, 0) for code in codes)
                running = [p for p, code in zip(running, codes, strict=True) if code is None]
        finally:
            # Files are whole at any moment.
            for process in running:
                process.terminate()
            for process in running:
                process.join()
    return failed


def _missing(
    tasks: Sequence[str],
    methods: Sequence[str],
    epsilons: Sequence[float],
    delta: float,
    seeds: tuple[int, ...],
    effort: str,
    store: Store,
) -> Iterator[_Group]:
    for task in tasks:
        # What has no budget first: other lines quote fine-tuning without privacy.
        for method in sorted(methods, key=lambda name: METHODS[name].takes_budget):
            only = METHODS[method].tasks
            if only is not None and task not in only:
                continue
            known = store.lines(task, method)
            budgets = []
            for epsilon in epsilons if METHODS[method].takes_budget else (NO_BUDGET,):
                stated = None if epsilon == NO_BUDGET else epsilon
                done = {
                    line["seed"]: line["hyperparameters"]
                    for line in known
                    if (line["epsilon"], line["delta"]) == (stated, delta)
                    # Lines of one cell are of one plan. The first ones did not say its effort.
                    and line.get("effort", "quick") == effort
                }
                missing = tuple(seed for seed in seeds if seed not in done)
                if missing:
                    settings = next(iter(done.values()), None)
                    budgets.append(_Budget(epsilon, missing, settings))
            if budgets:
                yield _Group(task, method, delta, effort, tuple(budgets))


def end_with_parent() -> None:
    """End this process when the one that started it is gone, were it killed outright."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _work(group: _Group, store: Store, done_cells: Any, debug: bool) -> None:
    end_with_parent()
    # Ctrl-C is the parent's, who ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _run(group, store, done_cells)
    except Exception as error:
        print(f"{group.task}, {group.method}: {error}", file=sys.stderr)
        if debug or not isinstance(error, EXPECTED_ERRORS):
            traceback.print_exc()
        sys.exit(1)


def _run(group: _Group, store: Store, done_cells: Any) -> None:
    settings = {}
    for budget in group.budgets:
        settings[budget.epsilon] = budget.settings or plan_settings(
            group.task, group.method, budget.epsilon, group.delta, group.effort
        )
        # The first cell of a plan keeps it: it need not be made again after a stop.
        _run_cell(group, budget.epsilon, budget.seeds[0], settings, store, done_cells)
    # Seed by seed, since pretraining takes longer than a cell.
    for seed in sorted({seed for budget in group.budgets for seed in budget.seeds[1:]}):
        for budget in group.budgets:
            if seed in budget.seeds[1:]:
                _run_cell(group, budget.epsilon, seed, settings, store, done_cells)


def _run_cell(
    group: _Group,
    epsilon: float,
    seed: int,
    settings: dict[float, dict[str, Any]],
    store: Store,
    done_cells: Any,
) -> None:
    cell = Cell(group.task, group.method, epsilon, group.delta, seed)
    line = _same_elsewhere(cell, settings[epsilon], store) or run_planned(cell, settings[epsilon])
    line = {**line, "method": group.method, "effort": group.effort}
    free = line if group.method == "non_private" else _without_privacy(cell, store)
    store.add([{**line, "non_private": None if free is None else free["value"]}])
    done_cells.put(1)


def _without_privacy(cell: Cell, store: Store) -> dict[str, Any] | None:
    """Give the line of fine-tuning without privacy from the same start, where there is one yet."""
    lines = store.lines(cell.task, "non_private")
    return next((line for line in lines if line["seed"] == cell.seed), None)


def _same_elsewhere(cell: Cell, settings: dict[str, Any], store: Store) -> dict[str, Any] | None:
    """Give the line of a method that plans otherwise and came to the same settings."""
    for other in METHODS[cell.method].runs_as:
        for line in store.lines(cell.task, other):
            same = (line["epsilon"], line["delta"], line["seed"], line["hyperparameters"])
            if same == (cell.epsilon, cell.delta, cell.seed, settings):
                return line
    return None
