"""Jobs of several processes: the bits of one, errors of all, and nothing lost with any of them."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import mpiexec, needs_mpi

import qexp
from qexp import distributed
from qexp.distributed import SingleProcess

JOB = Path(__file__).with_name("mpi_job.py")
job = runpy.run_path(str(JOB))
P = job["P"]
# MPI says how it wants to be started where there are fewer processors than ranks.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def start(size, case, folder, *arguments, **settings):
    command = [mpiexec(), "-n", str(size), sys.executable, str(JOB), case, str(folder)]
    return subprocess.Popen(
        [*command, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **settings,
    )


def run(size, case, folder):
    with start(size, case, folder) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return json.loads((folder / "said.json").read_text())


@pytest.fixture(scope="module")
def alone():
    return json.loads(json.dumps(job["same"](SingleProcess())))


# --------------------------------------------------------------------------------- same bits


@needs_mpi
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_any_number_of_ranks_gives_the_bits_of_one_process(alone, tmp_path, size):
    for said in run(size, "same", tmp_path):
        for name, outcome in alone.items():
            if said[name] is not None:
                assert said[name]["weights"] == outcome["weights"], name
                assert said[name]["certificate"] == outcome["certificate"], name
        if size == 1:
            continue
        # Every rank gives eight bytes a weight and round; a curvature once, or every round.
        packed = sum(a * (a + 1) // 2 + b * (b + 1) // 2 for a, b in job["MODEL"].layer_shapes)
        assert said["gradients"]["bytes"] == 8 * P
        assert said["root's own"]["bytes"] == 3 * 8 * P
        moments = sum(inp * inp for _, inp in job["MODEL"].layer_shapes)
        assert said["private curvature"]["bytes"] == 8 * (moments + 3 * P)
        assert said["few records"]["bytes"] == 3 * 8 * P
        assert said["kronecker"]["bytes"] == 3 * 8 * (P + packed)
        assert said["dense"]["bytes"] == 3 * 8 * (P + P * (P + 1) // 2)
        assert said["sketched"]["bytes"] == 8 * (3 * 16 + 16 * 17 // 2)


def test_a_job_of_one_process_says_the_same_without_a_communicator(alone):
    release = qexp.fine_tune(
        job["MODEL"],
        job["X"],
        job["Y"],
        schedule=job["plan"](),
        curvature=qexp.IdentityCurvature(P),
        rng=qexp.bits.insecure_test_generator(job["SEED"]),
        **job["TARGET"],
    ).release
    assert job["comparable"](release) == alone["nothing of rank 1"]["certificate"]


@needs_mpi
def test_sums_wrap_in_chunks(tmp_path):
    assert run(3, "sums", tmp_path) == [True] * 3


@pytest.mark.parametrize("labels", ["sampled", "expected"])
def test_the_exact_curvature_is_the_curvature(labels):
    model, public = job["MODEL"], job["PUBLIC"]
    settings = {"damping": 1e-2, "labels": labels}
    exact = distributed.curvature(public, communicator=SingleProcess(), **settings)(model)
    usual = qexp.KroneckerCurvature.from_model(model, public, **settings)
    rows = np.random.default_rng(0).standard_normal((4, P))
    np.testing.assert_allclose(exact.whiten(rows), usual.whiten(rows), rtol=1e-4, atol=1e-4)
    assert exact.effective_dimension == pytest.approx(usual.effective_dimension, rel=1e-5)
    dense = distributed.curvature(public, communicator=SingleProcess(), kind="dense", **settings)(
        model
    )
    usual_dense = qexp.DenseCurvature.from_model(model, public, **settings)
    np.testing.assert_allclose(dense.whiten(rows), usual_dense.whiten(rows), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("exponent", [-1100, -40, 0, 40])
def test_gram_sums_are_exact_on_their_lattice(exponent):
    rows = np.ldexp(np.random.default_rng(0).integers(-(2**20), 2**20, (5000, 3)), -20 + exponent)
    largest = float(np.abs(rows).max())
    exact = distributed._ExactGram(3, largest, len(rows))
    for part in np.array_split(rows, 7):
        exact.add(part)
    integers = np.rint(rows * exact._scale).astype(np.int64).astype(object)
    expected = np.tril(integers.T @ integers)
    gram = np.tril(exact.reduced(SingleProcess()))
    assert np.array_equal(gram, expected.astype(float) * (1 / exact._scale) ** 2)
    assert len(set(exact._total.tolist())) > 1 or exponent == -1100


@pytest.mark.parametrize("maker", [qexp.KroneckerCurvature, qexp.DenseCurvature])
def test_curvatures_travel(maker):
    import pickle

    made = maker.from_model(job["MODEL"], job["PUBLIC"], damping=1e-2)
    again = pickle.loads(pickle.dumps(made, protocol=5))
    rows = np.random.default_rng(0).standard_normal((4, P))
    assert np.array_equal(again.whiten(rows), made.whiten(rows))
    assert again.describe() == made.describe()


# ------------------------------------------------------------------------------------ errors


@needs_mpi
def test_an_error_of_one_rank_is_an_error_of_all_and_costs_nothing(alone, tmp_path):
    x = job["X"]
    np.save(tmp_path / "y.npy", job["Y"])
    for name in ("cut", "text", "nan"):
        np.save(tmp_path / f"{name}-0.npy", x[:100])
        np.save(tmp_path / f"{name}-1.npy", x[100:])
    cut = tmp_path / "cut-1.npy"
    cut.write_bytes(cut.read_bytes()[:-100])
    np.save(tmp_path / "text-1.npy", x[100:].astype("U5"))
    before = sorted(os.listdir(tmp_path))

    root, other = run(2, "errors", tmp_path)
    note = " | raised on rank {} of 2"
    fire = "OSError | [Errno 5] the disk is on fire"
    assert root["records of rank 1"] == [fire + note.format(1), fire]
    assert root["records of the root"] == [fire, fire + note.format(0)]
    paid = " | 1 round(s) of the fine-tuning are paid for: they are in `.result` of this exception"
    assert root["second round"] == [fire + note.format(1) + paid, fire]
    assert root["charged"] == [0, 1]
    mine, theirs = root["budget"]
    assert mine.startswith("BudgetExceededError | ")
    assert theirs == mine + note.format(0)
    assert all("rank 1 has another schedule than rank 0" in said for said in root["arguments"])
    assert all("the user ids of two ranks overlap" in said for said in root["split user"])
    assert all("X is <U9; it must hold real numbers" in said for said in root["dtype"])
    assert all("holds a NaN or an infinity; public" in said for said in root["curvature"])
    assert all("cut-1.npy' cannot be used: it is cut off" in said for said in root["cut"])
    assert all("text-1.npy' are <U5; they need real numbers" in said for said in root["text"])
    mine, theirs = root["full disk"]
    assert "could not write" in mine
    assert "free some space" in mine
    assert theirs == mine + note.format(0)
    assert root["charged at last"] == 1
    files = {*before, "job.npz", "job.npz.lock", "full.npz.lock"}
    assert root["left"] == sorted(files)
    assert root["weights"] == other["weights"] == alone["nothing of rank 1"]["weights"]


@needs_mpi
def test_a_shard_of_nan_is_a_shard_of_null_records(tmp_path):
    x = job["X"].copy()
    x[100:] = np.nan
    np.save(tmp_path / "nan-0.npy", x[:100])
    np.save(tmp_path / "nan-1.npy", x[100:])
    np.save(tmp_path / "y.npy", job["Y"])
    expected = job["tune"](SingleProcess(), X=x).release.certificate()["weights"]
    assert run(2, "sharded", tmp_path) == [expected] * 2


@needs_mpi
@pytest.mark.parametrize("case", ["uncaught", "uncaught, shared", "others are busy"])
def test_an_error_that_nobody_catches_ends_the_job_with_its_message(tmp_path, case):
    begin = time.monotonic()
    with start(3, case, tmp_path) as process:
        output, _ = process.communicate(timeout=30)
    assert time.monotonic() - begin < 30
    assert process.returncode != 0
    assert "ValueError: something of rank one's own" in output
    assert "rank 2 of 3" in output
    assert os.listdir(tmp_path) == []


@needs_mpi
def test_a_rank_killed_at_any_moment_ends_the_job_and_loses_nothing(tmp_path):
    chance = np.random.default_rng(0)
    rounds, kills, longest = 200, 0, 0.25
    while kills < 20:
        places = [tmp_path / f"rank-{rank}" for rank in range(2)]
        for place in places:
            place.unlink(missing_ok=True)
        with start(2, "killed", tmp_path, str(rounds), start_new_session=True) as process:
            while not all(place.exists() and place.read_text() for place in places):
                assert process.poll() is None, process.communicate()
                time.sleep(0.005)
            time.sleep(chance.uniform(0, longest))
            os.kill(int(places[chance.integers(2)].read_text()), signal.SIGKILL)
            process.communicate(timeout=30)
        assert process.returncode != 0
        kills += 1
        assert not (tmp_path / "release.npz").exists()
        if not (tmp_path / "ledger.json").exists():
            longest = min(4.0, 2 * longest)  # a busy machine: no round was done yet

    expected = job["tune"](SingleProcess(), schedule=job["plan"](rounds)).release
    path = tmp_path / "ledger.json"
    ledger = qexp.PrivacyLedger.load(path) if path.exists() else qexp.PrivacyLedger(mu_budget=100.0)
    published = len(ledger.entries)
    result = job["tune"](
        SingleProcess(),
        schedule=job["plan"](rounds),
        checkpoint=tmp_path / "job.npz",
        ledger=ledger,
    )
    assert 0 < published < rounds
    assert np.array_equal(result.release.weights, expected.weights)
    assert ledger.mu_spent == expected.mu
    assert len({entry.label for entry in ledger.entries}) == len(ledger.entries) == rounds


# ----------------------------------------------------------------------------- one process


def test_world_names_what_to_install(monkeypatch):
    monkeypatch.setattr(distributed, "_world", [])
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r'pip install "qexp\[mpi\]" mpich'):
        distributed.world()


def test_import_qexp_leaves_mpi_alone():
    script = "import sys, qexp, qexp.distributed, qexp.shards; print('mpi4py' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_a_single_process_keeps_what_it_has():
    ranks = SingleProcess()
    array = np.arange(3)
    ranks.sum_int64(array)
    ranks.broadcast(array)
    assert (ranks.rank, ranks.size, ranks.bytes_reduced) == (0, 1, 0)
    assert array.tolist() == [0, 1, 2]
    assert (ranks.sum(3), ranks.gather("a"), ranks.broadcast_object(array)) == (3, ["a"], array)
    with pytest.raises(SystemExit, match="no use"):
        ranks.abort("no use")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "diagonal"}, "needs 'kronecker' or 'dense'"),
        ({"projection": qexp.SRHT(P, 4, seed=0)}, "takes no projection"),
        ({"kind": "dense", "kinds": "frozen"}, "dense curvature has none"),
    ],
)
def test_settings_of_a_curvature_that_do_not_go_together(settings, words):
    with pytest.raises(ValueError, match=words):
        distributed.curvature(job["PUBLIC"], communicator=SingleProcess(), damping=1.0, **settings)


@pytest.mark.parametrize(
    ("settings", "public", "words"),
    [
        ({"kinds": "diagonal"}, job["PUBLIC"], "it needs 'kronecker', 'identity' or 'frozen'"),
        ({}, job["PUBLIC"][:0], "number of public records is 0"),
        ({"kinds": ["kronecker"]}, job["PUBLIC"], "kinds names 1 layers"),
    ],
)
def test_a_curvature_that_cannot_be_made(settings, public, words):
    make = distributed.curvature(public, communicator=SingleProcess(), damping=1.0, **settings)
    with pytest.raises(ValueError, match=words):
        make(job["MODEL"])
