"""The task of the whole MIMIC-III release, from tables to a line, on made-up ones of its schema."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("dp_accounting")
pytest.importorskip("duckdb", reason="DuckDB (the extra qexp[mimic]) is not installed")

from experiments import __main__ as command_line
from experiments.mimic3_memory import write_tables
from experiments.study import cells, report, runner
from experiments.study.results import Store
from experiments.tasks import CREDENTIALED, TASKS, clinical
from qexp import calibrate_mu
from qexp.datasets import load_mimic3

TASK = "mimic_mortality_full"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """400 stays in the folder of the whole release, 150 in that of the open sample."""
    made = tmp_path_factory.mktemp("data")
    write_tables(made / "mimic3", 30_000, 400)
    write_tables(made / "mimic3_demo", 10_000, 150)
    return made


@pytest.fixture(autouse=True)
def _forget():
    """Tables and tasks are kept, whatever QEXP_DATA was when they were read."""
    clinical._mimic3.cache_clear()
    cells.task_at.cache_clear()
    yield
    clinical._mimic3.cache_clear()
    cells.task_at.cache_clear()


@pytest.fixture
def data(root, monkeypatch):
    monkeypatch.setenv("QEXP_DATA", str(root))


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
    command_line.main()


def refused(monkeypatch, capsys, *arguments):
    """Run what ends with code 2, and give the line that it says."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.usefixtures("data")
def test_public_and_private_are_of_different_units(root):
    task = TASKS[TASK](0)
    stays = load_mimic3(root)
    assert (task.name, task.metric) == (TASK, "auroc")
    assert len(task.X_public) == np.isin(stays.care_unit, ("MICU", "CCU")).sum() == 160
    assert len(task.X_private) == len(task.X_test) == 120
    assert [len(move.X_public) for move in task.planned_on()] == [80, 80]
    # The halves of the private units are the same for all seeds, the models are not.
    other = TASKS[TASK](1)
    assert other.X_private.tobytes() == task.X_private.tobytes()
    assert not np.array_equal(other.model.weights, task.model.weights)
    assert {row.tobytes() for row in task.X_private}.isdisjoint(r.tobytes() for r in task.X_test)


@pytest.mark.usefixtures("data")
def test_private_stays_are_scaled_by_public_ones(root, tmp_path, monkeypatch):
    task = TASKS[TASK](0)
    stays = load_mimic3(root)
    values = stays.X.copy()
    values[~np.isin(stays.care_unit, ("MICU", "CCU"))] *= 3
    monkeypatch.setattr(clinical, "_mimic3", lambda *_: _with(stays, values))
    other = TASKS[TASK](0)
    assert other.X_public.tobytes() == task.X_public.tobytes()
    assert other.model.weights.tobytes() == task.model.weights.tobytes()
    assert other.X_private.tobytes() != task.X_private.tobytes()


def _with(stays, values):
    return type(stays)(**{**vars(stays), "X": values})


@pytest.mark.usefixtures("data")
def test_tables_are_read_once_for_all_seeds(monkeypatch):
    read = []
    monkeypatch.setattr(
        clinical, "load_mimic3", lambda *a, **k: read.append(k) or load_mimic3(*a, **k)
    )
    for seed in (0, 1):
        TASKS[TASK](seed)
    assert read == [{"folder": "mimic3"}]


@pytest.mark.usefixtures("data")
def test_the_command_plans_runs_and_prints_a_line(monkeypatch, capsys):
    run(monkeypatch, TASK, "--method", "qexp", "--epsilon", "1")
    line = json.loads(capsys.readouterr().out)
    assert (line["task"], line["method"], line["metric"]) == (TASK, "qexp", "auroc")
    assert line["mu"] == pytest.approx(calibrate_mu(1.0, 1e-5))
    assert 0 < line["value"] <= 1
    assert line["value"] == line["measures"]["auroc"]
    # Who dies has higher values, in the public units as in the private ones.
    assert line["before"] > 0.55
    assert line["hyperparameters"]["rounds"] == line["rounds"] >= 1


@pytest.fixture
def one_thread(monkeypatch):
    """What the study sets for its processes, and only for this test."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.mark.usefixtures("data", "one_thread")
def test_its_study_has_results_and_a_section_of_its_own(tmp_path, monkeypatch):
    store = Store(tmp_path / "results")
    monkeypatch.setattr(command_line, "results", SimpleNamespace(Store=lambda: store))
    command_line.fill(["--tasks", TASK, "--methods", "dp_ls", "--epsilons", "1", "--seeds", "2"])
    assert [line["seed"] for line in store.lines(TASK, "dp_ls")] == [0, 1]
    page = report.write(store, tmp_path / "docs")[0].read_text("utf-8")
    assert f"## {TASK}\n\nMIMIC-III, the whole release: medical and coronary units;" in page


@pytest.mark.usefixtures("data")
def test_what_is_too_small_to_plan_with_says_what_to_take(monkeypatch, capsys):
    for method in ("qexp", "public_only"):
        said = refused(monkeypatch, capsys, "mimic_mortality", "--method", method)
        assert "mimic_mortality has 30 public records to plan on" in said
        assert f"at least 50; take a larger task: {TASK}, of the whole release" in said


def test_missing_data_are_told_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("QEXP_DATA", raising=False)
    assert "QEXP_DATA is not set" in refused(monkeypatch, capsys, TASK)
    monkeypatch.setenv("QEXP_DATA", str(tmp_path / "none"))
    assert f"there is no folder {tmp_path / 'none'}." in refused(monkeypatch, capsys, TASK)
    monkeypatch.setenv("QEXP_DATA", str(tmp_path))
    assert f"there is no folder {tmp_path / 'mimic3'}." in refused(monkeypatch, capsys, TASK)
    assert "put it in " + str(tmp_path / "mnist") in refused(monkeypatch, capsys, "mnist_few_250")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        run(monkeypatch, TASK, "--debug")


@pytest.mark.usefixtures("data")
def test_wrong_budgets_and_a_missing_module_are_told_in_a_line(monkeypatch, capsys):
    said = refused(monkeypatch, capsys, TASK, "--epsilon", "-1")
    assert "epsilon" in said
    assert "-1" in said
    clinical._mimic3.cache_clear()
    cells.task_at.cache_clear()
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "pip install 'qexp[mimic]'" in refused(monkeypatch, capsys, TASK)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("debug", [False, True])
def test_processes_of_the_study_tell_in_a_line_what_is_missing(debug, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("QEXP_DATA", str(tmp_path))
    failed = runner.run_all(
        tasks=[TASK],
        methods=["dp_ls"],
        epsilons=[1.0],
        delta=1e-5,
        seeds=[0],
        effort="quick",
        jobs=1,
        store=Store(tmp_path / "results"),
        debug=debug,
    )
    said = capfd.readouterr().err
    assert failed == 1
    assert f"{TASK}, dp_ls: MIMIC-III v1.4: there is no folder {tmp_path / 'mimic3'}." in said
    assert ("Traceback" in said) == debug


def test_what_is_for_credentialed_users_is_a_task_on_request():
    assert set(TASKS) >= CREDENTIALED
    assert set(command_line._ON_REQUEST) >= CREDENTIALED
