"""Subsampled randomised Hadamard transforms."""

import numpy as np

from . import common


class _SRHT(common.BandwidthSuite):
    param_names = ("log2_parameters", "k", "dtype", "threads")
    params = (
        common.profile([14, 17], [14, 17, 20]),
        common.profile([2048], [256, 2048, 8192]),
        common.DTYPES,
        common.thread_counts(),
    )
    limit = "read"
    batch = 64

    def prepare(self, log2_parameters, k, dtype):
        p = 2**log2_parameters
        rng = np.random.default_rng(0)
        self.signs = rng.integers(0, 2**64, p // 64, dtype=np.uint64)
        self.indices = np.sort(rng.choice(p, k, replace=False)).astype(np.int64)
        self.rows = common.random((self.batch, p), dtype)
        self.out = common.random((self.batch, k), dtype)

    def traffic(self):
        return self.rows.nbytes + self.out.nbytes, self.rows.nbytes


class Forward(_SRHT):
    """Rows in, k numbers each out; the least traffic is one reading of the rows."""

    needs = ("srht_forward",)

    def run(self):
        common._core.srht_forward(self.rows, self.signs, self.indices, 1.0, self.out)


class Adjoint(_SRHT):
    """k numbers in, whole rows out."""

    needs = ("srht_adjoint",)
    limit = "scale"
    batch = 8

    def run(self):
        common._core.srht_adjoint(self.out, self.signs, self.indices, 1.0, self.rows)
