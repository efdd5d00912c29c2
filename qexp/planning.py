"""Choosing a schedule on public records, before any budget is spent.

A plan costs no privacy because it reads no private record. Public records that pretraining has
not seen are shifted until the model errs on them (:mod:`qexp.surrogates`), split into simulated
private records and simulated test records, and candidate schedules are fine-tuned on them with
the very privacy of the job to come; the best one on average is the plan.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks
from qexp._files import atomic_write
from qexp._progress import progress_bar
from qexp.bits import insecure_test_generator
from qexp.curvature import Curvature, DenseCurvature
from qexp.finetune import Schedule, fine_tune
from qexp.layered import KroneckerCurvature
from qexp.measures import area_under_roc
from qexp.models import MultilayerPerceptron
from qexp.privacy import calibrate_mu, epsilon
from qexp.private_curvature import MOST_OF_MEAN, kept_directions
from qexp.projections import SRHT
from qexp.surrogates import Surrogate, image_surrogates, table_surrogates

__all__ = ["Plan", "candidate_schedules", "plan"]

Maker = Callable[[Any, float], Curvature]
Score = Literal["accuracy", "auroc", "loss"] | Callable[[Any, NDArray[Any], NDArray[Any]], float]


@dataclass(frozen=True, eq=False)
class _Eigen:
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
class _RefinedEigen(_Eigen):
    """Factors whose A was refined by private curvature, after it was damped."""

    damped_b: NDArray[np.float32]

    def damped(self, damping: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.a, self.damped_b


def _eigen(model: Any, X: NDArray[Any], seed: int, first: _Eigen | None = None) -> list[_Eigen]:
    """Accumulate and diagonalise the Kronecker factors over public records."""
    source = model.curvature_blocks(X, seed=seed)
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
        result.append(_Eigen(a, q_a, b, q_b))
    return result


def _spectrum(gram: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values, 0).astype(np.float32), vectors.astype(np.float32)


class _KroneckerTrial:
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
        eigen: list[_Eigen],
    ) -> None:
        self.model, self.y, self.X_curvature, self.eigen = model, y, X_curvature, eigen
        inputs = np.concatenate([X, np.ones((len(X), 1), X.dtype)], axis=1).astype(np.float32)
        self._turned = inputs @ eigen[0].q_a
        self._refined: dict[tuple[float, ...], list[_Eigen]] = {}

    def head(self, n_records: int) -> _KroneckerTrial:
        """Keep the first records only."""
        part = copy.copy(self)
        part.y, part._turned = self.y[:n_records], self._turned[:n_records]
        return part

    def tune(
        self, schedule: Schedule, noise: float, rng: np.random.Generator
    ) -> MultilayerPerceptron | None:
        """Return the tuned model, or None where it diverged; `noise` is 1/(nμ)."""
        if schedule.curvature_share > 0:
            refined = _KroneckerTrial(
                self.model,
                self._turned_back(),
                self.y,
                self.X_curvature,
                self._with_private_curvature(schedule, noise),
            )
            left = noise / math.sqrt(1 - schedule.curvature_share)
            return refined.tune(replace(schedule, curvature_share=0.0), left, rng)
        shares = np.array(schedule.budget or (1.0,) * schedule.rounds)
        sigmas = schedule.clipping_norm * noise * np.sqrt(shares.sum() / shares)
        eigen = self.eigen
        spectra = [layer.damped(schedule.damping) for layer in eigen]
        theta = self._layers()
        velocity = [np.zeros_like(layer) for layer in theta]
        total, summed = [np.zeros_like(layer) for layer in theta], 0
        for t in range(1, schedule.rounds + 1):
            if schedule.refresh_curvature and t > 1:
                eigen = _eigen(self._model(theta), self.X_curvature, 0, self.eigen[0])
                spectra = [layer.damped(schedule.damping) for layer in eigen]
            means = self._clipped_mean(theta, schedule.clipping_norm, eigen, spectra)
            for i, (layer, (a, b)) in enumerate(zip(eigen, spectra, strict=True)):
                scale = np.sqrt(np.outer(b, a))
                step = layer.q_b.T @ means[i] / scale
                step += np.float32(sigmas[t - 1]) * rng.standard_normal(
                    step.shape, dtype=np.float32
                )
                step = layer.q_b @ (step / scale)
                if i:
                    step = step @ layer.q_a.T
                velocity[i] = schedule.momentum * velocity[i] - schedule.step_size * step
                theta[i] = theta[i] + velocity[i]
            if not all(np.all(np.abs(layer) < 1e6) for layer in theta):
                return None
            if t > schedule.rounds - schedule.averaged_rounds:
                total = [x + layer for x, layer in zip(total, theta, strict=True)]
                summed += 1
        return self._model([x / summed for x in total] if summed else theta)

    def _with_private_curvature(self, schedule: Schedule, noise: float) -> list[_Eigen]:
        """Simulate :mod:`qexp.private_curvature` on the simulated private records.

        Whitened in the eigenbasis of A, which differs from L⁻¹ by a rotation: neither the moments'
        estimate nor the noise knows of it.
        """
        key = schedule.damping, schedule.curvature_share, noise, len(self.y)
        if key in self._refined:
            return self._refined[key]
        rng = np.random.default_rng(0)
        blocks = self.model.gradient_blocks(self._turned_back(), self.y).factor_blocks()
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
                total += (x * np.minimum(1, scale / np.maximum(squares, 1e-30))).T @ x
        eigen: list[_Eigen] = []
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

    def _clipped_mean(
        self,
        theta: list[NDArray[Any]],
        clipping_norm: float,
        eigen: list[_Eigen],
        spectra: list[Any],
    ) -> list[NDArray[np.float32]]:
        """Give the mean of the gradients, clipped as whitened, with their inputs turned."""
        # The turned records hold their own trailing 1: the model's bias on them is 0.
        first = np.concatenate([theta[0], np.zeros((len(theta[0]), 1))], axis=1)
        turned_model = MultilayerPerceptron(
            (self._turned.shape[1], *self.model.layer_sizes[1:]),
            np.concatenate([layer.ravel() for layer in (first, *theta[1:])]).astype(np.float32),
            activation=self.model.activation,
        )
        sums = [np.zeros((len(b), len(a)), np.float32) for a, b in spectra]
        for factors in turned_model.gradient_blocks(self._turned, self.y).factor_blocks():
            squares = np.zeros(len(factors[0][0]), np.float32)
            inputs = [factors[0][0][:, :-1]]
            inputs += [a @ layer.q_a for (a, _), layer in zip(factors[1:], eigen[1:], strict=True)]
            for x, (_, deltas), layer, (a, b) in zip(inputs, factors, eigen, spectra, strict=True):
                squares += (x**2 @ (1 / a)) * ((deltas @ layer.q_b) ** 2 @ (1 / b))
            weights = np.minimum(1, clipping_norm / np.sqrt(np.maximum(squares, 1e-30)))
            for x, (_, deltas), total in zip(inputs, factors, sums, strict=True):
                total += (deltas * weights[:, None]).T @ x
        return [total / np.float32(len(self.y)) for total in sums]

    def first_draw(self, damping: float, clipping_norm: float) -> tuple[float, float]:
        """Give ‖s̄‖, s̄ the clipped whitened mean at the start, and its product with the mean.

        The product is how fast the loss falls along the step.
        """
        spectra = [layer.damped(damping) for layer in self.eigen]
        means, free = (
            self._clipped_mean(self._layers(), c, self.eigen, spectra)
            for c in (clipping_norm, 1e15)  # which a norm of 1e-15 divides, in float32
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


class _GeneralTrial:
    """Simulated fine-tuning by :func:`qexp.fine_tune` itself, with whatever curvature."""

    def __init__(
        self,
        model: Any,
        X: NDArray[Any],
        y: NDArray[Any],
        make: Maker,
        projection: Any,
        delta: float,
    ) -> None:
        self.model, self.X, self.y = model, X, y
        self.make, self.projection, self.delta = make, projection, delta
        self._curvatures: dict[float, Curvature] = {}

    def head(self, n_records: int) -> _GeneralTrial:
        """Keep the first records only."""
        part = copy.copy(self)
        part.X, part.y = self.X[:n_records], self.y[:n_records]
        return part

    def _curvature(self, damping: float) -> Curvature:
        if damping not in self._curvatures:
            self._curvatures[damping] = self.make(self.model, damping)
        return self._curvatures[damping]

    def tune(self, schedule: Schedule, noise: float, rng: np.random.Generator) -> Any:
        """Return the tuned model, or None where it diverged; `noise` is 1/(nμ)."""
        mu = 1 / (noise * len(self.X))
        make, damping = self.make, schedule.damping
        result = fine_tune(
            self.model,
            self.X,
            self.y,
            schedule=schedule,
            curvature=(lambda model: make(model, damping))
            if schedule.refresh_curvature
            else self._curvature(damping),
            target_epsilon=epsilon(self.delta, mu),
            target_delta=self.delta,
            projection=self.projection,
            rng=insecure_test_generator(int(rng.integers(2**31))),
        )
        return None if result.stopped_because == "diverged" else result.model

    def first_draw(self, damping: float, clipping_norm: float) -> tuple[float, float]:
        """Give the same as :meth:`_KroneckerTrial.first_draw`."""
        curvature = self._curvature(damping)
        clipped, whole = np.zeros((2, curvature.n_components))
        for block in self.model.gradient_blocks(self.X, self.y).blocks():
            rows = block if self.projection is None else self.projection.forward(block)
            whitened = curvature.whiten(rows)
            norms = np.linalg.norm(whitened, axis=1, keepdims=True)
            clipped += (whitened * np.minimum(1, clipping_norm / np.maximum(norms, 1e-30))).sum(0)
            whole += whitened.sum(0)
        m = len(self.X)
        return float(np.linalg.norm(clipped)) / m, float(clipped @ whole) / m**2

    def kept(self, damping: float) -> NDArray[np.float64]:
        """Give the eigenvalues ρ of H A⁻¹, all at their mean."""
        curvature = self._curvature(damping)
        k = curvature.n_components
        return np.full(k, curvature.effective_dimension / k)


_Trial = _KroneckerTrial | _GeneralTrial


@dataclass(frozen=True, eq=False)
class _Shifted:
    """One simulated private domain."""

    trial: _Trial
    X_test: NDArray[Any]
    y_test: NDArray[Any]
    before: float
    loss_before: float

    def score(
        self, schedule: Schedule, noise: float, n_records: int, seed: int, scorer: Scorer
    ) -> tuple[float, float]:
        """Fine-tune on at most `n_records` simulated private records; test score and accuracy."""
        tuned = self.trial.head(n_records).tune(schedule, noise, np.random.default_rng(seed))
        if tuned is None:
            return scorer.of_diverged, 0.0
        return scorer(tuned, self.X_test, self.y_test)


class Scorer:
    """What candidates are ranked by: the larger, the better."""

    def __init__(self, score: Score, y: NDArray[Any]) -> None:
        if not callable(score) and score not in ("accuracy", "auroc", "loss"):
            raise ValueError(
                f"score is {score!r}; it needs 'accuracy', 'auroc', 'loss' or a function "
                "score(model, X, y)"
            )
        if score == "auroc" and not np.array_equal(np.unique(y), [0, 1]):
            raise ValueError(
                "score='auroc' is for two classes, 0 and 1, both among the public labels; "
                f"these have the classes {np.unique(y).tolist()}"
            )
        self.score = score
        self.name = score if isinstance(score, str) else getattr(score, "__name__", "score")
        self.of_diverged = 0.0 if score in ("accuracy", "auroc") else _SCORE_OF_DIVERGED

    def __call__(self, model: Any, X: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
        """Give score and accuracy."""
        accuracy = float(model.score(X, y))
        if self.score == "accuracy":
            return accuracy, accuracy
        if self.score == "loss":
            value = -float(model.loss(X, y))
        elif self.score == "auroc":
            value = area_under_roc(y, np.asarray(model.predict_proba(X))[:, 1])
        else:
            value = float(self.score(model, X, y))
        return (value if math.isfinite(value) else self.of_diverged), accuracy


_DAMPINGS: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_CLIPPING_NORMS: Final = (0.3, 1.0, 3.0, 10.0)
_ROUNDS: Final = (1, 2, 4, 8, 16, 32, 64)
# Step size, momentum, averaging. Averaging takes the noise off long steps.
_STEPS: Final = (
    (1.0, 0.0, 0.0),
    (1.0, 0.0, 0.25),
    (0.3, 0.0, 0.0),
    (0.1, 0.0, 0.0),
    (0.3, 0.8, 0.0),
    (0.1, 0.8, 0.0),
    (0.1, 0.9, 0.0),
    (0.03, 0.9, 0.0),
)
# Hopeless is noise that costs more than this share of the loss before, and a path that would not
# save this share of it even if the slope at the start lasted.
_MOST_NOISE_LOSS: Final = 0.2
_LEAST_SAVING: Final = 0.25
_MOST_TEST_RECORDS: Final = 4000
_PRIVATE_SHARE: Final = 0.6
_CURVE: Final = (1 / 4, 1 / 2, 2, 4)
_CURVE_RECORDS: Final = 3000
# Of losses and scores of one's own, which have no least value.
_SCORE_OF_DIVERGED: Final = -1e6


@dataclass(frozen=True)
class Effort:
    """How many surrogates; then stages of halving: (candidates, surrogates, records) at most."""

    surrogates: int
    stages: tuple[tuple[int | None, int, int | None], ...]
    refinements: int


EFFORTS: Final = {
    "quick": Effort(3, ((None, 1, 500), (64, 3, 800), (24, 3, 2500), (8, 3, None)), 2),
    "full": Effort(5, ((None, 2, 1000), (128, 5, 1500), (48, 5, 4000), (16, 5, None)), 3),
}


def named_effort(effort: str) -> Effort:
    """Give the stages of an effort; raise where there is none of that name."""
    if effort not in EFFORTS:
        raise ValueError(f"effort is {effort!r}; it needs 'quick' or 'full'")
    return EFFORTS[effort]


def candidate_schedules(rounds: int | None = None) -> list[Schedule]:
    """Give the planner's grid.

    Parameters
    ----------
    rounds : int, optional
        Only schedules of so many rounds. Default: powers of two from 1 to 64.

    Returns
    -------
    list of Schedule
    """
    counts = _ROUNDS if rounds is None else (_checks.count(rounds, "rounds"),)
    return [
        Schedule(
            rounds=t, clipping_norm=c, step_size=eta, damping=damping, momentum=m, averaging=share
        )
        for damping, c, t, (eta, m, share) in itertools.product(
            _DAMPINGS, _CLIPPING_NORMS, counts, _STEPS
        )
        if (m == 0 or t * (1 - m) >= 1.5) and (share == 0 or t >= 4)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A schedule chosen on public records.

    Attributes
    ----------
    schedule : Schedule
    n_components : int or None
        k of the random projection, for dense curvature.
    predicted_accuracy, predicted_deviation : float
        Mean and standard deviation over the surrogates of the schedule's test accuracy. A figure
        about surrogates: the private domain's may lie elsewhere, settings rank much the same.
    accuracy_before : float
        Mean accuracy of the pretrained model on the surrogates.
    score : str
        What candidates were ranked by.
    predicted_score, score_before : float
        The same figures in terms of that score; larger is better, a loss has a minus.
    target_epsilon, target_delta : float
    n_records : int
        Of the private data; public.
    surrogates : tuple of str
    table : tuple of dict
        One row a candidate, best first: ``schedule``, ``n_components``, ``score_mean``,
        ``score_std``, ``accuracy_mean``, ``accuracy_std``, ``surrogates`` (on how many it was
        tried, at ``records`` simulated private records), ``noise_to_signal`` of the first round
        and ``noise_loss``, the predicted loss through noise. Candidates that these two discarded
        have no scores. Rows of fewer surrogates or records were given up early; their scores
        compare among themselves.
    curve : tuple of dict
        The schedule at other ε: ``epsilon`` and the four figures above.
    """

    schedule: Schedule
    n_components: int | None
    predicted_accuracy: float
    predicted_deviation: float
    accuracy_before: float
    score: str
    predicted_score: float
    score_before: float
    target_epsilon: float
    target_delta: float
    n_records: int
    surrogates: tuple[str, ...]
    table: tuple[Mapping[str, Any], ...]
    curve: tuple[Mapping[str, float], ...]

    def describe(self) -> dict[str, Any]:
        """Describe the plan and its table as a dictionary that JSON can hold."""
        return {
            "schedule": self.schedule.describe(),
            "n_components": self.n_components,
            "predicted_accuracy": self.predicted_accuracy,
            "predicted_deviation": self.predicted_deviation,
            "accuracy_before": self.accuracy_before,
            "score": self.score,
            "predicted_score": self.predicted_score,
            "score_before": self.score_before,
            "target_epsilon": self.target_epsilon,
            "target_delta": self.target_delta,
            "n_records": self.n_records,
            "surrogates": list(self.surrogates),
            "table": [{**row, "schedule": row["schedule"].describe()} for row in self.table],
            "curve": [dict(point) for point in self.curve],
        }

    def report(self, path: str | os.PathLike[str] | None = None) -> str:
        """Give the table as text, and plot the predicted score against ε.

        Parameters
        ----------
        path : path, optional
            Where to write the plot, as PNG. Needs matplotlib, from the extra ``qexp[demo]``.

        Returns
        -------
        str

        Raises
        ------
        ImportError
            If `path` is given and matplotlib is not installed.
        OSError
            If the file cannot be written.
        """
        if path is not None:
            self._plot(path)
        lines = [
            f"planned on {len(self.surrogates)} surrogates for epsilon = {self.target_epsilon:g}, "
            f"delta = {self.target_delta:g}, {self.n_records} private records; "
            f"{self.score} before {self.score_before:.3f}",
            " rounds  clipping  step size  momentum   damping  for curvature  components  "
            f"{self.score:>8}     ±  "
            "noise/signal",
        ]
        for row in self.table:
            if row["score_mean"] is None:
                continue
            s, k = row["schedule"], row["n_components"]
            lines.append(
                f"{s.rounds:7d}  {s.clipping_norm:8.3g}  {s.step_size:9.3g}  {s.momentum:8.3g}  "
                f"{s.damping:8.1e}  {s.curvature_share:13.2f}  "
                f"{'all' if k is None else k:>10}  {row['score_mean']:8.3f} "
                f"{row['score_std']:5.3f}  {row['noise_to_signal']:12.3g}"
            )
        discarded = sum(row["score_mean"] is None for row in self.table)
        lines.append(f"{discarded} more candidates were discarded by closed forms, without a trial")
        return "\n".join(lines)

    def _plot(self, path: str | os.PathLike[str]) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "a plan's plot takes matplotlib: pip install 'qexp[demo]'", name="matplotlib"
            ) from error
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        epsilons = [point["epsilon"] for point in self.curve]
        factor = 100 if self.score == "accuracy" else 1
        axes.errorbar(
            epsilons,
            [factor * point["score_mean"] for point in self.curve],
            [factor * point["score_std"] for point in self.curve],
            marker="o",
            capsize=3,
            label="planned schedule",
        )
        axes.axhline(factor * self.score_before, color="grey", linestyle="--", label="before")
        axes.axvline(self.target_epsilon, color="grey", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(epsilons, [f"{value:g}" for value in epsilons])
        axes.minorticks_off()
        axes.set_xlabel(f"ε at δ = {self.target_delta:g}")
        axes.set_ylabel(f"{self.score} on surrogates{', %' if factor == 100 else ''}")
        axes.legend()
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=150))


