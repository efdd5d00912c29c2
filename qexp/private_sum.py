"""The privacy boundary: the only place where private data meet noise.

What comes in are whitened per-record gradients, what goes out is one noisy sum that is μ-GDP, and
everything after it is post-processing. The arithmetic in between is in integers, so that the
theorem about real numbers holds for the program as it runs:

1. every record is clipped and rounded to an integer vector z with ‖z‖ ≤ B, checked exactly;
2. the noise is R = ⌊2ᵇ N⌋ with N an exact standard normal, drawn before a record is read;
3. Z = R + Σ z wraps modulo 2⁶⁴.

For integers m, m + ⌊2ᵇ N⌋ = ⌊m + 2ᵇ N⌋: the sum is post-processing of the continuous Gaussian
mechanism with sensitivity B and standard deviation 2ᵇ, hence exactly (B/2ᵇ)-GDP under the
replacement of one record by a null record (Dong, Roth and Su 2022, Theorem 1), and twice that
under the replacement by another record.

In a job of several processes every rank makes steps 1 and 3 with its own records, and rank 0, the
root, makes step 2 as well: alone, with its own generator, before any rank reads a record. A
partial sum of another rank has no noise in it. It leaves that rank's process towards the root
only, through the ranks of the job that MPI adds it up on: they must trust each other and the
network between them. What leaves the root is the noisy sum, the same integers for any number of
ranks, since sums that wrap do not depend on their order.

To trust qexp, read this module, ``csrc/lattice_sum``, ``csrc/exact_normal`` and their tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qexp import _core
from qexp._communicator import Communicator, SingleProcess
from qexp._digits import rounded_down
from qexp.bits import BitGenerator

__all__ = ["Lattice", "NoisySum", "WhitenedBlock", "lattice_for", "private_sum"]

WhitenedBlock = NDArray[np.float64] | list[tuple[NDArray[np.float64], NDArray[np.float64]]]

_DEFAULT_BITS: Final = 32
# B of at least 2²⁵ keeps the clipping margin of 2⁻²⁰ many lattice units wide.
_LEAST_BOUND_BITS: Final = 25
# What the kernels' integer arithmetic has room for.
_MOST_BOUND_BITS: Final = 51
_LEAST_CLIPPING_NORM: Final = 1e-100
# A draw takes 1.1 words on average. A first guess only: missing words are fetched.
_WORDS_PER_DRAW: Final = 1
# Words that stay in cache until they are used.
_MOST_WORDS_AT_ONCE: Final = 2**14


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """The integers that a noisy sum is made on.

    Attributes
    ----------
    bits : int
        b: the noise has a standard deviation of exactly 2ᵇ lattice units.
    bound : int
        B: no record's integer vector is longer.
    units_per_norm : float
        q: lattice units for one unit of whitened norm.
    clipping_norm : float
        c, in whitened units.
    """

    bits: int
    bound: int
    units_per_norm: float
    clipping_norm: float

    @property
    def mu(self) -> float:
        """The claim: B/2ᵇ, which a double holds exactly."""
        return math.ldexp(self.bound, -self.bits)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in whitened units, 2ᵇ/q."""
        return math.ldexp(1.0, self.bits) / self.units_per_norm

    def describe(self) -> dict[str, float]:
        """Describe the lattice for certificates."""
        return {"bits": self.bits, "bound": self.bound, "units_per_norm": self.units_per_norm}


