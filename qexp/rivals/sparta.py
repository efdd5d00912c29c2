"""SPARTA: sparse fine-tuning under a mask that is chosen privately.

"SPARTA: an optimization framework for differentially private sparse fine-tuning"
(arXiv 2503.12822, KDD 2025). The head is warmed up by DP-SGD; one epoch of noisy sums scores groups
of weights; then only the best groups are trained, with gradients masked *before* they are clipped.
All sums share one noise multiplier and one accountant.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qexp.rivals._boundary import Boundary
from qexp.rivals._descent import Descent, descend, model_at, one_cycle
from qexp.rivals._method import Method, PublicData, Tuned
from qexp.rivals._parts import Part, SomeEntries, SomeRowsAndColumns, gradients, layer_shapes
from qexp.rivals._settings import (
    check_choice,
    check_count,
    check_positive,
    check_rate,
    check_share,
)
from qexp.rivals.gradient_descent import noisy_mean

__all__ = ["SpartaSettings", "sparta"]

Groups = Literal["row", "column", "element"]
Scores = Literal["magnitudes", "squares"]
_GROUPS: Final = ("row", "column", "element")
_SCORES: Final = ("magnitudes", "squares")
# The published schedule is laid out over more epochs than are run, so that it ends above zero.
_LONGER: Final = 1.2


@dataclass(frozen=True, kw_only=True)
class SpartaSettings:
    """Settings of `sparta` (arXiv 2503.12822).

    Attributes
    ----------
    epochs : int
        E: ⌈1/q⌉ sums each, of which warm-up and selection are a part.
    warm_up_epochs : int
        In which the head and all biases are trained alone. A model of one layer is all head: then
        all of it is.
    kept : float
        s in (0, 1]: share of every masked layer's groups that are trained after the selection.
    groups : {"row", "column", "element"} or tuple of int
        What is kept or frozen together: the weights into an output unit, those out of an input
        unit, or each by itself; or a group's number for each of the p weights, -1 for weights
        always trained, with the share of all groups together. Named groups leave biases and the
        head of a model with several layers unmasked.
    scores : {"magnitudes", "squares"}
        "magnitudes", the paper's: noisy sums of the clipped gradients' absolute values.
        "squares": squares of noisy sums of the gradients, less what noise adds on average. (The
        released code takes absolute values between the sum and its noise; that is no noisy sum of
        records, so that qexp's boundary does not offer it. This score ranks groups by the same
        sums, and costs the same.)
    sampling_rate : float
        q in (0, 1].
    learning_rate, head_learning_rate : float
        After the selection and in the warm-up, of gradients in units of the clipping norm.
    momentum : float
    clipping_norm : float
        C.
    """

    epochs: int = 50
    warm_up_epochs: int = 10
    kept: float = 0.2
    groups: Groups | tuple[int, ...] = "row"
    scores: Scores = "magnitudes"
    sampling_rate: float = 0.01
    learning_rate: float = 0.1
    head_learning_rate: float = 0.1
    momentum: float = 0.9
    clipping_norm: float = 1.0

    def __post_init__(self) -> None:
        check_count(self, "epochs")
        check_count(self, "warm_up_epochs", least=0)
        check_rate(self, "kept")
        check_rate(self)
        check_positive(self, "learning_rate", "head_learning_rate", "clipping_norm")
        check_share(self, "momentum")
        check_choice(self, "scores", _SCORES)
        if isinstance(self.groups, str):
            check_choice(self, "groups", _GROUPS)
        else:
            object.__setattr__(self, "groups", _numbers(self.groups))
        if self.warm_up_epochs + 2 > self.epochs:
            raise ValueError(
                f"epochs is {self.epochs}, of which {self.warm_up_epochs} are warm-up and one is "
                "selection; at least one more is needed for training"
            )

    @property
    def steps_per_epoch(self) -> int:
        """⌈1/q⌉."""
        return math.ceil(1 / self.sampling_rate)


def _numbers(groups: object) -> tuple[int, ...]:
    found = np.asarray(groups)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"groups is {groups!r}; it needs one of {_GROUPS}, or an integer for each weight"
        )
    return tuple(found.tolist())


def _tune(
    model: Any, boundary: Boundary, settings: SpartaSettings, public: PublicData | None
) -> Tuned:
    per_epoch = settings.steps_per_epoch
    boundary.plan_sampled(settings.sampling_rate, settings.epochs * per_epoch)
    shapes = layer_shapes(model)
    descent = Descent(model.weights.astype(boundary.dtype), momentum=settings.momentum)
    expected = settings.sampling_rate * boundary.n_records

    def train(part: Part, steps: int, learning_rate: float, label: str) -> bool:
        mean = noisy_mean(
            boundary,
            part,
            clipping="abadi",
            clipping_norm=settings.clipping_norm,
            expected_records=expected,
            label=label,
        )
        whole = math.ceil(_LONGER * steps)
        return descend(descent, model, steps, mean, lambda t: learning_rate * one_cycle(t, whole))

    warm_up = settings.warm_up_epochs * per_epoch
    head = _head(shapes)
    if warm_up and not train(head, warm_up, settings.head_learning_rate, "warm-up"):
        return Tuned(descent.theta, diverged=True)
    part = _selected(model_at(model, descent.theta), boundary, settings, shapes)
    descent.forget()
    steps = (settings.epochs - settings.warm_up_epochs - 1) * per_epoch
    within = train(part, steps, settings.learning_rate, "sparse step")
    return Tuned(descent.theta, diverged=not within)


def _ones(size: int) -> NDArray[np.bool_]:
    return np.ones(size, dtype=np.bool_)


def _is_masked(shapes: list[tuple[int, int]]) -> list[bool]:
    """Tell which layers are masked: all but the head, unless there is nothing else."""
    return [len(shapes) == 1 or layer < len(shapes) - 1 for layer in range(len(shapes))]


def _head(shapes: list[tuple[int, int]]) -> Part:
    """Give the head's weights and all biases."""
    last = len(shapes) - 1
    return SomeRowsAndColumns(
        shapes,
        [_ones(out) if layer == last else ~_ones(out) for layer, (out, _) in enumerate(shapes)],
        [_ones(inp - 1) for _, inp in shapes],
    )