def plan(
    model: Any,
    X_public: ArrayLike,
    y_public: ArrayLike,
    *,
    n_records: int,
    target_epsilon: float,
    target_delta: float,
    surrogate: Literal["images", "tabular"] | Surrogate | Sequence[Surrogate] = "images",
    image_shape: tuple[int, int] | None = None,
    public_group: ArrayLike | None = None,
    curvature: Literal["kronecker", "dense"] | Maker = "kronecker",
    curvature_shares: Sequence[float] = (0.0,),
    n_components: Sequence[int] = (1000, 3000),
    candidates: Iterable[Schedule] | None = None,
    rounds: int | None = None,
    score: Score = "accuracy",
    effort: Literal["quick", "full"] = "quick",
    seed: int = 0,
    progress: bool = False,
) -> Plan:
    """Choose damping, clipping norm, step size, rounds and momentum on public records alone.

    Parameters
    ----------
    model : qexp.models.MultilayerPerceptron or alike
        Pretrained.
    X_public : array, shape (m, d)
        Public records that pretraining has **not** seen, a few thousand or more.
    y_public : array, shape (m,)
        Their labels.
    n_records : int
        n, how many private records there will be; public.
    target_epsilon, target_delta : float
        The privacy of the job to come.
    surrogate : {"images", "tabular"}, callable, or sequence of callables
        How the private domain is simulated: shifts drawn by :mod:`qexp.surrogates`, or your own
        functions ``shift(X, y, rng) -> (X, y)``, such as :class:`qexp.surrogates.OtherRecords`,
        which puts public records of another domain in their place.
    image_shape : (int, int), optional
        Height and width, for "images". Default: square.
    public_group : array, shape (m,), optional
        A public column whose values the shifts re-weight, for "tabular".
    curvature : {"kronecker", "dense"} or callable
        Kronecker curvature over the full weight space; dense curvature behind an
        :class:`qexp.SRHT` with public seed 0; or a function ``make(model, damping)`` of public
        data that returns a :class:`qexp.Curvature`. The first, of a
        :class:`qexp.models.MultilayerPerceptron`, is fast; all else is simulated by
        :func:`qexp.fine_tune` itself.
    curvature_shares : sequence of float
        Shares of the budget for private curvature to choose from, see :class:`qexp.Schedule`.
        Above 0 they need Kronecker curvature.
    n_components : sequence of int
        Values of k to choose from, for "dense".
    candidates : iterable of Schedule, optional
        Default: :func:`candidate_schedules`, whose best are refined at the end; candidates of
        your own are not.
    rounds : int, optional
        Plan for exactly so many rounds.
    score : {"accuracy", "auroc", "loss"} or callable
        What schedules are ranked by on the simulated test records: the share of right answers;
        the area under the ROC curve of two classes, for those of which one is rare (surrogates of
        tables are then made as hard in terms of it, too); minus the mean loss; or
        ``score(model, X, y)``, larger for better. Losses that are not finite, and runs that
        diverge, rank last.
    effort : {"quick", "full"}
        Three surrogates, or five and more trials on each.
    seed : int
        Of shifts, splits and noise.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, or there are too few public records.

    Notes
    -----
    Everything here is public, so the noise of the simulation comes from a reproducible generator.
    Planning costs no privacy as long as `model`, `X_public` and the surrogates have nothing to do
    with the private records; do not pass those, and do not plan again because of how a release
    turned out on private test data.

    First, closed forms discard hopeless candidates: with q = 1 - ηρ/(1-m), the noise of T rounds
    leaves an expected loss of ½ Σ_ρ ρ (η c √T / ((1-m) n μ))² (1-q^2T)/(1-q²) in the quadratic
    model, ρ the eigenvalues of H A⁻¹; and a path T η/(1-m) along which even the slope of the loss
    at the start saves too little leads nowhere. Then the rest is simulated, by successive halving
    (Jamieson and Talwalkar, AISTATS 2016): on one surrogate and few records first, the best ones
    on all surrogates and more records.

    A draw moves the weights by -η A⁻¹ (mean clipped gradient + noise of c/(nμ)). Where m < n
    simulated private records are at hand, the mean is over those m, and the noise is that of n:
    what their sum would be scaled up to, n/m times. That is noisier a mean than the job's, so the
    prediction errs on the careful side.

    Examples
    --------
    >>> plan = qexp.plan(model, X_held_out, y_held_out, n_records=7291,
    ...                  target_epsilon=1.0, target_delta=1e-5)  # doctest: +SKIP
    >>> plan.schedule  # doctest: +SKIP
    """
    X, y = public_records(model, X_public, y_public)
    n = _checks.count(n_records, "n_records")
    noise = 1 / (n * calibrate_mu(target_epsilon, target_delta))
    budget = named_effort(effort)
    scorer = Scorer(score, y)
    shifts = make_shifts(
        surrogate,
        model,
        X,
        y,
        image_shape,
        public_group,
        budget.surrogates,
        seed,
        scorer,
    )
    search = _Search(
        model, X, y, shifts, n, noise, target_delta, curvature, n_components, seed, scorer
    )
    grid = candidate_schedules(rounds) if candidates is None else list(candidates)
    if candidates is None:
        grid = [replace(s, curvature_share=share) for share in curvature_shares for s in grid]
    if rounds is not None:
        grid = [schedule for schedule in grid if schedule.rounds == rounds]
    if not grid:
        raise ValueError("there is no candidate schedule of that many rounds; give at least one")
    search.run(grid, budget, refine=candidates is None, fixed_rounds=rounds, progress=progress)
    best = search.ranked()[0]
    row = search.row(best)
    curve = search.curve(best, float(target_epsilon))
    return Plan(
        schedule=best[0],
        n_components=best[1],
        predicted_accuracy=row["accuracy_mean"],
        predicted_deviation=row["accuracy_std"],
        accuracy_before=search.before,
        score=scorer.name,
        predicted_score=row["score_mean"],
        score_before=search.score_before,
        target_epsilon=float(target_epsilon),
        target_delta=float(target_delta),
        n_records=n,
        surrogates=tuple(str(shift) for shift in shifts),
        table=tuple(search.row(candidate) for candidate in search.ranked()),
        curve=curve,
    )


