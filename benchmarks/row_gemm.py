"""Products whose rows do not depend on each other: whitening and the networks' layers."""

import numpy as np

from . import common


class Multiply(common.FlopsSuite):
    """Half the operations where the packed matrix is triangular."""

    params = (
        common.profile([256, 1024], [256, 1024, 4096]),
        ["full", "upper"],
        common.DTYPES,
        common.thread_counts(),
    )
    param_names = ("n", "triangle", "dtype", "threads")
    needs = ("PackedMatrix",)

    def prepare(self, n, triangle, dtype):
        self.dtype = dtype
        self.share = 1.0 if triangle == "full" else 0.5
        b = common.random((n, n), dtype)
        self.packed = common._core.PackedMatrix(
            b if triangle == "full" else np.triu(b), triangle=triangle
        )
        self.a, self.out = common.random((256, n), dtype, 1), np.full((256, n), 0, dtype)

    def run(self):
        self.packed.multiply(self.a, self.out)

    def flops(self):
        return 2.0 * self.a.size * self.a.shape[1] * self.share
