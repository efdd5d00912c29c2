"""Checks of the fields of settings; each writes back the plain number it found."""

from __future__ import annotations

from qexp import _checks

__all__ = [
    "check_choice",
    "check_count",
    "check_flag",
    "check_not_negative",
    "check_positive",
    "check_rate",
    "check_share",
]


def check_share(settings: object, *names: str) -> None:
    """Check fields that need numbers in [0, 1)."""
    for name in names:
        value = _checks.positive(getattr(settings, name), name, zero_allowed=True)
        if value >= 1:
            raise ValueError(f"{name} is {value}; it needs a number in [0, 1)")
        object.__setattr__(settings, name, value)


def check_positive(settings: object, *names: str) -> None:
    """Check fields that need numbers above 0."""
    for name in names:
        object.__setattr__(settings, name, _checks.positive(getattr(settings, name), name))


def check_count(settings: object, *names: str, least: int = 1) -> None:
    """Check fields that need integers of at least `least`."""
    for name in names:
        object.__setattr__(
            settings, name, _checks.count(getattr(settings, name), name, least=least)
        )


def check_rate(settings: object, name: str = "sampling_rate") -> None:
    """Check a field that needs a number in (0, 1]."""
    value = _checks.positive(getattr(settings, name), name)
    if value > 1:
        raise ValueError(f"{name} is {value}; it needs a probability in (0, 1]")
    object.__setattr__(settings, name, value)


def check_flag(settings: object, name: str) -> None:
    """Check a field that needs True or False."""
    value = getattr(settings, name)
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it needs True or False")


def check_choice(settings: object, name: str, allowed: tuple[str, ...]) -> None:
    """Check a field that needs one of several names."""
    value = getattr(settings, name)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it needs one of {allowed}")


def check_not_negative(settings: object, *names: str) -> None:
    """Check fields that need numbers of at least 0."""
    for name in names:
        value = _checks.positive(getattr(settings, name), name, zero_allowed=True)
        object.__setattr__(settings, name, value)
