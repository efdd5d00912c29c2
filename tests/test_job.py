"""Batch jobs: the job file, runs and their outputs, stops and resumption, reports, exit codes."""

import dataclasses
import html.parser
import importlib.util
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import types

import numpy as np
import pytest
from helpers import mpiexec, needs_mpi
from hypothesis import given, settings
from hypothesis import strategies as st

import qexp
from qexp import _core, cli, planning
from qexp._communicator import SingleProcess
from qexp.bits import insecure_test_generator
from qexp.job import run as run_module
from qexp.job import settings as settings_module
from qexp.job import signals
from qexp.job import subspace as job_subspace
from qexp.job._svg import line_chart
from qexp.job.exit_codes import ExitCode, exit_code
from qexp.job.inputs import open_inputs
from qexp.job.run import dry_run, run_job
from qexp.job.settings import SettingsError, explain, load_settings
from qexp.job.signals import StopBetweenRounds, Stopper
from qexp.ledger_file import SharedLedger, read_ledger
from qexp.models import mlp
from qexp.planning import _planner
from qexp.subspace import PublicSubspace, image_moves, learn_directions

JOB = """
[model]
layer_sizes = [16, 6, 3]
weights = "weights.npy"

[public]
features = "public-x.npy"
labels = "public-y.npy"
image_shape = [4, 4]

[private]
features = "x-*.npy"
labels = ["y-1.npy", "y-2.npy"]

[privacy]
epsilon = 2.0
delta = 1e-5
ledger = "ledger.jsonl"

[schedule]
rounds = 4
clipping_norm = 3.0
step_size = 0.5
damping = 0.01
momentum = 0.3
averaging = 0.5

[output]
folder = "out"

[run]
insecure_test_seed = 5
"""
MU = qexp.calibrate_mu(2.0, 1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small public model, public records, and two shards of private ones."""
    folder = tmp_path_factory.mktemp("data")
    chance = np.random.default_rng(0)
    X = chance.uniform(size=(500, 16)).astype(np.float32)
    y = np.argmax(X[:, :3] + X[:, 3:6], axis=1)
    model = mlp((16, 6, 3), seed=1).fit(X[:200], y[:200], epochs=3)
    np.save(folder / "weights.npy", model.weights)
    np.save(folder / "public-x.npy", X[:200])
    np.save(folder / "public-y.npy", y[:200])
    for name, array in (("x", X), ("y", y)):
        np.save(folder / f"{name}-1.npy", array[200:280])
        np.save(folder / f"{name}-2.npy", array[280:])
    return folder


@pytest.fixture
def folder(data, tmp_path):
    for file in data.iterdir():
        shutil.copy(file, tmp_path)
    SharedLedger.create(tmp_path / "ledger.jsonl", mu_budget=MU * 1.01)
    return tmp_path


def write(folder, text=JOB, name="job.toml", **changes):
    """Write a job file, with keys changed (None takes one out) or added to their section."""
    for key, value in changes.items():
        section, _, key = key.partition("__")
        line = "" if value is None else f"{key} = {value}\n"
        within = rf"(\[{section}\]\n(?:(?!^\[).)*?)"
        text, found = re.subn(rf"(?ms)^{within}^{key} = [^\n]*\n", rf"\1{line}", text)
        if not found:
            text = text.replace(f"[{section}]\n", f"[{section}]\n{line}")
    path = folder / name
    path.write_text(text)
    return path


def job(folder, **changes):
    return load_settings(write(folder, **changes))


def expected(folder, rounds=4):
    """The release by way of the library alone."""
    X = np.concatenate([np.load(folder / f"x-{i}.npy") for i in (1, 2)])
    y = np.concatenate([np.load(folder / f"y-{i}.npy") for i in (1, 2)])
    model = qexp.models.MultilayerPerceptron((16, 6, 3), np.load(folder / "weights.npy"))
    return qexp.fine_tune(
        model, X, y,
        schedule=qexp.Schedule(
            rounds=rounds, clipping_norm=3.0, step_size=0.5, damping=0.01, momentum=0.3,
            averaging=0.5,
        ),
        curvature=qexp.KroneckerCurvature.from_model(
            model, np.load(folder / "public-x.npy"), damping=0.01
        ),
        target_epsilon=2.0, target_delta=1e-5, rng=insecure_test_generator(5),
    ).release  # fmt: skip


def outputs(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


ALL = ["certificate.json", "checkpoint.npz", "report.html", "weights.npz"]


def weights(folder):
    return qexp.PrivateRelease.load(folder / "weights.npz").weights


# ------------------------------------------------------------------------------- the job file


def test_settings_are_typed_and_paths_relative_to_the_file(folder, monkeypatch):
    monkeypatch.setenv("QEXP_TEST_FOLDER", str(folder))
    loaded = job(
        folder, private__features='"${QEXP_TEST_FOLDER}/x-*.npy"', run__wall_time='"1-02:03:04"'
    )
    assert loaded.private.features == (str(folder / "x-*.npy"),)
    assert loaded.private.labels == (str(folder / "y-1.npy"), str(folder / "y-2.npy"))
    assert loaded.output.folder == str(folder / "out")
    assert loaded.run.wall_time == 93784.0
    assert loaded.run.grace == 60.0
    assert loaded.schedule.fixed().averaged_rounds == 2
    assert load_settings(folder / "job.toml", output="/else").output.folder == "/else"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__weigths": '"a"'}, "model.weigths: there is no such key; did you mean model.weig"),
        ({"schedule__learning": "1"}, "schedule.learning: there is no such key; known: rounds"),
        ({"privacy__epsilon": "0"}, "privacy.epsilon: is 0; it needs a finite number above 0"),
        ({"privacy__epsilon": "inf"}, "privacy.epsilon: is inf; it needs"),
        ({"privacy__epsilon": '"1"'}, "privacy.epsilon: is '1'; it needs a finite number"),
        ({"privacy__delta": "1.0"}, "privacy.delta: is 1.0; it needs a number strictly between"),
        ({"privacy__delta": "true"}, "privacy.delta: is True"),
        ({"privacy__delta": None}, "privacy.delta: is missing; it needs"),
        ({"privacy__neighboring_relation": '"add"'}, 'one of "replace_special", "replace_one"'),
        ({"schedule__rounds": "2.5"}, 'schedule.rounds: is 2.5; it needs "plan" or an integer'),
        ({"schedule__momentum": "1.0"}, "schedule.momentum: is 1.0; it needs a number of at leas"),
        ({"schedule__refresh_curvature": "1"}, "schedule.refresh_curvature: is 1; it needs true"),
        ({"schedule__damping": None}, "schedule.damping: is missing; without a plan"),
        ({"schedule__rounds": '"plan"'}, "schedule.clipping_norm, schedule.step_size, schedule.d"),
        ({"model__layer_sizes": "[16]"}, "model.layer_sizes: is [16]; it needs a list"),
        ({"model__layer_sizes": "[16, 1]"}, "model.layer_sizes: needs at least 2 classes"),
        ({"model__layer_sizes": None}, "model.layer_sizes: is missing"),
        ({"model__weights": None}, "model.weights: is missing"),
        ({"model__weights": '"${QEXP_NO_SUCH}/w"'}, "variable QEXP_NO_SUCH is not set; it needs"),
        ({"model__entry_point": '"a:b"'}, "model.entry_point: needs model.kind"),
        ({"model__kind": '"torch"'}, "model.entry_point: is missing; torch needs it"),
        ({"model__entry_point": '"a b:c"'}, '"module:function"'),
        ({"public__features": None}, "public.features: is missing"),
        ({"public__groups": '"g.npy"'}, 'public.groups: needs public.surrogate = "tabular"'),
        ({"public__image_shape": "[4, 4, 1]"}, "public.image_shape: needs two integers"),
        ({"public__surrogate_keeps": "[0.9]"}, "public.surrogate_keeps: is [0.9]; it needs a lis"),
        ({"public__surrogate_keeps": "[0.9, 0.8]"}, "the smaller first"),
        ({"public__surrogate_keeps": "0.9"}, "a list of two numbers above 0 and below 1"),
        ({"schedule__score": '"f1"'}, "schedule.score: is 'f1'; it needs one of \"accuracy\""),
        ({"public__surrogate": '"records"'}, 'both belong to public.surrogate = "records"'),
        ({"public__surrogate_labels": '"s.npy"'}, 'both belong to public.surrogate = "records"'),
        (
            {
                "public__surrogate": '"records"',
                "public__surrogate_features": '"s.npy"',
                "public__surrogate_labels": '"t.npy"',
                "public__image_shape": None,
                "public__surrogate_keeps": "[0.8, 0.9]",
            },
            "public.surrogate_keeps: is of drawn shifts",
        ),
        ({"public__features": "[]"}, "public.features: is []; it needs a path"),
        ({"projection__kind": '"srht"'}, "there is no such"),
        ({"run__wall_time": '"90 min"'}, "run.wall_time: is '90 min'; it needs seconds, \"hh"),
        ({"run__threads": "0"}, "run.threads: is 0; it needs an integer of at least 1"),
        ({"private__max_records_per_user": "3"}, "needs private.groups"),
        ({"output__folder": None}, "output.folder: is missing"),
        (
            {"schedule__rounds": '"plan"', "private__groups": '"g.npy"'},
            "plans are made for records, not users",
        ),
    ],
)
def test_mistakes_are_named_with_what_is_allowed(folder, changes, message):
    if "projection__kind" in changes:
        changes, message = {}, "projection.n_components: is missing beside projection.kind"
        path = write(folder, JOB + '[projection]\nkind = "srht"\n')
    else:
        path = write(folder, **changes)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_mistakes_come_at_once_and_before_any_file_is_opened(tmp_path):
    path = write(tmp_path, privacy__epsilon="-1", schedule__rounds="0", run__thread="2")
    with pytest.raises(SettingsError, match=r"3 mistake\(s\)") as caught:
        load_settings(path)
    assert "run.thread: there is no such key; did you mean run.threads?" in str(caught.value)
    path.write_text("[model\n")
    with pytest.raises(SettingsError, match="no TOML file"):
        load_settings(path)
    path.write_text("model = 3\n[oputput]\n")
    with pytest.raises(SettingsError, match=r"needs to be a section \[model\]") as caught:
        load_settings(path)
    assert "did you mean output?" in str(caught.value)


KEYS = [
    (section, key.name)
    for section, kind in settings_module._SECTIONS.items()
    for key in dataclasses.fields(kind)
]
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=12),
    st.sampled_from(["plan", "torch", "srht", "images", "1:00:00", "${HOME}", "${", "a:b"]),
)


@settings(max_examples=100)
@given(key=st.sampled_from(KEYS), value=SCALARS | st.lists(SCALARS, max_size=3))
def test_any_value_is_taken_or_refused_by_the_name_of_its_key(tmp_path_factory, key, value):
    section, name = key
    path = tmp_path_factory.mktemp("any") / "job.toml"
    document = tomllib.loads(JOB)
    document.setdefault(section, {})[name] = value
    path.write_text(
        "".join(
            f"[{part}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
            for part, keys in document.items()
        )
    )
    message = f"{section}."
    try:
        load_settings(path)
    except SettingsError as error:
        message = str(error)
    assert f"{section}." in message


def test_the_explanation_names_every_key(folder):
    text = explain()
    loaded = job(folder)
    for section in ("model", "public", "private", "privacy", "schedule", "projection", "run"):
        assert f"[{section}]" in text
        for key in vars(getattr(loaded, section)):
            assert f"  {key} " in text
    assert "[[rehearsal]]  a further move" in text


# -------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("weights.npy", np.zeros(5, np.float32), "do not fit model.layer_sizes"),
        ("weights.npy", np.zeros(123, np.int64), "holds int64; it needs float32 or float64"),
        ("weights.npy", np.full(123, np.nan), "do not fit"),
        ("weights.npy", b"not an array", "model.weights: .* cannot be used"),
        ("weights.npy", None, "there is no file .*weights.npy"),
        ("x-1.npy", np.zeros((80, 15), np.float32), "all files need the same"),
        ("x-1.npy", np.full((80, 16), "text"), "they need real numbers"),
        ("x-1.npy", np.zeros((80, 16), np.complex64), "they need real numbers"),
        ("x-1.npy", b"not an array", "x-1.npy' cannot be used"),
        ("x-1.npy", np.zeros((79, 16), np.float32), "the features have 299 rows in all"),
        ("y-1.npy", np.zeros((80, 2), np.int64), "have shape"),
        ("y-1.npy", None, "there is no file .*y-1.npy"),
        ("public-x.npy", np.zeros((200, 4), np.float32), "public.features have shape"),
        ("public-y.npy", np.zeros(9, np.int64), "200 rows and public.labels 9"),
    ],
)
def test_files_of_the_wrong_kind_are_bad_input(folder, name, array, message, capsys):
    path = folder / name
    path.unlink()
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif array is not None:
        np.save(path, array)
    assert cli.main(["run", str(write(folder))]) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert re.search(message, error.splitlines()[-1]), error
    assert len(error.splitlines()) == 1
    assert not (folder / "out").exists()
    assert read_ledger(folder / "ledger.jsonl").lines == 1


def test_a_file_that_may_not_be_read_is_bad_input(folder, monkeypatch, capsys):
    """Permissions do not stop a superuser, so the refusal is made here."""
    real = open

    def refuse(path, *arguments, **options):
        if str(path).endswith("x-2.npy"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    assert cli.main(["run", str(write(folder))]) == ExitCode.BAD_INPUT
    assert "x-2.npy" in capsys.readouterr().err


def test_weights_come_from_a_release_and_in_the_dtype_asked_for(folder):
    run_job(job(folder))
    loaded = job(folder, model__weights='"out/weights.npz"', model__dtype='"float64"')
    model = open_inputs(loaded).model
    assert model.dtype == np.float64
    assert np.array_equal(model.weights, weights(folder / "out").astype(np.float64))


def test_a_model_from_an_entry_point(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "my_models.py").write_text(
        "import numpy as np, qexp.models\n"
        "def made():\n"
        "    return qexp.models.MultilayerPerceptron((16, 6, 3), np.zeros(123))\n"
        "def other():\n"
        "    return 3\n"
    )
    torch = {"model__kind": '"torch"', "model__layer_sizes": None}
    loaded = job(folder, model__entry_point='"my_models:made"', **torch)
    inputs = open_inputs(loaded)
    assert np.array_equal(inputs.model.weights, np.load(folder / "weights.npy"))
    for entry, message in (
        ("my_models:none", "has no 'none'"),
        ("my_modules:made", "cannot be imported"),
        ("my_models:other", "gave a int without weights"),
    ):
        with pytest.raises((ValueError, ImportError, TypeError), match=message):
            open_inputs(job(folder, model__entry_point=f'"{entry}"', **torch))


# ---------------------------------------------------------------------------------------- runs


def test_a_run_gives_the_bits_of_the_library_and_charges_the_ledger(folder, capfd):
    assert cli.main(["run", str(write(folder))]) == 0
    release = qexp.PrivateRelease.load(folder / "out" / "weights.npz")
    assert np.array_equal(release.weights, expected(folder).weights)
    assert outputs(folder / "out") == ALL
    ledger = read_ledger(folder / "ledger.jsonl")
    assert ledger.mu_spent == release.mu
    assert len(ledger.entries) == 4
    document = json.loads((folder / "out" / "certificate.json").read_text())
    assert document["certificate"] == json.loads(json.dumps(release.certificate()))
    assert document["statement"] == release.statement
    assert document["ledger"]["head"] == ledger.head
    assert document["sizes"]["n_records"] == 300
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert [line["event"] for line in lines] == ["start", *["round"] * 4, "finished"]
    assert lines[-1]["epsilon"] == 2.0
    # Neither files nor folders of private records show anywhere.
    text = captured.err + json.dumps(document) + (folder / "out" / "report.html").read_text()
    assert "x-1.npy" not in text
    assert str(folder) not in json.dumps(document)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_block_size_changes_no_bit(folder, size):
    assert run_job(job(folder, run__block_size=size, run__threads="1")) == 0
    assert np.array_equal(weights(folder / "out"), expected(folder).weights)


@pytest.mark.parametrize("without", [None, "threadpoolctl"])
def test_a_job_gives_its_threads_back(folder, monkeypatch, set_threads, without):
    if without:
        monkeypatch.setitem(sys.modules, without, None)
    set_threads(2)
    assert run_job(job(folder, run__threads="1")) == 0
    assert _core.get_num_threads() == 2


def test_records_in_memory_change_no_bit(folder, capsys):
    loaded = job(folder, run__records_in_memory="true", public__curvature='"kronecker"')
    print(dry_run(loaded)[0])
    # 300 records of 16 features in float32 and a label in int64.
    said = capsys.readouterr().out
    assert "beside 0 MiB of records in all processes together" in said
    assert run_job(loaded) == 0
    assert np.array_equal(weights(folder / "out"), expected(folder).weights)


def test_how_many_records_users_have_is_not_said_of_memory_either(folder):
    np.save(folder / "ids.npy", np.arange(300) // 5)
    loaded = job(
        folder,
        private__groups='"ids.npy"',
        private__max_records_per_user="5",
        run__records_in_memory="true",
    )
    assert "beside the records in all processes" in dry_run(loaded)[0]
    assert run_job(loaded) == 0
    in_memory = weights(folder / "out")
    shutil.rmtree(folder / "out")
    (folder / "ledger.jsonl").unlink()
    SharedLedger.create(folder / "ledger.jsonl", mu_budget=MU * 1.01)
    loaded = job(folder, private__groups='"ids.npy"', private__max_records_per_user="5")
    assert run_job(loaded) == 0
    assert np.array_equal(weights(folder / "out"), in_memory)


@pytest.mark.parametrize(
    ("curvature", "projection"),
    [("dense", ""), ("diagonal", ""), ("identity", ""), ("dense", "srht"), ("identity", "srht")],
)
def test_every_curvature_runs(folder, curvature, projection):
    text = JOB + ('[projection]\nkind = "srht"\nn_components = 20\n' if projection else "")
    path = write(folder, text, public__curvature=f'"{curvature}"', schedule__damping="0.1")
    assert run_job(load_settings(path)) == 0
    certificate = qexp.PrivateRelease.load(folder / "out" / "weights.npz").certificate()
    assert certificate["public_inputs"]["projection"]["n_components"] == (20 if projection else 123)


def test_a_share_of_the_budget_buys_private_curvature(folder):
    assert run_job(job(folder, schedule__curvature_share="0.2")) == 0
    assert len(read_ledger(folder / "ledger.jsonl").entries) == 5
    assert "curvature share" in (folder / "out" / "report.html").read_text()


def test_a_users_records_are_protected_together(folder, capfd):
    np.save(folder / "ids.npy", np.arange(300) // 5)
    loaded = job(folder, private__groups='"ids.npy"', private__max_records_per_user="5")
    assert run_job(loaded) == 0
    release = qexp.PrivateRelease.load(folder / "out" / "weights.npz")
    assert release.n_records == 60
    assert "user" in release.unit_of_privacy
    report = (folder / "out" / "report.html").read_text()
    assert "user" in report
    # How many records they have together could depend on one of them.
    document = json.loads((folder / "out" / "certificate.json").read_text())
    assert document["sizes"]["n_records"] is None
    assert ">300<" not in report
    said = capfd.readouterr().err
    assert "300 private" not in said
    # Nor when or how long, which goes by that number.
    events = [json.loads(line) for line in said.splitlines()]
    assert [event["event"] for event in events] == ["start", *["round"] * 4, "finished"]
    assert not any({"time", "seconds"} & set(event) for event in events)


def test_no_file_depends_on_how_many_records_users_have(folder):
    def digest(n):
        np.save(folder / "ids.npy", np.minimum(np.arange(n) // 3, 90))
        for name in ("x", "y"):
            rows = np.load(folder / f"{name}-2.npy")
            np.save(folder / f"{name}-2.npy", rows[: n - 80])
        loaded = job(folder, private__groups='"ids.npy"', private__max_records_per_user="5")
        return run_module._digest_of_public(loaded, open_inputs(loaded))

    assert digest(300) == digest(299)


def test_a_dry_run_by_user_does_not_tell_how_many_records_there_are(folder, capsys):
    np.save(folder / "ids.npy", np.arange(300) // 5)
    path = write(folder, private__groups='"ids.npy"', private__max_records_per_user="5")
    assert cli.main(["run", str(path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "s a round and 1,000 records, times 4 rounds" in text
    assert "in all" not in text
    assert "300" not in text


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({}, False),
        ({"PMI_SIZE": "1"}, False),
        ({"PMI_SIZE": "4", "PMI_RANK": "1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"}, False),
        # Slurm with PMIx, which gives ranks and no size.
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"PMIX_RANK": "1", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"PMIX_RANK": "1"}, True),
        # A shell within an allocation.
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, False),
    ],
)
def test_all_ranks_of_a_launcher_know_that_they_are(environment, launched):
    assert run_module._is_launched(environment) is launched


def test_labels_in_the_table_of_the_public_features_are_no_feature(folder):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    X, y = np.load(folder / "public-x.npy"), np.load(folder / "public-y.npy")
    columns = {f"x{i}": X[:, i] for i in range(16)} | {"label": y}
    parquet.write_table(pa.table(columns), folder / "public.parquet")
    loaded = job(
        folder,
        public__features='"public.parquet"',
        public__labels='"public.parquet:label"',
    )
    inputs = open_inputs(loaded)
    np.testing.assert_array_equal(inputs.X_public, X)
    np.testing.assert_array_equal(inputs.y_public, y)


def test_a_folder_in_use_is_refused_without_resume(folder, capsys):
    path = write(folder)
    assert cli.main(["run", str(path), "--resume"]) == 0  # begins, where there is nothing
    files = {name: (folder / "out" / name).read_bytes() for name in ALL}
    assert cli.main(["run", str(path)]) == ExitCode.BAD_INPUT
    assert "add --resume" in capsys.readouterr().err
    assert cli.main(["run", str(path), "--resume"]) == 0  # gives the result again, for nothing
    assert files["weights.npz"] == (folder / "out" / "weights.npz").read_bytes()
    assert len(read_ledger(folder / "ledger.jsonl").entries) == 4
    assert cli.main(["run", str(path), "--output", str(folder / "new")]) == 3
    (folder / "out" / "checkpoint.npz").unlink()
    assert cli.main(["run", str(path), "--resume"]) == ExitCode.BAD_INPUT
    assert "no checkpoint" in capsys.readouterr().err
    assert cli.main(["run", str(path), "--output", str(path)]) == ExitCode.BAD_INPUT


def test_a_lost_output_is_made_again(folder):
    run_job(job(folder))
    files = {name: (folder / "out" / name).read_bytes() for name in ALL}
    for name in ("weights.npz", "certificate.json", "report.html"):
        (folder / "out" / name).unlink()
    assert run_job(job(folder), resume=True) == 0
    assert {name: (folder / "out" / name).read_bytes() for name in ALL} == files


def test_a_dry_run_reads_no_private_value_and_writes_nothing(folder, monkeypatch, capsys):
    from qexp import shards

    path = write(folder)
    read = shards._NpyFile.read

    def guarded(self, start, stop):
        assert "public" in self.path, "a private value was read"
        return read(self, start, stop)

    monkeypatch.setattr(shards._NpyFile, "read", guarded)
    before = sorted(folder.iterdir())
    assert cli.main(["run", str(path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for words in (
        "300 private records (public",
        "4 round(s)",
        "enough",
        "MiB",
        "s a round",
        "NOT PRIVATE",
    ):
        assert words in text
    assert sorted(folder.iterdir()) == before
    SharedLedger(folder / "ledger.jsonl").charge(0.2)
    assert cli.main(["run", str(path), "--dry-run"]) == 3
    assert "NOT ENOUGH" in capsys.readouterr().out
    text, affordable = dry_run(job(folder, privacy__ledger=None))
    assert affordable
    assert "nothing stops another job" in text
    assert "WARNING  privacy.delta" not in text
    text, _ = dry_run(job(folder, privacy__ledger=None, privacy__delta="0.004"))
    assert "privacy.delta is 0.004, not below 1/n = 0.0033" in text


def test_a_terminal_gets_words_and_no_json(folder):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "qexp", "run", str(write(folder))], stderr=follower
    )
    assert process.wait(timeout=60) == 0
    os.close(follower)
    text = os.read(leader, 100_000).decode()
    os.close(leader)
    assert "qexp: 300 private records" in text
    assert "qexp: finished after 4 of 4 round(s)" in text
    assert '{"' not in text


# ---------------------------------------------------------------------------------------- plans


PLANNED = {f"schedule__{key}": None for key in ("clipping_norm", "step_size", "damping")} | {
    "schedule__momentum": None,
    "schedule__averaging": None,
    "schedule__rounds": '"plan"',
}


@pytest.fixture
def small_grid(monkeypatch):
    schedules = [
        qexp.Schedule(rounds=rounds, clipping_norm=3.0, step_size=0.5, damping=0.01)
        for rounds in (1, 2)
    ]
    monkeypatch.setattr(_planner, "candidate_schedules", lambda rounds=None: schedules)
    monkeypatch.setattr(_planner, "neighbours", lambda *_, **__: [])


def test_a_plan_is_kept_for_the_resumption(folder, small_grid, monkeypatch, capsys):
    path = write(folder, **PLANNED)
    assert cli.main(["run", str(path)]) == 0
    assert outputs(folder / "out") == sorted([*ALL, "plan.json"])
    plan = json.loads((folder / "out" / "plan.json").read_text())["plan"]
    certificate = json.loads((folder / "out" / "certificate.json").read_text())
    assert certificate["schedule"] == plan["schedule"]
    assert "What was to be expected" in (folder / "out" / "report.html").read_text()
    monkeypatch.setattr(planning, "plan", None)
    assert cli.main(["run", str(path), "--resume"]) == 0
    changed = write(folder, **PLANNED, public__surrogate='"images"', run__public_seed="1")
    assert cli.main(["run", str(changed), "--resume"]) == ExitCode.BAD_INPUT
    assert "made for another job file" in capsys.readouterr().err
    for other in (
        {"model__activation": '"relu"'},
        {"privacy__neighboring_relation": '"replace_one"'},
    ):
        changed = write(folder, **PLANNED, **other)
        assert cli.main(["run", str(changed), "--resume"]) == ExitCode.BAD_INPUT
        assert "made for another job file" in capsys.readouterr().err
    path = write(folder, **PLANNED)
    text = (folder / "out" / "plan.json").read_text()
    (folder / "out" / "plan.json").write_text(text.replace('"rounds": ', '"rounds": 1'))
    assert cli.main(["run", str(path), "--resume"]) == ExitCode.DAMAGED


def test_a_plan_takes_its_score_and_the_strength_of_its_shifts(
    folder, small_grid, monkeypatch, capsys
):
    asked, whole = [], planning.plan

    def seen(*arguments, **options):
        asked.append((options["score"], options["surrogate_keeps"]))
        return whole(*arguments, **options)

    monkeypatch.setattr(planning, "plan", seen)
    keys = {"schedule__score": '"loss"', "public__surrogate_keeps": "[0.8, 0.9]"}
    path = write(folder, **PLANNED, **keys)
    assert cli.main(["run", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"predicted mean loss +\d[\d.]* nats \+- [\d.e-]+ on surrogates", said)
    assert cli.main(["run", str(path)]) == 0
    assert asked == [("loss", (0.8, 0.9))] * 2
    plan = json.loads((folder / "out" / "plan.json").read_text())["plan"]
    report = (folder / "out" / "report.html").read_text()
    assert "mean loss, nats, on surrogates" in report
    assert f"fine-tuning: {-plan['score_before']:.4g} nats" in report


REHEARSAL = """
[[rehearsal]]
weights = "other.npy"
features = "other-x.npy"
labels = "other-y.npy"
surrogate_features = "public-x.npy"
surrogate_labels = "public-y.npy"
"""
RECORDS = {
    "public__surrogate": '"records"',
    "public__surrogate_features": '"other-x.npy"',
    "public__surrogate_labels": '"other-y.npy"',
    "public__image_shape": None,
}


@pytest.fixture
def two_domains(folder):
    """Public records of another domain, and a model of it."""
    chance = np.random.default_rng(5)
    X = chance.uniform(size=(150, 16)).astype(np.float32)
    np.save(folder / "other-x.npy", X)
    np.save(folder / "other-y.npy", np.argmax(X[:, :3] + X[:, 5:8], axis=1))
    np.save(folder / "other.npy", np.load(folder / "weights.npy") / 2)
    return folder


def test_a_plan_may_be_made_on_other_public_records_there_and_back(
    two_domains, small_grid, monkeypatch, capsys
):
    folder, asked, whole = two_domains, [], planning.plan

    def seen(*arguments, **options):
        asked.append(options)
        return whole(*arguments, **options)

    monkeypatch.setattr(planning, "plan", seen)
    path = write(folder, JOB + REHEARSAL, **PLANNED, **RECORDS)
    assert cli.main(["run", str(path)]) == 0
    (there,), (back,) = asked[0]["surrogate"], asked[0]["rehearsals"]
    public, other = (np.load(folder / f"{name}-x.npy") for name in ("public", "other"))
    np.testing.assert_array_equal(there.X, other)
    np.testing.assert_array_equal(back.X_public, other)
    np.testing.assert_array_equal(back.surrogate[0].X, public)
    np.testing.assert_array_equal(back.model.weights * 2, np.load(folder / "weights.npy"))
    plan = json.loads((folder / "out" / "plan.json").read_text())["plan"]
    names = [f"OtherRecords({n} records, keep=None)" for n in (150, 200)]
    assert plan["surrogates"] == names
    certificate = json.loads((folder / "out" / "certificate.json").read_text())
    assert certificate["job"]["rehearsal"][0]["weights"] == "other.npy"
    # Whatever the plan is made of, it belongs to.
    assert cli.main(["run", str(path), "--resume"]) == 0
    for name in ("other-x.npy", "other.npy"):
        array = np.load(folder / name)
        np.save(folder / name, array + np.float32(0.01))
        assert cli.main(["run", str(path), "--resume"]) == ExitCode.BAD_INPUT
        assert "made for another job file" in capsys.readouterr().err
        np.save(folder / name, array)


def test_a_plan_may_be_made_on_rehearsals_alone(two_domains, small_grid):
    folder = two_domains
    only = {
        "public__surrogate": '"rehearsals"',
        "public__labels": None,
        "public__image_shape": None,
    }
    path = write(folder, JOB + REHEARSAL, **PLANNED, **only, public__curvature='"diagonal"')
    assert cli.main(["run", str(path)]) == 0
    # Simulated with curvature of the rehearsal's records alone.
    [move] = open_inputs(load_settings(path)).rehearsals
    made = move.curvature(move.model, 0.1)
    exact = qexp.LayeredCurvature.from_model(
        move.model, np.load(folder / "other-x.npy"), damping=0.1, kinds="diagonal", seed=0
    )
    row = np.arange(len(move.model.weights), dtype=np.float64)[None]
    np.testing.assert_allclose(made.whiten(row), exact.whiten(row))
    plan = json.loads((folder / "out" / "plan.json").read_text())["plan"]
    assert plan["surrogates"] == ["OtherRecords(200 records, keep=None)"]
    without = write(folder, **PLANNED, **only)
    with pytest.raises(SettingsError, match=r'"rehearsals" needs at least one section \[\[rehears'):
        load_settings(without)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (REHEARSAL.replace("[[rehearsal]]", "[rehearsal]"), "rehearsal: needs double brackets"),
        ('[[rehearsal]]\nweights = "w"', "rehearsal[0].features: is missing"),
        (REHEARSAL + "weight = 3", "did you mean rehearsal[0].weights?"),
        ("[[rehearsals]]", "rehearsals: there is no such section; did you mean rehearsal?"),
        (REHEARSAL, 'rehearsal: is for a plan, schedule.rounds = "plan"'),
    ],
)
def test_mistakes_of_rehearsals_are_named(folder, text, message):
    with pytest.raises(SettingsError) as caught:
        load_settings(write(folder, JOB + text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("other.npy", np.zeros(5, np.float32), "rehearsal[0].weights are 5 numbers; the model ne"),
        ("other-x.npy", np.zeros((150, 3)), "the model needs (rows, 16)"),
        ("other-y.npy", np.zeros(7, int), "public.surrogate_features have 150 rows and public.su"),
        ("other.npy", np.zeros(5, int), "rehearsal[0].weights: "),
    ],
)
def test_files_of_a_plan_that_do_not_fit_are_bad_input(two_domains, name, array, message, capsys):
    np.save(two_domains / name, array)
    path = write(two_domains, JOB + REHEARSAL, **PLANNED, **RECORDS)
    assert cli.main(["run", str(path)]) == ExitCode.BAD_INPUT
    assert message in capsys.readouterr().err


def test_a_score_that_the_classes_do_not_have_is_bad_input(folder, small_grid, capsys):
    path = write(folder, **PLANNED, schedule__score='"auroc"')
    assert cli.main(["run", str(path)]) == ExitCode.BAD_INPUT
    assert "score='auroc' is for two classes" in capsys.readouterr().err


# ---------------------------------------------------------------------------- stops, exit codes


def start(path, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "qexp", "run", str(path), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_round(process, number):
    for line in process.stderr:
        found = json.loads(line)
        if found["event"] == "round" and found["round"] >= number:
            return
    raise AssertionError("the job ended too early")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_a_job_stopped_in_the_middle_resumes_to_the_same_bits(folder, number):
    path = write(folder, schedule__rounds="80")
    process = start(path)
    wait_for_round(process, 3)
    process.send_signal(number)
    rest = process.communicate(timeout=60)[1]
    ledger = read_ledger(folder / "ledger.jsonl")
    done = len(ledger.entries)
    assert 3 <= done < 80
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert len(ledger.open_reservations) <= 1
    else:
        assert process.returncode == ExitCode.INTERRUPTED
        last = json.loads(rest.splitlines()[-1])
        assert (last["event"], last["rounds_done"]) == ("stopped", done)
        assert last["reason"] == signal.Signals(number).name
        assert ledger.open_reservations == ()
    assert not set(outputs(folder / "out")) & {"weights.npz", "certificate.json", "report.html"}

    assert run_job(load_settings(path), resume=True) == 0
    release = qexp.PrivateRelease.load(folder / "out" / "weights.npz")
    assert np.array_equal(release.weights, expected(folder, 80).weights)
    ledger = read_ledger(folder / "ledger.jsonl")
    assert ledger.mu_spent == release.mu
    assert len({entry.label for entry in ledger.entries}) == len(ledger.entries) == 80
    assert ledger.open_reservations == ()


def test_jobs_racing_on_one_ledger_never_overspend(folder):
    path = write(folder, schedule__rounds="40")
    processes = [start(path, "--output", str(folder / name)) for name in ("a", "b")]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    ledger = read_ledger(folder / "ledger.jsonl")
    assert ledger.mu_spent <= ledger.mu_budget
    codes = [process.returncode for process in processes]
    assert set(codes) <= {ExitCode.DONE, ExitCode.BUDGET_EXCEEDED}, errors
    assert ExitCode.BUDGET_EXCEEDED in codes
    # A job that came when the other was done had no room for a round, and released nothing.
    paths = [folder / name / "weights.npz" for name in ("a", "b")]
    assert all(paths[i].exists() for i, code in enumerate(codes) if code == ExitCode.DONE), errors
    releases = [qexp.PrivateRelease.load(path) for path in paths if path.exists()]
    paid = [len(release.certificate()["rounds"]) for release in releases]
    assert sum(paid) == len(ledger.entries) > 0
    assert ledger.open_reservations == ()


def test_without_room_for_one_round_nothing_is_written(folder, capsys):
    SharedLedger(folder / "ledger.jsonl").charge(MU)
    assert cli.main(["run", str(write(folder))]) == ExitCode.BUDGET_EXCEEDED
    assert "does not fit" in capsys.readouterr().err
    assert outputs(folder / "out") == ["checkpoint.npz"]


def test_a_job_that_diverges_says_so(folder, capsys):
    path = write(folder, schedule__step_size="1e40")
    assert cli.main(["run", str(path)]) == ExitCode.DIVERGED
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["stopped_because"] == "diverged"
    assert outputs(folder / "out") == ALL


def test_damaged_files_have_an_exit_code_of_their_own(folder, capsys):
    path = write(folder)
    run_job(load_settings(path))
    (folder / "out" / "checkpoint.npz").write_bytes(b"PK damaged")
    assert cli.main(["run", str(path), "--resume"]) == ExitCode.DAMAGED
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"mu"', b'"nu"', 1))
    shutil.rmtree(folder / "out")
    assert cli.main(["run", str(path)]) == ExitCode.DAMAGED
    assert "damaged or was edited" in capsys.readouterr().err.splitlines()[-1]


def test_a_busy_checkpoint_has_an_exit_code_of_its_own(folder, capsys):
    from qexp.finetune._checkpoint import locked

    path = write(folder)
    (folder / "out").mkdir()
    with locked(folder / "out" / "checkpoint.npz"):
        assert cli.main(["run", str(path)]) == ExitCode.BUSY
    assert "another fine-tuning" in capsys.readouterr().err


def test_a_full_disk_stops_the_job_which_resumes(folder):
    """A limit on the file size makes real writes fail half way, as a full disk does."""
    path = write(folder, schedule__rounds="60")
    code = (
        "import resource, sys\n"
        "from qexp import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))\n"
        "sys.exit(cli.main(['run', sys.argv[1]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == ExitCode.DISK, done.stderr
    assert "free some space" in done.stderr.splitlines()[-1]
    assert not set(outputs(folder / "out")) & {"weights.npz", "certificate.json", "report.html"}
    assert run_job(load_settings(path), resume=True) == 0
    assert np.array_equal(weights(folder / "out"), expected(folder, 60).weights)
    assert read_ledger(folder / "ledger.jsonl").mu_spent == expected(folder, 60).mu


@pytest.mark.parametrize("place", ["weights.npz", "certificate.json", "report.html"])
def test_outputs_are_whole_or_not_there(folder, place, monkeypatch):
    loaded = job(folder)

    def unless_full(write_file):
        def write(path, what):
            if str(path).endswith(place):
                raise OSError(28, "No space left on device")
            return write_file(path, what)

        return write

    for module, name in (
        ("qexp.job.run", "atomic_write_bytes"),
        ("qexp.job.report", "atomic_write_bytes"),
        ("qexp.release", "atomic_write"),
    ):
        write_file = getattr(importlib.import_module(module), name)
        monkeypatch.setattr(f"{module}.{name}", unless_full(write_file))
    with pytest.raises(OSError, match="No space") as caught:
        run_job(loaded)
    assert exit_code(caught.value) == ExitCode.DISK
    assert place not in outputs(folder / "out")
    assert not list((folder / "out").glob(".qexp*"))
    monkeypatch.undo()
    assert run_job(loaded, resume=True) == 0
    assert len(read_ledger(folder / "ledger.jsonl").entries) == 4


def test_the_wall_time_stops_before_a_round_that_would_not_finish(folder, monkeypatch, capfd):
    clock = iter(np.arange(0.0, 1e6, 10.0).tolist())
    monkeypatch.setattr(signals, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    loaded = job(folder, run__wall_time="35")
    assert run_job(loaded) == ExitCode.INTERRUPTED
    assert "stopped by wall time after 2 round(s)" in capfd.readouterr().err
    monkeypatch.undo()
    assert run_job(job(folder), resume=True) == 0
    assert np.array_equal(weights(folder / "out"), expected(folder).weights)


def test_no_round_is_drawn_when_the_wall_time_is_over(folder, monkeypatch, capfd):
    clock = iter(np.arange(0.0, 1e6, 10.0).tolist())
    monkeypatch.setattr(signals, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    assert run_job(job(folder, run__wall_time="5")) == ExitCode.INTERRUPTED
    assert "stopped by wall time after 0 round(s)" in capfd.readouterr().err
    assert read_ledger(folder / "ledger.jsonl").entries == ()
    monkeypatch.undo()
    assert run_job(job(folder), resume=True) == 0


def test_what_a_job_writes_is_json_for_every_parser(folder, capfd):
    def strictly(text):
        return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))

    assert run_job(job(folder, schedule__step_size="1e300")) == ExitCode.DIVERGED
    lines = [strictly(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["step_norm"] for line in lines if line["event"] == "round"] == [None]
    document = strictly((folder / "out" / "certificate.json").read_text())
    assert document["certificate"]["rounds"][0]["step_norm"] is None


def stopper(**changes):
    return Stopper(**{"grace": 60.0, "wall_time": None, "follower": False, **changes})


def test_a_signal_before_the_rounds_ends_the_job_at_once():
    def wait():
        with stopper():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt) as caught:
        wait()
    assert not isinstance(caught.value, StopBetweenRounds)


def test_a_signal_during_a_round_waits_for_its_end_but_no_longer_than_the_grace():
    def interrupt(stop, seconds):
        with stop:
            stop.begin_rounds()
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(seconds)
            stop.between_rounds(is_last=False)

    first = stopper()
    with pytest.raises(StopBetweenRounds):
        interrupt(first, 0)
    assert first.reason == "SIGUSR1"
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupt(stopper(grace=0.05), 5)
    assert not isinstance(caught.value, StopBetweenRounds)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_an_impatient_second_signal_ends_the_round(monkeypatch):
    with stopper() as stop:
        stop.begin_rounds()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # an echo of the first
        monkeypatch.setattr(signals, "_ECHO_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_after_the_last_round_and_on_other_ranks_change_nothing():
    for stop in (stopper(), stopper(follower=True)):
        with stop:
            stop.begin_rounds()
            if stop._follower is False:
                stop.between_rounds(is_last=True)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                os.kill(os.getpid(), number)
            stop.end_rounds()
        assert stop.reason is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stop_before_the_first_round_costs_nothing(folder, monkeypatch):
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(run_module, "open_inputs", stop)
    assert run_job(job(folder)) == ExitCode.INTERRUPTED
    assert read_ledger(folder / "ledger.jsonl").lines == 1


# ------------------------------------------------------------------------------------ subspaces


SUBSPACE = JOB + '[projection]\nkind = "subspace"\nn_components = 12\n'


def test_a_job_in_a_public_subspace_gives_the_bits_of_the_library(folder, capfd):
    path = write(folder, SUBSPACE)
    assert cli.main(["run", str(path)]) == 0
    assert outputs(folder / "out") == sorted([*ALL, "subspace.npz"])
    public = [np.load(folder / f"public-{name}.npy") for name in ("x", "y")]
    model = qexp.models.MultilayerPerceptron((16, 6, 3), np.load(folder / "weights.npy"))
    moves = image_moves(model, *public, image_shape=(4, 4))
    subspace = learn_directions(model, *public, moves=moves).subspace(12)
    kept = PublicSubspace.load(folder / "out" / "subspace.npz")
    assert kept.describe() == subspace.describe()
    release = qexp.fine_tune(
        model,
        *(np.concatenate([np.load(folder / f"{name}-{i}.npy") for i in (1, 2)]) for name in "xy"),
        schedule=load_settings(path).schedule.fixed(),
        curvature=qexp.IdentityCurvature(12),
        projection=subspace,
        target_epsilon=2.0,
        target_delta=1e-5,
        rng=insecure_test_generator(5),
    ).release
    assert np.array_equal(weights(folder / "out"), release.weights)
    document = json.loads((folder / "out" / "certificate.json").read_text())
    assert document["sizes"]["n_components"] == 12
    projection = document["certificate"]["public_inputs"]["projection"]
    assert projection == json.loads(json.dumps(subspace.describe()))
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines][:3] == ["start", "learning", "learnt"]


def test_a_resumed_job_goes_on_in_the_subspace_that_it_kept(folder, monkeypatch, capsys):
    path = write(folder, SUBSPACE)
    with monkeypatch.context() as stop:
        stop.setattr(Stopper, "between_rounds", interrupted)
        assert cli.main(["run", str(path)]) == ExitCode.INTERRUPTED
    with monkeypatch.context() as once:
        once.setattr(job_subspace, "learn_directions", None)
        changed = write(folder, SUBSPACE.replace("= 12", "= 11"))
        assert cli.main(["run", str(changed), "--resume"]) == ExitCode.BAD_INPUT
        assert "was learnt from another model" in capsys.readouterr().err
        assert cli.main(["run", str(write(folder, SUBSPACE)), "--resume"]) == 0
    whole = folder / "out" / "subspace.npz"
    whole.write_bytes(whole.read_bytes()[:-200])
    assert cli.main(["run", str(path), "--resume"]) == ExitCode.DAMAGED
    whole.unlink()  # learnt anew it is the same one, on the same machine
    assert cli.main(["run", str(path), "--resume"]) == 0


def interrupted(stopper, *, is_last):
    raise KeyboardInterrupt


def test_a_plan_may_choose_a_public_subspace(folder, small_grid, monkeypatch, capsys):
    schedules = [qexp.Schedule(rounds=3, clipping_norm=3.0, step_size=0.5, damping=0.01)]
    monkeypatch.setattr(_planner, "subspace_schedules", lambda rounds=None: schedules)
    monkeypatch.setattr(_planner, "candidate_schedules", lambda rounds=None: [HOPELESS])
    path = write(folder, **PLANNED, schedule__subspaces="[5, 12]", run__block_size=50)
    assert cli.main(["run", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert cli.main(["run", str(path)]) == 0
    plan = json.loads((folder / "out" / "plan.json").read_text())["plan"]
    assert plan["in_subspace"]
    k = plan["n_components"]
    assert k in (5, 12)
    assert f"kronecker in a public subspace of {k} directions" in said
    assert f"planned 3 round(s) in a public subspace of {k} directions" in capsys.readouterr().err
    assert PublicSubspace.load(folder / "out" / "subspace.npz").n_components == k
    assert "public_subspace" in (folder / "out" / "report.html").read_text()
    found = weights(folder / "out")
    assert cli.main(["run", str(path), "--resume"]) == 0
    assert np.array_equal(weights(folder / "out"), found)


HOPELESS = qexp.Schedule(rounds=1, clipping_norm=1e-3, step_size=1e-6, damping=1e3)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (SUBSPACE, {"public__curvature": '"dense"'}, "projection.kind: a subspace is whitened by"),
        (SUBSPACE, {"public__labels": None}, "learnt from public.features and public.labels"),
        (
            SUBSPACE,
            {"public__surrogate": '"tabular"', "public__image_shape": None},
            "projection.kind: a subspace is learnt from moves of images",
        ),
        (SUBSPACE, {"projection__n_components": None}, "n_components: is missing beside proj"),
        (SUBSPACE, {"projection__kind": '"none"'}, "n_components: is there beside proj"),
        (SUBSPACE, {"schedule__curvature_share": "0.1"}, "schedule.curvature_share: a subspace"),
        (JOB, {"schedule__subspaces": "[5]"}, "schedule.subspaces: are for a plan"),
        (JOB, {"schedule__subspaces": "[0]"}, "it needs a list of integers of at least 1"),
        (SUBSPACE, PLANNED, "with schedule.subspaces for a plan to choose from"),
        (
            JOB,
            {**PLANNED, "schedule__subspaces": "[5]", "public__curvature": '"diagonal"'},
            "schedule.subspaces: a subspace is whitened by kronecker curvature",
        ),
    ],
)
def test_what_does_not_go_with_a_subspace_is_a_mistake(folder, text, changes, message):
    with pytest.raises(SettingsError) as caught:
        load_settings(write(folder, text, **changes))
    assert message in str(caught.value)


def test_a_subspace_of_more_directions_than_weights_is_bad_input(folder, capsys):
    path = write(folder, SUBSPACE, projection__n_components="124")
    assert cli.main(["run", str(path)]) == ExitCode.BAD_INPUT
    assert "projection.n_components is 124, the model has 123 weights" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- ranks


class SilentRank(SingleProcess):
    """What a rank that is not the root sees: the root's words one by one, then its error."""

    rank = 1
    size = 2

    def __init__(self, *words):
        super().__init__()
        self.words = list(words)

    def broadcast_object(self, value):
        if not self.words:
            raise OSError("the root's disk is full")
        return self.words.pop(0)


def test_other_ranks_are_silent(folder, capfd):
    settings = job(folder)
    inputs = open_inputs(settings)
    schedule = settings.schedule.fixed()
    curvature = inputs.make_curvature(inputs.model, schedule.damping)
    no_subspace, first_round = None, (1, None)
    rank = SilentRank(schedule, no_subspace, curvature, first_round)
    with pytest.raises(OSError, match="the root's disk is full"):
        run_job(settings, ranks=rank)
    assert rank.words == []
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert not (folder / "out").exists()


@needs_mpi
def test_two_ranks_give_the_bits_of_one_and_speak_with_one_voice(folder):
    command = [mpiexec(), "-n", "2", sys.executable, "-m", "qexp", "run", str(write(folder))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == ["start", *["round"] * 4, "finished"]
    assert np.array_equal(weights(folder / "out"), expected(folder).weights)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == ExitCode.BAD_INPUT
    assert again.stderr.count("add --resume") == 1


# --------------------------------------------------------------------------------------- reports


class Page(html.parser.HTMLParser):
    """Collects tags, and sees to it that they are closed in order."""

    EMPTY = ("meta", "link", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def report(folder, small_grid):
    run_job(job(folder, **PLANNED))
    return folder / "out" / "report.html"


def test_the_report_is_self_contained_and_accessible(report):
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?://|//|url\(|@import|<script|<link|<img", text)
    names = [tag for tag, _ in page.tags]
    assert names.count("h1") == 1
    assert names.count("h2") >= 5
    assert dict(page.tags)["html"] == {"lang": "en"}
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 4
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for chart in charts:
        assert chart["role"] == "img"
        assert set(chart["aria-labelledby"].split()) <= ids
    assert names.count("title") == 1 + len(charts)
    assert names.count("desc") == len(charts)
    assert names.count("caption") == names.count("table")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    words = " ".join(page.words)
    release = qexp.PrivateRelease.load(report.with_name("weights.npz"))
    for part in (release.statement, release.certificate()["weights"], "μ so far", "numpy"):
        assert part in words


def test_charts_leave_out_what_is_not_finite():
    texts = {"name": "n", "title": "<t>", "description": "d", "x_label": "x", "y_label": "y"}
    for x, y in (([], []), ([1.0], [2.0]), ([1, 2, 3], [1.0, float("nan"), 1e300])):
        chart = line_chart([float(v) for v in x], y, **texts)
        Page(chart)
        assert "nan" not in chart
        assert "&lt;t&gt;" in chart


@pytest.mark.browser
def test_the_report_opens_in_a_browser(browse, report, tmp_path):
    page, size = report.as_uri(), "--window-size=1000,2400"
    assert "Round by round" in browse(page, size, "--dump-dom")
    browse(page, size, f"--screenshot={tmp_path / 'shot.png'}")
    from matplotlib.image import imread

    pixels = imread(tmp_path / "shot.png")[..., :3]
    assert pixels[5, 5].min() > 0.99
    # The lines of the charts have a colour; text and grids are grey.
    saturation = pixels.max(axis=2) - pixels.min(axis=2)
    assert np.count_nonzero(saturation > 0.3) > 500
