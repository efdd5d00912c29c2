"""Models that yield the gradient of every record on its own, the same bits in any company."""

from qexp.models.perceptron import (
    MultilayerPerceptron,
    SoftmaxRegression,
    mlp,
    softmax_regression,
)
from qexp.models.sources import CurvatureSource, GradientSource

__all__ = [
    "CurvatureSource",
    "GradientSource",
    "MultilayerPerceptron",
    "SoftmaxRegression",
    "mlp",
    "softmax_regression",
]
