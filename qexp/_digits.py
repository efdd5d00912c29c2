"""Numbers in words to people, rounded to the private side."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context

__all__ = ["rounded_down", "rounded_up"]


def rounded_up(value: float, digits: int) -> str:
    """Write a number with so many digits at most, never smaller than Python writes it in full."""
    return _written(value, digits, ROUND_CEILING)


def rounded_down(value: float, digits: int) -> str:
    """Write a number with so many digits at most, never larger than Python writes it in full."""
    return _written(value, digits, ROUND_FLOOR)


def _written(value: float, digits: int, rounding: str) -> str:
    decimal = Context(prec=digits, rounding=rounding).create_decimal(repr(value))
    return f"{float(decimal):.{digits}g}"
