"""How a private draw scales over MPI ranks: measured on few, fitted, predicted for many.

    python -m benchmarks.tools.scaling [--ranks 2] [--rounds 9] [--records 20000]

Starts itself under mpiexec, one thread a rank. The first r ranks make a draw while the others
sleep, for r = 1, 2, …, in turns; what is reported are best rounds, and the best ratio of
processor times, which busy neighbours leave alone. Needs mpi4py and an MPI library.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import qexp
from qexp._communicator import MpiCommunicator
from qexp.mechanism import private_step
from qexp.models import MultilayerPerceptron
from qexp.private_sum import lattice_for

SIZES = (784, 128, 10)
SKETCH = 1024
WORDS = tuple(2**i for i in range(10, 25, 2))
MU, CLIPPING = 0.3, 1.0
# A node's link, for predictions: 100 Gb/s, 2 µs a message. Assumed, not measured.
LINK_BYTES, LINK_SECONDS = 12.5e9, 2e-6


class Timed(MpiCommunicator):
    """Notes when a draw's records were begun and done, and how long the sum took."""

    def gather(self, value):
        entered = time.perf_counter(), time.process_time()
        said = super().gather(value)
        self.last, self.before = (entered, (time.perf_counter(), time.process_time())), self.last
        return said

    def sum_int64(self, array):
        done, begun = self.last[0], self.before[1]
        self.compute = done[0] - begun[0]
        self.processor = done[1] - begun[1]
        self.noise = self.before[0][0] - self.started
        start = time.perf_counter()
        super().sum_int64(array)
        self.reduce = time.perf_counter() - start

    def start(self):
        self.last = self.before = None
        super().gather(None)
        self.started = time.perf_counter()


