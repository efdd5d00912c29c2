"""The privacy boundary's sum of clipped, rounded records."""

import statistics

import numpy as np

from . import common

SCALE = {"units_per_norm": 2.0**30, "clipping_norm": 1.0, "bound": 2**30}


# SIMD operations a register of entries: multiply and add for the norms; multiply, convert, mask and
# add for the sum; largest magnitude, square in floating point, square and sum modulo 2^64 for the
# exact check. Loads and stores go beside them.
OPERATIONS = 10


class Dense(common.BandwidthSuite):
    """Whitened rows; the limit is one reading of them, or the rate of SIMD instructions.

    A gemm at its peak issues one instruction for two operations an entry of a register, so the
    kernel's count as two each, and 1.0 of gemm means that it issues them as fast.
    """

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

    def _seconds(self, threads):
        """Rounds of the kernel, of reading as many bytes and of issuing as many instructions."""
        ((read, nbytes),) = common.Stream(self.rows.nbytes, threads).limit("read").values()
        gemm = common.gemm_limits("float64")
        calls = {name: call for name, (call, _) in gemm.items()}
        seconds = common.interleaved(calls | {"kernel": self.run, "read": read}, threads=threads)
        rounds = []
        for i, own in enumerate(seconds["kernel"]):
            per_operation = min(seconds[name][i] / flops for name, (_, flops) in gemm.items())
            rounds.append(
                (
                    own,
                    self.rows.nbytes * seconds["read"][i] / nbytes,
                    2.0 * OPERATIONS * self.rows.size * per_operation,
                )
            )
        return rounds

    def track_fraction_of_issue(self, k, threads):
        return statistics.median(issue / own for own, _, issue in self._seconds(threads))

    def track_fraction_of_binding_limit(self, k, threads):
        return statistics.median(max(limits) / own for own, *limits in self._seconds(threads))

    def track_reading_over_issue(self, k, threads):
        """Above 1 reading is what binds, below 1 the rate of instructions."""
        return statistics.median(read / issue for _, read, issue in self._seconds(threads))

    track_fraction_of_issue.unit = "of gemm's instructions a second"
    track_fraction_of_binding_limit.unit = "of the slower limit"
    track_reading_over_issue.unit = "time/time"


class Outer(common.FlopsSuite):
    """Factors of a layer's gradients: product, truncation and addition for every entry.

    A gemm at its peak issues one SIMD instruction for two operations. Three instructions an entry
    therefore count as six, and 1.0 means that the sum issues them as fast as gemm its own.
    """

    params = (
        common.profile([64, 256], [64, 256, 1024]),
        common.profile([256, 4096], [256, 4096, 65536]),
        common.thread_counts(),
    )
    param_names = ("width", "records", "threads")
    needs = ("lattice_sum_outer",)

    def prepare(self, width, records):
        self.records = records
        self.factors = [
            (
                common.random((records, width), "float64"),
                common.random((records, width), "float64", 1),
            )
        ]
        self.total = np.full(width * width, 0, np.int64)

    def run(self):
        common._core.lattice_sum_outer(self.factors, self.total, **SCALE)

    def flops(self):
        return 6.0 * self.records * self.total.size
