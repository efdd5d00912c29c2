"""Measure qexp beside its peers and print a table of ratios.

    python benchmarks/peers/run.py                  # everything that is installed, ~10 minutes
    python benchmarks/peers/run.py cholesky gram    # some of it
    python benchmarks/peers/run.py --list

Ours and theirs take turns in one process; a ratio is a peer's time over qexp's in the same round,
hence above 1 where qexp is faster. One thread and CPU time, unless a line says otherwise. What is
not installed is listed and left out (see requirements.txt). The textbook loop is compiled by `cc`.

FFHT (github.com/FALCONN-LIB/FFHT) is not on PyPI, and its Python module is older than NumPy 2.
Build it as a library, `cc -O3 -march=native -shared -fPIC fht.c fast_copy.c -o libffht.so`, and
name that by `--ffht`.

Two threads need two quiet processors. Where others work on them at a lower priority, `chrt -f 1`
before `python` keeps them off, which the scheduler's niceness alone does not: it puts a thread that
wakes beside its parent as long as the other processor is busy with anything.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.util
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack

import qexp
from qexp import _core

# The path leads to qexp's sources, too: what is installed was imported before.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import common

common.LEAST_SAMPLE = 2e-2

Row = tuple[str, str, float, float, float, str]
_rows: list[Row] = []
_ffht: ctypes.CDLL | None = None


def report(what: str, peer: str, ratios: list[float], note: str = "") -> None:
    """Print and keep one line of the table."""
    low, middle, high = (
        np.quantile(ratios, [0.25, 0.5, 0.75]).tolist() if len(ratios) > 1 else ratios * 3
    )
    _rows.append((what, peer, low, middle, high, note))
    print(f"{what:<44} {peer:<34} {middle:9.2f}   {low:9.2f} – {high:9.2f}  {note}", flush=True)


def beside(
    what: str,
    ours: Callable[[], object],
    peers: dict[str, Callable[[], object]],
    *,
    rounds: int = 7,
    threads: int = 1,
    per: dict[str, float] | None = None,
) -> None:
    """Time ours and peers by turns; `per` divides a call's time by its number of records."""
    per = per or {}
    seconds = common.interleaved({"qexp": ours} | peers, rounds=rounds, threads=threads)
    each = statistics.median(seconds["qexp"]) / per.get("qexp", 1)
    for peer in peers:
        ratios = [
            (theirs / per.get(peer, 1)) / (own / per.get("qexp", 1))
            for own, theirs in zip(seconds["qexp"], seconds[peer], strict=True)
        ]
        report(what, peer, ratios, f"qexp {_readable(each)}")


