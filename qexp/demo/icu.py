"""Intensive care: from medical and surgical units to coronary care and cardiac surgery."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qexp.curvature import DenseCurvature
from qexp.datasets import load_physionet2012, standardise
from qexp.demo._task import Settings, Shifted, Task, area_under_curve
from qexp.models import MultilayerPerceptron, softmax_regression
from qexp.projections import Basis

__all__ = ["icu_task"]

# The best of the grid in `python -m experiments.demo_settings icu`, which scores it on the moves
# from medical to surgical stays and back, both public.
SETTINGS: Final = Settings(damping=1e-2, clipping_norm=10.0, step_size=0.5)

# So few private stays, and so few deaths among them, cannot steer many weights at epsilon = 1: of
# 5, 10, 20 and 40 directions, 10 did best on the move from medical to surgical stays.
N_DIRECTIONS: Final = 10

CORONARY, CARDIAC_SURGERY, MEDICAL, SURGICAL = 1, 2, 3, 4


def pretrain(x: NDArray[Any], y: NDArray[Any], *, seed: int) -> MultilayerPerceptron:
    """Train logistic regression (two softmax outputs) on public stays."""
    model = softmax_regression(x.shape[1], 2)
    return model.fit(x, y, epochs=20, learning_rate=1e-3, weight_decay=1.0, seed=seed)


def leading_directions(model: MultilayerPerceptron, public: NDArray[Any]) -> Basis:
    """Keep the directions of most curvature on public stays; the noise then has few dimensions."""
    blocks = model.curvature_blocks(public, labels="expected").blocks()
    total = np.zeros((model.n_parameters, model.n_parameters))
    for block in blocks:
        rows = block.astype(np.float64)
        total += rows.T @ rows
    return Basis(np.linalg.eigh(total)[1][:, : -N_DIRECTIONS - 1 : -1])


def all_stays() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return features, deaths, unit types and the set (0 for a, 1 for b) of all stays."""
    sets = [load_physionet2012("a"), load_physionet2012("b")]
    return (
        np.vstack([stays.features for stays in sets]),
        np.concatenate([stays.in_hospital_death for stays in sets]),
        np.concatenate([stays.icu_type for stays in sets]),
        np.repeat([0, 1], [len(stays.features) for stays in sets]),
    )


def as_records(features: NDArray[Any], public: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Standardise by the public stays alone; clip what is further off than any of those may be."""
    standardised = standardise(features[public]).transform(features)
    return np.clip(standardised, -5, 5).astype(np.float32)


def icu_task(seed: int = 0) -> Task:
    """Read the stays, pretrain on the public units and set up the draw."""
    features, died, unit, set_number = all_stays()
    public = np.isin(unit, (MEDICAL, SURGICAL))
    heart = np.isin(unit, (CORONARY, CARDIAC_SURGERY))
    private, test = heart & (set_number == 0), heart & (set_number == 1)
    x = as_records(features, public)
    model = pretrain(x[public], died[public], seed=seed)
    projection = leading_directions(model, x[public])
    return Task(
        title="in-hospital death: pretrained on medical and surgical intensive care, fine-tuned "
        "on coronary care and cardiac surgery (PhysioNet 2012)",
        public=f"{public.sum()} medical and surgical stays, for the scale of the features, for "
        "pretraining, for the curvature and to choose the settings",
        chosen="by their score on the moves between medical and surgical stays, both public, with "
        "the n of this demonstration, epsilon = 1 and delta = 1e-5",
        model=model,
        private=Shifted(x[private], died[private], x[test], died[test]),
        projection=projection,
        curvature=DenseCurvature.from_model(
            model,
            x[public],
            projection=projection,
            damping=SETTINGS.damping,
            labels="expected",
        ),
        settings=SETTINGS,
        measure=area_under_curve,
        measure_name="test AUROC",
        ordinary=_ordinary,
    )


def _ordinary(model: MultilayerPerceptron, private: Shifted) -> MultilayerPerceptron:
    return model.fit(
        private.x_train, private.y_train, epochs=20, learning_rate=1e-3, weight_decay=1.0
    )