def draws(n):
    """Give the draws to time, by name: functions of a communicator."""
    p = sum((a + 1) * b for a, b in itertools.pairwise(SIZES))
    generator = np.random.default_rng(0)
    model = MultilayerPerceptron(SIZES, generator.standard_normal(p, dtype=np.float32) / 32)
    images = generator.random((n, SIZES[0]), dtype=np.float32)
    labels = generator.integers(0, SIZES[-1], n)
    public = images[:2048]
    sketch = qexp.KroneckerSRHT(model.layer_shapes, SKETCH, seed=0)
    full = qexp.KroneckerCurvature.from_model(model, public, damping=0.1)
    dense = qexp.DenseCurvature.from_model(model, public, projection=sketch, damping=0.1)

    def draw(ranks, curvature, projection):
        mine = slice(n * ranks.rank // ranks.size, n * (ranks.rank + 1) // ranks.size)
        return private_step(
            model.gradient_blocks(images[mine], labels[mine]),
            n_records=n,
            projection=projection,
            curvature=curvature,
            lattice=lattice_for(MU, CLIPPING, n),
            step_size=1.0,
            bits=qexp.bits.secure_generator(),
            ledger=None,
            label="",
            communicator=ranks,
        )

    return {
        f"Kronecker, {'x'.join(map(str, SIZES))}, p = {p:,}": (
            lambda ranks: draw(ranks, full, qexp.Identity(p)),
            full.n_components,
        ),
        f"dense, k = {SKETCH:,}": (lambda ranks: draw(ranks, dense, sketch), SKETCH),
    }


def measure(call, groups, everybody, rounds):
    """Give the best times of each number of ranks, and the best ratios, by taking turns."""
    found = {r: [] for r in groups}
    for _ in range(rounds):
        for r, ranks in groups.items():
            if ranks is not None:
                ranks.start()
                start = time.perf_counter()
                call(ranks)
                total = time.perf_counter() - start
                said = ranks.gather((ranks.compute, ranks.processor, ranks.reduce, total))
                found[r].append([max(column) for column in zip(*said, strict=True)] + [ranks.noise])
            everybody.gather(None)
    return found


def report(name, components, found, n):
    """Print one draw's table; give seconds a record and a component of noise."""
    print(f"\n{name}; n = {n:,}; one thread a rank; best of {len(found[1])} rounds")
    print("ranks   compute s   processor s   speed-up   by processor   reduce ms   bytes")
    best = {r: np.min(rows, axis=0) for r, rows in found.items()}
    alone = best[1]
    for r, (compute, processor, reduce, _, _) in best.items():
        print(
            f"{r:5}   {compute:9.3f}   {processor:11.3f}   {alone[0] / compute:8.2f}   "
            f"{alone[1] / processor:12.2f}   {1e3 * reduce:9.2f}   {8 * components:,}"
        )
    return alone[1] / n, best[1][4] / components


def links(ranks, rounds):
    """Time sums and broadcasts of several lengths; fit seconds a message and a byte."""
    rows = []
    for words in WORDS:
        array = np.ones(words, dtype=np.int64)
        times = []
        for _ in range(rounds):
            ranks.gather(None)
            start = time.perf_counter()
            MpiCommunicator.sum_int64(ranks, array)
            middle = time.perf_counter()
            ranks.broadcast(array)
            times.append((middle - start, time.perf_counter() - middle))
        rows.append((8 * words, *np.min(times, axis=0)))
    fits = []
    for column in (1, 2):
        # Relative errors, so that short messages count.
        weights = np.array([1 / row[column] for row in rows])
        matrix = np.array([[1.0, row[0]] for row in rows]) * weights[:, None]
        fits.append(np.linalg.lstsq(matrix, np.ones(len(rows)), rcond=None)[0])
    return rows, fits


def predicted(n, components, ranks, per_record, per_component, alpha, per_byte):
    """Model one round: noise on the root, records on all ranks, sum, step, weights back."""
    hops = math.ceil(math.log2(ranks)) if ranks > 1 else 0
    # The sum, float32 weights back, and the five exchanges of a few bytes around them.
    moved = (8 + 4) * components * (ranks - 1) / ranks
    network = 7 * 2 * hops * alpha + 2 * moved * per_byte
    return components * per_component, n / ranks * per_record, network


def work(arguments):
    from mpi4py import MPI

    everybody = MpiCommunicator(MPI)
    counts = [r for r in (1, 2, 4, 8, 16, 32, 64, 128) if r <= everybody.size]
    if everybody.size not in counts:
        counts.append(everybody.size)
    groups = {}
    for r in counts:
        part = MPI.COMM_WORLD.Split(0 if everybody.rank < r else MPI.UNDEFINED, everybody.rank)
        groups[r] = Timed(MPI, part) if everybody.rank < r else None
    fitted = {}
    for name, (call, components) in draws(arguments.records).items():
        found = measure(call, groups, everybody, arguments.rounds)
        if everybody.rank == 0:
            fitted[name] = components, *report(name, components, found, arguments.records)
    last = groups[everybody.size]
    last.start()
    rows, fits = links(last, arguments.rounds)
    if everybody.rank != 0:
        return
    print(f"\nsums and broadcasts over {everybody.size} ranks of this machine")
    print("     bytes    sum ms   broadcast ms")
    for size, summed, sent in rows:
        print(f"{size:10,}   {1e3 * summed:7.3f}   {1e3 * sent:12.3f}")
    for name, (alpha, beta) in zip(("sum", "broadcast"), fits, strict=True):
        print(f"fit, {name}: {1e6 * alpha:.0f} µs + bytes / {1e-9 / beta:.2f} GB/s")
    print(
        f"\npredicted for n = 10⁸ over links of {LINK_BYTES / 1e9:g} GB/s and "
        f"{1e6 * LINK_SECONDS:g} µs (assumed), one core a rank"
    )
    print("ranks   noise s   records s   network s   total s   efficiency")
    n = 10**8
    for name, (components, per_record, per_component) in fitted.items():
        print(
            f"{name}: {1e6 * per_record:.1f} µs a record, {1e9 * per_component:.0f} ns a component"
        )
        for r in (1, 2, 16, 128, 1024):
            parts = predicted(
                n, components, r, per_record, per_component, LINK_SECONDS, 1 / LINK_BYTES
            )
            alone = sum(predicted(n, components, 1, per_record, per_component, 0, 0))
            print(
                f"{r:5}   {parts[0]:7.3f}   {parts[1]:9.2f}   {parts[2]:9.5f}   "
                f"{sum(parts):7.2f}   {alone / sum(parts) / r:10.3f}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--in-job", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_job:
        work(arguments)
        return 0
    beside = Path(sys.executable).with_name("mpiexec")
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    if launcher is None:
        print('no mpiexec: pip install "qexp[mpi]" mpich, or an MPI of the system')
        return 2
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [launcher, "-n", str(arguments.ranks), sys.executable]
    command += ["-m", "benchmarks.tools.scaling", "--in-job"]
    command += ["--rounds", str(arguments.rounds), "--records", str(arguments.records)]
    return subprocess.run(command, env={**os.environ, **one_thread}).returncode


if __name__ == "__main__":
    sys.exit(main())
