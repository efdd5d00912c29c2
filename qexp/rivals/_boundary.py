"""Where a rival's records meet noise: in :func:`qexp.private_sum.private_sum`, or in a simulation.

A rival is written once, against :class:`Boundary`. On :class:`PrivateBoundary` its sums go through
qexp's integer lattice with exact noise; on :class:`SimulatedBoundary` the same algorithm is tried
on public records, fast, in the records' own precision and with NumPy's noise.

A rival says first which sums it will make; that fixes their noise. Then it gets these, in that
order, and no other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qexp import _checks
from qexp._bounds import clip_shares
from qexp._progress import progress_bar
from qexp.bits import BitGenerator
from qexp.private_sum import Lattice, lattice_for, private_sum
from qexp.rivals._accounting import Target

__all__ = ["Boundary", "Pairs", "PairsOf", "PrivateBoundary", "SimulatedBoundary", "row_norms"]

Pairs = list[tuple[NDArray[Any], NDArray[Any]]]
"""Vectors of m records as ⊕ left_i ⊗ right_i: (m, a) and (m, b) each."""

PairsOf = Callable[[NDArray[Any], NDArray[Any]], Iterable[Pairs]]
"""Features (m, d) and labels (m,) in, blocks of vectors out, a row a record, in order."""

_WORDS_AT_ONCE: Final = 2**16


class Planned(NamedTuple):
    """A sum to be made."""

    rate: float
    noise_multiplier: float


def row_norms(pairs: Pairs) -> NDArray[Any]:
    """Give ‖⊕ left_i ⊗ right_i‖ of every record, (m,). A row's bits depend on that row alone."""
    with np.errstate(all="ignore"):
        squares = sum(_squares(left) * _squares(right) for left, right in pairs)
        norms: NDArray[Any] = np.sqrt(squares)
    return norms


def _squares(rows: NDArray[Any]) -> NDArray[Any]:
    # Sums along columns that lie apart would go by how many rows there are.
    squares: NDArray[Any] = np.square(np.ascontiguousarray(rows)).sum(axis=1)
    return squares


