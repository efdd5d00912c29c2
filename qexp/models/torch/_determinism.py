"""Bits that nothing outside may change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["THREADS", "deterministic"]

# How a library shares work among threads may change a sum's order: one thread leaves no choice.
THREADS: Final = 1


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Fix everything in torch's global state that a gradient's bits may depend on."""
    threads = torch.get_num_threads()
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.set_num_threads(threads)
