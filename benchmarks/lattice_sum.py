"""The privacy boundary's sum of clipped, rounded records."""

import numpy as np

from . import common

SCALE = {"units_per_norm": 2.0**30, "clipping_norm": 1.0, "bound": 2**30}


class Dense(common.BandwidthSuite):
    """Whitened rows; the limit is one reading of them."""

    params = (common.profile([256, 4096], [256, 4096, 32768]), common.thread_counts())
    param_names = ("k", "threads")
    limit = "read"
    needs = ("lattice_sum",)

    def prepare(self, k):
        self.rows = common.random((2**21 // k, k), "float64")
        self.total = np.full(k, 0, np.int64)

    def run(self):
        common._core.lattice_sum(self.rows, self.total, **SCALE)

    def traffic(self):
        return self.rows.nbytes, self.rows.nbytes


class Outer(common.FlopsSuite):
    """Factors of a layer's gradients: product, truncation and addition for every entry.

    A gemm at its peak issues one SIMD instruction for two operations. Three instructions an entry
    therefore count as six, and 1.0 means that the sum issues them as fast as gemm its own.
    """

    params = (common.profile([64, 256], [64, 256, 1024]), common.thread_counts())
    param_names = ("width", "threads")
    needs = ("lattice_sum_outer",)

    def prepare(self, width):
        self.factors = [
            (common.random((256, width), "float64"), common.random((256, width), "float64", 1))
        ]
        self.total = np.full(width * width, 0, np.int64)

    def run(self):
        common._core.lattice_sum_outer(self.factors, self.total, **SCALE)

    def flops(self):
        return 6.0 * 256 * self.total.size