def _readable(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


# ------------------------------------------------------------------------------- transforms


def compiled_loops() -> ctypes.CDLL | None:
    """Compile the three nested loops, and one over rows; None where there is no compiler."""
    source = """
    void each_row(int (*call)(void*, int), char* x, long bytes, long m, int log2) {
      for (long r = 0; r < m; ++r) call(x + r * bytes, log2); }
    #define FWHT(name, T) void name(T* x, long n, long m) { \\
      for (long r = 0; r < m; ++r, x += n) for (long h = 1; h < n; h *= 2) \\
        for (long i = 0; i < n; i += 2 * h) for (long j = i; j < i + h; ++j) { \\
          const T a = x[j], b = x[j + h]; x[j] = a + b; x[j + h] = a - b; } }
    FWHT(fwht_float, float)
    FWHT(fwht_double, double)
    """
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder, "loop.c"), Path(folder, "loop.so")
        code.write_text(source)
        try:
            subprocess.run(
                ["cc", "-O3", "-march=native", "-shared", "-fPIC", code, "-o", library], check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no textbook loop: {error}")
            return None
        return ctypes.CDLL(str(library))


def textbook_loop(loaded: ctypes.CDLL) -> Callable[[np.ndarray], None]:
    def loop(rows: np.ndarray) -> None:
        call = loaded.fwht_float if rows.dtype == np.float32 else loaded.fwht_double
        call(ctypes.c_void_p(rows.ctypes.data), ctypes.c_long(rows.shape[1]),
             ctypes.c_long(len(rows)))  # fmt: skip

    return loop


def ffht_loop(loaded: ctypes.CDLL | None) -> Callable[[np.ndarray], None] | None:
    """Give FFHT on rows; None where it was not named, or there is no compiler."""
    if _ffht is None or loaded is None:
        return None
    functions = {"float32": _ffht.fht_float, "float64": _ffht.fht_double}

    def transform(rows: np.ndarray) -> None:
        loaded.each_row(
            functions[rows.dtype.name],
            ctypes.c_void_p(rows.ctypes.data),
            ctypes.c_long(rows.strides[0]),
            ctypes.c_long(len(rows)),
            rows.shape[1].bit_length() - 1,
        )

    return transform


def numpy_fwht(rows: np.ndarray) -> None:
    """Transform in place, a level a pass."""
    n, h = rows.shape[1], 1
    while h < n:
        pairs = rows.reshape(len(rows), n // (2 * h), 2, h)
        difference = pairs[:, :, 0] - pairs[:, :, 1]
        pairs[:, :, 0] += pairs[:, :, 1]
        pairs[:, :, 1] = difference
        h *= 2


def bench_fwht() -> None:
    loaded = compiled_loops()
    ffht = ffht_loop(loaded)
    means: dict[str, list[float]] = {}
    for dtype, log2 in itertools.product(common.DTYPES, range(8, 25)):
        # Of small rows a batch that fits the first-level cache.
        rows = np.full((max(1, 2**12 >> log2), 2**log2), 0, dtype)
        peers: dict[str, Callable[[], object]] = {}
        if loaded is not None:
            peers["textbook loop, -O3 -march=native"] = functools.partial(
                textbook_loop(loaded), rows
            )
        if ffht is not None:
            peers["FFHT"] = functools.partial(ffht, rows)
        if log2 <= 20 and log2 % 2 == 0:
            peers["NumPy FWHT"] = lambda rows=rows: numpy_fwht(rows)
        beside(f"FWHT {dtype} 2^{log2}", lambda rows=rows: _core.fwht(rows), peers, rounds=7)
        for row in _rows[-len(peers) :]:
            means.setdefault(f"{row[1]} ({dtype})", []).append(row[3])
    for peer, ratios in means.items():
        report(
            "FWHT, geometric mean over sizes",
            peer,
            [statistics.geometric_mean(ratios)],
            f"least {min(ratios):.2f}",
        )


def bench_fwht_threads() -> None:
    """Two threads over one, beside what two threads give to scaling the same array in place."""
    shapes = {
        "float32": [(64, 14), (256, 14), (32, 17), (256, 17), (4, 20), (32, 20), (1, 24)],
        "float64": [(32, 14), (128, 14), (16, 17), (128, 17), (2, 20), (16, 20), (1, 24)],
    }
    for dtype in common.DTYPES:
        for m, log2 in shapes[dtype]:
            rows = np.full((m, 2**log2), 0, dtype)
            streams = {threads: common.Stream(rows.nbytes, threads) for threads in (1, 2)}

            def on(threads: int, rows: np.ndarray = rows) -> None:
                _core.set_num_threads(threads)
                _core.fwht(rows)

            calls = {
                "1": lambda on=on: on(1),
                "2": lambda on=on: on(2),
                "scale 1": streams[1].scale,
                "scale 2": streams[2].scale,
            }
            seconds = common.interleaved(calls, threads=2, rounds=15)
            _core.set_num_threads(1)
            ratios = [a / b for a, b in zip(seconds["1"], seconds["2"], strict=True)]
            limits = [a / b for a, b in zip(seconds["scale 1"], seconds["scale 2"], strict=True)]
            report(
                f"FWHT {dtype} {m} × 2^{log2} ({rows.nbytes >> 20} MiB), two threads",
                "one thread (wall time)",
                ratios,
                f"best {min(seconds['1']) / min(seconds['2']):.2f}, qexp "
                f"{_readable(statistics.median(seconds['2']))}; scaling in place, two threads "
                f"over one: {statistics.median(limits):.2f}",
            )


# ------------------------------------------------------------------------------ projections


def bench_srht(n: int = 256, log2: int = 17, k: int = 2048, rounds: int = 5) -> None:
    p = 2**log2
    rows = common.random((n, p), "float32")
    projection = qexp.SRHT(p, k, seed=0)
    rng = np.random.default_rng(0)
    kept = np.sort(rng.choice(p, k, replace=False))
    signs = rng.choice(np.float32([-1, 1]), p)
    work, out = np.empty_like(rows), np.zeros((n, k), np.float32)
    gaussian = common.random((p, k), "float32", 1)
    gaussian /= np.float32(math.sqrt(k))

    def transform_and_gather() -> None:
        np.multiply(rows, signs, out=work)
        _core.fwht(work)
        np.take(work, kept, axis=1, out=out)

    ffht, row = ffht_loop(compiled_loops()), np.empty((1, p), np.float32)

    def ffht_and_gather() -> None:
        assert ffht is not None
        for i in range(n):
            np.multiply(rows[i], signs, out=row[0])
            ffht(row)
            np.take(row[0], kept, out=out[i])

    peers: dict[str, Callable[[], object]] = {
        # Transposed views: the arrays as they are, in Fortran's order.
        "sgemm, dense matrix given": lambda: blas.sgemm(
            1.0, gaussian.T, rows.T, beta=0.0, c=out.T, overwrite_c=1
        ),
        "signs, our FWHT of all, gather": transform_and_gather,
    }
    if ffht is not None:
        peers["row by row: signs, FFHT, gather"] = ffht_and_gather
    what = f"SRHT {n} × 2^{log2} → {k} float32"
    beside(what, lambda: projection.forward(rows), peers, rounds=rounds)


def bench_srht_large() -> None:
    """Take 6 GiB and two minutes."""
    bench_srht(4096, rounds=3)


def bench_sklearn(n: int = 256, log2: int = 14, k: int = 1024) -> None:
    from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

    p = 2**log2
    rows = common.random((n, p), "float32")
    projection = qexp.SRHT(p, k, seed=0)
    gaussian = GaussianRandomProjection(k, random_state=0).fit(rows)
    sparse = SparseRandomProjection(k, random_state=0).fit(rows)
    beside(
        f"SRHT {n} × 2^{log2} → {k} float32",
        lambda: projection.forward(rows),
        {
            "sklearn GaussianRandomProjection": lambda: gaussian.transform(rows),
            "sklearn SparseRandomProjection": lambda: sparse.transform(rows),
        },
        rounds=5,
    )


def bench_trak(n: int = 16, log2: int = 17, k: int = 512) -> None:
    import torch
    from trak.projectors import BasicProjector, ProjectionType

    p = 2**log2
    rows = common.random((n, p), "float32")
    tensor = torch.from_numpy(rows)
    projection = qexp.SRHT(p, k, seed=0)
    projector = BasicProjector(
        p, k, 0, ProjectionType.rademacher, torch.device("cpu"), block_size=100, dtype=torch.float32
    )
    beside(
        f"SRHT {n} × 2^{log2} → {k} float32",
        lambda: projection.forward(rows),
        {"TRAK BasicProjector (CPU)": lambda: projector.project(tensor, model_id=0)},
        rounds=3,
    )


def bench_kronecker(width: int = 4096, k: int = 2048, batch: int = 256) -> None:
    kronecker = qexp.KroneckerSRHT([(width, width)], k, seed=0)
    srht = qexp.SRHT(width * width, k, seed=0)
    a, d = common.random((batch, width), "float32"), common.random((batch, width), "float32", 1)

    def materialise() -> None:
        srht.forward(np.multiply.outer(d[0], a[0]).reshape(1, -1))

    peer = "materialise, then SRHT"
    beside(
        f"Kronecker SRHT {width} × {width} → {k}, a record",
        lambda: kronecker.forward_factors([(a, d)]),
        {peer: materialise},
        per={"qexp": batch, peer: 1},
    )


# ---------------------------------------------------------------------------- linear algebra


def bench_gram() -> None:
    for dtype, k in itertools.product(common.DTYPES, (1024, 2048, 4096, 8192)):
        rows, h = common.random((k, k), dtype), np.zeros((k, k))
        syrk = blas.ssyrk if dtype == "float32" else blas.dsyrk
        c = np.zeros((k, k), dtype, order="F")

        def ours(rows: np.ndarray = rows, h: np.ndarray = h) -> None:
            for start in range(0, len(rows), 256):
                _core.gram_accumulate(h, rows[start : start + 256], 1.0)

        beside(
            f"Gram of {k} rows in blocks of 256, k = {k}, {dtype}",
            ours,
            {
                f"{dtype[0].replace('f', 's' if dtype == 'float32' else 'd')}syrk at once": (
                    lambda rows=rows, c=c, syrk=syrk: syrk(
                        1.0, rows.T, beta=1.0, c=c, overwrite_c=1
                    )
                )
            },
            rounds=7 if k < 4096 else 3,
        )


def bench_weighted_gram(m: int = 2048, k: int = 2048) -> None:
    for dtype in common.DTYPES:
        rows, h = common.random((m, k), dtype), np.zeros((k, k))
        weights = np.random.default_rng(0).random(m)
        roots = np.sqrt(weights).astype(dtype)[:, None]
        syrk = blas.ssyrk if dtype == "float32" else blas.dsyrk
        c = np.zeros((k, k), dtype, order="F")
        beside(
            f"Gram of {m} weighted rows, k = {k}, {dtype}",
            functools.partial(_core.gram_accumulate, h, rows, 1.0, row_weights=weights),
            {
                "the same without weights": functools.partial(_core.gram_accumulate, h, rows, 1.0),
                "NumPy's product, then syrk": lambda rows=rows, c=c, syrk=syrk, roots=roots: syrk(
                    1.0, (rows * roots).T, beta=1.0, c=c, overwrite_c=1
                ),
            },
        )


def bench_softmax(n: int = 2048, d: int = 255, n_classes: int = 10) -> None:
    """Accumulate the curvature of a softmax regression, without its factor."""
    from qexp import curvature
    from qexp.models import softmax_regression

    x = common.random((n, d), "float32")
    start = np.random.default_rng(0).standard_normal(n_classes * (d + 1), np.float32) / 16
    model = softmax_regression(d, n_classes).with_weights(start)
    source = model.curvature_blocks(x, labels="expected")

    def by_rows() -> None:
        h = np.zeros((n_classes * (d + 1), n_classes * (d + 1)))
        for rows in source.blocks():
            _core.gram_accumulate(h, rows, 1.0 / n)

    beside(
        f"softmax Hessian, {n} records, d = {d + 1}, K = {n_classes}",
        lambda: curvature._softmax_curvature(source),
        {"the rows of every class": by_rows},
        rounds=5,
    )


def _timed_in_place(
    makers: dict[str, Callable[[np.ndarray], object]], given: np.ndarray, rounds: int
) -> dict[str, list[float]]:
    """Time calls that overwrite their argument, the copy left out."""
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for i in range(rounds + 1):
        for name in list(makers)[:: 1 if i % 2 == 0 else -1]:
            work = given.copy(order="K")
            start = time.process_time()
            makers[name](work)
            seconds[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in seconds.items()}


def _beside_in_place(
    what: str, makers: dict[str, Callable[[np.ndarray], object]], given: np.ndarray, rounds: int
) -> None:
    seconds = _timed_in_place(makers, given, rounds)
    for peer in list(makers)[1:]:
        ratios = [b / a for a, b in zip(seconds["qexp"], seconds[peer], strict=True)]
        report(what, peer, ratios, f"qexp {_readable(statistics.median(seconds['qexp']))}")


def bench_cholesky() -> None:
    for n in (512, 1024, 2048, 4096, 8192):
        x = common.random((n, n), "float64")
        matrix = x @ x.T + n * np.eye(n)
        makers: dict[str, Callable[[np.ndarray], object]] = {
            "qexp": _core.cholesky_inplace,
            # A symmetric matrix is its own transpose: no copy in Fortran's order.
            "dpotrf": lambda a: lapack.dpotrf(a.T, lower=1, overwrite_a=1, clean=0),
            "scipy.linalg.cholesky": lambda a: scipy.linalg.cholesky(
                a, lower=True, overwrite_a=True, check_finite=False
            ),
        }
        _beside_in_place(f"Cholesky float64 n = {n}", makers, matrix, 15 if n < 4096 else 3)


def bench_trsm() -> None:
    for n in (512, 1024, 2048):
        factor = np.tril(common.random((n, n), "float64") / n) + np.eye(n)
        given = common.random((n, n), "float64", 1)
        makers: dict[str, Callable[[np.ndarray], object]] = {
            "qexp": lambda b, factor=factor: _core.triangular_solve(
                factor, b, side="left", transpose=False
            ),
            # L X = B row-major is Xᵀ Lᵀ = Bᵀ column-major, with Lᵀ stored as upper.
            "dtrsm": lambda b, factor=factor: blas.dtrsm(
                1.0, factor.T, b.T, side=1, lower=0, trans_a=0, overwrite_b=1
            ),
        }
        _beside_in_place(f"triangular solve float64 n = {n}", makers, given, 15)


# --------------------------------------------------------------------------------- boundary


def bench_lattice() -> None:
    from benchmarks import lattice_sum

    for k in (256, 4096):
        suite = lattice_sum.Dense()
        suite.rows, suite.total = common.random((2**24 // k, k), "float64"), np.zeros(k, np.int64)
        limits = common.Stream(suite.rows.nbytes, 1).limit("read")
        call, _ = limits["read"]
        beside(f"lattice sum of dense rows, k = {k}, 128 MiB", suite.run,
               {"ddot: reading as many bytes": call})  # fmt: skip


def bench_normals() -> None:
    from benchmarks import exact_normal

    draws = 2**16
    kernel, noise = exact_normal.Draw(), exact_normal.Noise()
    kernel.prepare(draws)
    noise.prepare(draws)
    rng = np.random.default_rng(0)
    per = dict.fromkeys(["qexp", "NumPy standard_normal (not exact)", "with ChaCha20 words"], draws)
    beside(
        "exact normal, a draw, words given",
        kernel.run,
        {
            "with ChaCha20 words": noise.run,
            "NumPy standard_normal (not exact)": lambda: rng.standard_normal(draws),
        },
        per=per,
    )


# ------------------------------------------------------------------------------- whole draws

SIZES = (784, 1024, 192, 10)


def perceptron_data(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p = sum((a + 1) * b for a, b in itertools.pairwise(SIZES))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(p, dtype=np.float32) / 32
    return weights, rng.random((n, SIZES[0]), dtype=np.float32), rng.integers(0, 10, n)


def numpy_factors(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[Any]:
    """Give (inputs, deltas) of every layer by matrix products over the block."""
    matrices, place = [], 0
    for a, b in itertools.pairwise(SIZES):
        matrices.append(weights[place : place + (a + 1) * b].reshape(b, a + 1))
        place += (a + 1) * b
    inputs = [np.column_stack([x, np.ones(len(x), x.dtype)])]
    for matrix in matrices[:-1]:
        inputs.append(np.column_stack([np.tanh(inputs[-1] @ matrix.T), np.ones(len(x), x.dtype)]))
    scores = inputs[-1] @ matrices[-1].T
    delta = np.exp(scores - scores.max(axis=1, keepdims=True))
    delta /= delta.sum(axis=1, keepdims=True)
    delta[np.arange(len(y)), y] -= 1
    factors = []
    for i in range(len(matrices) - 1, -1, -1):
        factors.append((inputs[i], delta))
        if i:
            delta = (delta @ matrices[i][:, :-1]) * (1 - inputs[i][:, :-1] ** 2)
    return factors[::-1]


def numpy_draw(
    weights: np.ndarray, x: np.ndarray, y: np.ndarray, inverse: np.ndarray, *, layered: bool
) -> Callable[[], np.ndarray]:
    """Write the mechanism down in NumPy, with whole gradients or with Kronecker factors."""
    p, k = len(weights), len(inverse)
    padded = 2 ** (p - 1).bit_length()
    rng = np.random.default_rng(0)
    signs = rng.choice(np.float32([-1, 1]), p)
    kept = rng.choice(padded, k, replace=False)
    layers = []
    for a, b in itertools.pairwise(SIZES):
        left, right = 2 ** (b - 1).bit_length(), 2 ** a.bit_length()
        share = max(1, k * (a + 1) * b // p)
        layers.append(
            (
                rng.choice(np.float32([-1, 1]), b),
                rng.choice(np.float32([-1, 1]), a + 1),
                rng.choice(left * right, share, replace=False),
                left,
                right,
            )
        )
    rows_used = k if not layered else sum(len(layer[2]) for layer in layers)

    def whole(block: slice) -> np.ndarray:
        parts = [
            np.einsum("mi,mj->mij", d, a).reshape(len(a), -1)
            for a, d in numpy_factors(weights, x[block], y[block])
        ]
        gradients = np.zeros((len(parts[0]), padded), np.float32)
        np.concatenate(parts, axis=1, out=gradients[:, :p])
        gradients[:, :p] *= signs
        numpy_fwht(gradients)
        return gradients[:, kept] / math.sqrt(k)

    def kronecker(block: slice) -> np.ndarray:
        sketches = []
        for (a, d), (ls, rs, chosen, left, right) in zip(
            numpy_factors(weights, x[block], y[block]), layers, strict=True
        ):
            u, v = np.zeros((len(a), left), np.float32), np.zeros((len(a), right), np.float32)
            u[:, : d.shape[1]], v[:, : a.shape[1]] = d * ls, a * rs
            numpy_fwht(u)
            numpy_fwht(v)
            sketches.append(u[:, chosen // right] * v[:, chosen % right] / math.sqrt(len(chosen)))
        return np.concatenate(sketches, axis=1)

    def draw() -> np.ndarray:
        total = rng.standard_normal(rows_used)
        size = 512 if layered else 4
        for start in range(0, len(x), size):
            sketch = (kronecker if layered else whole)(slice(start, start + size))
            whitened = sketch.astype(np.float64) @ inverse[:rows_used, :rows_used].T
            norms = np.linalg.norm(whitened, axis=1, keepdims=True)
            total += (whitened / np.maximum(norms, 1.0)).sum(axis=0)
        return inverse[:rows_used, :rows_used].T @ total

    return draw


def opacus_epoch(x: np.ndarray, y: np.ndarray, batch: int = 256) -> Callable[[], None]:
    """Make one pass of DP-SGD over the records, in Opacus' default mode."""
    import warnings

    import torch
    from opacus import PrivacyEngine

    warnings.simplefilter("ignore")
    layers: list[Any] = []
    for a, b in itertools.pairwise(SIZES):
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=batch),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    loss = torch.nn.CrossEntropyLoss()

    def epoch() -> None:
        for features, labels in loader:
            optimizer.zero_grad()
            loss(model(features), labels).backward()
            optimizer.step()

    return epoch


def torch_gradients(weights: np.ndarray, x: np.ndarray, y: np.ndarray, k: int) -> Any:
    """Per-example gradients by vmap and a dense Gaussian projection, as is common in torch."""
    import torch
    from torch.func import functional_call, grad, vmap

    layers: list[Any] = []
    for a, b in itertools.pairwise(SIZES):
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    size = sum(value.numel() for value in parameters.values())
    matrix = torch.from_numpy(common.random((size, k), "float32"))

    def loss(parameters: Any, features: Any, label: Any) -> Any:
        scores = functional_call(model, parameters, (features[None],))
        return torch.nn.functional.cross_entropy(scores, label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    features, labels = torch.from_numpy(x), torch.from_numpy(y)

    def project() -> Any:
        gradients = each(parameters, features, labels)
        rows = torch.cat([value.reshape(len(x), -1) for value in gradients.values()], dim=1)
        return rows @ matrix

    return project


def bench_torch(n: int = 128, k: int = 512) -> None:
    from qexp.models import MultilayerPerceptron

    weights, x, y = perceptron_data(n)
    model = MultilayerPerceptron(SIZES, weights)
    kronecker = qexp.KroneckerSRHT(model.layer_shapes, k, seed=0)

    def ours() -> None:
        for factors in model.gradient_blocks(x, y).factor_blocks():
            kronecker.forward_factors(factors)

    beside(
        f"gradients and projection, {n} records, k = {k}",
        ours,
        {"torch vmap(grad), dense projection": torch_gradients(weights, x, y, k)},
        rounds=3,
    )


def bench_draw(n: int = 4096, k: int = 2048) -> None:
    from benchmarks import whole_draw

    try:
        import opacus  # noqa: F401
        import torch

        torch.set_num_threads(1)
    except ImportError as error:
        print(f"no Opacus: {error}")
        opacus_runs = False
    else:
        opacus_runs = True
    draw = whole_draw.layered_draw(SIZES, n, k)
    weights, x, y = perceptron_data(n)
    inverse = np.tril(common.random((k, k), "float64"))
    few = 64
    per = {"qexp": float(n)}
    peers: dict[str, Callable[[], object]] = {
        "NumPy, Kronecker factors": numpy_draw(weights, x, y, inverse, layered=True),
        "NumPy, whole gradients": numpy_draw(weights, x[:few], y[:few], inverse, layered=False),
    }
    per |= {"NumPy, Kronecker factors": n, "NumPy, whole gradients": few}
    if opacus_runs:
        part = 1024
        peers["Opacus DP-SGD epoch"] = opacus_epoch(x[:part], y[:part])
        per["Opacus DP-SGD epoch"] = part
    beside(f"whole draw, p = {len(weights)}, k = {k}, a record", draw, peers, rounds=3, per=per)


def bench_memory() -> None:
    """Peak memory, each in a process of its own."""
    for name, n in (("draw", 60_000), ("srht", 4096)):
        reply = subprocess.run(
            [sys.executable, __file__, "--memory", name, str(n)], capture_output=True, text=True
        )
        print(f"peak memory, {name}, n = {n}: {reply.stdout.strip() or reply.stderr.strip()}")


def _memory(name: str, n: int) -> None:
    from qexp._memory import peak_mebibytes

    if name == "draw":
        from benchmarks import whole_draw

        draw = whole_draw.layered_draw(SIZES, n, 2048)
        before = peak_mebibytes()
    else:
        projection, rows = qexp.SRHT(2**17, 2048, seed=0), np.ones((n, 2**17), np.float32)
        before = peak_mebibytes()
        draw = lambda: projection.forward(rows)  # noqa: E731
    wall, cpu = time.perf_counter(), time.process_time()
    draw()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = peak_mebibytes()
    print(f"{after:.0f} MiB, {after - before:.0f} MiB above what was there before the call, "
          f"which took {wall:.1f} s, {cpu:.1f} s of CPU")  # fmt: skip


# ------------------------------------------------------------------------------------- main


def _benchmarks() -> Iterator[tuple[str, Callable[[], None]]]:
    for name, value in globals().items():
        if name.startswith("bench_"):
            yield name.removeprefix("bench_"), value


def main() -> int:
    known = dict(_benchmarks())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"out of: {', '.join(known)}")
    parser.add_argument("--list", action="store_true", help="list the names and end")
    parser.add_argument("--json", type=Path, help="write the table to this file as well")
    parser.add_argument("--ffht", type=Path, help="FFHT as a shared library")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ffht is not None:
        global _ffht
        _ffht = ctypes.CDLL(str(given.ffht.resolve()))
    if given.list:
        print("\n".join(known))
        return 0
    if unknown := sorted(set(given.names) - set(known)):
        parser.error(f"{unknown} are none of {list(known)}")
    threads = common.Threads(1)
    common.need_blas()
    if given.memory:
        _memory(given.memory[0], int(given.memory[1]))
        return 0
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)
    print(f"{'qexp':<44} {'peer':<34} {'ratio':>9}   {'quartiles':>21}")
    for name in given.names or known:
        try:
            known[name]()
        except ImportError as error:
            print(f"{name}: left out, {error}")
    threads.restore()
    if given.json is not None:
        keys = ("what", "peer", "low", "median", "high", "note")
        table = [dict(zip(keys, row, strict=True)) for row in _rows]
        given.json.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
