"""The names of methods and tasks that the study treats in ways of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["BOUNDS", "OURS", "PLAIN", "PLANNED", "RECORDS", "in_order"]

OURS: Final = ("qexp", "qexp_full_space", "qexp_one_round")
PLANNED: Final = ("qexp", "qexp_full_space")
"""What is judged as qexp: the first of these that a cell has."""
PLAIN: Final = "dp_sgd"
"""The rival that gaps are told in parts of."""
BOUNDS: Final = ("public_only", "non_private")
RECORDS: Final[Mapping[str, int]] = {
    **{f"mnist_few_{n}": n for n in (250, 500, 1000, 2000)},
    "mnist_to_usps": 7291,
}
"""Tasks that differ in the number of private records alone."""


def in_order(method: str) -> tuple[bool, str]:
    """Give what sorts methods, qexp first."""
    return method not in OURS, method
