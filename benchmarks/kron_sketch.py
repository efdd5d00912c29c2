"""Kronecker SRHT: gradients of a layer, given as factors, to k numbers each."""

import qexp

from . import common


class ForwardFactors(common.BandwidthSuite):
    """Two small transforms and k products a record; the least traffic is the factors and k."""

    params = (
        common.profile([256, 1024], [256, 1024, 4096]),
        common.profile([2048], [256, 2048, 8192]),
        common.DTYPES,
        common.thread_counts(),
    )
    param_names = ("width", "k", "dtype", "threads")
    limit = "read"

    def prepare(self, width, k, dtype):
        common.need("KroneckerSRHT", module=qexp)
        self.projection = qexp.KroneckerSRHT([(width, width)], k, seed=0)
        self.factors = [(common.random((256, width), dtype), common.random((256, width), dtype, 1))]
        self.bytes_out = 256 * k * self.factors[0][0].itemsize

    def run(self):
        self.projection.forward_factors(self.factors)

    def traffic(self):
        nbytes = self.bytes_out + sum(factor.nbytes for factor in self.factors[0])
        return nbytes, nbytes