class Boundary(ABC):
    """What a rival may ask of private records.

    Attributes
    ----------
    n_records : int
        n, public.
    target : Target
    history : list of dict
        What each sum was and how noisy.
    dtype : numpy.dtype
        Of the sums, and so of what is made of them.
    records_are_public : bool
        True in a simulation, where a record's bits may depend on its neighbours.
    """

    dtype: np.dtype[Any] = np.dtype(np.float64)
    records_are_public = False

    def __init__(self, n_records: int, target: Target) -> None:
        self.n_records, self.target = n_records, target
        self.planned: tuple[Planned, ...] = ()
        self.history: list[dict[str, Any]] = []
        self._next = 0

    def plan_full_batch(self, shares: Iterable[float]) -> None:
        """Announce sums over all records, with the target's μ² split among them in `shares`."""
        noises = self.target.full_batch_noise(list(shares))
        self._announce(tuple(Planned(1.0, sigma) for sigma in noises))

    def plan_sampled(self, rate: float, steps: int) -> None:
        """Announce sums over Poisson samples: every record is in each with probability `rate`."""
        if rate >= 1:
            self.plan_full_batch([1.0] * steps)
        else:
            sigma = self.target.sampled_noise(rate, steps, self._coarseness())
            self._announce((Planned(rate, sigma),) * steps)

    def _coarseness(self) -> float:
        return 1.0

    def _announce(self, planned: tuple[Planned, ...]) -> None:
        if self.planned:
            raise RuntimeError("a rival announces its sums once")
        self.planned = planned

    def noisy_sum(
        self, pairs_of: PairsOf, *, n_components: int, clipping_norm: float, label: str
    ) -> NDArray[Any]:
        """Make the next sum: Σ clip(v_i) over its sample, plus noise of σ times `clipping_norm`."""
        planned = self._take()
        values = self._sum(planned, pairs_of, n_components, clipping_norm)
        self._note(values, planned.noise_multiplier * clipping_norm, label)
        return values

    def noisy_vector(
        self,
        vector_of: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]],
        *,
        bound: float,
        sensitivity: float,
        label: str,
    ) -> NDArray[np.float64]:
        """Release a vector no longer than `bound` that one null record moves by `sensitivity`."""
        planned = self._take()
        values = self._vector(planned, vector_of, bound, sensitivity)
        self._note(values, planned.noise_multiplier * sensitivity, label)
        return values

    @property
    def last_noise_multiplier(self) -> float:
        """Noise multiplier of the last sum made."""
        return self.planned[self._next - 1].noise_multiplier

    @abstractmethod
    def records_without_privacy(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Hand out the records themselves. What is made of them has no privacy."""

    def _take(self) -> Planned:
        if self._next == len(self.planned):
            raise RuntimeError(f"all of the {self._next} sums that were announced have been made")
        self._next += 1
        return self.planned[self._next - 1]

    def _note(self, values: NDArray[Any], noise_std: float, label: str) -> None:
        norm = math.sqrt(float(np.square(values).sum()))
        noise = noise_std * math.sqrt(len(values))
        self.history.append(
            {
                "sum": self._next,
                "label": label,
                "n_components": len(values),
                "noise_to_signal": noise / norm if norm else math.inf,
            }
        )

    @abstractmethod
    def _sum(
        self, planned: Planned, pairs_of: PairsOf, n_components: int, clipping_norm: float
    ) -> NDArray[Any]: ...

    @abstractmethod
    def _vector(
        self,
        planned: Planned,
        vector_of: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]],
        bound: float,
        sensitivity: float,
    ) -> NDArray[np.float64]: ...


class PrivateBoundary(Boundary):
    """Private records behind qexp's integer lattice and exact noise.

    Parameters
    ----------
    X, y : array
        Features and labels of the private records.
    target : Target
    bits : BitGenerator
        Sum t takes its sample from ``bits.spawn(2t)`` and its noise from ``bits.spawn(2t + 1)``.
    progress : bool
        Show a progress bar on a terminal.

    Notes
    -----
    Which records are in a Poisson sample is drawn from the cryptographic generator, to 64 bits a
    record. The sample's size is a function of these coins alone, not of any record's values; still
    it is kept secret, since the accounting is about samples that nobody sees. It shows in the run
    time, and who can time the steps knows the sizes: for them δ is larger than what is claimed,
    2.6 times for one sum with q = 0.02, σ = 1.5 and ε = 0.1 of 250 records, and next to nothing of
    tens of thousands. So times of steps, and a progress bar, are as private as the records.
    """

    def __init__(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        target: Target,
        bits: BitGenerator,
        *,
        progress: bool = False,
    ) -> None:
        super().__init__(len(y), target)
        self._progress, self._open = progress, ExitStack()
        self._advance: Callable[[int], object] = lambda count: None
        self._X, self._y, self._bits = X, y, bits
        self.claims: list[tuple[float, float]] = []
        self.lattices: list[Lattice] = []
        self.without_privacy = False

    def records_without_privacy(self) -> tuple[NDArray[Any], NDArray[Any]]:
        self.without_privacy = True
        return self._X, self._y

    def close(self) -> None:
        """End the progress bar."""
        self._open.close()

    def _announce(self, planned: tuple[Planned, ...]) -> None:
        super()._announce(planned)
        self._advance = self._open.enter_context(
            progress_bar(len(planned), "noisy sums", show=self._progress)
        )

    def _note(self, values: NDArray[np.float64], noise_std: float, label: str) -> None:
        super()._note(values, noise_std, label)
        self._advance(1)

    def promises(self) -> list[tuple[float, float]]:
        """Give rate and μ of all sums that were announced, as claimed where they were made.

        A run that diverges does so by the outcomes of its sums, so that the rest counts as well.
        """
        rest = self.planned[len(self.claims) :]
        return [*self.claims, *((p.rate, 1 / p.noise_multiplier) for p in rest)]

    def is_within_target(self) -> bool:
        """Tell whether the claims compose to the target, exactly; sampled ones as announced."""
        if any(rate < 1 for rate, _ in self.claims):
            return len(self.claims) <= len(self.planned) and all(
                rate == planned.rate and mu <= 1 / planned.noise_multiplier
                for (rate, mu), planned in zip(self.claims, self.planned, strict=False)
            )
        return sum(Fraction(mu) ** 2 for _, mu in self.claims) <= Fraction(self.target.mu) ** 2

    def _sum(
        self, planned: Planned, pairs_of: PairsOf, n_components: int, clipping_norm: float
    ) -> NDArray[np.float64]:
        X, y = self._sample(planned.rate)
        lattice = lattice_for(1 / planned.noise_multiplier, clipping_norm, self.n_records)
        noisy = private_sum(
            _in_doubles(pairs_of(X, y)) if len(y) else (),
            n_components=n_components,
            n_records=len(y),
            lattice=lattice,
            bits=self._bits.spawn(2 * self._next + 1),
        )
        assert noisy is not None  # there is one process, and it is the root
        self.claims.append((planned.rate, noisy.mu))
        self.lattices.append(lattice)
        return noisy.values

    def _sample(self, rate: float) -> tuple[NDArray[Any], NDArray[Any]]:
        if rate >= 1:
            return self._X, self._y
        chosen = poisson_sample(self.n_records, rate, self._bits.spawn(2 * self._next))
        return self._X[chosen], self._y[chosen]

    def _vector(
        self,
        planned: Planned,
        vector_of: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]],
        bound: float,
        sensitivity: float,
    ) -> NDArray[np.float64]:
        # One row, never clipped, that moves by at most `sensitivity`. Rounding towards zero adds
        # less than a lattice unit a coordinate to that, for which the noise is enlarged.
        vector = vector_of(self._X, self._y)
        root = math.sqrt(len(vector))
        mu, norm = 1 / planned.noise_multiplier, 2 * bound
        lattice = lattice_for(mu * norm / sensitivity, norm, 1)
        units = lattice.units_per_norm
        lattice = lattice_for(
            mu * norm / (sensitivity + 2 * root / units) * (1 - 2.0**-40), norm, 1
        )
        moved = lattice.units_per_norm * sensitivity * (1 + 2.0**-50) + root
        claim = math.ldexp(moved, -lattice.bits)
        if not claim <= mu:
            raise RuntimeError("the lattice is too coarse for the released vector")
        noisy = private_sum(
            [vector[None, :]],
            n_components=len(vector),
            n_records=1,
            lattice=lattice,
            bits=self._bits.spawn(2 * self._next + 1),
        )
        assert noisy is not None  # there is one process, and it is the root
        self.claims.append((planned.rate, mu))
        self.lattices.append(lattice)
        return noisy.values


class SimulatedBoundary(Boundary):
    """Public records that stand for private ones, with the noise of a job of `n_records`.

    Where m < n records are at hand, their sum is scaled up by n/m, and a Poisson sample has the
    job's expected size, or is all m records where that is larger.
    """

    dtype = np.dtype(np.float32)
    records_are_public = True

    def __init__(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        target: Target,
        n_records: int,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(n_records, target)
        self._X, self._y, self._rng = X, y, rng

    def records_without_privacy(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._X, self._y

    def _coarseness(self) -> float:
        # Less than 0.1 % more noise in a fifth of the time; at small ε it would be more.
        return 5.0 if self.target.epsilon >= 1 else 1.0

    def _note(self, values: NDArray[Any], noise_std: float, label: str) -> None:
        """Write no history, which nobody reads of a trial."""

    def _sum(
        self, planned: Planned, pairs_of: PairsOf, n_components: int, clipping_norm: float
    ) -> NDArray[Any]:
        X, y = self._X, self._y
        scale = planned.rate * self.n_records / len(y)
        if scale < 1:
            chosen = np.flatnonzero(self._rng.random(len(y), dtype=np.float32) < scale)
            X, y, scale = X[chosen], y[chosen], 1.0
        values = public_normals(self._rng, n_components)
        values *= np.float32(planned.noise_multiplier * clipping_norm)
        for given in pairs_of(X, y) if len(y) else ():
            pairs = [
                (left.astype(np.float32, copy=False), right.astype(np.float32, copy=False))
                for left, right in given
            ]
            norms = np.sqrt(sum(_row_squares(left) * _row_squares(right) for left, right in pairs))
            kept = scale * clip_shares(norms, clipping_norm)
            if not (usable := np.isfinite(norms)).all():
                kept = kept[usable]
                pairs = [(left[usable], right[usable]) for left, right in pairs]
            start = 0
            for left, right in pairs:
                part = (left * kept[:, None]).T @ right
                values[start : start + part.size] += part.ravel()
                start += part.size
        return values

    def _vector(
        self,
        planned: Planned,
        vector_of: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]],
        bound: float,
        sensitivity: float,
    ) -> NDArray[np.float64]:
        vector = vector_of(self._X, self._y)
        noise = self._rng.standard_normal(len(vector))
        return vector + planned.noise_multiplier * sensitivity * noise


def public_normals(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Draw standard normals for simulations, by Box and Muller: three times as fast as NumPy's.

    Uniforms of 24 bits reach to 5.7 standard deviations.
    """
    half = -(-count // 2)
    uniform = rng.random((2, half), dtype=np.float32)
    lengths = np.sqrt(np.float32(-2) * np.log(1 - uniform[0]))
    angles = np.float32(2 * math.pi) * uniform[1]
    values = np.empty((2, half), np.float32)
    np.multiply(lengths, np.cos(angles), out=values[0])
    np.multiply(lengths, np.sin(angles), out=values[1])
    return values.ravel()[:count]


def _row_squares(rows: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        squares: NDArray[Any] = np.einsum("ij,ij->i", rows, rows)
    return squares


def poisson_sample(n_records: int, rate: float, bits: BitGenerator) -> NDArray[np.intp]:
    """Choose every record independently with probability ⌊2⁶⁴ rate⌋ / 2⁶⁴."""
    threshold = np.uint64(math.floor(math.ldexp(rate, 64)))
    parts = []
    for start in range(0, n_records, _WORDS_AT_ONCE):
        words = bits.words(min(_WORDS_AT_ONCE, n_records - start))
        parts.append(np.flatnonzero(words < threshold) + start)
    return np.concatenate(parts)


def _in_doubles(blocks: Iterable[Pairs]) -> Iterator[Pairs]:
    for pairs in blocks:
        yield [
            (_checks.for_kernels(left, np.float64), _checks.for_kernels(right, np.float64))
            for left, right in pairs
        ]
