"""Triangular systems with many right-hand sides, and triangular inverses."""

import numpy as np

from . import common


class _Triangular(common.FlopsSuite):
    params = (
        common.profile([512, 1024], [512, 1024, 2048, 4096]),
        common.DTYPES,
        common.thread_counts(),
    )
    param_names = ("n", "dtype", "threads")

    def prepare(self, n, dtype):
        common.need_blas()
        self.dtype = dtype
        self.factor = np.tril(common.random((n, n), dtype) / n) + np.eye(n, dtype=dtype)
        self.given = common.random((n, n), dtype, 1)
        self.work = self.given.copy()


class Solve(_Triangular):
    """n right-hand sides, n³ operations; their copy is part of the time."""

    needs = ("triangular_solve",)

    def run(self):
        np.copyto(self.work, self.given)
        common._core.triangular_solve(self.factor, self.work, side="left", transpose=False)

    def flops(self):
        return float(len(self.work)) ** 3


class Inverse(_Triangular):
    """n³/3 operations; a copy is part of the time."""

    needs = ("triangular_inverse_inplace",)

    def run(self):
        np.copyto(self.work, self.factor)
        common._core.triangular_inverse_inplace(self.work)

    def flops(self):
        return len(self.work) ** 3 / 3