_Candidate = tuple[Schedule, int | None]


class _Search:
    """Candidates, the surrogates they are tried on, and what came out."""

    def __init__(
        self,
        model: Any,
        X: NDArray[Any],
        y: NDArray[Any],
        shifts: Sequence[Surrogate],
        n_records: int,
        noise: float,
        delta: float,
        curvature: Literal["kronecker", "dense"] | Maker,
        n_components: Sequence[int],
        seed: int,
        scorer: Scorer,
    ) -> None:
        self.scorer = scorer
        self.noise, self.delta, self.seed, self.n_records = noise, delta, seed, n_records
        self.domains: dict[int | None, list[_Shifted]] = {}
        for k, trial in _trials(model, X, curvature, n_components, delta):
            self.domains[k] = [
                _simulated(model, shift, X, y, trial, n_records, seed + i)
                for i, shift in enumerate(shifts)
            ]
        first = next(iter(self.domains.values()))
        self.before = float(np.mean([domain.before for domain in first]))
        self.loss_before = float(np.mean([domain.loss_before for domain in first]))
        self.score_before = float(np.mean([scorer(model, d.X_test, d.y_test)[0] for d in first]))
        # (score and accuracy, one pair a surrogate; simulated private records), of the last stage
        # reached
        self.scores: dict[_Candidate, tuple[list[tuple[float, float]], int]] = {}
        self.stage: dict[_Candidate, int] = {}
        self._kept: dict[tuple[float, int | None], NDArray[np.float64]] = {}
        self._draws: dict[tuple[float, float, int | None], tuple[float, float]] = {}

    def run(
        self,
        grid: Sequence[Schedule],
        effort: Effort,
        *,
        refine: bool,
        fixed_rounds: int | None,
        progress: bool,
    ) -> None:
        """Try the candidates in stages."""
        pool = [(schedule, k) for schedule in grid for k in self.domains]
        for candidate in pool:
            self.stage[candidate] = -1
        alive = [candidate for candidate in pool if self._is_hopeful(candidate)]
        few = effort.stages[1][0]
        if few is not None and len(alive) < few:
            alive = sorted(pool, key=self._noise_loss)[:few]
        stages = len(effort.stages)
        for number, (most, surrogates, records) in enumerate(effort.stages):
            if number:
                alive = sorted(alive, key=self._mean, reverse=True)[:most]
            self._try(alive, number, surrogates, records, progress)
        for _ in range(effort.refinements if refine else 0):
            best = self.ranked()[0]
            fresh = [
                (schedule, best[1])
                for schedule in _neighbours(best[0], fixed_rounds)
                if self.stage.get((schedule, best[1])) != stages - 1
            ]
            _, surrogates, records = effort.stages[-1]
            self._try(fresh, stages - 1, surrogates, records, progress)

    def ranked(self) -> list[_Candidate]:
        """Sort the candidates: those that got furthest first, the best of each stage first."""
        return sorted(self.stage, key=lambda c: (self.stage[c], self._mean(c)), reverse=True)

    def row(self, candidate: _Candidate) -> dict[str, Any]:
        """Tell what is known of a candidate."""
        schedule, k = candidate
        pairs, records = self.scores.get(candidate, ([], 0))
        return {
            "schedule": schedule,
            "n_components": k,
            **_figures(pairs),
            "surrogates": len(pairs),
            "records": records,
            "noise_to_signal": self._noise_to_signal(candidate),
            "noise_loss": self._noise_loss(candidate),
        }

    def curve(self, candidate: _Candidate, target_epsilon: float) -> tuple[dict[str, float], ...]:
        """Try a candidate at other ε."""
        points = {target_epsilon: self.scores[candidate][0]}
        for factor in _CURVE:
            eps = target_epsilon * factor
            noise = 1 / (self.n_records * calibrate_mu(eps, self.delta))
            points[eps] = [
                domain.score(candidate[0], noise, _CURVE_RECORDS, self.seed, self.scorer)
                for domain in self.domains[candidate[1]]
            ]
        return tuple({"epsilon": eps, **_figures(points[eps])} for eps in sorted(points))

    def _try(
        self,
        candidates: Sequence[_Candidate],
        stage: int,
        surrogates: int,
        records: int | None,
        progress: bool,
    ) -> None:
        records = self.n_records if records is None else min(records, self.n_records)
        total = sum(schedule.rounds for schedule, _ in candidates)
        with progress_bar(total, f"rounds of stage {stage + 1}", show=progress) as advance:
            for candidate in candidates:
                schedule, k = candidate
                pairs = [
                    domain.score(
                        schedule, self.noise, records, self.seed + 1000 * stage + i, self.scorer
                    )
                    for i, domain in enumerate(self.domains[k][:surrogates])
                ]
                self.scores[candidate] = pairs, records
                self.stage[candidate] = stage
                advance(schedule.rounds)

    def _mean(self, candidate: _Candidate) -> float:
        if candidate not in self.scores:
            return -self._noise_loss(candidate)
        return float(np.mean([score for score, _ in self.scores[candidate][0]]))

    def _is_hopeful(self, candidate: _Candidate) -> bool:
        schedule, _ = candidate
        reach = schedule.rounds * schedule.step_size / (1 - schedule.momentum)
        saving = reach * self._first_draw(candidate)[1]
        cost = self._noise_loss(candidate)
        # An order may get better, or a score of one's own, where the loss hardly does.
        least = _LEAST_SAVING if self.scorer.score in ("accuracy", "loss") else 0.0
        return saving >= least * self.loss_before and cost <= _MOST_NOISE_LOSS * self.loss_before

    def _noise_loss(self, candidate: _Candidate) -> float:
        schedule, k = candidate
        return _noise_loss(schedule, self._kept_eigenvalues(schedule.damping, k), self.noise)

    def _noise_to_signal(self, candidate: _Candidate) -> float:
        schedule, k = candidate
        signal, _ = self._first_draw(candidate)
        components = len(self._kept_eigenvalues(schedule.damping, k))
        draws = schedule.rounds / (1 - schedule.curvature_share)
        sigma = schedule.clipping_norm * self.noise * math.sqrt(draws)
        return sigma * math.sqrt(components) / max(signal, 1e-300)

    def _first_draw(self, candidate: _Candidate) -> tuple[float, float]:
        schedule, k = candidate
        key = schedule.damping, schedule.clipping_norm, k
        if key not in self._draws:
            trial = self.domains[k][0].trial.head(1000)
            self._draws[key] = trial.first_draw(schedule.damping, schedule.clipping_norm)
        return self._draws[key]

    def _kept_eigenvalues(self, damping: float, k: int | None) -> NDArray[np.float64]:
        if (damping, k) not in self._kept:
            self._kept[damping, k] = self.domains[k][0].trial.kept(damping)
        return self._kept[damping, k]


