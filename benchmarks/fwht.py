"""Walsh-Hadamard transforms of batches of rows."""

import numpy as np

from . import common


class FWHT(common.BandwidthSuite):
    """In place, so that an in-place scaling of the same array is the limit of one pass."""

    params = (common.profile([10, 16, 20], range(8, 25, 2)), common.DTYPES, common.thread_counts())
    param_names = ("log2_length", "dtype", "threads")
    needs = ("fwht",)

    def prepare(self, log2_length, dtype):
        batch = max(1, 2**20 >> log2_length)
        # Zeros, since transform after transform in place would overflow; time is the same.
        self.rows = np.full((batch, 2**log2_length), 0, dtype)

    def run(self):
        common._core.fwht(self.rows)

    def traffic(self):
        return 2 * self.rows.nbytes, self.rows.nbytes
