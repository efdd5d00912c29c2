"""Real transfer tasks: a pretrained public model, and private records of a shifted domain.

Every task is a function of a seed, which sets the initial weights, the shuffles of pretraining and
which public records are held out. Nothing is cached on disk: pretraining takes seconds.
"""

from collections.abc import Callable, Mapping
from typing import Final

from experiments.tasks import clinical, images, tables
from experiments.tasks._task import Task

__all__ = ["TASKS", "Task"]

TASKS: Final[Mapping[str, Callable[[int], Task]]] = {
    **images.TASKS,
    **clinical.TASKS,
    **tables.TASKS,
}
