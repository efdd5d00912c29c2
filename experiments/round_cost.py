"""What privacy costs in time: one full-space round against one ordinary full-batch gradient.

Both use the same compiled forward and backward passes, interleaved in one process:

    python -m experiments.round_cost            # MLP 256-64-10, 7,291 records
    python -m experiments.round_cost --large    # two layers, 10^7 weights, peak memory

`python -m experiments all` keeps both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import qexp
from experiments.measurement import Line, Measurement, markdown_table
from experiments.time_to_accuracy import one_thread
from qexp._memory import peak_mebibytes
from qexp.models import mlp


class SyntheticFactors:
    """Random activations and derivatives of linear layers, made block by block."""

    def __init__(
        self, layer_shapes: Sequence[tuple[int, int]], n_records: int, block_size: int = 128
    ) -> None:
        self.layer_shapes = layer_shapes
        self.n_records = n_records
        self.n_parameters = sum(out * inp for out, inp in layer_shapes)
        self._block_size = block_size

    def factor_blocks(self) -> Iterator[list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
        generator = np.random.default_rng(0)
        for start in range(0, self.n_records, self._block_size):
            m = min(self._block_size, self.n_records - start)
            yield [
                (
                    generator.standard_exponential((m, inp), dtype=np.float32),
                    generator.standard_exponential((m, out), dtype=np.float32) - 1,
                )
                for out, inp in self.layer_shapes
            ]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        raise RuntimeError("rows of 10^7 entries are not meant to be formed")


def full_batch_gradient(source: Any) -> list[NDArray[np.float32]]:
    total = [np.zeros(shape, np.float32) for shape in source.layer_shapes]
    for factors in source.factor_blocks():
        for sum_, (inputs, deltas) in zip(total, factors, strict=True):
            sum_ += deltas.T @ inputs
    return total


def draw(weights: NDArray[Any], source: Any, curvature: qexp.Curvature) -> qexp.PrivateRelease:
    return qexp.sample_private_weights(
        weights,
        source,
        curvature=curvature,
        target_epsilon=1.0,
        target_delta=1e-5,
        clipping_norm=3.0,
    )


def small(repetitions: int = 15) -> Line:
    generator = np.random.default_rng(0)
    X = generator.random((7291, 256), dtype=np.float32)
    y = generator.integers(0, 10, 7291)
    model = mlp((256, 64, 10), seed=0)
    curvature = qexp.KroneckerCurvature.from_model(model, X, damping=1e-2)
    source = model.gradient_blocks(X, y)
    times: dict[str, list[float]] = {"gradient": [], "round": []}
    for _ in range(repetitions):
        for name, run in (
            ("gradient", lambda: full_batch_gradient(source)),
            ("round", lambda: draw(model.weights, source, curvature)),
        ):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    ratios = [r / g for r, g in zip(times["round"], times["gradient"], strict=True)]
    return {
        "n_records": 7291,
        "n_parameters": model.n_parameters,
        "gradient_ms": 1e3 * statistics.median(times["gradient"]),
        "round_ms": 1e3 * statistics.median(times["round"]),
        "ratio": statistics.median(ratios),
    }


def large() -> Line:
    shapes = ((2500, 2001), (2000, 2501))
    curvature = qexp.KroneckerCurvature.from_factors(
        SyntheticFactors(shapes, 4096).factor_blocks(),
        layer_shapes=shapes,
        n_records=4096,
        damping=1e-2,
    )
    source = SyntheticFactors(shapes, 2000)
    start = time.perf_counter()
    draw(np.zeros(source.n_parameters, np.float32), source, curvature)
    return {
        "n_records": source.n_records,
        "n_parameters": source.n_parameters,
        "round_seconds": time.perf_counter() - start,
        "peak_mib": peak_mebibytes(),
    }


def _run(size: str) -> Line:
    if size == "small":
        with one_thread():
            return small()
    # In a process of its own, whose peak of memory is this one's alone.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(large)


def _tables(lines: list[Line]) -> dict[str, str]:
    rows = [
        [
            f"{line['n_parameters']:,}",
            f"{line['n_records']:,}",
            f"{line['round_ms'] / 1e3 if 'round_ms' in line else line['round_seconds']:.3g}",
            f"{line['gradient_ms'] / 1e3:.3g}" if "gradient_ms" in line else "",
            f"{line['ratio']:.2f}" if "ratio" in line else "",
            f"{line['peak_mib']:.0f} MiB" if "peak_mib" in line else "",
        ]
        for line in lines
    ]
    heads = ["weights", "records", "a round, s", "a plain gradient, s", "ratio", "peak of memory"]
    return {"cost of a round": markdown_table(heads, rows)}


MEASUREMENT: Final = Measurement(
    name="round_cost",
    cells=[{"size": "small"}, {"size": "large"}],
    run=_run,
    page="results.md",
    tables=_tables,
    needs=("threadpoolctl",),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--large", action="store_true", help="two layers with 10^7 weights")
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    print(json.dumps(large() if arguments.large else small(arguments.repetitions)))


if __name__ == "__main__":
    main()
