"""Random records of layered gradients, as factors and as the rows that these make up."""

import numpy as np


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