def lattice_for(mu: float, clipping_norm: float, n_records: int) -> Lattice:
    """Choose the lattice of a noisy sum.

    Parameters
    ----------
    mu : float
        Largest μ that the sum may claim. The lattice claims the next multiple of 2⁻ᵇ below.
    clipping_norm : float
        c, in whitened units.
    n_records : int
        Number of records. It bounds the sum, for utility only: sums wrap, which is private.

    Returns
    -------
    Lattice

    Raises
    ------
    ValueError
        If no lattice has room for the sum, or doubles none for squares of the clipping norm.
    """
    if not _LEAST_CLIPPING_NORM <= clipping_norm <= 1 / _LEAST_CLIPPING_NORM:
        raise ValueError(
            f"clipping_norm is {clipping_norm:g}; it needs {_LEAST_CLIPPING_NORM:g} to "
            f"{1 / _LEAST_CLIPPING_NORM:g}: rescale the gradients"
        )
    # What fits at one unit of noise; fewer bits there are not.
    most = min(2**_MOST_BOUND_BITS - 1, ((1 << 63) - 13) // n_records)
    if mu > most >= 2**_LEAST_BOUND_BITS:
        raise ValueError(
            f"the integer lattice overflows: mu is {mu:g}; with {n_records} records it needs at "
            f"most {rounded_down(most, 6)}: ask for a smaller target_epsilon, of at most "
            f"{rounded_down(most**2 / 2, 3)}; so little noise protects nobody"
        )
    least_bits = max(0, _LEAST_BOUND_BITS - math.frexp(mu)[1] + 1)
    bits = max(_DEFAULT_BITS, least_bits)
    while bits > least_bits and not _fits(mu, bits, n_records):
        bits -= 1
    if not _fits(mu, bits, n_records):
        raise ValueError(
            f"the integer lattice overflows: mu = {mu:g} with {n_records} records needs more than "
            "63 bits; ask for a larger target_epsilon or sum fewer records at once"
        )
    return Lattice(
        bits=bits,
        bound=math.floor(math.ldexp(mu, bits)),
        units_per_norm=math.ldexp(mu, bits) / clipping_norm,
        clipping_norm=clipping_norm,
    )


def _fits(mu: float, bits: int, n_records: int) -> bool:
    if mu >= math.ldexp(1.0, _MOST_BOUND_BITS - bits):
        return False
    bound = math.floor(math.ldexp(mu, bits))
    return n_records * bound + 12 * (1 << bits) < 1 << 63


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisySum:
    """What left the boundary.

    Attributes
    ----------
    values : ndarray of float64, shape (k,)
        y = Σ clip_c(s_i) + (c/μ) ξ, in whitened units.
    lattice : Lattice
    n_records : int
    generator : str
        Name of the bit generator.
    generator_is_secure : bool
        False where the noise can be reproduced, so that nothing is private.
    """

    values: NDArray[np.float64]
    lattice: Lattice
    n_records: int
    generator: str
    generator_is_secure: bool

    @property
    def mu(self) -> float:
        """The sum is μ-GDP under ``replace_special``."""
        return self.lattice.mu


def private_sum(
    whitened_blocks: Iterable[WhitenedBlock],
    *,
    n_components: int,
    n_records: int,
    lattice: Lattice,
    bits: BitGenerator,
    communicator: Communicator | None = None,
) -> NoisySum | None:
    """Clip, round, sum and noise the whitened gradients of private records.

    Parameters
    ----------
    whitened_blocks : iterable of blocks of m records each
        Whitened gradients s_i of the records: an ndarray of float64 (m, n_components), or a list
        of pairs (left (m, a), right (m, b)), one a layer, for s_i = ⊕ left_i ⊗ right_i, which is
        then never formed. C-contiguous. A row must depend on its own record and on public values
        alone. A record that holds a NaN or an infinity counts as null.
    n_components : int
        k.
    n_records : int
        n, public. The blocks must hold as many rows, those of all ranks together.
    lattice : Lattice
        From :func:`lattice_for`.
    bits : BitGenerator
        Supplies the noise. Only the root's is used.
    communicator : Communicator, optional
        Joins the ranks of a job, each with the blocks of its own records, or with none. Default:
        this process alone.

    Returns
    -------
    NoisySum, or None on all ranks but the root

    Raises
    ------
    ValueError
        If the blocks do not have the public shape announced. Never because of a value in them.
    """
    ranks = SingleProcess() if communicator is None else communicator
    on_root = ranks.rank == 0
    total = (
        _noise(n_components, lattice.bits, bits)
        if on_root
        else np.zeros(n_components, dtype=np.int64)
    )
    # No rank goes on, to read a record, before the root has come here with all of the noise.
    ranks.gather(None)
    rows_seen = 0
    scale: dict[str, Any] = {
        "units_per_norm": lattice.units_per_norm,
        "clipping_norm": lattice.clipping_norm,
        "bound": lattice.bound,
    }
    for block in whitened_blocks:
        if isinstance(block, np.ndarray):
            rows_seen += len(block)
            _core.lattice_sum(block, total, **scale)
        else:
            rows_seen += len(block[0][0])
            _core.lattice_sum_outer(block, total, **scale)
    rows_seen = ranks.sum(rows_seen)
    if rows_seen != n_records:
        raise ValueError(
            f"the source gave {rows_seen} records and announced {n_records}; the number of "
            "records is public and must be right"
        )
    ranks.sum_int64(total)
    if not on_root:
        return None
    return NoisySum(
        values=np.divide(total + 0.5, lattice.units_per_norm, dtype=np.float64),
        lattice=lattice,
        n_records=n_records,
        generator=bits.name,
        generator_is_secure=bits.secure,
    )


def _noise(count: int, lattice_bits: int, bits: BitGenerator) -> NDArray[np.int64]:
    noise = np.empty(count, dtype=np.int64)
    words = np.empty(0, dtype=np.uint64)
    done = 0
    while done < count:
        wanted = min(_WORDS_PER_DRAW * (count - done) + 64, _MOST_WORDS_AT_ONCE)
        # Words that an interrupted draw had begun to use come first again: that draw starts over.
        words = np.concatenate([words, bits.words(wanted)])
        drawn, used = _core.draw_lattice_normals(words, lattice_bits, noise[done:])
        done += drawn
        words = words[used:]
    return noise
