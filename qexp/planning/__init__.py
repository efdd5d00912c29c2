"""Choosing a schedule on public records, before any budget is spent: see :func:`plan`.

What qexp and its rivals share lies in ``_domains`` (the simulated private domains), ``_scorer`` and
``_halving``; what is simulated in ``_kronecker_trial``, ``_subspace_trial`` and
``_trials``, round by round as ``_rounds`` has it.
"""

from qexp.planning._domains import Rehearsal
from qexp.planning._grid import candidate_schedules
from qexp.planning._plan import Plan
from qexp.planning._planner import plan

__all__ = ["Plan", "Rehearsal", "candidate_schedules", "plan"]
