"""Measurements that make tables of the docs: what is known is not measured again.

A measurement has cells; every cell gives a line of JSON in experiments/results, and the lines give
tables, which stand in a page of the docs between two comments that name them. Numbers in the
sentences around a table are the author's.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.lines import Lines, key_of
from experiments.study.report import DOCS
from experiments.study.results import FOLDER
from qexp._files import atomic_write_bytes
from qexp._progress import progress_bar

__all__ = ["Measurement", "fill", "markdown_table", "put_table", "write"]

Line = dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """What is measured once, cell by cell, and the tables that come of it.

    Attributes
    ----------
    name : str
        Of its file of lines.
    cells : sequence of mapping
        Arguments of `run`, all with the same names; a line is known by them.
    run : callable
        Measures a cell, and gives what JSON can hold.
    page : str
        A file of the docs.
    tables : callable
        Makes Markdown tables, by the names that the page has for them, of the lines that there are,
        in the order of the cells.
    needs : sequence of str
        Modules that measuring takes beside those of every experiment.
    figure : callable, optional
        Draws the lines to a file, which is among the docs' figures by the measurement's name.
    """

    name: str
    cells: Sequence[Mapping[str, Any]]
    run: Callable[..., Line]
    page: str
    tables: Callable[[list[Line]], Mapping[str, str]]
    needs: Sequence[str] = ()
    figure: Callable[[list[Line], Path], None] | None = None

    def file(self, folder: Path = FOLDER) -> Lines:
        """Give the file of lines."""
        return Lines(folder / f"{self.name}.jsonl", self._key)

    def known(self, folder: Path = FOLDER) -> list[Line]:
        """Give the lines that there are, in the order of the cells."""
        by_key = {self._key(line): line for line in self.file(folder).read()}
        keys = [self._key(cell) for cell in self.cells]
        return [by_key[key] for key in keys if key in by_key]

    def missing(self, folder: Path = FOLDER) -> list[Mapping[str, Any]]:
        """Give the cells that have no line."""
        known = {self._key(line) for line in self.file(folder).read()}
        return [cell for cell in self.cells if self._key(cell) not in known]

    def _key(self, line: Mapping[str, Any]) -> str:
        return key_of(list(self.cells[0]))(line)


def fill(measurement: Measurement, folder: Path = FOLDER) -> None:
    """Measure what is missing. A stop loses the cell that it was at.

    Raises
    ------
    ImportError
        If something is missing, and a module that measuring it takes.
    """
    missing = measurement.missing(folder)
    absent = [name for name in measurement.needs if importlib.util.find_spec(name) is None]
    if missing and absent:
        raise ImportError(
            f"{measurement.name} takes {' and '.join(absent)}: pip install {' '.join(absent)}",
            name=absent[0],
        )
    lines = measurement.file(folder)
    with progress_bar(len(missing), measurement.name, show=True) as advance:
        for cell in missing:
            started = time.perf_counter()
            found = measurement.run(**cell)
            lines.add({**cell, **found, "seconds": round(time.perf_counter() - started, 1)})
            advance(1)


def write(
    measurements: Iterable[Measurement],
    folder: Path = FOLDER,
    docs: Path = DOCS,
    *,
    others: Iterable[tuple[str, Mapping[str, str]]] = (),
) -> list[Path]:
    """Put the tables of what is known into their pages, and give these pages and the figures.

    `others` are tables that come of no measurement of their own, each with its page.
    """
    measured = [(m, known) for m in measurements if (known := m.known(folder))]
    made = [(m.page, m.tables(known)) for m, known in measured]
    pages: dict[Path, str] = {}
    for page, tables in ((docs / name, tables) for name, tables in [*made, *others] if tables):
        text = pages[page] if page in pages else page.read_text("utf-8")
        for name, table in tables.items():
            text = put_table(text, name, table)
        pages[page] = text
    for page, text in pages.items():
        _write_page(page, text)
    return [*pages, *_write_figures(measured, docs / "figures")]


def put_table(text: str, name: str, table: str) -> str:
    """Put a table between the comments of its name.

    Raises
    ------
    ValueError
        If the text has no such comments, or more than two.
    """
    begin, end = f"<!-- {name}: written by `python -m experiments report` -->", f"<!-- /{name} -->"
    parts = re.findall(f"{re.escape(begin)}\n.*?{re.escape(end)}", text, re.DOTALL)
    if len(parts) != 1:
        raise ValueError(
            f"the page has {len(parts)} places for the table {name!r}; it is to have one, "
            f"from a line {begin} to a line {end}"
        )
    return text.replace(parts[0], f"{begin}\n\n{table}\n\n{end}")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Give a table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _write_figures(
    measured: Iterable[tuple[Measurement, list[Line]]], figures: Path
) -> Iterator[Path]:
    for measurement, lines in measured:
        if measurement.figure is not None:
            figures.mkdir(parents=True, exist_ok=True)
            path = figures / f"{measurement.name.replace('_', '-')}.png"
            measurement.figure(lines, path)
            yield path


def _write_page(page: Path, text: str) -> None:
    atomic_write_bytes(page, text.encode())
