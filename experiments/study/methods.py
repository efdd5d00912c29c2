"""All methods of the study behind two functions: plan on public records, then run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from experiments.fine_tuning import (
    described,
    directions,
    fine_tuned,
    planning_arguments,
    planning_records,
    schedule_of,
    subspace_arguments,
)
from experiments.tasks import Task, images
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
    tasks : collection of str, optional
        The only ones that it is for. Default: all.
    prepare : function of (task, settings)
        Public work that is done once a model, such as planning: no part of a run's seconds.
    runs_as : tuple of str
        Methods that differ from it in how they plan alone: by the same settings and seed their
        results are its own.
    """

    plan: Callable[[Task, float, float, Any], dict[str, Any]]
    run: Callable[[Task, dict[str, Any], float, float, int], Tuned]
    takes_budget: bool = True
    tasks: Collection[str] | None = None
    prepare: Callable[[Task, dict[str, Any]], object] = lambda task, settings: None
    runs_as: tuple[str, ...] = ()


def qexp_method(
    rounds: int | None = None,
    candidates: Sequence[Schedule] | None = None,
    shrinkage: Shrinkage = "none",
    *,
    with_subspaces: bool = True,
) -> StudyMethod:
    """Make qexp a method: with so many rounds, or with some schedules to choose from only.

    Public subspaces are chosen from where images are moved, but with candidates of one's own.
    """

    def planned(task: Task, epsilon: float, delta: float, effort: Any) -> dict[str, Any]:
        arguments = planning_arguments(task, epsilon, delta, effort)
        if candidates is None and with_subspaces:
            arguments |= subspace_arguments(task)
        made = plan(*planning_records(task), rounds=rounds, candidates=candidates, **arguments)
        return described(made)

    def prepare(task: Task, settings: dict[str, Any]) -> None:
        if schedule_of(settings)[1] is not None:
            directions(task)

    def run(task: Task, settings: dict[str, Any], epsilon: float, delta: float, seed: int) -> Tuned:
        schedule, subspace = schedule_of(settings)
        result = fine_tuned(
            task,
            schedule,
            epsilon=epsilon,
            delta=delta,
            seed=seed,
            subspace=subspace,
            shrinkage=shrinkage,
        )
        release = result.release
        return Tuned(result.model, release.mu, release.neighboring_relation, result.rounds_done)

    return StudyMethod(planned, run, prepare=prepare)


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
    """Make settings of what JSON holds, where tuples are lists.

    What a line does not say, as it is older than the choice, is the default; a name that is not
    known is an error, as the line would be run by other settings than it says.
    """
    return settings_type(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )


_FREE: Final = ("public_only", "non_private")
_OURS: Final = ("qexp", "qexp_one_round", "qexp_full_space")
METHODS: Final[Mapping[str, StudyMethod]] = {
    "qexp": replace(qexp_method(), runs_as=_OURS),
    "qexp_one_round": replace(qexp_method(1, with_subspaces=False), runs_as=_OURS),
    "qexp_full_space": replace(
        qexp_method(with_subspaces=False), tasks=images.TASKS, runs_as=_OURS
    ),
    **{name: rival_method(method) for name, method in rivals.METHODS.items()},
}
"""qexp as planned; in the whole space, and with one round there; and every rival."""

NO_BUDGET: Final = math.inf
"""The ε of methods that take none."""
