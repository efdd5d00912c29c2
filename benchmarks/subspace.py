"""Public subspaces: gradients of a layer, given as factors, to k combinations of some entries."""

import numpy as np

from . import common

try:
    from qexp.subspace import PublicSubspace, SubspaceLayer
except ImportError:  # a version without subspaces: the suite is skipped
    PublicSubspace = None

_ENTRIES = 2048  # that learnt subspaces combine


class ForwardFactors(common.FlopsSuite):
    """Turning both factors, their products, and k combinations of what is kept of these."""

    params = (
        common.profile([256], [256, 1024]),
        common.profile([50, 200], [50, 200, 800]),
        common.DTYPES,
        common.thread_counts(),
    )
    param_names = ("width", "k", "dtype", "threads")

    def prepare(self, width, k, dtype):
        if PublicSubspace is None:
            raise NotImplementedError("this version of qexp has no PublicSubspace")
        self.dtype, self.width, self.k = dtype, width, k
        # As many of the turned axes take part as the entries need in the middle of a matrix.
        self.axes = int(np.sqrt(2 * _ENTRIES))
        entries = np.random.default_rng(0).permutation(self.axes**2)[:_ENTRIES]
        layer = SubspaceLayer(
            common.random((width, self.axes), "float64", 1),
            common.random((width, self.axes), "float64", 2),
            *np.divmod(np.sort(entries), self.axes),
        )
        self.subspace = PublicSubspace([layer], common.random((_ENTRIES, k), "float64", 3))
        self.factors = [
            (common.random((256, width), dtype, 4), common.random((256, width), dtype, 5))
        ]

    def run(self):
        self.subspace.forward_factors(self.factors)

    def flops(self):
        turned = 4 * self.width * self.axes + self.axes**2
        return 256.0 * (turned + 2 * _ENTRIES * self.k)
