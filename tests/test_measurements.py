"""What makes the tables of the docs: measured once, resumed, and put where it belongs."""

import json
import sys
from functools import partial
from shutil import copytree

import pytest

pytest.importorskip("matplotlib")

from experiments import __main__ as command_line
from experiments import everything
from experiments.everything import MEASUREMENTS, PARTS
from experiments.measurement import Measurement, fill, markdown_table, put_table, write
from experiments.study.report import DOCS
from experiments.study.results import FOLDER

PAGE = """\
Before.

<!-- squares: written by `python -m experiments report` -->
old
<!-- /squares -->

After.
"""


def squares(run=lambda x: {"square": x * x}, **changes):
    return Measurement(
        **{
            "name": "squares",
            "cells": [{"x": x} for x in (10, 2, None)],
            "run": run,
            "page": "page.md",
            "tables": lambda lines: {
                "squares": markdown_table(
                    ["x", "x²"], [[line["x"], line["square"]] for line in lines]
                )
            },
            **changes,
        }
    )


def test_what_is_known_is_not_measured_again(tmp_path):
    seen = []

    def run(x):
        seen.append(x)
        return {"square": x and x * x}

    fill(squares(run), tmp_path)
    assert seen == [10, 2, None]
    fill(squares(run), tmp_path)
    assert seen == [10, 2, None]
    assert [line["square"] for line in squares().known(tmp_path)] == [100, 4, None]
    more = squares(run, cells=[{"x": x} for x in (3, 2)])
    fill(more, tmp_path)
    assert seen == [10, 2, None, 3]
    assert [line["x"] for line in more.known(tmp_path)] == [3, 2]


def test_a_stop_loses_the_cell_that_it_was_at(tmp_path):
    def stopped(x):
        if x == 2:
            raise KeyboardInterrupt
        return {"square": x * x}

    with pytest.raises(KeyboardInterrupt):
        fill(squares(stopped), tmp_path)
    assert [line["x"] for line in squares().known(tmp_path)] == [10]
    assert [cell["x"] for cell in squares().missing(tmp_path)] == [2, None]


def test_a_missing_module_is_named_where_it_is_needed(tmp_path):
    wants = squares(needs=["json", "no_such_module"], cells=[{"x": 1}])
    with pytest.raises(ImportError, match="squares takes no_such_module: pip install"):
        fill(wants, tmp_path)
    fill(squares(cells=[{"x": 1}]), tmp_path)
    fill(wants, tmp_path)  # Nothing is missing.


def test_tables_stand_in_the_order_of_the_cells(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert write([squares()], tmp_path, tmp_path) == []
    assert page.read_text() == PAGE
    fill(squares(lambda x: {"square": None if x is None else x * x}), tmp_path)
    for _ in range(2):
        assert write([squares()], tmp_path, tmp_path) == [page]
        text = page.read_text()
        assert text.startswith("Before.\n\n<!-- squares: written by")
        assert "-->\n\n| x | x² |\n| --- | --- |\n| 10 | 100 |\n| 2 | 4 |\n" in text
        assert text.endswith("<!-- /squares -->\n\nAfter.\n")
        assert "old" not in text


def test_a_figure_is_written_beside_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    drawn = squares(
        figure=lambda lines, path: path.write_text(str([line["square"] for line in lines])),
        cells=[{"x": 3}, {"x": 2}],
        name="many_squares",
    )
    assert write([drawn], tmp_path, tmp_path) == []
    fill(drawn, tmp_path)
    figure = tmp_path / "figures" / "many-squares.png"
    assert write([drawn], tmp_path, tmp_path) == [page, figure]
    assert figure.read_text() == "[9, 4]"


@pytest.mark.parametrize("text", ["no place", PAGE + PAGE])
def test_a_table_has_one_place(text):
    with pytest.raises(ValueError, match="to have one"):
        put_table(text, "squares", "|")


def test_every_part_measures_cells_that_are_told_apart():
    assert set(PARTS) == {"sampling", "time_to_accuracy", "ablations", *MEASUREMENTS}
    for name, made in MEASUREMENTS.items():
        assert made.name == name
        cells = [json.dumps(cell) for cell in made.cells]
        assert len(set(cells)) == len(cells)
        assert {tuple(cell) for cell in made.cells} == {tuple(made.cells[0])}


def test_the_docs_are_what_the_results_say(tmp_path):
    docs = copytree(DOCS, tmp_path / "docs")
    written = {path.name for path in everything.write(FOLDER, docs)}
    assert {
        "study.md",
        "results.md",
        "attacks.md",
        "ablations.md",
        "time-to-accuracy.md",
        "predicted-utility.png",
    } <= written
    for page in docs.glob("*.md"):
        assert page.read_text("utf-8") == (DOCS / page.name).read_text("utf-8"), page.name


def test_tables_are_of_every_cell():
    for made in MEASUREMENTS.values():
        assert made.missing(FOLDER) == [], made.name


# ---------------------------------------------------------------------------------- the command


@pytest.fixture
def parts(monkeypatch):
    seen = []
    monkeypatch.setattr(
        everything, "PARTS", {name: partial(seen.append, name) for name in ("first", "second")}
    )
    monkeypatch.setattr(command_line, "run_all", lambda **_: seen.append("study") or 0)
    return seen


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        ([], ["study", "first", "second"]),
        (["--only", "second"], ["second"]),
        (["--only", "study"], ["study"]),
        (["--tasks", "adult_work"], ["study"]),
        (["--epsilons", "1"], ["study"]),
    ],
)
def test_all_runs_the_parts_that_are_asked_for(parts, arguments, ran):
    command_line.fill(arguments)
    assert parts == ran


def test_the_report_is_written_when_all_is_measured(parts, monkeypatch, capsys):
    monkeypatch.setattr(everything, "write", lambda: parts.append("report") or ["a.md"])
    command_line.fill(["--report"])
    assert parts == ["study", "first", "second", "report"]
    assert capsys.readouterr().out == "a.md\n"
    monkeypatch.setattr(command_line, "run_all", lambda **_: 2)
    with pytest.raises(SystemExit, match=r"2 task.* failed; .*results, and no report was written"):
        command_line.fill(["--report"])
    assert parts[4:] == ["first", "second"]
    monkeypatch.setattr(sys, "argv", ["experiments", "report"])
    command_line.main()
    assert parts[6:] == ["report"]


def test_what_is_the_study_s_is_not_asked_of_others(parts, capsys):
    with pytest.raises(SystemExit):
        command_line.fill(["--only", "first", "--methods", "qexp"])
    assert "are the study's" in capsys.readouterr().err
    assert parts == []


def test_a_part_that_cannot_be_measured_is_left_out_and_told(parts, monkeypatch, capsys):
    def wanting():
        raise ImportError("takes torch: pip install torch", name="torch")

    monkeypatch.setitem(everything.PARTS, "first", wanting)
    with pytest.raises(SystemExit, match=r"1 part\(s\) left out"):
        command_line.fill([])
    assert parts == ["study", "second"]
    assert "left out: first: takes torch" in capsys.readouterr().err


def test_measurements_keep_what_their_tables_take():
    """Of every measurement that is not run in tests: its lines make tables with a row each."""
    for made in MEASUREMENTS.values():
        tables = made.tables(made.known(FOLDER))
        assert tables
        page = (DOCS / made.page).read_text("utf-8")
        for name, table in tables.items():
            assert put_table(page, name, table)
            assert len({row.count("|") for row in table.splitlines()}) == 1
