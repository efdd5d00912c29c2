"""Exact rounded normals: speed, and the fit of what comes out."""

import statistics

import numpy as np
from scipy import stats

import qexp

from . import common

BITS = 32


class Draw(common.Suite):
    """Words given: the sampler alone."""

    params = (common.profile([2**14], [2**14, 2**20]), [1])
    param_names = ("draws", "threads")
    needs = ("draw_lattice_normals",)

    def prepare(self, draws):
        rng = np.random.default_rng(0)
        self.words = rng.integers(0, 2**64, 20 * draws + 64, dtype=np.uint64)
        self.out = np.full(draws, 0, np.int64)

    def run(self):
        drawn, _ = common._core.draw_lattice_normals(self.words, BITS, self.out)
        assert drawn == len(self.out)

    def track_nanoseconds_a_draw(self, draws, threads):
        seconds = common.interleaved({"draw": self.run}, threads=threads)["draw"]
        return statistics.median(seconds) / draws * 1e9

    track_nanoseconds_a_draw.unit = "ns"


class Noise(common.Suite):
    """With the keystream of the cryptographic generator: what a release pays."""

    params = (common.profile([2**14], [2**14, 2**20]), [1])
    param_names = ("draws", "threads")

    def prepare(self, draws):
        self.draws = draws
        self.noise = _noise()
        self.generator = qexp.bits.insecure_test_generator(0)

    def run(self):
        self.noise(self.draws, BITS, self.generator)

    def track_nanoseconds_a_draw(self, draws, threads):
        seconds = common.interleaved({"draw": self.run}, threads=threads)["draw"]
        return statistics.median(seconds) / draws * 1e9

    track_nanoseconds_a_draw.unit = "ns"


class Fit:
    """Goodness of fit of a fixed stream's draws; p-values are uniform for a right sampler.

    A value below 1e-6 means that the sampler is wrong, any other means nothing by itself.
    """

    params = (common.profile([2**17], [2**17, 2**22]),)
    param_names = ("draws",)

    def setup(self, draws):
        noise = _noise()(draws, BITS, qexp.bits.insecure_test_generator(1))
        self.normals = (noise + 0.5) / 2.0**BITS

    def track_kolmogorov_smirnov_p(self, draws):
        return float(stats.kstest(self.normals, "norm").pvalue)

    def track_chi_square_p(self, draws):
        edges = stats.norm.ppf(np.arange(1, 256) / 256)
        counts = np.bincount(np.searchsorted(edges, self.normals), minlength=256)
        return float(stats.chisquare(counts).pvalue)

    track_kolmogorov_smirnov_p.unit = track_chi_square_p.unit = "p-value"


def _noise():
    try:
        from qexp.private_sum import _noise
    except ImportError as error:
        raise NotImplementedError("this version of qexp has no exact noise") from error
    return _noise
