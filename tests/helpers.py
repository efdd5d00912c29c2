"""What several tests share: child processes, MPI, and records of layered gradients."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def run_python(program, **environment):
    """Run a program in a process of its own, with some variables set, and give what it prints."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def mpiexec():
    """The launcher beside this Python, where its MPI is, or the system's; None without one."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


needs_mpi = pytest.mark.skipif(
    mpiexec() is None or importlib.util.find_spec("mpi4py") is None,
    reason='no mpiexec or no mpi4py here: pip install "qexp[mpi]" mpich',
)


def all_rows(source):
    """The rows of all blocks; a source may give all of them in one buffer."""
    return np.concatenate([block.copy() for block in source.blocks()])


def random_factors(shapes, m, positions=None, dtype=np.float64, seed=0):
    """Inputs and derivatives of m records, for layers of shapes (out, in)."""
    rng = np.random.default_rng(seed)
    middle = () if positions is None else (positions,)
    return [
        (
            rng.normal(size=(m, *middle, inp)).astype(dtype),
            rng.normal(size=(m, *middle, out)).astype(dtype),
        )
        for out, inp in shapes
    ]


def outer_rows(pairs):
    """The gradients, (m, p)."""
    parts = []
    for inputs, deltas in pairs:
        equation = "mo,mi->moi" if inputs.ndim == 2 else "mto,mti->moi"
        parts.append(np.einsum(equation, deltas, inputs).reshape(len(inputs), -1))
    return np.concatenate(parts, axis=1)
