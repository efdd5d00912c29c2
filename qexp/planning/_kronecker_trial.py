"""Fine-tuning of a perceptron with Kronecker curvature, simulated on public records, fast."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexp._bounds import UNCLIPPED, clip_shares
from qexp.finetune import Schedule
from qexp.models import MultilayerPerceptron
from qexp.models._public_perceptron import PublicPerceptron, for_public_records
from qexp.planning._rounds import Descent, noise_of_rounds
from qexp.private_curvature import MOST_OF_MEAN, kept_directions

__all__ = ["Eigen", "KroneckerTrial", "eigen_factors"]


@dataclass(frozen=True, eq=False)
class Eigen:
    """Kronecker factors of one layer in their eigenbases: A = Q diag(a) Qᵀ, and B alike."""

    a: NDArray[np.float32]
    q_a: NDArray[np.float32]
    b: NDArray[np.float32]
    q_b: NDArray[np.float32]

    def damped(self, damping: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give the eigenvalues as :class:`qexp.layered.KroneckerLayer` damps them."""
        pi = math.sqrt(float(self.a.mean()) / float(self.b.mean()))
        root = math.sqrt(damping)
        return self.a + np.float32(pi * root), self.b + np.float32(root / pi)


@dataclass(frozen=True, eq=False)
class _RefinedEigen(Eigen):
    """Factors whose A was refined by private curvature, after it was damped."""

    damped_b: NDArray[np.float32]

    def damped(self, damping: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.a, self.damped_b


def eigen_factors(model: Any, X: NDArray[Any], first: Eigen | None = None) -> list[Eigen]:
    """Accumulate and diagonalise the Kronecker factors over public records."""
    source = model.curvature_blocks(X)
    grams: list[list[NDArray[np.float64]]] = [
        [np.zeros((columns, columns)), np.zeros((rows, rows))]
        for rows, columns in source.layer_shapes
    ]
    for factors in source.factor_blocks():
        for layer, (gram, pair) in enumerate(zip(grams, factors, strict=True)):
            for side in range(2):
                # The first layer's inputs are the records, whatever the weights.
                if layer or side or first is None:
                    gram[side] += pair[side].T @ pair[side]
    result = []
    for layer, gram in enumerate(grams):
        if layer == 0 and first is not None:
            a, q_a = first.a, first.q_a
        else:
            a, q_a = _spectrum(gram[0] / source.n_records)
        b, q_b = _spectrum(gram[1] / source.n_records)
        result.append(Eigen(a, q_a, b, q_b))
    return result


def _spectrum(gram: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values, 0).astype(np.float32), vectors.astype(np.float32)


class KroneckerTrial:
    """Simulated fine-tuning of a perceptron with Kronecker curvature on public records.

    The same arithmetic as :func:`qexp.fine_tune`, in distribution: but in float32, with noise from
    NumPy, and with the first layer, the large one, in the eigenbasis of A. A record [a, 1] there
    is [a, 1] Q and the layer W Q, once for all rounds and schedules.
    """

    def __init__(
        self,
        model: MultilayerPerceptron,
        X: NDArray[Any],
        y: NDArray[Any],
        X_curvature: NDArray[Any],
        eigen: list[Eigen],
    ) -> None:
        self.model, self.y, self.X_curvature, self.eigen = model, y, X_curvature, eigen
        inputs = np.concatenate([X, np.ones((len(X), 1), X.dtype)], axis=1).astype(np.float32)
        self._turned = inputs @ eigen[0].q_a
        # The turned records hold their own trailing 1: the model's bias on them is 0.
        sizes = (self._turned.shape[1], *model.layer_sizes[1:])
        zeros = np.zeros(model.n_parameters + sizes[1], np.float32)
        self._turned_model = PublicPerceptron(
            MultilayerPerceptron(sizes, zeros, activation=model.activation)
        )
        self._refined: dict[tuple[float, ...], list[Eigen]] = {}

    def head(self, n_records: int) -> KroneckerTrial:
        """Keep the first records only."""
        part = copy.copy(self)
        part.y, part._turned = self.y[:n_records], self._turned[:n_records]
        return part

    def tune(
        self, schedule: Schedule, noise: float, rng: np.random.Generator
    ) -> MultilayerPerceptron | None:
        """Return the tuned model, or None where it diverged; `noise` is 1/(nμ)."""
        if schedule.curvature_share > 0:
            refined = KroneckerTrial(
                self.model,
                self._turned_back(),
                self.y,
                self.X_curvature,
                self._with_private_curvature(schedule, noise),
            )
            left = noise / math.sqrt(1 - schedule.curvature_share)
            return refined.tune(replace(schedule, curvature_share=0.0), left, rng)
        sigmas = noise_of_rounds(schedule, noise)
        eigen = self.eigen
        spectra = [layer.damped(schedule.damping) for layer in eigen]
        first_squares = self._first_squares(spectra[0])
        descent = Descent(schedule, self._layers())
        for t in range(1, schedule.rounds + 1):
            if schedule.refresh_curvature and t > 1:
                eigen = eigen_factors(self._model(descent.theta), self.X_curvature, self.eigen[0])
                spectra = [layer.damped(schedule.damping) for layer in eigen]
            means = self._clipped_mean(
                descent.theta, schedule.clipping_norm, eigen, spectra, first_squares
            )
            steps = []
            for i, (layer, (a, b)) in enumerate(zip(eigen, spectra, strict=True)):
                scale = np.sqrt(np.outer(b, a))
                step = layer.q_b.T @ means[i] / scale
                step += np.float32(sigmas[t - 1]) * rng.standard_normal(
                    step.shape, dtype=np.float32
                )
                step = layer.q_b @ (step / scale)
                if i:
                    step = step @ layer.q_a.T
                steps.append(step)
            if not descent.step(t, steps):
                return None
        return self._model(descent.released)

    def _with_private_curvature(self, schedule: Schedule, noise: float) -> list[Eigen]:
        """Simulate :mod:`qexp.private_curvature` on the simulated private records.

        Whitened in the eigenbasis of A, which differs from L⁻¹ by a rotation: neither the moments'
        estimate nor the noise knows of it.
        """
        key = schedule.damping, schedule.curvature_share, noise, len(self.y)
        if key in self._refined:
            return self._refined[key]
        rng = np.random.default_rng(0)
        model = for_public_records(self.model)
        blocks = model.gradient_blocks(self._turned_back(), self.y).factor_blocks()
        spectra = [layer.damped(schedule.damping) for layer in self.eigen]
        whiteners = [
            layer.q_a / np.sqrt(a) for layer, (a, _) in zip(self.eigen, spectra, strict=True)
        ]
        public = [
            layer.a.astype(np.float64) / a
            for layer, (a, _) in zip(self.eigen, spectra, strict=True)
        ]
        scales = [MOST_OF_MEAN * float(kept.sum()) for kept in public]
        moments: list[NDArray[Any]] = [np.zeros((len(kept), len(kept))) for kept in public]
        for factors in blocks:
            for total, (inputs, _), whitener, scale in zip(
                moments, factors, whiteners, scales, strict=True
            ):
                x = inputs @ whitener
                squares = np.square(x).sum(axis=1, keepdims=True)
                total += (x * clip_shares(squares, scale)).T @ x
        eigen: list[Eigen] = []
        sigma = noise * math.sqrt(len(moments) / schedule.curvature_share)
        for total, kept, scale, layer, (a, b) in zip(
            moments, public, scales, self.eigen, spectra, strict=True
        ):
            disturbed = total / len(self.y) + sigma * scale * rng.standard_normal(total.shape)
            excess = (disturbed + disturbed.T) / 2 - np.diag(kept)
            values, vectors = kept_directions(excess, sigma * scale)
            root = layer.q_a * np.sqrt(a)
            beyond = np.eye(len(a)) + (vectors * values) @ vectors.T
            spectrum = _spectrum(root @ beyond @ root.T)
            eigen.append(_RefinedEigen(*spectrum, layer.b, layer.q_b, b))
        self._refined[key] = eigen
        return eigen

    def _turned_back(self) -> NDArray[np.float32]:
        """Give the simulated private records as the model takes them."""
        return np.ascontiguousarray(self._turned @ self.eigen[0].q_a.T[:, :-1], np.float32)

    def _layers(self) -> list[NDArray[Any]]:
        """Give the layers' matrices, the first one turned."""
        ends = np.cumsum([rows * columns for rows, columns in self.model.layer_shapes])
        parts = np.split(self.model.weights, ends[:-1])
        layers = [x.reshape(s) for x, s in zip(parts, self.model.layer_shapes, strict=True)]
        return [layers[0] @ self.eigen[0].q_a, *layers[1:]]

    def _model(self, layers: list[NDArray[Any]]) -> MultilayerPerceptron:
        turned_back = [layers[0] @ self.eigen[0].q_a.T, *layers[1:]]
        return self.model.with_weights(np.concatenate([layer.ravel() for layer in turned_back]))

    def _first_squares(self, spectrum: Any) -> NDArray[np.float32]:
        """Give the squared whitened norms of the first layer's inputs, the same in all rounds."""
        squares: NDArray[np.float32] = self._turned**2 @ (1 / spectrum[0])
        return squares

    def _clipped_mean(
        self,
        theta: list[NDArray[Any]],
        clipping_norm: float,
        eigen: list[Eigen],
        spectra: list[Any],
        first_squares: NDArray[np.float32],
    ) -> list[NDArray[np.float32]]:
        """Give the mean of the gradients, clipped as whitened, with their inputs turned."""
        first = np.concatenate([theta[0], np.zeros((len(theta[0]), 1), np.float32)], axis=1)
        turned_model = self._turned_model.with_weights(
            np.concatenate([layer.ravel() for layer in (first, *theta[1:])])
        )
        sums = [np.zeros((len(b), len(a)), np.float32) for a, b in spectra]
        begin = 0
        for factors in turned_model.gradient_blocks(self._turned, self.y).factor_blocks():
            end = begin + len(factors[0][0])
            inputs = [factors[0][0][:, :-1]]
            inputs += [a @ layer.q_a for (a, _), layer in zip(factors[1:], eigen[1:], strict=True)]
            of_inputs = [first_squares[begin:end]]
            of_inputs += [x**2 @ (1 / a) for x, (a, _) in zip(inputs[1:], spectra[1:], strict=True)]
            squares = np.zeros(end - begin, np.float32)
            for of_input, (_, deltas), layer, (_, b) in zip(
                of_inputs, factors, eigen, spectra, strict=True
            ):
                squares += of_input * ((deltas @ layer.q_b) ** 2 @ (1 / b))
            weights = clip_shares(np.sqrt(squares), clipping_norm)
            for x, (_, deltas), total in zip(inputs, factors, sums, strict=True):
                total += (deltas * weights[:, None]).T @ x
            begin = end
        return [total / np.float32(len(self.y)) for total in sums]

    def first_draw(self, damping: float, clipping_norm: float) -> tuple[float, float]:
        """Give ‖s̄‖, s̄ the clipped whitened mean at the start, and its product with the mean.

        The product is how fast the loss falls along the step.
        """
        spectra = [layer.damped(damping) for layer in self.eigen]
        first_squares = self._first_squares(spectra[0])
        means, free = (
            self._clipped_mean(self._layers(), c, self.eigen, spectra, first_squares)
            for c in (clipping_norm, UNCLIPPED)
        )
        squares = slope = 0.0
        for layer, (a, b), clipped, whole in zip(self.eigen, spectra, means, free, strict=True):
            turned = layer.q_b.T @ clipped / np.outer(b, a)
            squares += float((turned**2 * np.outer(b, a)).sum())
            slope += float((turned * (layer.q_b.T @ whole)).sum())
        return math.sqrt(squares), slope

    def kept(self, damping: float) -> NDArray[np.float64]:
        """Give the eigenvalues ρ of H A⁻¹."""
        parts = []
        for layer in self.eigen:
            a, b = layer.damped(damping)
            parts.append(np.outer(layer.b / b, layer.a / a).ravel())
        return np.concatenate(parts).astype(np.float64)
