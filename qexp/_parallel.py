"""Public work in several threads: trials of a plan, moves of images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from qexp import _core
from qexp.models import MultilayerPerceptron

__all__ = ["Each", "several_at_once", "threads_for"]

A = TypeVar("A")
B = TypeVar("B")


class Each(Protocol):
    """As :class:`map`: results in the order of the arguments, whatever is done first."""

    def __call__(self, function: Callable[[A], B], arguments: Iterable[A], /) -> Iterator[B]: ...


def threads_for(*models: object) -> int:
    """Give how many threads may ask these models at once: what is not qexp's own may bear only one.

    For qexp's it is what `OMP_NUM_THREADS` and threadpoolctl leave the kernels.
    """
    own = all(isinstance(model, MultilayerPerceptron) for model in models)
    return _core.get_num_threads() if own else 1


@contextmanager
def several_at_once(threads: int) -> Iterator[Each]:
    """Give a function that maps another over arguments, in so many threads.

    One such call is small, so that threads inside of it gain little: BLAS is kept to one where
    threadpoolctl is installed. Of what was not begun when an error or Ctrl-C ends the block nothing
    will be. For public data alone: how long it takes tells of them.

    Parameters
    ----------
    threads : int
        With one, nothing is computed before it is asked for.
    """
    if threads == 1:
        yield map
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="qexp")
    try:
        with _one_blas_thread():
            yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    limits: contextlib.AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits
