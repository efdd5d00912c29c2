"""The page of the study: tables and figures of whatever results there are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from experiments.study import drops, glance
from experiments.study.cells import DEFAULT_EPSILONS
from experiments.study.figures import plot_budgets, plot_records
from experiments.study.names import BOUNDS, PLAIN, PLANNED, RECORDS, in_order
from experiments.study.reasons import NOT_FOUND, PLANS, REASONS
from experiments.study.results import Store
from experiments.study.sampling import known_errors
from experiments.study.summaries import (
    Difference,
    Summary,
    difference_text,
    mean_text,
    methods_by_cell,
    paired,
    student,
    summarise,
)
from experiments.study.verdicts import Verdict, planned, verdicts, without_budget
from experiments.tasks import TASKS
from qexp._files import atomic_write_bytes
from qexp.rivals import METHODS

__all__ = ["DOCS", "write"]

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
_DELTA: Final = 1e-5
# From here on the study is to show that qexp is at least as good as any.
_LEAST_JUDGED: Final = 0.5
# Half of a normal's 95 % interval, in standard errors.
_NORMAL: Final = 1.96
_WHOLE_SPACE: Final = (
    " Where qexp was not planned with subspaces yet, its plan for the whole space is judged, and "
    "said to be that."
)
_BOUNDS_TOLD: Final = ("with public records alone", "without privacy")
# Largest part of DP-SGD's gap that qexp is to leave at ε = 1.
_AIM: Final = 0.5
# Beside the area under the ROC curve, of models whose probabilities are to be used.
_MEASURES: Final = {"auprc": "average precision", "calibration_error": "calibration error"}


def write(store: Store | None = None, docs: Path = DOCS) -> list[Path]:
    """Write docs/study.md and a figure for each task of several budgets; give their paths."""
    store = Store() if store is None else store
    lines = [line for line in store.all_lines() if line["delta"] == _DELTA]
    found = summarise(lines, _DELTA)
    tasks = sorted({summary.task for summary in found})
    figures = docs / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    written, parts = [], [_HEAD]
    rows = glance.rows_of(found, {task: _before(task, lines) for task in tasks})
    if rows:
        path = figures / "study-at-a-glance.png"
        glance.plot(rows, path)
        written.append(path)
        parts.append(glance.section(rows, f"figures/{path.name}"))
    parts.append(_methods())
    for task in tasks:
        of_task = [summary for summary in found if summary.task == task]
        figure = None
        # One budget alone makes no curve.
        if len({summary.epsilon for summary in of_task} - {None}) > 1:
            path = figures / f"study-{task.replace('_', '-')}.png"
            plot_budgets(of_task, path)
            written.append(path)
            figure = f"figures/{path.name}"
        parts.append(_table(task, of_task, _before(task, lines), figure))
        others = _other_measures(of_task)
        if others is not None:
            parts.append(others)
    records = _chosen_budget(found)
    if records is not None:
        path = figures / "study-number-of-records.png"
        plot_records(found, records, path)
        written.append(path)
        parts.append(_records_section(records, f"figures/{path.name}"))
    gaps = _gaps(found)
    if gaps is not None:
        parts.append(gaps)
    parts.append(_verdicts(found, known_errors(store)))
    worse = drops.section(found)
    if worse is not None:
        parts.append(worse)
    schedules = _schedules(lines)
    if schedules is not None:
        parts.append(schedules)
    page = docs / "study.md"
    atomic_write_bytes(page, "\n\n".join(parts).encode() + b"\n")
    return [page, *written]


_HEAD: Final = """\
# The study

Every method on every task, at the same (ε, δ = 1e-5) under `replace_special` (SECURITY.md says what
that is), mean over seeds ± half of its 95 % interval. Settings are planned on public records by the
same stages of trials for all methods: on shifts drawn for them, or, for intensive care, on moves of
public stays from some to others (`icu_cardiac`: between units; `icu_time`: from a random half to
the other). One plan, made at seed 0, serves all seeds. The best mean of a column is bold, even
where it is not clearly better. `mimic_mortality` is not in the study, since the open sample of
MIMIC-III has too few public stays to plan with (43 medical, 11 coronary; a plan takes 50):
[mimic.md](mimic.md) says how credentialed users run it on the whole release.

qexp's grid has 780 schedules for the whole space and 90 for each of four sizes of a subspace.
Closed forms discard some: 64 to 770 of the former are tried in the first stage, and up to 90 of
each of the latter. A rival tries all of its 90 to 324. Later stages are as large for all, and
rivals' refinement goes on while it gets further. Noise comes from reproducible test generators.
Poisson samples (DP-SGD, SPARTA) are accounted for by privacy loss distributions, all other methods
exactly. Seconds are a run's, without planning and without the half minute in which a subspace is
learnt, once a model. Cells that are empty were not run.

