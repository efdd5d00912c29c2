"""The public arguments of draws: checked before the first record, and the same on all ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from numpy.typing import NDArray

from qexp import _checks
from qexp._communicator import Communicator
from qexp._privacy_checks import UnitOfPrivacy
from qexp.bits import BitGenerator, secure_generator
from qexp.curvature import Curvature
from qexp.ledger import PrivacyLedger
from qexp.projections import Projection
from qexp.records import RecordSource, as_record_source

__all__ = [
    "bit_generator",
    "check_agreement",
    "check_curvature",
    "check_dimensions",
    "check_ledger",
    "check_projection",
    "protected",
    "sharded_source",
    "unit_of_privacy",
]


def sharded_source(
    records: NDArray[Any] | RecordSource, n_parameters: int, ranks: Communicator
) -> tuple[RecordSource, int]:
    """Give this rank's records as a source, and the number n of all ranks' records."""
    alone = ranks.size == 1
    source = as_record_source(records, n_parameters=n_parameters, least=1 if alone else 0)
    if not alone:
        _require_whole_users(source, ranks)
    return source, _checks.count(ranks.sum(source.n_records), "n_records of all ranks")


def _require_whole_users(source: RecordSource, ranks: Communicator) -> None:
    """Raise where a user may have records on two ranks: each would clip its share to c."""
    ends = getattr(source, "first_and_last_user", None)
    gathered = ranks.gather(None if ends is None else ends())
    ranges = sorted(found for found in gathered if found is not None)
    if any(last >= first for (_, last), (first, _) in pairwise(ranges)):
        raise ValueError(
            "the user ids of two ranks overlap; all records of a user need to be on one rank, and "
            "the ids of each rank in a range of their own, as qexp.shards.open_shards deals them"
        )


def unit_of_privacy(source: RecordSource) -> dict[str, Any]:
    """Give what certificates say of a unit of privacy that is not the record."""
    describe = getattr(source, "describe_unit", None)
    return {} if describe is None else dict(describe())


def protected(unit: Mapping[str, Any]) -> UnitOfPrivacy:
    """Name the unit that :func:`unit_of_privacy` describes."""
    name: UnitOfPrivacy = unit.get("unit_of_privacy", "record")
    return name


def check_agreement(public: Mapping[str, Any], ranks: Communicator) -> None:
    """Raise on all ranks where public arguments, JSON-able, differ from rank to rank."""
    if ranks.size == 1:
        return
    said = ranks.gather({name: json.dumps(value) for name, value in public.items()})
    for rank, other in enumerate(said):
        names = sorted(name for name in public if other.get(name) != said[0].get(name))
        if names:
            raise ValueError(
                f"rank {rank} has another {' and '.join(names)} than rank 0; all ranks need the "
                "same public arguments"
            )


def check_projection(projection: object) -> None:
    """Raise where it is none."""
    if isinstance(projection, type) or not isinstance(projection, Projection):
        raise TypeError(
            f"projection is a {type(projection).__name__}; it needs to be None or a projection "
            "such as qexp.SRHT"
        )


def check_curvature(curvature: object) -> None:
    """Raise where it is none."""
    # A class has all that its instances have.
    if isinstance(curvature, type) or not isinstance(curvature, Curvature):
        kind = curvature if isinstance(curvature, type) else type(curvature)
        what = "the class" if isinstance(curvature, type) else "a"
        raise TypeError(
            f"curvature is {what} {kind.__name__}; it needs to be a curvature such as "
            "qexp.DenseCurvature.from_model(...) or qexp.IdentityCurvature(k)"
        )


def check_ledger(ledger: object) -> None:
    """Raise where it is neither None nor a ledger."""
    if ledger is not None and not isinstance(ledger, PrivacyLedger):
        raise TypeError(
            f"ledger is a {type(ledger).__name__}; it needs to be None or a qexp.PrivacyLedger, "
            "such as qexp.SharedLedger(path)"
        )


def check_dimensions(p: int, projection: Projection, curvature: Curvature) -> None:
    """Raise where they do not fit p weights or each other."""
    if projection.n_parameters != p:
        raise ValueError(
            f"projection maps {projection.n_parameters} weights, pretrained has {p}; they need "
            "the same number"
        )
    if curvature.n_parameters != projection.n_components:
        raise ValueError(
            f"curvature has dimension {curvature.n_parameters}, the projected gradients "
            f"{projection.n_components}; they need the same (without a projection that is the "
            "number of weights)"
        )


def bit_generator(rng: BitGenerator | None) -> BitGenerator:
    """Give the bits of one release: of a key that no other release has, but for tests."""
    if rng is None:
        return secure_generator()
    if not isinstance(rng, BitGenerator):
        raise TypeError(
            f"rng is a {type(rng).__name__}; it needs None (a fresh cryptographic generator) or, "
            "for tests and studies only, qexp.bits.insecure_test_generator(seed)"
        )
    # A key of its own, so that no two releases share one.
    return rng.spawn(0) if rng.secure else rng
