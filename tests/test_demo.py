import errno
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qexp
from qexp import cli
from qexp.bits import insecure_test_generator
from qexp.demo import _run, digits, run_demo
from qexp.demo._plot import accuracy_figure
from qexp.demo._task import area_under_curve, draw
from qexp.models import softmax_regression


def check_png(path: Path) -> tuple[int, int]:
    """Check the signature and every chunk's checksum; give the size in pixels."""
    raw = path.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    place, names, size = 8, [], (0, 0)
    while place < len(raw):
        length, name = struct.unpack(">I4s", raw[place : place + 8])
        body = raw[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", raw[place + 8 + length : place + 12 + length])
        assert zlib.crc32(name + body) == checksum
        if name == b"IHDR":
            size = struct.unpack(">II", body[:8])
        names.append(name)
        place += 12 + length
    assert names[-1] == b"IEND"
    return size


def test_the_digits_demonstration_end_to_end(tmp_path: Path, capsys):
    out = tmp_path / "out"
    result = run_demo("digits", folder=out)
    printed = " ".join(capsys.readouterr().out.split())

    assert {path.name for path in out.iterdir()} == {
        "release.npz",
        "certificate.json",
        "accuracy-epsilon.png",
    }
    assert min(check_png(out / "accuracy-epsilon.png")) >= 600
    release = qexp.PrivateRelease.load(out / "release.npz")
    assert np.array_equal(release.weights, result.release.weights)
    assert release.generator_is_secure
    assert (release.epsilon, release.delta) == (1.0, 1e-5)
    assert release.n_records == digits.N_PRIVATE
    assert release.mu <= qexp.calibrate_mu(1.0, 1e-5)
    assert json.loads((out / "certificate.json").read_text()) == release.certificate()

    # 100 draws gained 19.9 points, with a standard deviation of 1.2 and a least gain of 15.8.
    assert result.before + 0.08 < result.private < result.ordinary
    task = digits.digits_task(0)
    assert task.value(task.model.with_weights(release.weights)) == result.private

    assert " ".join(release.statement.split()) in printed
    assert "not private, for comparison" in printed
    assert "chosen by their score on other shifts of the public digits" in printed
    assert f"{100 * result.private:.1f} %" in printed

    curve = result.curve
    assert curve is not None
    mus = [release.mu]
    for epsilon, values in zip(curve.epsilons, curve.values, strict=True):
        mus += [qexp.calibrate_mu(epsilon, 1e-5)] * len(values)
    assert curve.n_releases == len(mus) == 31
    assert curve.epsilon_together == pytest.approx(
        qexp.epsilon(1e-5, qexp.compose_mu(mus)), rel=1e-6
    )
    assert curve.warning in printed
    assert "publish one point" in curve.warning


def test_the_command_runs_it_without_a_plot(tmp_path: Path, capsys):
    out = tmp_path / "out"
    arguments = ["demo", "--epsilon", "2", "--delta", "1e-6", "--seed", "1", "--no-plot"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"release.npz", "certificate.json"}
    release = qexp.PrivateRelease.load(out / "release.npz")
    assert (release.epsilon, release.delta) == (2.0, 1e-6)
    assert "31 releases" not in capsys.readouterr().out
    # Once more into the same folder: the files are replaced, and the noise is new.
    assert cli.main([*arguments, "--out", str(out)]) == 0
    again = qexp.PrivateRelease.load(out / "release.npz")
    assert not np.array_equal(again.weights, release.weights)


def test_the_split_keeps_public_private_and_test_apart():
    public, private, test = digits.split(1797, seed=3)
    assert (len(public), len(private)) == (digits.N_PUBLIC, digits.N_PRIVATE)
    assert len(set(public) | set(private) | set(test)) == 1797


def test_a_ledger_refuses_a_second_release():
    task = digits.digits_task(0)
    ledger = qexp.PrivacyLedger(target_epsilon=1.0, target_delta=1e-5)
    draw(task, 1.0, 1e-5, ledger=ledger, rng=insecure_test_generator(0))
    with pytest.raises(qexp.BudgetExceededError):
        draw(task, 1.0, 1e-5, ledger=ledger, rng=insecure_test_generator(1))


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
        lambda pairs: len({label for _, label in pairs}) == 2
    )
)
def test_area_under_curve_counts_pairs(pairs):
    x = np.array([[value] for value, _ in pairs], dtype=np.float64)
    y = np.array([label for _, label in pairs], dtype=np.int64)
    model = softmax_regression(1, 2).with_weights([0.0, 0.0, 1.0, 0.0])
    wins = [np.sign(a - b) / 2 + 0.5 for a in x[y == 1, 0] for b in x[y == 0, 0]]
    assert area_under_curve(model, x, y) == pytest.approx(np.mean(wins), abs=1e-12)


# --- What can go wrong -----------------------------------------------------------------------


