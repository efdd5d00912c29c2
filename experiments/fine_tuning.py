"""Plan and fine-tune a transfer task by qexp: what several experiments do alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from numpy.typing import NDArray

from experiments.tasks import TASKS, Task
from qexp import IdentityCurvature, KroneckerCurvature
from qexp.bits import insecure_test_generator
from qexp.finetune import FineTuneResult, Schedule, Shrinkage, fine_tune
from qexp.planning import Plan
from qexp.subspace import Directions, learn_directions
from qexp.surrogates import Surrogate

__all__ = [
    "SUBSPACES",
    "described",
    "directions",
    "fine_tuned",
    "planning_arguments",
    "planning_records",
    "schedule_of",
    "subspace_arguments",
    "surrogate_arguments",
]

SUBSPACES: Final = (50, 200, 1000, 3000)


def fine_tuned(
    task: Task,
    schedule: Schedule,
    *,
    epsilon: float,
    delta: float,
    seed: int,
    subspace: int | None = None,
    curvature_records: NDArray[Any] | None = None,
    shrinkage: Shrinkage = "none",
) -> FineTuneResult:
    """Fine-tune on the private records, with curvature of public ones and reproducible noise.

    In the whole space, or in the public subspace of so many directions.
    """
    records = task.public_records()[0] if curvature_records is None else curvature_records

    def kronecker(model: Any) -> KroneckerCurvature:
        return KroneckerCurvature.from_model(model, records, damping=schedule.damping)

    return fine_tune(
        task.model,
        task.X_private,
        task.y_private,
        schedule=schedule,
        curvature=kronecker if subspace is None else IdentityCurvature(subspace),
        projection=None if subspace is None else directions(task).subspace(subspace),
        target_epsilon=epsilon,
        target_delta=delta,
        rng=insecure_test_generator(seed),
        shrinkage=shrinkage,
    )


def described(plan: Plan) -> dict[str, Any]:
    """Give what a plan chose, as JSON can hold it."""
    settings = plan.schedule.describe()
    return {**settings, "subspace": plan.n_components} if plan.in_subspace else settings


def schedule_of(settings: Mapping[str, Any]) -> tuple[Schedule, int | None]:
    """Give the schedule of such a description, and the size of the subspace if there is one."""
    known = dict(settings)
    subspace = known.pop("subspace", None)
    return Schedule(**known), subspace


@lru_cache(maxsize=2)
def directions(task: Task) -> Directions:
    """Learn from moved public records where the task's model may have to go: once a model."""
    return learn_directions(task.model, *task.public_records(), moves=_moves(task.name))


@lru_cache(maxsize=1)
def _moves(name: str) -> Sequence[Surrogate]:
    """Draw a task's moves at seed 0, as its plan is made: they serve all seeds."""
    return TASKS[name](0).moves()


def subspace_arguments(task: Task) -> dict[str, Any]:
    """Give what :func:`qexp.planning.plan` chooses subspaces from, where there are moves."""
    if task.surrogate != "images":
        return {}
    return {"subspaces": SUBSPACES, "moves": _moves(task.name)}


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
