"""A schedule chosen on public records, and how it was found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import ArrayLike

from qexp._files import atomic_write
from qexp._plots import new_figure
from qexp.finetune import Schedule
from qexp.projections import SRHT, Projection
from qexp.subspace import learn_directions
from qexp.surrogates import Surrogate

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A schedule chosen on public records.

    Attributes
    ----------
    schedule : Schedule
    n_components : int or None
        k of the random projection, for dense curvature, or of the public subspace;
        :meth:`projection` makes either.
    in_subspace : bool
        Whether it is the latter, which goes with an :class:`qexp.IdentityCurvature` of k.
    moves : tuple of callables
        What subspaces are learnt from.
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
        tried, at ``records`` simulated private records), ``noise_to_signal``, the norm of the first
        round's noise over that of the clipped mean *without* noise (so that it may exceed 1, unlike
        a release's), and ``noise_loss``, the predicted loss through noise. Candidates that these
        two discarded have no scores. Rows of fewer surrogates or records were given up early; their
        scores compare among themselves.
    curve : tuple of dict
        The schedule at other ε: ``epsilon`` and the four figures above.
    """

    schedule: Schedule
    n_components: int | None
    in_subspace: bool
    moves: tuple[Surrogate, ...] = field(repr=False)
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

    def projection(self, model: Any, X_public: ArrayLike, y_public: ArrayLike) -> Projection | None:
        """Make the projection that was planned, for the model to be fine-tuned.

        Parameters
        ----------
        model : qexp.models.MultilayerPerceptron or alike
        X_public, y_public
            Public records for a subspace to be learnt from.

        Returns
        -------
        SRHT, PublicSubspace or None
            None where the schedule is for the whole space.
        """
        if self.n_components is None:
            return None
        if not self.in_subspace:
            return SRHT(len(model.weights), self.n_components, seed=0)
        directions = learn_directions(model, X_public, y_public, moves=self.moves)
        return directions.subspace(self.n_components)

    def describe(self) -> dict[str, Any]:
        """Describe the plan and its table as a dictionary that JSON can hold."""
        return {
            "schedule": self.schedule.describe(),
            "n_components": self.n_components,
            "in_subspace": self.in_subspace,
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
        figure = new_figure(figsize=(6, 4), layout="constrained")
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
