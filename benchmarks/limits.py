"""The limits themselves: what this machine can do, to read the fractions by."""

import statistics

from . import common


class Memory:
    """Gigabytes a second of simple passes, counted as STREAM counts."""

    params = (["scale", "copy", "read"], common.profile([2**18, 2**27], [2**18, 2**27, 2**32]),
              common.thread_counts())  # fmt: skip
    param_names = ("pass", "bytes", "threads")
    timeout = 600

    def setup(self, kind, nbytes, threads):
        self._threads = common.Threads(threads)
        self.stream = common.Stream(nbytes, threads)

    def teardown(self, kind, nbytes, threads):
        self._threads.restore()

    def track_gigabytes_per_second(self, kind, nbytes, threads):
        call, moved = self.stream.limit(kind)[kind]
        seconds = common.interleaved({kind: call}, threads=threads)[kind]
        return moved / statistics.median(seconds) / 1e9

    track_gigabytes_per_second.unit = "GB/s"


class Products:
    """Gflop/s of matrix products, SciPy's and qexp's."""

    params = (["scipy gemm", "row_gemm"], common.DTYPES, common.thread_counts())
    param_names = ("by", "dtype", "threads")
    timeout = 600

    def setup(self, by, dtype, threads):
        self._threads = common.Threads(threads)
        self.limits = common.gemm_limits(dtype)
        if by not in self.limits:
            raise NotImplementedError("this version of qexp has no PackedMatrix")

    def teardown(self, by, dtype, threads):
        self._threads.restore()

    def track_gigaflops(self, by, dtype, threads):
        call, flops = self.limits[by]
        seconds = common.interleaved({by: call}, threads=threads)[by]
        return flops / statistics.median(seconds) / 1e9

    track_gigaflops.unit = "Gflop/s"
