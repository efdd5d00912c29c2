"""Values of options, each with a message that says what is allowed."""

from __future__ import annotations

import argparse
import math

__all__ = ["delta", "positive", "rounds", "seed"]


def positive(text: str) -> float:
    """Give a finite number above 0, such as ε or μ."""
    allowed = "a finite number above 0"
    number = _number(text, allowed)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is out of range; it needs {allowed}")
    return number


def delta(text: str) -> float:
    """Give a number strictly between 0 and 1."""
    allowed = "a number strictly between 0 and 1, well below 1 / (number of records)"
    number = _number(text, allowed)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range; it needs {allowed}")
    return number


def rounds(text: str) -> int:
    """Give an integer of at least 1."""
    return _integer(text, 1)


def seed(text: str) -> int:
    """Give an integer of at least 0."""
    return _integer(text, 0)


def _number(text: str, allowed: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; it needs {allowed}") from None


def _integer(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(
            f"{text!r} is out of range; it needs an integer of at least {least}"
        )
    return number
