"""Accumulation of a Gram matrix from blocks of rows."""

import numpy as np

from . import common


class Accumulate(common.FlopsSuite):
    """Half a product, hence m k² operations."""

    params = (
        common.profile([512, 2048], [512, 2048, 8192]),
        common.profile([256], [64, 256, 1024]),
        common.DTYPES,
        common.thread_counts(),
    )
    param_names = ("k", "block", "dtype", "threads")
    needs = ("gram_accumulate",)

    def prepare(self, k, block, dtype):
        common.need_blas()
        self.dtype = dtype
        self.h, self.rows = np.full((k, k), 0.0), common.random((block, k), dtype)

    def run(self):
        common._core.gram_accumulate(self.h, self.rows, 1.0)

    def flops(self):
        m, k = self.rows.shape
        return float(m) * k**2
