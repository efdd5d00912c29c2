"""The public subspace of a job: learnt once, kept in its folder, the same on all ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from qexp.curvature import IdentityCurvature
from qexp.job.inputs import Inputs
from qexp.job.log import Log
from qexp.job.settings import JobSettings
from qexp.subspace import PublicSubspace, image_moves, learn_directions

__all__ = ["in_subspace", "kept_subspace", "learnt_subspace", "subspace_size"]

_FILE: Final = "subspace.npz"


def subspace_size(job: JobSettings, plan: Mapping[str, Any] | None) -> int | None:
    """Give the number of directions that were asked for or planned, None for another space."""
    if plan is not None:
        return plan["n_components"] if plan["in_subspace"] else None
    return job.projection.n_components if job.projection.kind == "subspace" else None


def kept_subspace(
    job: JobSettings, inputs: Inputs, size: int, log: Log, *, learnt_from: str
) -> PublicSubspace:
    """Take up the subspace that the output folder holds, or learn one and keep it there.

    Its last bits differ from machine to machine, and a resumed job goes on where it began.

    Parameters
    ----------
    job : JobSettings
    inputs : Inputs
    size : int
        k.
    log : Log
    learnt_from : str
        A digest of all that shapes it.

    Returns
    -------
    PublicSubspace

    Raises
    ------
    OSError
        If its file cannot be read or written.
    ValueError
        If it is damaged, or was learnt for another job file.
    """
    path = os.path.join(job.output.folder, _FILE)
    if os.path.exists(path):
        return PublicSubspace.load(path, learnt_from=learnt_from)
    began = time.monotonic()
    log.event("learning", f"learning a public subspace of {size} directions", n_components=size)
    subspace = learnt_subspace(job, inputs, size, progress=log.is_terminal)
    subspace.save(path, learnt_from=learnt_from)
    seconds = time.monotonic() - began
    log.event(
        "learnt",
        f"learnt it in {seconds:.0f} s; {path} keeps it",
        n_components=size,
        seconds=round(seconds, 1),
    )
    return subspace


def learnt_subspace(
    job: JobSettings, inputs: Inputs, size: int, *, progress: bool
) -> PublicSubspace:
    """Learn a subspace from moves of the job's public images."""
    public: Any = inputs.bare_model, inputs.X_public, inputs.y_public
    moves = image_moves(*public, image_shape=job.public.image_shape)
    return learn_directions(*public, moves=moves, progress=progress).subspace(size)


def in_subspace(inputs: Inputs, subspace: PublicSubspace) -> Inputs:
    """Give the inputs of the same job in a subspace, whose coordinates are whitened."""
    k = subspace.n_components
    return replace(
        inputs,
        projection=subspace,
        make_curvature=lambda model, damping: IdentityCurvature(k),
    )
