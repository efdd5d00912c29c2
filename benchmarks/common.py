"""What the suites share: the profile, threads, clocks, and the machine's limits.

A fraction of a limit is measured in one run: kernel and limit take turns, a few milliseconds each,
and the median of the ratios is what is tracked. Absolute speeds of a shared machine wander by half;
such ratios stay.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import pkgutil
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
from scipy.linalg import blas

try:
    from qexp import _core
except ImportError:  # a version without the compiled core: its suites are skipped
    _core = None

PROFILE = os.environ.get("QEXP_BENCH_PROFILE", "small")
if PROFILE not in ("small", "cluster"):
    raise ValueError(f"QEXP_BENCH_PROFILE is {PROFILE!r}; it needs to be 'small' or 'cluster'")

DTYPES = ("float32", "float64")
ROUNDS = 9
LEAST_SAMPLE = 4e-3


def profile(small: Sequence[Any], cluster: Sequence[Any]) -> list[Any]:
    """Choose a parameter's values by the profile."""
    return list(small if PROFILE == "small" else cluster)


def thread_counts() -> list[int]:
    """1 and 2; on a cluster 1, 2, 4, … up to the processors that this process may use."""
    if PROFILE == "small":
        return [1, 2]
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [2**i for i in range((available or 1).bit_length()) if 2**i <= (available or 1)]
    return counts if counts[-1] == available else [*counts, available]


def need(*names: str, module: Any = None) -> None:
    """Skip the benchmark, asv's way, where this version of qexp lacks a name."""
    module = _core if module is None else module
    for name in names:
        if not hasattr(module, name):
            raise NotImplementedError(f"this version of qexp has no {name}")


def need_blas() -> None:
    """Bind the kernels to BLAS, or skip."""
    try:
        from qexp._blas import ensure_bound
    except ImportError as error:
        raise NotImplementedError("this version of qexp binds no BLAS") from error
    ensure_bound()


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Draw standard normals, fixed by the seed; memory is touched thereby."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.dtype(dtype).type)


# ------------------------------------------------------------------------------------ clocks


def clock(threads: int) -> Callable[[], float]:
    """CPU time for one thread, which busy neighbours leave alone; wall time for several."""
    return time.process_time if threads == 1 else time.perf_counter


def repeats(call: Callable[[], object]) -> int:
    """Give how many calls last for a sample that clocks can tell."""
    call()
    number = 1
    while True:
        start = time.perf_counter()
        for _ in range(number):
            call()
        if (took := time.perf_counter() - start) >= LEAST_SAMPLE:
            return number
        number = max(2 * number, int(number * min(LEAST_SAMPLE / max(took, 1e-9), 100)))


def sample(call: Callable[[], object], number: int, now: Callable[[], float]) -> float:
    """Seconds a call."""
    start = now()
    for _ in range(number):
        call()
    return max(now() - start, 1e-9) / number


