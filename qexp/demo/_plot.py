"""The figure of a demonstration."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from qexp._plots import new_figure

__all__ = ["accuracy_figure"]

_BLUE: Final = "#1f5fa8"
_ORANGE: Final = "#c8501e"
_GREY: Final = "#6b6b6b"


def accuracy_figure(
    epsilons: Sequence[float],
    values: Sequence[Sequence[float]],
    *,
    release: tuple[float, float],
    before: float,
    ordinary: float,
    delta: float,
    measure: str,
    title: str,
    caption: str,
) -> Any:
    """Draw a measure against ε, between the pretrained model and ordinary fine-tuning.

    Parameters
    ----------
    epsilons : sequence of float
    values : sequence of sequence of float
        The draws at each ε.
    release : (float, float)
        ε and value of the release that was kept.
    before, ordinary : float
        Values of the pretrained model and of fine-tuning without privacy.
    delta : float
    measure : str
        Label of the vertical axis, with its unit.
    title, caption : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib (the extra ``qexp[demo]``) is not installed.
    """
    figure = new_figure(figsize=(7.2, 5.0), facecolor="white")
    axes = figure.add_axes((0.10, 0.26, 0.87, 0.58))
    places = np.repeat(epsilons, [len(found) for found in values])
    axes.plot(
        places,
        np.concatenate([np.asarray(found) for found in values]),
        "o",
        color=_BLUE,
        alpha=0.35,
        markersize=5,
        markeredgewidth=0,
    )
    means = [float(np.mean(found)) for found in values]
    several = max(len(found) for found in values) > 1
    label = f"private, one round ({'mean and ' if several else ''}single draws)"
    axes.plot(epsilons, means, "-o", color=_BLUE, linewidth=1.8, markersize=4, label=label)
    axes.plot(
        *release,
        "D",
        color=_ORANGE,
        markersize=8,
        markeredgecolor="white",
        zorder=5,
        label=f"the release in release.npz (ε = {release[0]:g})",
    )
    lowest = min(before, ordinary, *means)
    for value, text in (
        (ordinary, "ordinary fine-tuning (not private)"),
        (before, "pretrained, before"),
    ):
        axes.axhline(value, color=_GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(
            text,
            (0.99, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4 if value == ordinary or value > lowest else -4),
            textcoords="offset points",
            ha="right",
            va="bottom" if value == ordinary or value > lowest else "top",
            fontsize=9,
            color=_GREY,
        )
    every = [before, ordinary, release[1], *np.concatenate([np.asarray(v) for v in values])]
    room = 0.12 * (max(every) - min(every) or 1.0)
    axes.set_ylim(min(every) - room, max(every) + room)
    axes.set_xscale("log", base=2)
    shown = sorted({*epsilons, release[0]})
    axes.set_xticks(list(epsilons), [f"{epsilon:g}" for epsilon in epsilons])
    axes.set_xlim(shown[0] / 1.25, shown[-1] * 1.25)
    axes.set_xlabel(f"privacy loss ε of one release (δ = {delta:g})")
    axes.set_ylabel(measure)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Above the axes, where no curve can run through it.
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    figure.text(
        0.10,
        0.975,
        textwrap.fill(title[0].upper() + title[1:], 80, break_on_hyphens=False),
        fontsize=10,
        va="top",
        weight="bold",
    )
    figure.text(0.10, 0.13, textwrap.fill(caption, 108), fontsize=8.5, va="top", color="#333333")
    return figure
