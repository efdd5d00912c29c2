"""Where to start from and what there is to gain: public data only, and no privacy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Final

from qexp import _checks
from qexp.rivals._boundary import Boundary
from qexp.rivals._method import Method, PublicData, Tuned
from qexp.rivals._settings import check_not_negative

__all__ = ["NonPrivateSettings", "PublicOnlySettings", "non_private", "public_only"]


@dataclass(frozen=True, kw_only=True)
class PublicOnlySettings:
    """Settings of `public_only`.

    Attributes
    ----------
    epochs : int
        Further passes over the public records; 0 keeps the pretrained weights.
    learning_rate : float
    """

    epochs: int = 0
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        _checks.count(self.epochs, "epochs", least=0)
        _checks.positive(self.learning_rate, "learning_rate")


@dataclass(frozen=True, kw_only=True)
class NonPrivateSettings:
    """Settings of `non_private`.

    Attributes
    ----------
    epochs : int
        Passes over the private records, in batches of 128, by Adam.
    learning_rate : float
    weight_decay : float
        Decoupled, as in AdamW.
    """

    epochs: int = 20
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        _checks.count(self.epochs, "epochs")
        _checks.positive(self.learning_rate, "learning_rate")
        check_not_negative(self, "weight_decay")


def _tune_public(
    model: Any, boundary: Boundary, settings: PublicOnlySettings, public: PublicData | None
) -> Tuned:
    if not settings.epochs:
        return Tuned(model.weights.astype(float))
    if public is None:
        raise ValueError(
            "public_only with epochs above 0 trains on public records; give "
            "public_data=(X_public, y_public)"
        )
    fitted = model.fit(
        public.X, public.y, epochs=settings.epochs, learning_rate=settings.learning_rate
    )
    return Tuned(fitted.weights.astype(float))


def _tune_non_private(
    model: Any, boundary: Boundary, settings: NonPrivateSettings, public: PublicData | None
) -> Tuned:
    X, y = boundary.records_without_privacy()
    fitted = model.fit(
        X,
        y,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    return Tuned(fitted.weights.astype(float))


def _candidates() -> list[NonPrivateSettings]:
    # Few epochs stop early, which is what keeps a fine-tune on few records from their noise.
    return [
        NonPrivateSettings(epochs=epochs, learning_rate=eta, weight_decay=decay)
        for epochs, eta, decay in itertools.product(
            (3, 10, 20, 60), (2e-4, 6e-4, 2e-3), (1e-4, 1e-1, 1.0)
        )
    ]


def _neighbours(settings: NonPrivateSettings) -> list[NonPrivateSettings]:
    changes: list[dict[str, Any]] = [
        {"epochs": max(1, round(settings.epochs * f))} for f in (0.6, 1.6)
    ]
    changes += [{"learning_rate": settings.learning_rate * f} for f in (0.55, 1.8)]
    changes += [{"weight_decay": settings.weight_decay * f} for f in (0.3, 3.0)]
    return [replace(settings, **change) for change in changes]


public_only: Final = Method(
    name="public_only",
    summary="The pretrained model, or that trained further on public records. No private record is "
    "read.",
    settings_type=PublicOnlySettings,
    algorithm=_tune_public,
    candidates=lambda: [PublicOnlySettings(), PublicOnlySettings(epochs=5)],
    neighbours=lambda settings: [],
)

non_private: Final = Method(
    name="non_private",
    summary="Adam on the private records without noise: what privacy is measured against. Its "
    "result has no privacy at all.",
    settings_type=NonPrivateSettings,
    algorithm=_tune_non_private,
    candidates=_candidates,
    neighbours=_neighbours,
)