def interleaved(
    calls: dict[str, Callable[[], object]], *, threads: int = 1, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Time several calls in turns: seconds a call, one number a round; the order alternates."""
    now = clock(threads)
    numbers = {name: repeats(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
            seconds[name].append(sample(calls[name], numbers[name], now))
    return seconds


def fraction(
    kernel: Callable[[], object],
    work: float,
    limits: dict[str, tuple[Callable[[], object], float]],
    *,
    threads: int,
) -> float:
    """Work a second of a kernel over that of the fastest limit, by turns; the median of rounds."""
    calls = {"kernel": kernel} | {name: call for name, (call, _) in limits.items()}
    seconds = interleaved(calls, threads=threads)
    ratios = [
        work / own / max(amount / seconds[name][i] for name, (_, amount) in limits.items())
        for i, own in enumerate(seconds["kernel"])
    ]
    return statistics.median(ratios)


# ------------------------------------------------------------------------------------ limits


class Stream:
    """Simple passes over an array of `nbytes` on several threads: what memory allows."""

    def __init__(self, nbytes: int, threads: int) -> None:
        n = max(nbytes // 8, 512 * threads)
        self.array, self.other = np.ones(n), np.zeros(n)
        self._parts = [slice(i * n // threads, (i + 1) * n // threads) for i in range(threads)]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def _each(self, work: Callable[[slice], object]) -> None:
        if self._pool is None:
            work(self._parts[0])
        else:
            list(self._pool.map(work, self._parts))

    def scale(self) -> None:
        """x ← c x: read and written once."""
        x = self.array
        self._each(lambda part: np.multiply(x[part], 1.0, out=x[part]))

    def copy(self) -> None:
        """y ← x."""
        self._each(lambda part: np.copyto(self.other[part], self.array[part]))

    def read(self) -> None:
        """xᵀx, or the largest entry by several threads: read once."""
        if self._pool is None:
            blas.ddot(self.array, self.array)
        else:
            # Not on BLAS' threads, which a busy neighbour makes wait for each other.
            self._each(lambda part: np.maximum.reduce(self.array[part]))

    def limit(self, kind: str) -> dict[str, tuple[Callable[[], object], float]]:
        """Give the pass and its bytes in the form of :func:`fraction`."""
        passes = {"scale": 2, "copy": 2, "read": 1}
        return {kind: (getattr(self, kind), passes[kind] * self.array.nbytes)}


def gemm_limits(dtype: str, n: int = 768) -> dict[str, tuple[Callable[[], object], float]]:
    """Give the peak of matrix products: SciPy's gemm and qexp's own, of which the faster counts."""
    a, b = random((n, n), dtype, 1), random((n, n), dtype, 2)
    out = np.zeros((n, n), dtype, order="F")
    af, bf = np.asfortranarray(a), np.asfortranarray(b)
    gemm = blas.sgemm if dtype == "float32" else blas.dgemm
    flops = 2.0 * n**3
    limits: dict[str, tuple[Callable[[], object], float]] = {
        "scipy gemm": (lambda: gemm(1.0, af, bf, beta=0.0, c=out, overwrite_c=1), flops)
    }
    if hasattr(_core, "PackedMatrix"):
        packed, own = _core.PackedMatrix(b), np.zeros((n, n), dtype)
        limits["row_gemm"] = (lambda: packed.multiply(a, own), flops)
    return limits


# ------------------------------------------------------------------------------------ suites


class Threads:
    """So many threads for qexp and for every BLAS; undone by :meth:`restore`."""

    def __init__(self, count: int) -> None:
        self._core_threads = _core.get_num_threads() if hasattr(_core, "get_num_threads") else None
        if self._core_threads is not None:
            _core.set_num_threads(count)
        try:
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            raise NotImplementedError("setting BLAS threads needs threadpoolctl") from error
        self._limits = threadpool_limits(count)

    def restore(self) -> None:
        self._limits.restore_original_limits()
        if self._core_threads is not None:
            _core.set_num_threads(self._core_threads)


class Suite(ABC):
    """A kernel at some parameters, of which the last one is the number of threads."""

    params: Sequence[Sequence[Any]] = ()
    param_names: Sequence[str] = ()
    needs: Sequence[str] = ()
    timeout = 600
    rounds = 1
    processes = 1
    repeat = (3, 9, 0.4) if PROFILE == "small" else (5, 25, 5.0)
    sample_time = 0.02
    warmup_time = 0.02

    def setup(self, *params: Any) -> None:
        need(*self.needs)
        self._threads = Threads(params[-1])
        self.prepare(*params[:-1])
        self.run()

    def teardown(self, *params: Any) -> None:
        if hasattr(self, "_threads"):
            self._threads.restore()

    @abstractmethod
    def prepare(self, *params: Any) -> None:
        """Build the arrays, without the number of threads."""

    @abstractmethod
    def run(self) -> None:
        """Call the kernel once."""

    def time_kernel(self, *params: Any) -> None:
        self.run()

    def peakmem_kernel(self, *params: Any) -> None:
        self.run()


class BandwidthSuite(Suite):
    """A kernel whose limit is memory."""

    limit = "scale"

    @abstractmethod
    def traffic(self) -> tuple[float, int]:
        """Bytes that a call has to move, and bytes of the array that the limit passes over."""

    def track_fraction_of_bandwidth(self, *params: Any) -> float:
        moved, nbytes = self.traffic()
        limits = Stream(nbytes, params[-1]).limit(self.limit)
        return fraction(self.run, moved, limits, threads=params[-1])

    track_fraction_of_bandwidth.unit = "of stream bandwidth"  # type: ignore[attr-defined]


class FlopsSuite(Suite):
    """A kernel whose limit is arithmetic."""

    dtype = "float64"

    @abstractmethod
    def flops(self) -> float:
        """Operations of a call."""

    def track_fraction_of_gemm(self, *params: Any) -> float:
        limits = gemm_limits(self.dtype)
        return fraction(self.run, self.flops(), limits, threads=params[-1])

    track_fraction_of_gemm.unit = "of gemm's flop/s"  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------- discovery


def modules() -> Iterator[ModuleType]:
    """Import all suites of this package; folders without `__init__.py` are left out, as by asv."""
    package = sys.modules[__package__]
    for found in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{__package__}.{found.name}")


def benchmarks(prefix: str = "") -> Iterator[tuple[str, type, str, list[tuple[Any, ...]]]]:
    """Yield (name, class, method, combinations of parameters) of what asv would run."""
    for module in modules():
        for class_name, cls in sorted(vars(module).items()):
            if not inspect.isclass(cls) or inspect.isabstract(cls) or class_name.startswith("_"):
                continue
            for method, _ in inspect.getmembers(cls, inspect.isfunction):
                kind = method.split("_")[0]
                if kind in ("time", "peakmem", "track") and method.startswith(prefix):
                    combinations = list(itertools.product(*cls.params))
                    name = f"{module.__name__.rpartition('.')[2]}.{class_name}.{method}"
                    yield name, cls, method, combinations
