"""Let threadpoolctl limit the threads of qexp's own kernels."""

import threading

from qexp import _core

__all__ = ["register_threadpool_controller"]

_lock = threading.Lock()
_registered = False


def register_threadpool_controller() -> None:
    """Make qexp's thread pool known to `threadpoolctl`.

    Afterwards ``threadpoolctl.threadpool_limits(1)`` limits qexp's kernels as well as BLAS and
    OpenMP, ``user_api="qexp"`` selects them alone, and ``threadpool_info()`` lists them. Calling it
    again changes nothing.

    ``import qexp`` does this by itself where `threadpoolctl` has been imported before; call it
    where that happens later. Limits that are in force already are not extended to qexp.

    Raises
    ------
    ImportError
        If `threadpoolctl`, which is optional, is not installed or older than 3.2.
    """
    global _registered
    try:
        from threadpoolctl import LibController, register
    except ImportError as error:
        raise ImportError(
            "limiting threads from outside needs threadpoolctl 3.2 or newer; "
            "install it with `pip install threadpoolctl`"
        ) from error

    # Found among the loaded libraries by file name; the symbols tell it from other modules' _core.
    class QexpController(LibController):  # type: ignore[misc]
        user_api = "qexp"
        internal_api = "qexp"
        filename_prefixes = ("_core",)
        check_symbols = ("qexp_get_num_threads", "qexp_set_num_threads")

        def get_num_threads(self) -> int:
            return int(self.dynlib.qexp_get_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.qexp_set_num_threads(num_threads)

        def get_version(self) -> str:
            return _core.__version__

    with _lock:
        if not _registered:
            register(QexpController)
            _registered = True
