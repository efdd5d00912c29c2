"""A whole private draw: from images and a perceptron to private weights."""

import itertools
import statistics

import numpy as np

import qexp

from . import common

SHAPES = {"small": [(784, 128, 10)], "cluster": [(784, 128, 10), (784, 1024, 192, 10)]}


def layered_draw(sizes, n, k, *, public=4096, batch=256):
    """Build everything public of a draw and return a function of no arguments that makes it."""
    try:
        from qexp.models import MultilayerPerceptron
    except ImportError as error:
        raise NotImplementedError("this version of qexp has no models") from error
    common.need("KroneckerSRHT", "DenseCurvature", "sample_private_weights", module=qexp)
    p = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(p, dtype=np.float32) / 32
    model = MultilayerPerceptron(sizes, weights)
    projection = qexp.KroneckerSRHT(model.layer_shapes, k, seed=0)
    images = rng.random((max(public, n), sizes[0]), dtype=np.float32)
    labels = rng.integers(0, sizes[-1], n)
    source = model.curvature_blocks(images[:public])
    rows = (projection.forward_factors(factors) for factors in source.factor_blocks())
    curvature = qexp.DenseCurvature.from_rows(rows, n_records=public, damping=0.1)
    images = images[:n]

    def draw():
        return qexp.sample_private_weights(
            weights,
            model.gradient_blocks(images, labels),
            curvature=curvature,
            projection=projection,
            target_epsilon=1.0,
            target_delta=1e-6,
            clipping_norm=1.0,
        )

    return draw


class Draw(common.Suite):
    """Gradients of a perceptron, Kronecker SRHT, dense curvature, private sum, weights."""

    params = (
        common.profile([2_000], [2_000, 60_000]),
        common.profile([256], [256, 2048]),
        ["x".join(map(str, sizes)) for sizes in SHAPES[common.PROFILE]],
        common.thread_counts(),
    )
    param_names = ("records", "k", "layers", "threads")

    def prepare(self, n, k, layers):
        self.draw = layered_draw(tuple(map(int, layers.split("x"))), n, k)

    def run(self):
        self.draw()

    def track_records_a_second(self, n, k, layers, threads):
        seconds = common.interleaved({"draw": self.run}, threads=threads, rounds=3)["draw"]
        return n / statistics.median(seconds)

    track_records_a_second.unit = "records/s"
