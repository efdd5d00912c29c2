"""Plan and fine-tune a transfer task by qexp: what several experiments do alike."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from experiments.tasks import Task
from qexp import KroneckerCurvature
from qexp.bits import insecure_test_generator
from qexp.finetune import FineTuneResult, Schedule, Shrinkage, fine_tune

__all__ = ["fine_tuned", "planning_arguments", "planning_records", "surrogate_arguments"]


def fine_tuned(
    task: Task,
    schedule: Schedule,
    *,
    epsilon: float,
    delta: float,
    seed: int,
    curvature_records: NDArray[Any] | None = None,
    shrinkage: Shrinkage = "none",
) -> FineTuneResult:
    """Fine-tune on the private records, with curvature of public ones and reproducible noise."""
    records = task.public_records()[0] if curvature_records is None else curvature_records
    return fine_tune(
        task.model,
        task.X_private,
        task.y_private,
        schedule=schedule,
        curvature=lambda model: KroneckerCurvature.from_model(
            model, records, damping=schedule.damping
        ),
        target_epsilon=epsilon,
        target_delta=delta,
        rng=insecure_test_generator(seed),
        shrinkage=shrinkage,
    )


def planning_records(task: Task) -> tuple[Any, Any, Any]:
    """Give the model and the public records that settings are planned with."""
    first = task.planned_on()[0]
    return first.model, first.X_public, first.y_public


def planning_arguments(task: Task, epsilon: float, delta: float, effort: Any) -> dict[str, Any]:
    """Give what :func:`qexp.planning.plan` and :func:`qexp.rivals.plan_rival` both take."""
    return {
        "n_records": len(task.X_private),
        "target_epsilon": epsilon,
        "target_delta": delta,
        **surrogate_arguments(task, effort),
    }


def surrogate_arguments(task: Task, effort: Any) -> dict[str, Any]:
    """Give those of them that say how the private domain is simulated."""
    first, *others = task.planned_on()
    return {
        "surrogate": first.surrogate,
        "rehearsals": others,
        "image_shape": task.image_shape,
        "public_group": task.planning_group,
        "score": task.metric,
        "effort": effort,
    }
