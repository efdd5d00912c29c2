"""Measure how times grow with n, p and k, and draw them with the slopes that they should have.

    python benchmarks/tools/growth.py                          # prints slopes
    python benchmarks/tools/growth.py docs/figures/growth.png  # and draws them (needs matplotlib)

CPU time of one thread, the median of rounds in which all sizes take turns. A slope is fitted by
least squares to the logarithms of the upper half of the sizes, where constant costs have faded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def measured(common: Any) -> list[tuple[str, str, str, list[int], list[float]]]:
    """Give (panel, what, expected slope, sizes, seconds) of every curve."""
    import qexp
    from benchmarks import whole_draw
    from qexp import _core

    curves = []

    def curve(
        panel: str, what: str, slope: str, make: Callable[[int], Callable[[], object]],
        sizes: list[int], rounds: int = 5,
    ) -> None:  # fmt: skip
        calls = {str(size): make(size) for size in sizes}
        seconds = common.interleaved(calls, rounds=rounds)
        medians = [float(np.median(seconds[str(size)])) for size in sizes]
        # Against the number of weights rather than the width.
        xs = [(width + 1) * (width + 10) for width in sizes] if panel == "width" else sizes
        panel = "p" if panel == "width" else panel
        curves.append((panel, what, slope, xs, medians))
        print(f"{what:<52} against {panel}: slope {fitted(xs, medians):.2f}, expected {slope}")

    def draw_of_n(n: int) -> Callable[[], object]:
        return whole_draw.layered_draw((784, 128, 10), n, 512)

    def draw_of_width(width: int) -> Callable[[], object]:
        return whole_draw.layered_draw((width, width, 10), 1024, 256, public=512)

    def draw_of_k(k: int) -> Callable[[], object]:
        return whole_draw.layered_draw((784, 128, 10), 2048, k, public=512)

    def srht(p: int) -> Callable[[], object]:
        projection, rows = qexp.SRHT(p, 1024, seed=0), common.random((8, p), "float32")
        return lambda: projection.forward(rows)

    def cholesky(k: int) -> Callable[[], object]:
        matrix = np.eye(k) * k + 1.0
        work = matrix.copy()

        def call() -> None:
            np.copyto(work, matrix)
            _core.cholesky_inplace(work)

        return call

    curve("n", "whole draw, p = 101,770, k = 512", "1", draw_of_n, [2**i for i in range(9, 17)])
    curve("p", "SRHT of 8 rows, k = 1,024", "1, with a logarithm", srht,
          [2**i for i in range(11, 23)])  # fmt: skip
    widths = [128, 256, 512, 1024, 2048, 4096]
    curve("width", "whole draw, n = 1,024, k = 256", "1", draw_of_width, widths, 3)
    curve("k", "whole draw, n = 2,048, p = 101,770", "2", draw_of_k,
          [128, 256, 512, 1024, 2048, 4096], 3)  # fmt: skip
    curve("k", "Cholesky factor", "3", cholesky, [128, 256, 512, 1024, 2048, 4096], 3)
    return curves


def fitted(sizes: list[int], seconds: list[float]) -> float:
    """Fit the slope of the upper half."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def draw(curves: list[tuple[str, str, str, list[int], list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    panels = ["n", "p", "k"]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    labels = {"n": "records n", "p": "weights p", "k": "components k"}
    for axis, panel in zip(axes, panels, strict=True):
        for i, (_, what, slope, sizes, seconds) in enumerate(c for c in curves if c[0] == panel):
            label = f"{what}\nslope {fitted(sizes, seconds):.2f}, expected {slope}"
            axis.loglog(sizes, seconds, "o-", color=f"C{i}", label=label, markersize=4)
            exact = float(slope.split()[0].rstrip(","))
            guide = seconds[-1] * (np.array(sizes) / sizes[-1]) ** exact
            axis.loglog(sizes, guide, ":", color=f"C{i}", linewidth=1)
        axis.set_xlabel(labels[panel])
        axis.set_ylabel("seconds, one thread")
        axis.legend(fontsize=7.5, loc="upper left")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * 12)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", nargs="?", type=Path, help="where to draw to, a PNG")
    given = parser.parse_args()
    # The path leads to qexp's sources, too: what is installed is imported before.
    import qexp  # noqa: F401

    sys.path.insert(0, str(ROOT))
    from benchmarks import common

    common.need_blas()
    threads = common.Threads(1)
    curves = measured(common)
    threads.restore()
    if given.figure is not None:
        draw(curves, given.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