def _selected(
    model: Any, boundary: Boundary, settings: SpartaSettings, shapes: list[tuple[int, int]]
) -> Part:
    """Spend one epoch on choosing which weights to train."""
    p = sum(out * inp for out, inp in shapes)
    scored: Part
    if isinstance(settings.groups, str):
        scored = SomeRowsAndColumns(
            shapes,
            [
                _ones(out) if masked else ~_ones(out)
                for masked, (out, _) in zip(_is_masked(shapes), shapes, strict=True)
            ],
            [_ones(inp - 1) for _, inp in shapes],
            biases=False,
        )
    else:
        if len(settings.groups) != p:
            raise ValueError(
                f"groups has {len(settings.groups)} entries; it needs one for each of the {p} "
                "weights"
            )
        if max(settings.groups) < 0:
            raise ValueError("groups has no group; it needs numbers of at least 0 in it")
        scored = SomeEntries(shapes, np.array(settings.groups) >= 0)
    magnitudes = settings.scores == "magnitudes"
    total = np.zeros(scored.n_components, boundary.dtype)
    noise = 0.0
    for _ in range(settings.steps_per_epoch):
        total += boundary.noisy_sum(
            gradients(model, scored, magnitudes=magnitudes),
            n_components=scored.n_components,
            clipping_norm=settings.clipping_norm,
            label="selection",
        )
        noise += (settings.clipping_norm * boundary.last_noise_multiplier) ** 2
    values = scored.embed(total if magnitudes else total**2 - noise)
    if not isinstance(settings.groups, str):
        return _custom(values, np.array(settings.groups), settings.kept, shapes)
    return _masked(values, settings.groups, settings.kept, shapes)


