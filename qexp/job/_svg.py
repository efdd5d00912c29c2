"""Line charts as inline SVG: small, without scripts or links, in the colours of their page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["line_chart"]

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 14, 48
_MOST_MARKS: Final = 60


def line_chart(
    x: Sequence[float],
    y: Sequence[float],
    *,
    name: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    spread: Sequence[float] | None = None,
    level: tuple[float, str] | None = None,
    log_x: bool = False,
) -> str:
    """Draw one line.

    Parameters
    ----------
    x, y : sequence of float
        Values that are not finite are left out.
    name : str
        Unique in the page: for the ids of title and description.
    title, description : str
        What screen readers say.
    x_label, y_label : str
    spread : sequence of float, optional
        Half the length of a bar at every point.
    level : (float, str), optional
        A horizontal line and its words.
    log_x : bool
        A logarithmic axis with a tick at every x.

    Returns
    -------
    str
        An ``<svg>`` element that takes its colours from the classes of the page.
    """
    bars = [0.0] * len(x) if spread is None else list(spread)
    points = [p for p in zip(x, y, bars, strict=True) if all(map(math.isfinite, p))]
    low = min([b - s for _, b, s in points] + ([] if level is None else [level[0]]), default=0.0)
    high = max([b + s for _, b, s in points] + ([] if level is None else [level[0]]), default=1.0)
    y_ticks = _ticks(min(low, high), high)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    along: Callable[[float], float] = math.log if log_x else float
    xs = [a for a, _, _ in points] or [0.0]
    x_ticks = sorted(set(xs)) if log_x else _ticks(min(xs), max(xs), whole=True)
    first = min(map(along, [*xs, *([] if log_x else x_ticks)]))
    last = max(map(along, [*xs, *([] if log_x else x_ticks)]))

    def at_x(value: float) -> float:
        share = (along(value) - first) / (last - first) if last > first else 0.5
        return _LEFT + 12 + share * (_WIDTH - _LEFT - _RIGHT - 24)

    def at_y(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    bottom = _HEIGHT - _BOTTOM
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-labelledby="{name}-title {name}-description">',
        f'<title id="{name}-title">{html.escape(title)}</title>',
        f'<desc id="{name}-description">{html.escape(description)}</desc>',
    ]
    for tick in y_ticks:
        h = at_y(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" y1="{h:.1f}" x2="{_WIDTH - _RIGHT}" y2="{h:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{h + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        )
    for tick in x_ticks:
        v = at_x(tick)
        parts.append(
            f'<line class="axis" x1="{v:.1f}" y1="{bottom}" x2="{v:.1f}" y2="{bottom + 5}"/>'
            f'<text x="{v:.1f}" y="{bottom + 19}" text-anchor="middle">{tick:.4g}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH - _RIGHT}" y2="{bottom}"/>'
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
        f'<text transform="translate(16 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>"
    )
    if level is not None:
        h = at_y(level[0])
        parts.append(
            f'<line class="level" x1="{_LEFT}" y1="{h:.1f}" x2="{_WIDTH - _RIGHT}" y2="{h:.1f}"/>'
            f'<text x="{_WIDTH - _RIGHT}" y="{h - 5:.1f}" text-anchor="end">'
            f"{html.escape(level[1])}</text>"
        )
    for a, b, s in points:
        if s > 0:
            v = at_x(a)
            parts.append(
                f'<line class="bar" x1="{v:.1f}" y1="{at_y(b - s):.1f}" '
                f'x2="{v:.1f}" y2="{at_y(b + s):.1f}"/>'
            )
    path = " ".join(f"{at_x(a):.1f},{at_y(b):.1f}" for a, b, _ in points)
    parts.append(f'<polyline class="line" points="{path}"/>')
    if len(points) <= _MOST_MARKS:
        parts += [
            f'<circle class="mark" cx="{at_x(a):.1f}" cy="{at_y(b):.1f}" r="3.5"/>'
            for a, b, _ in points
        ]
    return "\n".join([*parts, "</svg>"])


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Give about five round numbers around an interval."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        margin = 1.0 if whole else abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (f * step) <= 5)
    if whole:
        step = max(1.0, step)
    # A round axis that begins at its first round does not need a tick before it.
    start = math.ceil(low / step) if whole else math.floor(low / step)
    end = math.floor(high / step) if whole else math.ceil(high / step)
    return [i * step for i in range(start, end + 1)] or [low]
