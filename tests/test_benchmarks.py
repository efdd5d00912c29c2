"""The benchmarks run, their comparison tells builds apart, and the dashboard draws."""

import functools
import http.server
import importlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import run_python

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="a package without its benchmarks")


def _load_package():
    spec = importlib.util.spec_from_file_location(
        "qexp_benchmarks", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["qexp_benchmarks"] = package
    spec.loader.exec_module(package)
    return package


def _module(name):
    if "qexp_benchmarks" not in sys.modules:
        _load_package()
    return importlib.import_module(f"qexp_benchmarks.{name}")


common = _module("common")
BENCHMARKS = {name: rest for name, *rest in common.benchmarks()}


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(common, "ROUNDS", 1)
    monkeypatch.setattr(common, "LEAST_SAMPLE", 0.0)
    gemm_limits = common.gemm_limits
    monkeypatch.setattr(common, "gemm_limits", lambda dtype: gemm_limits(dtype, 64))


def test_every_kernel_has_a_suite():
    topics = {name.split(".")[0] for name in BENCHMARKS}
    assert topics == {
        "calibration",
        "cholesky",
        "exact_normal",
        "fine_tuning",
        "fwht",
        "gram",
        "kron_sketch",
        "lattice_sum",
        "limits",
        "row_gemm",
        "srht",
        "subspace",
        "triangular",
        "whole_draw",
    }


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_runs_at_its_smallest(name):
    cls, method, combinations = BENCHMARKS[name]
    params = combinations[0]
    benchmark = cls()
    benchmark.setup(*params)
    try:
        value = getattr(benchmark, method)(*params)
    finally:
        getattr(benchmark, "teardown", lambda *_: None)(*params)
    if method.startswith("track_"):
        assert math.isfinite(value)
        assert value > 0
        assert getattr(cls, method).unit
    else:
        assert value is None


def test_threads_are_given_back():
    before = common._core.get_num_threads()
    threads = common.Threads(before + 1)
    assert common._core.get_num_threads() == before + 1
    threads.restore()
    assert common._core.get_num_threads() == before


def test_a_name_that_is_missing_skips():
    with pytest.raises(NotImplementedError, match="no teleport"):
        common.need("teleport")


def test_fraction_of_a_limit(monkeypatch):
    # A clock that counts calls: the kernel takes four of them, the limits two and one.
    now = 0

    def advance(by):
        nonlocal now
        now += by

    monkeypatch.setattr(common, "clock", lambda threads: lambda: now)
    monkeypatch.setattr(common, "repeats", lambda call: 1)
    limits = {"slow": (lambda: advance(2), 10.0), "fast": (lambda: advance(1), 10.0)}
    assert common.fraction(lambda: advance(4), 20.0, limits, threads=1) == 0.5


def test_calibration_is_tight():
    calibration = _module("calibration")
    for params in [(0.1, 1e-5), (8.0, 1e-9)]:
        benchmark = calibration.Tightness()
        benchmark.setup(*params)
        excess = benchmark.track_sigma_over_exact(*params) - 1
        # Never below the exact noise, but for the reference's own rounding.
        assert -1e-12 < excess < 1e-6


def test_sampler_fits():
    fit = _module("exact_normal").Fit()
    fit.setup(2**15)
    assert fit.track_kolmogorov_smirnov_p(2**15) > 1e-6
    assert fit.track_chi_square_p(2**15) > 1e-6


def test_fit_notices_a_wrong_sampler():
    fit = _module("exact_normal").Fit()
    fit.normals = np.random.default_rng(0).standard_normal(2**15) * 1.1
    assert fit.track_kolmogorov_smirnov_p(2**15) < 1e-6
    assert fit.track_chi_square_p(2**15) < 1e-6


def _compare(*arguments):
    return subprocess.run(
        [sys.executable, str(FOLDER / "tools" / "compare.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "script", ["peers/run.py", "tools/growth.py", "tools/compare.py", "tools/offline.py"]
)
def test_scripts_tell_how_to_use_them(script):
    result = subprocess.run(
        [sys.executable, str(FOLDER / script), "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def test_every_suite_is_found_with_any_version_of_qexp():
    """asv imports them beside old ones; what is lacking there is said when a suite is set up."""
    program = f"""
import sys, types

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("qexp."):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Lacking())
sys.modules["qexp"] = types.ModuleType("qexp")
sys.path.insert(0, {str(ROOT)!r})
from benchmarks import common
print(len(list(common.benchmarks())))
"""
    assert int(run_python(program)) == len(BENCHMARKS)


def test_asv_accepts_every_suite(tmp_path):
    """What asv finds it can call; that all of it runs is tested above, without asv."""
    if importlib.util.find_spec("asv") is None:
        pytest.skip("asv is not installed (`pip install qexp[bench]`)")
    if shutil.which("git") is None:
        pytest.skip("asv needs git, which is not installed")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    config = json.loads((ROOT / "asv.conf.json").read_text())
    config |= {name: str(tmp_path / name) for name in ("env_dir", "results_dir", "html_dir")}
    config |= {"repo": str(tmp_path), "benchmark_dir": str(FOLDER)}
    (tmp_path / "asv.conf.json").write_text(json.dumps(config))
    for command in (
        ["machine", "--yes", "--machine", "test"],
        ["check", "-E", f"existing:{sys.executable}"],
    ):
        result = subprocess.run(
            [sys.executable, "-m", "asv", *command],
            cwd=tmp_path,
            env=os.environ | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_compare_prints_bands(tmp_path):
    table = tmp_path / "ratios.json"
    result = _compare(
        sys.executable, sys.executable, "--bench", r"fwht.*10, 'float32'", "--rounds", 3,
        "--json", table,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "fwht.FWHT.time_kernel(10, float32, 1)" in result.stdout
    ratios = json.loads(table.read_text())["fwht.FWHT.time_kernel(10, float32, 1)"]
    assert len(ratios) == 3
    assert min(ratios) > 0


def test_compare_fails_above_a_limit():
    result = _compare(
        sys.executable, sys.executable, "--bench", r"fwht.*10, 'float32'", "--rounds", 1,
        "--fail-above", 1e-9,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "slower" in result.stdout


def test_compare_without_a_match():
    result = _compare(sys.executable, sys.executable, "--bench", "teleport")
    assert result.returncode == 2
    assert "no benchmark matches" in result.stderr


def test_offline_names_what_is_missing(tmp_path):
    (tmp_path / "index.html").write_text('<script src="https://a.example/b/jquery-3.3.1.min.js">')
    with pytest.raises(FileNotFoundError, match=r"jquery-3\.3\.1\.min\.js"):
        _module("tools.offline").localise(tmp_path, tmp_path / "empty")


def test_growth_fits_the_slope_of_large_sizes():
    sizes = [2**i for i in range(10)]
    fitted = _module("tools.growth").fitted
    assert fitted(sizes, [1e-9 * (size + 20) ** 2 for size in sizes]) < 2
    assert fitted(sizes, [size**1.5 for size in sizes]) == pytest.approx(1.5)


# --------------------------------------------------------------------------------- dashboard


@pytest.fixture
def dashboard(tmp_path):
    """Run two benchmarks at two commits of a small repository, publish, serve on loopback."""
    if importlib.util.find_spec("asv") is None:
        pytest.skip("asv is not installed (`pip install qexp[bench]`)")
    if shutil.which("git") is None:
        pytest.skip("asv needs git, which is not installed")
    repository = tmp_path / "repository"
    repository.mkdir()
    environment = os.environ | {"HOME": str(tmp_path), "GIT_CONFIG_GLOBAL": os.devnull}

    def run(*command):
        result = subprocess.run(
            list(map(str, command)),
            cwd=repository,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    run("git", "init", "-q", "-b", "main")
    commits = []
    for day in (1, 2):
        environment |= {f"GIT_{who}_DATE": f"2026-01-0{day}T12:00:00" for who in
                        ("AUTHOR", "COMMITTER")}  # fmt: skip
        run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty",
            "-m", f"day {day}")  # fmt: skip
        commits.append(run("git", "rev-parse", "HEAD"))
    config = json.loads((ROOT / "asv.conf.json").read_text())
    config |= {name: str(tmp_path / name) for name in ("env_dir", "results_dir", "html_dir")}
    config |= {"repo": str(repository), "benchmark_dir": str(FOLDER)}
    (repository / "asv.conf.json").write_text(json.dumps(config))
    asv = (sys.executable, "-m", "asv")
    run(*asv, "machine", "--yes", "--machine", "test")
    for commit in commits:
        run(*asv, "run", "--machine", "test", "-E", f"existing:{sys.executable}", "--quick",
            "--set-commit-hash", commit, "--bench", r"fwht.*time.*10")  # fmt: skip
    run(*asv, "publish")
    html = tmp_path / "html_dir"
    scripts = Path(os.environ.get("QEXP_BENCH_SCRIPTS", "/usr/share/javascript"))
    try:
        _module("tools.offline").localise(html, scripts)
    except FileNotFoundError as error:
        pytest.skip(f"the dashboard's scripts are not at hand: {error}")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(html))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.browser
def test_dashboard_draws_its_graphs(browse, dashboard, tmp_path):
    page = f"{dashboard}/#fwht.FWHT.time_kernel"
    how = ("--window-size=1280,900", "--virtual-time-budget=15000")
    body = browse(page, *how, "--dump-dom")
    assert "flot-base" in body
    assert "fwht.FWHT.time_kernel" in body

    from matplotlib.image import imread

    shot = Path(os.environ.get("QEXP_BENCH_SCREENSHOT", tmp_path / "dashboard.png"))
    browse(page, *how, f"--screenshot={shot}")
    pixels = imread(shot)[..., :3]
    plot = pixels[200:850, 350:1250]
    # Lines and points of a graph have colours; text, axes and grids are grey.
    saturation = plot.max(axis=2) - plot.min(axis=2)
    assert np.count_nonzero(saturation > 0.3) > 200
