"""All that the docs' tables and figures are made from, part by part."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from experiments import (
    ablations,
    full_space,
    mimic3_memory,
    mnist_usps_one_round,
    noise_share,
    predicted_utility,
    private_curvature,
    public_moves,
    round_cost,
    subspace_share,
    time_to_accuracy,
)
from experiments.attacks import many_run_audit, membership, one_run_audit
from experiments.measurement import Line, Measurement, fill, markdown_table
from experiments.measurement import write as write_tables
from experiments.study import report, sampling
from experiments.study.results import FOLDER, Store
from experiments.study.summaries import Summary, summarise
from experiments.study.variants import lines_at

__all__ = ["MEASUREMENTS", "PARTS", "measure", "write"]


def _run_in(module: str) -> Callable[..., Line]:
    """Run a module's `measured` that imports what not everybody has."""

    def run(**cell: Any) -> Line:
        found: Line = importlib.import_module(module).measured(**cell)
        return found

    return run


def _network_tables(lines: list[Line]) -> dict[str, str]:
    rows = [
        [
            f"{line['epsilon']:g}",
            f"{100 * line['accuracy_before']:.1f}",
            f"{100 * line['accuracy']:.1f}",
            f"{100 * line['published_dpsur']:.1f}",
        ]
        for line in lines
    ]
    heads = ["ε", "before", "after", "published without public data (DPSUR)"]
    return {"a convolutional network": markdown_table(heads, rows)}


def _opacus_tables(lines: list[Line]) -> dict[str, str]:
    rows = []
    for line in lines:
        low, high = (100 * end for end in line["interval_of_difference"])
        rows.append(
            [
                f"{line['first_seed']:,} to {line['first_seed'] + line['seeds'] - 1:,}",
                f"{100 * line['accuracy_qexp']:.2f}",
                f"{100 * line['accuracy_opacus']:.2f}",
                f"{100 * line['difference']:+.2f} ({low:+.2f} to {high:+.2f})",
                f"{line['epsilon_qexp']:.5f}",
                f"{line['epsilon_opacus']:.5f}",
            ]
        )
    heads = ["seeds of each", "qexp's", "Opacus'", "difference, 95 % interval", "ε here"]
    return {"DP-SGD against Opacus": markdown_table([*heads, "ε by Opacus"], rows)}


def _published_tables(lines: list[Line]) -> dict[str, str]:
    published, sigma = lines[0]["published"], f"{lines[0]['noise_multiplier']:.1f}"
    accuracy, deviation = 100 * published["accuracy"], 100 * published["deviation"]
    rows = [
        [
            f"published, mean and deviation of {published['runs']}",
            sigma,
            f"{published['epsilon']:.2f}",
            f"{accuracy:.2f} ± {deviation:.2f}",
        ]
    ]
    for line in lines:
        ours = f"{line['epsilon']:.2f}", f"{100 * line['accuracy']:.2f}"
        rows.append([f"here, seed {line['seed']}", sigma, *ours])
    return {"a published result": markdown_table(["runs", "σ", "ε", "accuracy in %"], rows)}


def _augmentation_tables(found: list[Summary]) -> dict[str, str]:
    """Tell of the study what training on shifted public images is worth."""
    rows = []
    for task, start in _STARTS.items():
        by_cell = {(s.method, s.epsilon): s for s in found if s.task == task}
        at_one = [s for (_, epsilon), s in by_cell.items() if epsilon == 1.0]
        wanted = [("public_only", None), ("qexp", 1.0), ("qexp", 4.0), ("non_private", None)]
        if not at_one or any(cell not in by_cell for cell in wanted):
            return {}
        best = max(at_one, key=lambda s: s.mean)
        texts = [by_cell[cell].text for cell in wanted]
        rows.append([start, texts[0], f"{best.text}, {best.method}", *texts[1:]])
    heads = ["500 private USPS digits", "public records alone", "best method, ε = 1"]
    heads += ["qexp, ε = 1", "qexp, ε = 4", "without privacy"]
    return {"augmentation": markdown_table(heads, rows)}


_STARTS: Final = {
    "mnist_few_500": "pretrained on MNIST",
    "mnist_few_500_augmented": "and on shifted MNIST",
}


MEASUREMENTS: Final[Mapping[str, Measurement]] = {
    measurement.name: measurement
    for measurement in (
        predicted_utility.MEASUREMENT,
        one_run_audit.MEASUREMENT,
        many_run_audit.MEASUREMENT,
        membership.MEASUREMENT,
        mnist_usps_one_round.MEASUREMENT,
        full_space.MEASUREMENT,
        private_curvature.MEASUREMENT,
        round_cost.MEASUREMENT,
        mimic3_memory.MEASUREMENT,
        subspace_share.MEASUREMENT,
        noise_share.MEASUREMENT,
        public_moves.MEASUREMENT,
        Measurement(
            name="usps_to_mnist_cnn",
            cells=[{"epsilon": epsilon, "seed": 0, "rounds": 32} for epsilon in (1.0, 2.0, 3.0)],
            run=_run_in("experiments.usps_to_mnist_cnn"),
            page="results.md",
            tables=_network_tables,
            needs=("torch",),
        ),
        Measurement(
            name="opacus_mnist",
            cells=[{"seed": seed} for seed in range(3)],
            run=_run_in("experiments.opacus_mnist"),
            page="rivals.md",
            tables=_published_tables,
            needs=("torch",),
        ),
        Measurement(
            name="opacus_crosscheck",
            cells=[
                {"first_seed": first, "seeds": seeds}
                for first, seeds in ((0, 100), (0, 1000), (1000, 1000))
            ],
            run=_run_in("experiments.opacus_crosscheck"),
            page="results.md",
            tables=_opacus_tables,
            needs=("torch", "opacus"),
        ),
    )
}
"""Beside the study and what has pages of its own, by name."""

PARTS: Final[Mapping[str, Callable[[], None]]] = {
    "sampling": sampling.measure,
    "time_to_accuracy": time_to_accuracy.measure,
    "ablations": ablations.measure,
    **{name: partial(fill, measurement) for name, measurement in MEASUREMENTS.items()},
}
"""What `all` measures after the study: each takes up where it was stopped."""


def measure(parts: list[str]) -> Iterator[str]:
    """Measure parts one after another, and give what is left out for want of a module."""
    for part in parts:
        try:
            PARTS[part]()
        except ImportError as error:
            yield f"{part}: {error}"


def write(folder: Path = FOLDER, docs: Path = report.DOCS) -> Iterator[Path]:
    """Write all pages, tables and figures from what was measured; give their paths."""
    store = Store(folder)
    yield from report.write(store, docs)
    yield from time_to_accuracy.write(lines_at(folder / time_to_accuracy.RESULTS.name), docs)
    yield from ablations.write(lines_at(folder / ablations.RESULTS.name), docs)
    augmentation = _augmentation_tables(summarise(store.all_lines()))
    yield from write_tables(
        MEASUREMENTS.values(), folder, docs, others=[("results.md", augmentation)]
    )