Grids were widened in the course of the study, where plans had asked for what lay beyond them. Of
the earlier, narrower ones are DP-SGD and gradient descent of `adult_work`, of digits at ε = 0.5 and
more but for `usps_to_mnist` and for the augmented task at 0.5, 2 and 8, and of `mnist_few_500` at
0.1 and 0.25; SPARTA, at ε = 0.5 and more, of `mnist_rotated` and `mnist_to_usps`, and of the
augmented task at 1 and 4; AdaMix of `mnist_rotated` but at 8. Where both were measured, the wider
grids changed DP-SGD and gradient descent by up to +.002 in intensive care, DP-SGD of digits (six
cells, which have the later plans) by -.003 to +.002, and SPARTA by -.009 to +.012.

Written by `python -m experiments report` from `experiments/results`, which `python -m experiments
all` fills."""


def _methods() -> str:
    rows = [
        "| qexp | Exact draws from the exponential mechanism around the last one, with public "
        "Kronecker curvature; as many rounds as planned. Of images in the whole space or in a "
        "public subspace ([subspaces.md](subspaces.md)), whichever was planned; else in the whole "
        "space. |",
        "| qexp_full_space | The same of images, planned for the whole space. |",
        "| qexp_one_round | A single such draw in the whole space. |",
        *(f"| {name} | {method.summary} |" for name, method in sorted(METHODS.items())),
    ]
    return "\n".join(["## Methods", "", _OF_RIVALS, "", "| method | |", "| --- | --- |", *rows])


_OF_RIVALS: Final = """\
Where each of qexp's rivals is from, where it departs from its publication and how it was checked is
in [rivals.md](rivals.md)."""


def _told(task: str) -> str | None:
    """Give the first line of what a task says of itself."""
    made = TASKS.get(task)
    while isinstance(made, partial):
        made = made.func
    return None if made is None or made.__doc__ is None else made.__doc__.splitlines()[0]


def _table(task: str, found: list[Summary], before: list[float], figure: str | None) -> str:
    metric = found[0].metric
    by_cell = {(s.method, s.epsilon): s for s in found}
    epsilons = sorted({s.epsilon for s in found if s.epsilon is not None})
    methods = sorted({s.method for s in found if s.epsilon is not None}, key=in_order)
    rows = [
        "| method | " + " | ".join(f"ε = {epsilon:g}" for epsilon in epsilons) + " | seconds |",
        "| --- |" + " --- |" * (len(epsilons) + 1),
    ]
    for method in methods:
        cells, seconds = [], []
        for epsilon in epsilons:
            summary = by_cell.get((method, epsilon))
            if summary is None:
                cells.append("")
                continue
            seconds.append(summary.seconds)
            text = summary.text
            others = [
                by_cell[m, epsilon].mean for m in methods if (m, epsilon) in by_cell and m != method
            ]
            best = not others or summary.mean >= max(others)
            cells.append(f"**{text}**" if best else text)
        rows.append(f"| {method} | " + " | ".join(cells) + f" | {np.median(seconds):.1f} |")
    bounds = [f"the pretrained model {mean_text(*student(before), metric)}"]
    for name, words in zip(BOUNDS, _BOUNDS_TOLD, strict=True):
        summary = by_cell.get((name, None))
        if summary is not None:
            bounds.append(f"{words} {summary.text}")
    seeds = sorted({s.seeds for s in found})
    counted = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    unit = "accuracy in %" if metric == "accuracy" else "area under the ROC curve"
    return "\n".join(
        [
            f"## {task}",
            "",
            *([told, ""] if (told := _told(task)) else []),
            f"{unit[0].upper()}{unit[1:]}, {counted}; {', '.join(bounds)}.",
            "",
            *([f"![{unit} against ε, every method]({figure})", ""] if figure else []),
            *rows,
        ]
    )


def _before(task: str, lines: list[dict[str, Any]]) -> list[float]:
    """Give the pretrained models' values, one for each seed."""
    by_seed = {line["seed"]: line["before"] for line in lines if line["task"] == task}
    return list(by_seed.values())


def _other_measures(found: list[Summary]) -> str | None:
    """Tell average precision and calibration at the budget nearest to ε = 1, where measured."""
    measured = [s for s in found if s.measures.keys() >= _MEASURES.keys()]
    budgets = {s.epsilon for s in measured if s.epsilon is not None}
    chosen = _nearest_to_one(sorted(budgets))
    if chosen is None:
        return None
    shown = sorted(
        (s for s in measured if s.epsilon in (chosen, None)),
        key=lambda s: (s.method not in BOUNDS, *in_order(s.method)),
    )
    return "\n".join(
        [
            f"Of the same models, at ε = {chosen:g}:",
            "",
            f"| method | {' | '.join(_MEASURES.values())} |",
            "| --- " * (len(_MEASURES) + 1) + "|",
            *(
                f"| {s.method} | "
                + " | ".join(mean_text(*s.measures[name], name) for name in _MEASURES)
                + " |"
                for s in shown
            ),
        ]
    )


