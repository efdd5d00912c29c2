"""The package as a whole: what it offers, what it drags in, and how much memory a draw takes."""

import ast
import importlib.metadata
import inspect
import json
import subprocess
import sys
import types
from importlib.resources import files

import numpy as np
import pytest

import qexp
from qexp import _core


def run(script, *arguments):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_all_versions_agree():
    assert qexp.__version__ == _core.__version__ == importlib.metadata.version("qexp")


# -------------------------------------------------------------------------------- what it offers


def test_the_types_are_installed():
    installed = files("qexp")
    assert (installed / "py.typed").is_file()
    for module in ("_core", "_scipy_blas"):
        assert (installed / f"{module}.pyi").is_file()


def public_names(module):
    return {name for name in vars(module) if not name.startswith("_")}


def test_the_stub_names_what_the_compiled_module_has():
    tree = ast.parse((files("qexp") / "_core.pyi").read_text(encoding="utf-8"))
    stub = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            stub[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            stub[node.target.id] = node
    named = {name for name in stub if not name.startswith("_")} | {"__version__"} & stub.keys()
    assert named == public_names(_core) | {"__version__"}
    for name, node in stub.items():
        if isinstance(node, ast.ClassDef) and not name.startswith("_"):
            members = {
                member.name
                for member in node.body
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
            }
            assert members == {m for m in vars(getattr(_core, name)) if not m.startswith("_")}


def test_the_public_names_are_sorted_and_complete():
    def order(name):  # constants, classes, the rest
        return (not name.isupper()) + (not name[0].isupper()), name

    assert list(qexp.__all__) == sorted(qexp.__all__, key=order)
    assert len(set(qexp.__all__)) == len(qexp.__all__)
    attributes = {
        name for name in public_names(qexp) if not isinstance(vars(qexp)[name], types.ModuleType)
    }
    assert set(qexp.__all__) == attributes | {"__version__", "bits"}


@pytest.mark.parametrize("name", sorted(set(qexp.__all__) - {"__version__"}))
def test_every_public_name_is_documented(name):
    thing = getattr(qexp, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                assert inspect.getdoc(getattr(thing, member)), f"{name}.{member}"


def test_star_import_gives_the_public_names():
    script = "from qexp import *\nprint(sorted(n for n in dir() if n != 'sys'))"
    names = ast.literal_eval(run(script))
    assert set(qexp.__all__) <= set(names)


# ----------------------------------------------------------------------------- what it drags in

HEAVY = ["scipy.linalg", "sklearn", "torch", "matplotlib", "dp_accounting", "h5py", "mpi4py"]


@pytest.mark.parametrize("module", ["qexp", "qexp.models"])
def test_import_leaves_heavy_packages_alone(module):
    script = f"import sys, {module}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    assert run(script) == "[]\n"


OPTIONAL = ["threadpoolctl", "dp_accounting", "sklearn", "matplotlib", "h5py"]

DRAW_WITHOUT_EXTRAS = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None
import numpy as np, qexp
ledger = qexp.PrivacyLedger(mu_budget=1.0)
release = qexp.sample_private_weights(
    np.zeros(3), np.ones((5, 3)), curvature=qexp.DenseCurvature.from_matrix(np.eye(3), damping=0.1),
    target_epsilon=1.0, target_delta=1e-5, clipping_norm=1.0, ledger=ledger)
release.save(sys.argv[1])
print(qexp.PrivateRelease.load(sys.argv[1]).mu == ledger.mu_spent)
qexp.show_config()
"""


def test_a_draw_needs_no_optional_package(tmp_path):
    assert run(DRAW_WITHOUT_EXTRAS, tmp_path / "release.npz").startswith("True\n")


# ----------------------------------------------------------------------------------- memory

N, P, K = 4000, 25_000, 500

# Peak resident memory against what stood in memory after the imports, in MiB. Pages of a mapped
# file count as resident once they are read, though the system may drop them at will; so they are
# dropped here after each block.
DRAW_ON_DISK = f"""
import json, mmap, sys
import numpy as np, qexp
n, p, k = {N}, {P}, {K}

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key + ":"))

mapped = np.memmap(sys.argv[1], np.float32, "r", shape=(n, p))

class Dropping(qexp.ArrayRecords):
    def blocks(self):
        for block in super().blocks():
            yield block
            mapped._mmap.madvise(mmap.MADV_DONTNEED)

records = Dropping(mapped)
before = status("VmRSS")
rows = np.random.default_rng(0).normal(size=(k, k))
release = qexp.sample_private_weights(
    np.zeros(p, np.float32), records,
    curvature=qexp.DenseCurvature.from_rows([rows], n_records=k, damping=0.1),
    projection=qexp.SRHT(p, k, seed=0),
    target_epsilon=1.0, target_delta=1e-5, clipping_norm=1.0)
assert np.isfinite(release.weights).all()
print(json.dumps({{"rise": status("VmHWM") - before}}))
"""


@pytest.fixture(scope="module")
def gradients_on_disk(tmp_path_factory):
    """400 MB of gradients, all but a few in the holes of a sparse file."""
    path = tmp_path_factory.mktemp("memory") / "gradients.bin"
    with open(path, "wb") as file:
        file.write(np.random.default_rng(1).normal(size=P).astype(np.float32).tobytes())
        file.truncate(4 * N * P)
    return path


def test_a_draw_holds_neither_the_gradients_nor_the_projection(gradients_on_disk):
    rise = json.loads(run(DRAW_ON_DISK, gradients_on_disk))["rise"]
    print(f"rise of peak memory {rise:.0f} MiB, gradients {4 * N * P / 2**20:.0f} MiB")
    # The gradients would take 381 MiB, the projection as a matrix 48 MiB in single precision.
    assert rise < 75
