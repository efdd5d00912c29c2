"""All methods of the study behind two functions: plan on public records, then run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from experiments.fine_tuning import fine_tuned, planning_arguments, planning_records
from experiments.tasks import Task
from qexp import rivals
from qexp.bits import insecure_test_generator
from qexp.finetune import Schedule, Shrinkage
from qexp.planning import plan
from qexp.rivals import plan_rival

__all__ = ["METHODS", "StudyMethod", "Tuned", "qexp_method", "rival_method", "settings_from_json"]


@dataclass(frozen=True, eq=False)
class Tuned:
    """What came of one run."""

    model: Any
    mu: float | None
    relation: str
    rounds: int | None


@dataclass(frozen=True, eq=False)
class StudyMethod:
    """A method of the study.

    Attributes
    ----------
    plan : function of (task, epsilon, delta, effort)
        Gives settings chosen on public records, as JSON can hold them.
    run : function of (task, settings, epsilon, delta, seed)
    takes_budget : bool
        False where ε makes no difference.
    """

    plan: Callable[[Task, float, float, Any], dict[str, Any]]
    run: Callable[[Task, dict[str, Any], float, float, int], Tuned]
    takes_budget: bool = True


def qexp_method(
    rounds: int | None = None,
    candidates: Sequence[Schedule] | None = None,
    shrinkage: Shrinkage = "none",
) -> StudyMethod:
    """Make qexp a method: with so many rounds, or with some schedules to choose from only."""

    def planned(task: Task, epsilon: float, delta: float, effort: Any) -> dict[str, Any]:
        arguments = planning_arguments(task, epsilon, delta, effort)
        made = plan(*planning_records(task), rounds=rounds, candidates=candidates, **arguments)
        return made.schedule.describe()

    def run(task: Task, settings: dict[str, Any], epsilon: float, delta: float, seed: int) -> Tuned:
        result = fine_tuned(
            task,
            Schedule(**settings),
            epsilon=epsilon,
            delta=delta,
            seed=seed,
            shrinkage=shrinkage,
        )
        release = result.release
        return Tuned(result.model, release.mu, release.neighboring_relation, result.rounds_done)

    return StudyMethod(planned, run)


def rival_method(
    method: rivals.Method[Any], candidates: Sequence[Any] | None = None
) -> StudyMethod:
    """Make a rival a method of the study: with its own grid, or with some settings of it only."""

    def planned(task: Task, epsilon: float, delta: float, effort: Any) -> dict[str, Any]:
        arguments = planning_arguments(task, epsilon, delta, effort)
        made = plan_rival(method, *planning_records(task), candidates=candidates, **arguments)
        return asdict(made.settings)

    def run(task: Task, settings: dict[str, Any], epsilon: float, delta: float, seed: int) -> Tuned:
        result = method(
            task.model,
            task.X_private,
            task.y_private,
            target_epsilon=epsilon,
            target_delta=delta,
            public_data=task.public_records(),
            settings=settings_from_json(method.settings_type, settings),
            rng=insecure_test_generator(seed),
        )
        release = result.release
        if release is None:
            return Tuned(result.model, None, "none", None)
        sampled = release.certificate()["mu_is"] != "exact"
        return Tuned(
            result.model,
            None if sampled else release.mu,
            release.neighboring_relation,
            len(result.history),
        )

    return StudyMethod(planned, run, takes_budget=method.name not in _FREE)


def settings_from_json(settings_type: type[Any], values: Mapping[str, Any]) -> Any:
    """Make settings of what JSON holds, where tuples are lists."""
    known = {f.name for f in fields(settings_type)}
    return settings_type(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
    )


_FREE: Final = ("public_only", "non_private")
METHODS: Final[Mapping[str, StudyMethod]] = {
    "qexp": qexp_method(),
    "qexp_one_round": qexp_method(1),
    **{name: rival_method(method) for name, method in rivals.METHODS.items()},
}
"""qexp with planned rounds, with one round, and every rival."""

NO_BUDGET: Final = math.inf
"""The ε of methods that take none."""
