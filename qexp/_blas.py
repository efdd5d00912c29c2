"""Bind the kernels to a BLAS library at first use."""

import threading

from qexp import _core

__all__ = ["ensure_bound"]

_lock = threading.Lock()


def ensure_bound() -> None:
    """Bind the kernels' BLAS table unless it is bound already.

    Every function that reaches a kernel of ``gram``, ``cholesky`` or ``triangular`` calls this
    first. Importing `scipy.linalg` takes a while, so that ``import qexp`` leaves it to this call.
    It may be called from several threads at once. A build with ``QEXP_BLAS=system`` has its
    library linked in and needs nothing.

    Raises
    ------
    ImportError
        If SciPy's entry points have a signature that this version does not know.
    RuntimeError
        If the library's integers are not as wide as its signatures say.
    """
    if _core.blas_config() is not None:
        return
    with _lock:
        if _core.blas_config() is None:
            from qexp import _scipy_blas

            capsules, integer_bits = _scipy_blas.entry_points()
            _core.bind_blas("scipy", capsules, integer_bits=integer_bits)
