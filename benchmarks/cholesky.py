"""Cholesky factors, in place; a copy of the matrix is part of the time."""

import numpy as np

from . import common


class Factor(common.FlopsSuite):
    """n³/3 operations."""

    params = (
        common.profile([512, 1024], [512, 1024, 2048, 4096, 8192]),
        common.DTYPES,
        common.thread_counts(),
    )
    param_names = ("n", "dtype", "threads")
    needs = ("cholesky_inplace",)

    def prepare(self, n, dtype):
        common.need_blas()
        self.dtype = dtype
        x = common.random((n, n), dtype)
        self.matrix = x @ x.T + np.eye(n, dtype=dtype) * n
        self.work = self.matrix.copy()

    def run(self):
        np.copyto(self.work, self.matrix)
        common._core.cholesky_inplace(self.work)

    def flops(self):
        return len(self.work) ** 3 / 3