def _not_run(judged: Sequence[Verdict]) -> str:
    """Name the tasks of which not all budgets below the least judged one were run."""
    small = [epsilon for epsilon in DEFAULT_EPSILONS if epsilon < _LEAST_JUDGED]
    cells = {verdict.cell for verdict in judged}
    tasks = sorted({task for task, _ in cells if any((task, e) not in cells for e in small)})
    return f" (not all were run of {', '.join(f'`{task}`' for task in tasks)})" if tasks else ""


def _verdicts(found: list[Summary], errors: Mapping[tuple[str, float, str], float]) -> str:
    """Tell which cells qexp wins, ties and loses, by differences seed by seed."""
    rows: dict[str, list[str]] = {"Lost": [], "Tied": [], "Won": []}
    counts = {least: dict.fromkeys(rows, 0) for least in (True, False)}
    sampled, kept = 0, dict.fromkeys(rows, 0)
    judged = verdicts(found)
    for verdict in judged:
        (task, epsilon), word = verdict.cell, verdict.word
        ours, best, gap = verdict.ours, verdict.best, verdict.gap
        cells = [
            task,
            f"{epsilon:g}",
            ours.text + ("" if ours.method == "qexp" else ", whole space"),
            f"{best.method}, {best.text}"
            + (f" (without {', '.join(verdict.missing)})" if verdict.missing else ""),
            "no common seed" if gap is None else difference_text(gap, ours.metric),
            str(0 if gap is None else gap.seeds),
        ]
        if word != "Tied":
            error = errors.get((task, epsilon, best.method))
            cells.append("")
            if error is not None and gap is not None:
                whole = replace(gap, half_width=math.hypot(gap.half_width, _NORMAL * error))
                cells[-1] = difference_text(whole, ours.metric)
                sampled += 1
                kept[word] += whole.is_clear
        if word != "Won":
            cells.append(", ".join(verdict.above))
        if word == "Lost":
            cells.append(REASONS.get((task, epsilon), NOT_FOUND))
        counts[epsilon >= _LEAST_JUDGED][word] += 1
        rows[word].append("| " + " | ".join(cells) + " |")
    parts = [
        "## Where qexp loses",
        "",
        "Against the rival of the best mean in each cell, training on public records alone among "
        f"them: with ε ≥ {_LEAST_JUDGED:g} {_count(counts[True])}; below, {_count(counts[False])}"
        f"{_not_run(judged)}. Seeds are paired: the same pretrained model for all methods. So the "
        "verdict is by the differences seed by seed, and a cell is tied where their 95 % interval "
        "(Student's) holds 0. The rival is chosen by the same figures, which favours it."
        + (_WHOLE_SPACE if any(v.ours.method != "qexp" for v in judged) else ""),
        "",
        "These intervals are over pretrained models and noise. Private records, test records and "
        "plans are the same for all seeds. On other test records of the same domain a difference "
        "would vary more, in intensive care (1,400 test stays with 106 deaths) by several times "
        "as much: of what is won and lost, the tables have the interval over seeds and test "
        f"records too, and by that {kept['Won']} won and {kept['Lost']} lost remain of the "
        f"{sampled} cells that were measured so. Nor is there a correction for so many cells: of "
        "those won and lost by little, some are by chance.",
        "",
        PLANS,
    ]
    for title, cells in rows.items():
        if cells:
            heads = [title, "ε", "qexp", "best rival", "difference, paired", "common seeds"]
            if title != "Tied":
                heads.append("over test records too")
            if title != "Won":
                heads.append("clearly above qexp")
            if title == "Lost":
                heads.append("reason")
            parts += ["", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|", *cells]
    return "\n".join(parts)


def _count(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[verdict]} {verdict.lower()}" for verdict in ("Won", "Tied", "Lost"))


def _gaps(found: list[Summary]) -> str | None:
    """Set what privacy costs qexp beside what it costs DP-SGD, on the seeds of both."""
    free, public = (without_budget(found, name) for name in ("non_private", "public_only"))
    rows, judged, met, clear = [], 0, 0, 0
    for (task, epsilon), methods in sorted(methods_by_cell(found).items()):
        above, ours, plain = free.get(task), planned(methods), methods.get(PLAIN)
        if above is None or ours is None or plain is None:
            continue
        seeds = sorted(above.by_seed.keys() & ours.by_seed.keys() & plain.by_seed.keys())
        if not seeds:
            continue
        ours_by_seed = np.array([above.by_seed[i] - ours.by_seed[i] for i in seeds])
        plain_by_seed = np.array([above.by_seed[i] - plain.by_seed[i] for i in seeds])
        our_gap = Difference(*student(ours_by_seed), len(seeds))
        plain_gap = Difference(*student(plain_by_seed), len(seeds))
        # Without a gap of DP-SGD's there is none to be a part of.
        ratio = our_gap.mean / plain_gap.mean if plain_gap.mean > 0 else None
        gain = paired(above, public[task]) if task in public else None
        worth_it = gain is None or (gain.mean > 0 and gain.is_clear)
        if epsilon == 1 and ratio is not None and worth_it:
            missing = Difference(*student(ours_by_seed - _AIM * plain_by_seed), len(seeds))
            judged += 1
            met += missing.mean <= 0
            clear += missing.mean <= 0 and missing.is_clear
        rows.append(
            f"| {task} | {epsilon:g} | {difference_text(our_gap, ours.metric, sign='')} | "
            f"{difference_text(plain_gap, ours.metric, sign='')} | "
            f"{'–' if ratio is None else f'{ratio:.2f}'} | {len(seeds)} |"
        )
    if not rows:
        return None
    return "\n".join(
        [
            "## What privacy costs",
            "",
            "The gap to fine-tuning without privacy, differences seed by seed ± half of their "
            "95 % interval, and qexp's as a part of DP-SGD's, where that has one. The aim is at "
            f"most {_AIM:g} at ε = 1. It is judged where training without privacy clearly ends "
            f"above public records alone and DP-SGD has a gap at all: met on {met} of these "
            f"{judged} tasks by the mean, and on {clear} by the whole interval.",
            "",
            "| task | ε | qexp's gap | DP-SGD's gap | ratio | seeds |",
            "| --- " * 6 + "|",
            *rows,
        ]
    )


def _schedules(lines: list[dict[str, Any]]) -> str | None:
    """Tell what was planned for qexp."""
    plans: dict[str, dict[float, dict[str, Any]]] = defaultdict(dict)
    # The last one of these that a cell has is the one that is judged.
    for method in reversed(PLANNED):
        for line in lines:
            if line["method"] == method:
                plans[line["task"]][line["epsilon"]] = line["hyperparameters"]
    if not plans:
        return None
    epsilons = sorted({epsilon for of_task in plans.values() for epsilon in of_task})
    rows = []
    for task, of_task in sorted(plans.items()):
        cells = [_schedule(of_task[e]) if e in of_task else "" for e in epsilons]
        rows.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "## What was planned for qexp",
            "",
            "Rounds × step size η, clipping norm c in whitened units, damping λ of the curvature "
            "or, in a public subspace, its number k of directions; m is momentum, a the share of "
            "the rounds whose models are averaged.",
            "",
            f"| task | {' | '.join(f'ε = {epsilon:g}' for epsilon in epsilons)} |",
            "| --- " * (len(epsilons) + 1) + "|",
            *rows,
        ]
    )