def _figures(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Give mean and standard deviation of scores and of accuracies, None where there are none."""
    columns = list(zip(*pairs, strict=True)) or [(), ()]
    return {
        f"{name}_{figure}": float(function(column)) if column else None
        for name, column in zip(("score", "accuracy"), columns, strict=True)
        for figure, function in (("mean", np.mean), ("std", np.std))
    }


def _noise_loss(schedule: Schedule, kept: NDArray[np.float64], noise: float) -> float:
    """Predict the loss that the noise of all rounds leaves in the quadratic model."""
    eta = schedule.step_size / (1 - schedule.momentum)
    draws = schedule.rounds / (1 - schedule.curvature_share)
    sigma = eta * schedule.clipping_norm * noise * math.sqrt(draws)
    decay = np.clip((1 - eta * kept) ** 2, 0, 1 - 1e-9)
    rounds = (1 - decay**schedule.rounds) / (1 - decay)
    return float(0.5 * sigma**2 * (kept * rounds).sum())


def _neighbours(schedule: Schedule, fixed_rounds: int | None) -> list[Schedule]:
    """Vary one setting at a time by half a step of the grid."""
    root = math.sqrt(10)
    varied: list[dict[str, Any]] = [{"damping": schedule.damping * f} for f in (1 / root, root)]
    varied += [{"clipping_norm": schedule.clipping_norm * f} for f in (0.55, 1.8)]
    varied += [{"step_size": schedule.step_size * f} for f in (0.55, 1.8)]
    varied += [
        {"clipping_norm": schedule.clipping_norm * f, "step_size": schedule.step_size / f}
        for f in (0.55, 1.8)
    ]
    if schedule.rounds >= 4:
        varied += [{"averaging": 0.0 if schedule.averaging else 0.25}]
    if fixed_rounds is None:
        varied += [{"rounds": max(1, round(schedule.rounds * f))} for f in (0.7, 1.4)]
    return [replace(schedule, **changes) for changes in varied]


def public_records(
    model: Any, X_public: ArrayLike, y_public: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    X, y = np.asarray(X_public), np.asarray(y_public)
    if X.ndim != 2 or y.shape != (len(X),):
        raise ValueError(
            f"X_public has shape {X.shape} and y_public {y.shape}; they need (m, d) and (m,)"
        )
    if len(X) < 50:
        raise ValueError(
            f"there are {len(X)} public records; a plan needs at least 50, and is worth little "
            "with fewer than a thousand"
        )
    X = X.astype(getattr(model, "dtype", np.float32), copy=False)
    if not np.all(np.isfinite(X)):
        raise ValueError("X_public holds NaN or infinite values; public records must be finite")
    return X, y


def make_shifts(
    surrogate: str | Surrogate | Sequence[Surrogate],
    model: Any,
    X: NDArray[Any],
    y: NDArray[Any],
    image_shape: tuple[int, int] | None,
    group: ArrayLike | None,
    count: int,
    seed: int,
    scorer: Scorer,
) -> list[Surrogate]:
    """Give the shifts that `surrogate` names, or those that it is."""
    if callable(surrogate):
        return [surrogate]
    if not isinstance(surrogate, str):
        given = list(surrogate)
        if not given or not all(callable(shift) for shift in given):
            raise TypeError("surrogate needs functions shift(X, y, rng) -> (X, y), at least one")
        return given
    if surrogate == "images":
        return list(image_surrogates(model, X, y, image_shape=image_shape, count=count, seed=seed))
    if surrogate == "tabular":
        hardness: Literal["accuracy", "auroc"] = "auroc" if scorer.score == "auroc" else "accuracy"
        return list(
            table_surrogates(model, X, y, group=group, count=count, seed=seed, score=hardness)
        )
    raise ValueError(
        f"surrogate is {surrogate!r}; it needs 'images', 'tabular', or functions of your own"
    )


def _trials(
    model: Any,
    X: NDArray[Any],
    curvature: Literal["kronecker", "dense"] | Maker,
    n_components: Sequence[int],
    delta: float,
) -> Iterator[tuple[int | None, Callable[[NDArray[Any], NDArray[Any]], _Trial]]]:
    """Give for each k what makes a trial from simulated private records."""
    if curvature == "kronecker" and isinstance(model, MultilayerPerceptron):
        eigen = _eigen(model, X, 0)
        yield None, lambda X_sim, y_sim: _KroneckerTrial(model, X_sim, y_sim, X, eigen)
    elif curvature == "kronecker":

        def kronecker(at: Any, damping: float) -> Curvature:
            return KroneckerCurvature.from_model(at, X, damping=damping)

        yield None, _general(model, kronecker, None, delta)
    elif curvature == "dense":
        p = len(model.weights)
        for k in sorted({min(_checks.count(k, "n_components"), p) for k in n_components}):
            projection = SRHT(p, k, seed=0)

            def dense(at: Any, damping: float, projection: SRHT = projection) -> Curvature:
                return DenseCurvature.from_model(at, X, projection=projection, damping=damping)

            yield k, _general(model, dense, projection, delta)
    elif callable(curvature):
        yield None, _general(model, curvature, None, delta)
    else:
        raise ValueError(
            f"curvature is {curvature!r}; it needs 'kronecker', 'dense' or a function "
            "make(model, damping)"
        )


def _general(
    model: Any, make: Maker, projection: Any, delta: float
) -> Callable[[NDArray[Any], NDArray[Any]], _Trial]:
    shared: dict[float, Curvature] = {}

    def trial(X_sim: NDArray[Any], y_sim: NDArray[Any]) -> _Trial:
        made = _GeneralTrial(model, X_sim, y_sim, make, projection, delta)
        made._curvatures = shared
        return made

    return trial


def _simulated(
    model: Any,
    shift: Surrogate,
    X: NDArray[Any],
    y: NDArray[Any],
    trial: Callable[[NDArray[Any], NDArray[Any]], _Trial],
    n_records: int,
    seed: int,
) -> _Shifted:
    """Shift the public records and split them into simulated private and test records."""
    X_private, y_private, X_test, y_test = split_shifted(shift, X, y, n_records, seed)
    return _Shifted(
        trial(X_private, y_private),
        X_test,
        y_test,
        float(model.score(X_test, y_test)),
        float(model.loss(X_test, y_test)),
    )


def split_shifted(
    shift: Surrogate, X: NDArray[Any], y: NDArray[Any], n_records: int, seed: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Give simulated private records, at most `n_records`, their labels, and those of the test."""
    rng = np.random.default_rng(seed)
    shifted, labels = shift(X, y, rng)
    order = rng.permutation(len(shifted))
    n_private = min(n_records, int(_PRIVATE_SHARE * len(order)))
    private, test = order[:n_private], order[n_private:][:_MOST_TEST_RECORDS]
    if len(private) == 0 or len(test) == 0:
        raise ValueError(f"the surrogate {shift} left {len(order)} records; it needs more")
    return (
        np.ascontiguousarray(shifted[private]),
        labels[private],
        shifted[test],
        labels[test],
    )
