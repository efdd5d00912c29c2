"""Figures by matplotlib's objects alone: no display, no global state."""

from __future__ import annotations

from typing import Any

__all__ = ["new_figure"]


def new_figure(**settings: Any) -> Any:
    """Make a matplotlib figure.

    Parameters
    ----------
    **settings
        Of :class:`matplotlib.figure.Figure`.

    Raises
    ------
    ImportError
        If matplotlib (the extra ``qexp[demo]``) is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plots take matplotlib: pip install "qexp[demo]"', name="matplotlib"
        ) from error
    return Figure(**settings)