def _schedule(settings: dict[str, Any]) -> str:
    parts = [
        f"{settings['rounds']} × {settings['step_size']:.2g}",
        f"c {settings['clipping_norm']:.2g}",
        f"k {settings['subspace']}" if "subspace" in settings else f"λ {settings['damping']:.2g}",
    ]
    if settings["momentum"]:
        parts.append(f"m {settings['momentum']:g}")
    if settings["averaging"]:
        parts.append(f"a {settings['averaging']:g}")
    return ", ".join(parts)


def _chosen_budget(found: list[Summary]) -> float | None:
    """Give the ε of the figure over numbers of records: the one nearest to 1 with two tasks."""
    tasks: dict[float, set[str]] = defaultdict(set)
    for summary in found:
        if summary.task in RECORDS and summary.epsilon is not None:
            tasks[summary.epsilon].add(summary.task)
    known = sorted(epsilon for epsilon, some in tasks.items() if len(some) > 1)
    return _nearest_to_one(known)


def _nearest_to_one(budgets: Iterable[float]) -> float | None:
    return min(budgets, key=lambda epsilon: abs(math.log(epsilon)), default=None)


def _records_section(epsilon: float, figure: str) -> str:
    return "\n".join(
        [
            "## Accuracy against the number of private records",
            "",
            f"The same model pretrained on MNIST and the same test digits; private are 250 to "
            f"7,291 digits of USPS, ε = {epsilon:g}.",
            "",
            f"![accuracy in % against the number of private records, every method]({figure})",
        ]
    )
