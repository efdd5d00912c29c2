"""Real transfer tasks: a pretrained public model, and private records of a shifted domain.

Every task is a function of a seed, which sets the initial weights, the shuffles of pretraining and
which public records are held out. Nothing is cached on disk: pretraining takes seconds.
"""

from collections.abc import Callable, Mapping
from typing import Final

from experiments.tasks import clinical, images, tables
from experiments.tasks._task import Task

__all__ = ["CREDENTIALED", "TASKS", "Task"]

TASKS: Final[Mapping[str, Callable[[int], Task]]] = {
    **images.TASKS,
    **clinical.TASKS,
    **tables.TASKS,
}

CREDENTIALED: Final = frozenset({"mimic_mortality_full"})
"""Tasks whose data not everybody may have: nothing takes them that was not asked for them."""
