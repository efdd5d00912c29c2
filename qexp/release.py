"""What a private draw gives back: weights, the privacy they cost, and a certificate."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from qexp import _checks, _config
from qexp._digits import rounded_up
from qexp._files import atomic_write, read_archive

__all__ = ["PrivateRelease", "make_release"]

_FORMAT: Final = "qexp.PrivateRelease"
_FORMAT_VERSION: Final = 1
_CERTIFIED: Final = ("epsilon", "delta", "mu", "n_records")
_UNITS: Final = {"record": "records", "user": "users' records"}


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivateRelease:
    """One exact private draw of fine-tuned weights.

    Everything in it may be published: it is the noisy sum's output, or public, or derived from
    the two.

    Attributes
    ----------
    weights : ndarray of float32 or float64, shape (p,)
        θ = θ₀ + P u, in the dtype of the pretrained weights. Read-only.
    mu : float
        The release is μ-GDP under `neighboring_relation`.
    epsilon, delta : float
        The target that it satisfies under `neighboring_relation`.
    neighboring_relation : {"replace_special", "replace_one"}
        "replace_special": one record is replaced by a null record; "replace_one": by another one.
    noise_multiplier : float
        Standard deviation of the noise over the clipping norm.
    noise_to_signal : float
        Expected norm of the noise over the norm of the noisy sum (both whitened): near 0 the sum
        is mostly data; at 1, or slightly above, it is all noise.
    expected_utility_loss : float
        τk/2 with τ = η c²/(n μ²), the expected utility lost by drawing instead of maximising; the
        loss itself is (τ/2)·χ² with k degrees of freedom, whatever the data. In units of the
        utility, which sums over the records. (η: step size, c: clipping norm, n: records, k:
        whitened components, μ: of the noise, that is c over its standard deviation.)
    expected_mean_loss : float
        ½ s² tr(H A⁻¹) with s = η c/(n μ), the expected rise of the mean loss per record in the
        quadratic model: H is the public curvature, A = H + λI the damped one. In a learnt subspace
        it is ½ s² tr(Pᵀ H P), with H of the records that it was learnt from.
    n_records : int
        Number of private records, public.
    generator_is_secure : bool
        False where the noise can be reproduced by others. Then **nothing here is private**.
    unit_of_privacy : {"record", "user"}
        What "one record" means above: a row of the data, or all rows of one user, who then counts
        as one of the n (see :func:`qexp.records.per_user`).
    """

    weights: NDArray[Any] = field(repr=False)
    mu: float
    epsilon: float
    delta: float
    neighboring_relation: str
    noise_multiplier: float
    noise_to_signal: float
    expected_utility_loss: float
    expected_mean_loss: float
    n_records: int
    generator_is_secure: bool
    unit_of_privacy: str = "record"
    _certificate: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        self.weights.flags.writeable = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Of pickle and copy, which make arrays anew and call no __post_init__.
        self.__dict__.update(state)
        self.__post_init__()

    def certificate(self) -> dict[str, Any]:
        """Give all that an auditor needs to redo the accounting, as a JSON-able dict.

        Returns
        -------
        dict
            The event and relation, (ε, δ) and μ under both relations, digests of every public
            input, the integer lattice, the bit generator, versions, BLAS and threads, and a
            digest of the weights.
        """
        return copy.deepcopy(dict(self._certificate))

    @property
    def statement(self) -> str:
        """The guarantee in one sentence."""
        if not self.generator_is_secure:
            return (
                "NOT PRIVATE: the noise came from a reproducible test generator, so these weights "
                "carry no guarantee and must not be published if the records are sensitive."
            )
        other = {
            "replace_special": "had been left blank",
            "replace_one": "had been somebody else's",
        }[self.neighboring_relation]
        return (
            "Whatever anyone concludes from these weights, the probability of that conclusion is "
            f"at most {_factor(self.epsilon)} times what it would be if any one of the "
            f"{self.n_records} {_UNITS[self.unit_of_privacy]} {other}, plus "
            f"{rounded_up(self.delta, 6)}, and the other way round (this is differential privacy "
            f"with epsilon {rounded_up(self.epsilon, 6)} and delta {rounded_up(self.delta, 6)})."
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the release to one file, atomically: an NPZ archive with JSON inside, no pickle.

        Parameters
        ----------
        path : path-like
            Conventionally ``*.npz``. An existing file is replaced in one step or not at all.

        Raises
        ------
        OSError
            If it cannot be written. The release stays in memory and an old file stays whole.
        ValueError
            If the release is not the one that its certificate tells of.
        """
        digest = _checks.array_digest(self.weights)
        self._require_certified(digest, "this release")
        document = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "weights_digest": digest,
            "certificate": dict(self._certificate),
            **{name: getattr(self, name) for name in _SCALARS},
        }
        text = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)

        def write(file: BinaryIO) -> None:
            np.savez(file, release=text, weights=self.weights)

        atomic_write(path, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrivateRelease:
        """Read a release that :meth:`save` wrote.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        PrivateRelease

        Raises
        ------
        OSError
            If the file cannot be opened (`FileNotFoundError`, `PermissionError`, …).
        ValueError
            If the file is damaged, or no release, or of another format version, or if the release
            is not the one that its certificate tells of.
        """
        path = Path(path)
        with open(path, "rb") as file:
            try:
                document, arrays = read_archive(file, "release")
                weights = arrays["weights"]
            # A damaged archive sets off almost anything in zipfile, NumPy and json.
            # What they say is of no use to whoever named another file.
            except Exception as e:
                raise ValueError(
                    f"{path} is not a readable release; it needs a file that `qexp run`, `qexp "
                    "demo` or PrivateRelease.save wrote"
                ) from e
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(
                f"{path} is not a release; it needs a file that PrivateRelease.save wrote"
            )
        if document.get("version") != _FORMAT_VERSION:
            raise ValueError(
                f"{path} has release format {document.get('version')}; this version of qexp reads "
                f"format {_FORMAT_VERSION}"
            )
        # A file without a unit is older than the choice.
        document.setdefault("unit_of_privacy", "record")
        missing = {"weights_digest", "certificate", *_SCALARS} - document.keys()
        if missing:
            raise ValueError(
                f"{path} is not a whole release: it lacks {', '.join(sorted(missing))}; it needs "
                "a file that PrivateRelease.save wrote"
            )
        digest = _checks.array_digest(weights)
        if document["weights_digest"] != digest:
            raise ValueError(f"the weights in {path} do not match their digest; they are damaged")
        if not isinstance(document["certificate"], dict):
            raise ValueError(
                f"{path} is not a whole release: its certificate is no mapping; it needs a file "
                "that PrivateRelease.save wrote"
            )
        release = cls(
            weights=weights,
            _certificate=document["certificate"],
            **{name: document[name] for name in _SCALARS},
        )
        release._require_certified(digest, f"the release in {path}")
        return release

    def _require_certified(self, digest: str, which: str) -> None:
        """Refuse weights, of this digest, or a claim other than those of the certificate."""
        held = {"weights": digest, **{name: getattr(self, name) for name in _CERTIFIED}}
        different = [name for name in held if self._certificate.get(name) != held[name]]
        if different:
            raise ValueError(
                f"{which} differs from its certificate in {', '.join(different)}: it was changed "
                "after it was drawn, and what the certificate guarantees does not hold for it; "
                "take the release as it was drawn"
            )


_SCALARS: Final = tuple(
    f.name for f in fields(PrivateRelease) if f.name not in ("weights", "_certificate")
)


def make_release(
    weights: NDArray[Any], public: Mapping[str, Any], certificate: Mapping[str, Any]
) -> PrivateRelease:
    """Make a release of its public figures, and of what its certificate holds beside them."""
    whole = {
        **public,
        **certificate,
        "weights": _checks.array_digest(weights),
        "software": _config.software(),
    }
    return PrivateRelease(weights=weights, _certificate=whole, **public)


def _factor(epsilon: float) -> str:
    if epsilon >= 700:
        return "more than 1e304"
    return rounded_up(math.nextafter(math.exp(epsilon), math.inf), 3)