def _never(*_: object) -> None:
    raise AssertionError("the work has started")


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(_run, "_task", _never)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("module", "title"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")]
)
def test_a_missing_extra_is_named_before_the_work(module, title, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / "out"
    assert cli.main(["demo", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert title in error
    assert 'pip install "qexp[demo]"' in error
    # Which helps where the plot alone asks for what is missing.
    assert ("leave out the plot" in error) == (module == "matplotlib")
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.usefixtures("no_work")
def test_a_file_in_the_place_of_the_folder(tmp_path: Path, capsys):
    (tmp_path / "out").write_text("mine")
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert "is a file; give a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_an_unwritable_folder_is_noticed_before_the_work(
    number, tmp_path: Path, monkeypatch, capsys
):
    true_open = os.open

    def failing(path, flags, *rest, **options):
        if flags & os.O_CREAT and str(path).startswith(str(tmp_path)):
            raise OSError(number, os.strerror(number), str(path))
        return true_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", failing)
    assert cli.main(["demo", "--out", str(tmp_path / "a" / "b")]) == 1
    error = capsys.readouterr().err
    assert os.strerror(number) in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_work")
def test_a_folder_that_cannot_be_made(capsys):
    assert cli.main(["demo", "--out", "/proc/qexp-demo"]) == 1
    assert "cannot make the folder /proc/qexp-demo" in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_keeps_the_release(tmp_path: Path, monkeypatch, capsys):
    def full(path, content, write=_run.atomic_write_bytes):
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, f"could not write {path}: no space left")
        write(path, content)

    monkeypatch.setattr(_run, "atomic_write_bytes", full)
    monkeypatch.setitem(_run._DRAWS, "digits", 1)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert "no space left" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"release.npz", "certificate.json"}
    qexp.PrivateRelease.load(tmp_path / "release.npz")


def test_a_release_that_gained_nothing_is_called_so():
    task = digits.digits_task(0)
    release = draw(task, 1.0, 1e-5, rng=insecure_test_generator(0))
    assert any("no better" in text for text in _run._report(task, release, 0.5, 0.5, 0.9))
    assert not any("no better" in text for text in _run._report(task, release, 0.5, 0.6, 0.9))


@pytest.mark.parametrize("data", ["mnist-usps", "icu"])
def test_data_that_are_not_there(data, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.delenv("QEXP_DATA", raising=False)
    out = tmp_path / "out"
    assert cli.main(["demo", "--data", data, "--out", str(out)]) == 1
    assert "QEXP_DATA is not set" in capsys.readouterr().err
    assert not out.exists()


def test_bad_arguments_of_run_demo(tmp_path: Path):
    with pytest.raises(ValueError, match="data is 'cifar'"):
        run_demo("cifar", folder=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target_epsilon"):
        run_demo(epsilon=0.0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- The figure and the other data -----------------------------------------------------------


def test_the_figure_shows_each_draw_and_the_caption():
    figure = accuracy_figure(
        [0.5, 1.0],
        [[50.0, 52.0], [60.0, 62.0]],
        release=(1.0, 61.0),
        before=40.0,
        ordinary=90.0,
        delta=1e-5,
        measure="test accuracy (%)",
        title="a title",
        caption="what it costs together",
    )
    (axes,) = figure.axes
    draws, means, kept = axes.get_lines()[:3]
    assert draws.get_ydata().tolist() == [50.0, 52.0, 60.0, 62.0]
    assert means.get_ydata().tolist() == [51.0, 61.0]
    assert (kept.get_xdata(), kept.get_ydata()) == ([1.0], [61.0])
    assert [text.get_text() for text in figure.texts] == ["A title", "what it costs together"]
    assert axes.get_ylabel() == "test accuracy (%)"
    assert "ε" in axes.get_xlabel()
    low, high = axes.get_ylim()
    assert low < 40.0
    assert high > 90.0


@pytest.mark.data
def test_mnist_to_usps_gains_in_one_round():
    from qexp.demo.mnist_usps import mnist_usps_task

    task = mnist_usps_task(0)
    release = draw(task, 1.0, 1e-5, rng=insecure_test_generator(0))
    gain = task.value(task.model.with_weights(release.weights)) - task.value(task.model)
    assert (release.n_records, len(task.private.y_test)) == (7291, 2007)
    assert gain > 0.02


@pytest.mark.data
def test_the_intensive_care_task_keeps_units_apart():
    from qexp.demo.icu import N_DIRECTIONS, icu_task

    task = icu_task(0)
    # Coronary care and cardiac surgery: 577 + 874 stays in set a.
    assert len(task.private.y_train) == 1451
    assert task.curvature.n_components == N_DIRECTIONS
    assert 0.8 < task.value(task.model) < task.value(task.ordinary(task.model, task.private))
    release = draw(task, 1.0, 1e-5, rng=insecure_test_generator(0))
    assert task.value(task.model.with_weights(release.weights)) > 0.75