def _custom(
    values: NDArray[Any],
    groups: NDArray[np.int64],
    kept: float,
    shapes: list[tuple[int, int]],
) -> Part:
    grouped = groups >= 0
    numbers, of_group = np.unique(groups[grouped], return_inverse=True)
    scores = np.bincount(of_group, values[grouped], len(numbers)).astype(np.float64)
    chosen = ~grouped
    chosen[grouped] = _best(scores, kept)[of_group]
    return SomeEntries(shapes, chosen)


def _masked(
    values: NDArray[Any], groups: Groups, kept: float, shapes: list[tuple[int, int]]
) -> Part:
    rows, columns, entries, start = [], [], [], 0
    for masked, (out, inp) in zip(_is_masked(shapes), shapes, strict=True):
        scores = values[start : start + out * inp].reshape(out, inp)[:, :-1]
        start += out * inp
        rows.append(_best(scores.sum(axis=1), kept) if masked and groups == "row" else _ones(out))
        columns.append(
            _best(scores.sum(axis=0), kept) if masked and groups == "column" else _ones(inp - 1)
        )
        chosen = np.ones((out, inp), dtype=np.bool_)
        if masked and groups == "element":
            chosen[:, :-1] = _best(scores.ravel(), kept).reshape(scores.shape)
        entries.append(chosen.ravel())
    if groups == "element":
        return SomeEntries(shapes, np.concatenate(entries))
    return SomeRowsAndColumns(shapes, rows, columns)


def _best(scores: NDArray[Any], kept: float) -> NDArray[np.bool_]:
    """Drop the ⌊m(1 - s)⌋ lowest scores; those below zero are all alike."""
    dropped = math.floor(len(scores) * (1 - kept) + 1e-9)
    chosen = _ones(len(scores))
    chosen[np.argsort(np.maximum(scores, 0), kind="stable")[:dropped]] = False
    return chosen


def _candidates() -> list[SpartaSettings]:
    rates: tuple[dict[str, Any], ...] = (
        {"sampling_rate": 0.06, "epochs": 8, "warm_up_epochs": 1},
        {"sampling_rate": 0.06, "epochs": 24, "warm_up_epochs": 4},
        {"sampling_rate": 0.25, "epochs": 12, "warm_up_epochs": 2},
        {"sampling_rate": 0.25, "epochs": 50, "warm_up_epochs": 0},
        {"sampling_rate": 0.25, "epochs": 50, "warm_up_epochs": 10},
        {"sampling_rate": 0.5, "epochs": 24, "warm_up_epochs": 4},
        {"sampling_rate": 0.5, "epochs": 100, "warm_up_epochs": 20},
    )
    norms = (0.3, 1.0, 3.0)
    choices = itertools.product(rates, ("row", "column"), (0.2, 0.8), (0.1, 0.3, 1.0), norms)
    return [
        SpartaSettings(
            groups=groups,
            kept=kept,
            learning_rate=eta,
            head_learning_rate=eta,
            clipping_norm=c,
            **rate,
        )
        for rate, groups, kept, eta, c in choices
    ]


def _neighbours(settings: SpartaSettings) -> list[SpartaSettings]:
    changes: list[dict[str, Any]] = [
        {"learning_rate": settings.learning_rate * f} for f in (0.55, 1.8)
    ]
    changes += [{"clipping_norm": settings.clipping_norm * f} for f in (0.55, 1.8)]
    changes += [{"kept": share} for share in (0.1, 0.5)]
    changes += [{"scores": "squares"}, {"momentum": 0.0}]
    longer = max(settings.warm_up_epochs + 2, round(1.4 * settings.epochs))
    changes += [{"epochs": longer}]
    return [replace(settings, **change) for change in changes]


sparta: Final = Method(
    name="sparta",
    summary="DP-SGD on a privately chosen part of the weights, after a warm-up of the head "
    "(arXiv 2503.12822).",
    settings_type=SpartaSettings,
    algorithm=_tune,
    candidates=_candidates,
    neighbours=_neighbours,
)
