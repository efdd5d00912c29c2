"""Records in files: every row once, in order, whatever the format, the cuts and the ranks."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from helpers import all_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import qexp
from qexp import shards
from qexp.models import mlp
from qexp.records import ArrayRecords, LazyRows, per_user
from qexp.shards import open_shards

GENERATOR = np.random.default_rng(0)
N = 203
X = GENERATOR.standard_normal((N, 5)).astype(np.float32)
Y = GENERATOR.integers(0, 3, N)
USERS = np.sort(GENERATOR.integers(-20, 60, N))
MODEL = mlp((5, 4, 3))
P = len(MODEL.weights)
SHAPES = MODEL.layer_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    columns = {"b": X[:, 0], "a": X[:, 1], "c": X[:, 2], "d": X[:, 3], "e": X[:, 4]}
    for i, (start, stop) in enumerate([(0, 100), (100, 100), (100, 170), (170, N)]):
        rows = slice(start, stop)
        np.save(folder / f"x-{i}.npy", X[rows])
        np.save(folder / f"u-{i}.npy", USERS[rows])
        table = {name: column[rows] for name, column in columns.items()}
        table = pa.table({**table, "label": Y[rows], "user": USERS[rows]})
        pq.write_table(table, folder / f"t-{i}.parquet", row_group_size=33)
    np.save(folder / "y.npy", Y)
    with h5py.File(folder / "all.h5", "w") as file:
        file.create_dataset("in/x", data=X, chunks=(10, 5))
        file["y"], file["u"] = Y, USERS
    group = zarr.open_group(folder / "all.zarr", mode="w")
    for name, array in (("x", X), ("y", Y), ("u", USERS)):
        group.create_array(name, data=array, chunks=(50, *array.shape[1:]))
    return folder


FORMATS = {
    "npy": ("x-*.npy", "y.npy", "u-*.npy"),
    "hdf5": ("all.h5:in/x", "all.h5:y", "all.h5:u"),
    "parquet": ("t-*.parquet", "t-*.parquet:label", "t-*.parquet:user"),
    "named columns": ("t-*.parquet:b,a,c,d,e", "t-*.parquet:label", "t-*.parquet:user"),
    "zarr": ("all.zarr:x", "all.zarr:y", "all.zarr:u"),
    "mixed": ("all.h5:in/x", "t-*.parquet:label", "u-*.npy"),
}


def opened(folder, name, **settings):
    by_user = settings.pop("by_user", True)
    if name == "parquet" and not by_user:
        name = "named columns"  # else the users' ids would be features
    features, labels, groups = (folder / path for path in FORMATS[name])
    if by_user:
        settings["groups"] = groups
    return open_shards(features, labels, **settings)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("by_user", [False, True])
def test_ranks_together_have_every_row_once(folder, name, by_user):
    for size in (1, 2, 7, 300 if name == "npy" else 3):
        shards = [
            opened(folder, name, rank=rank, size=size, by_user=by_user) for rank in range(size)
        ]
        assert np.array_equal(np.concatenate([np.asarray(s.X) for s in shards]), X)
        assert np.array_equal(np.concatenate([np.asarray(s.y) for s in shards]), Y)
        assert {s.n_records_total for s in shards} == {N}
        lengths = [s.n_records for s in shards]
        assert lengths == [len(s.X) for s in shards] == [len(s.y) for s in shards]
        if not by_user:
            assert max(lengths) - min(lengths) <= 1
            assert all(s.groups is None for s in shards)
            continue
        ids = [np.asarray(s.groups) for s in shards]
        assert np.array_equal(np.concatenate(ids), USERS)
        assert sum(len(np.unique(part)) for part in ids) == len(np.unique(USERS))


@settings(max_examples=15)
@given(start=st.integers(0, N), stop=st.integers(0, N), size=st.integers(1, 5))
@pytest.mark.parametrize("name", ["npy", "parquet"])
def test_any_slice_is_the_array_s(folder, name, start, stop, size):
    shards = opened(folder, name, rank=size - 1, size=size, by_user=False)
    mine = X[N * (size - 1) // size :]
    got = shards.X[start:stop]
    assert np.array_equal(got, mine[start:stop])
    assert got.dtype == shards.X.dtype == np.float32
    assert shards.X.ndim == 2
    assert isinstance(shards.y, LazyRows)


@pytest.mark.parametrize("at_once", [1, 300, 2**24])
@pytest.mark.parametrize("by_user", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_share_in_memory_holds_the_same_rows(folder, monkeypatch, name, by_user, at_once):
    monkeypatch.setattr(shards, "_BYTES_AT_ONCE", at_once)
    for rank in range(3):
        lazy = opened(folder, name, rank=rank, size=3, by_user=by_user)
        read = lazy.in_memory()
        assert (read.n_records, read.n_records_total) == (lazy.n_records, N)
        for what in ("X", "y", "groups"):
            rows, array = getattr(lazy, what), getattr(read, what)
            if rows is None:
                assert array is None
                continue
            assert type(array) is np.ndarray
            assert array.dtype == rows.dtype
            assert np.array_equal(array, np.asarray(rows))
        again = read.in_memory()
        assert again.X is read.X


def test_records_that_do_not_fit_in_memory(folder, monkeypatch):
    opened_shards = opened(folder, "npy")

    def refuse(*_):
        raise MemoryError("Unable to allocate 200 rows")

    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(MemoryError, match=r"^the records do not fit in memory; read them from"):
        opened_shards.in_memory()


def test_other_ways_to_read_are_refused(folder):
    rows = opened(folder, "npy").X
    with pytest.raises(TypeError, match="read by slices; got 3"):
        rows[3]
    with pytest.raises(ValueError, match="without a step"):
        rows[::2]


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_takes_them_as_it_takes_arrays(folder, name):
    shards = opened(folder, name)
    expected = all_rows(MODEL.gradient_blocks(X, Y))
    source = MODEL.gradient_blocks(shards.X, shards.y, block_size=17)
    assert np.array_equal(all_rows(source), expected)
    assert MODEL.score(shards.X, shards.y) == MODEL.score(X, Y)


def test_missing_values_and_labels_that_are_none_are_null_records(tmp_path):
    columns = {"a": [1.0, None, 3.0], "b": [1, 2, None], "on": [True, None, False]}
    table = pa.table({**columns, "label": [None, 7, 1]})
    pq.write_table(table, tmp_path / "t.parquet")
    path = tmp_path / "t.parquet"
    shards = open_shards(path, f"{path}:label")
    expected = [[1, 1, 1], [np.nan, 2, np.nan], [3, np.nan, 0]]
    assert np.array_equal(np.asarray(shards.X), expected, equal_nan=True)
    [block] = mlp((3, 3)).gradient_blocks(shards.X, shards.y).blocks()
    assert np.isnan(block).all()


def save(path, array):
    np.save(path, array)
    return path


def cut(path, by=7):
    path.write_bytes(path.read_bytes()[:-by])
    return path


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def hdf5(path, array):
    with h5py.File(path, "w") as file:
        file["x"] = array
    return path


BAD = {
    "no such file": (lambda f: f / "none.npy", FileNotFoundError, r"no file .*none\.npy"),
    "no match": (lambda f: f / "none-*.npy", FileNotFoundError, "no file matches"),
    "no files": (lambda f: [], ValueError, "name no file"),
    "cut": (lambda f: cut(save(f / "x.npy", X)), ValueError, r"x\.npy' .* is cut off: 4053 bytes"),
    "cut in the header": (lambda f: cut(save(f / "x.npy", X), 4100), ValueError, r"x\.npy"),
    "empty": (lambda f: cut(save(f / "x.npy", X), 10**6), ValueError, r"x\.npy"),
    "cut parquet": (
        lambda f: cut(parquet(f / "x.parquet", a=X[:, 0])),
        ValueError,
        r"x\.parquet' cannot be used",
    ),
    "cut hdf5": (lambda f: f"{cut(hdf5(f / 'x.h5', X))}:x", ValueError, r"x\.h5' cannot be used"),
    "no dataset": (lambda f: f"{hdf5(f / 'x.h5', X)}:y", ValueError, "no dataset 'y'"),
    "dataset not named": (lambda f: hdf5(f / "x.h5", X), ValueError, "name the dataset"),
    "no column": (
        lambda f: f"{parquet(f / 'x.parquet', a=X[:, 0])}:b",
        ValueError,
        r"no column \['b'\]",
    ),
    "text column": (
        lambda f: parquet(f / "x.parquet", a=X[:, 0], b=["x"] * N),
        TypeError,
        "column 'b' is string; it needs numbers",
    ),
    "text": (lambda f: save(f / "x.npy", X.astype("U3")), TypeError, "are <U3; they need real"),
    "objects": (
        lambda f: save(f / "x.npy", np.array([[None]] * N)),
        TypeError,
        "holds Python objects",
    ),
    "one column": (lambda f: save(f / "x.npy", X[:, 0]), ValueError, r"need \(rows, columns\)"),
    "fortran": (lambda f: save(f / "x.npy", np.asfortranarray(X)), ValueError, "Fortran order"),
    "other ending": (lambda f: save(f / "x.npy", X).rename(f / "x.csv"), ValueError, "end in .npy"),
    "number of rows": (lambda f: save(f / "x.npy", X[1:]), ValueError, "have 202 rows in all, the"),
    "another dtype": (
        lambda f: [save(f / "x.npy", X[:9]), save(f / "z.npy", X[9:].astype(float))],
        ValueError,
        r"z\.npy' are float64 .* all files need the same",
    ),
    "another width": (
        lambda f: [save(f / "x.npy", X[:9]), save(f / "z.npy", X[9:, 1:])],
        ValueError,
        "all files need the same",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_found_on_opening(folder, tmp_path, case):
    make, kind, words = BAD[case]
    with pytest.raises(kind, match=words):
        open_shards(make(tmp_path), folder / "y.npy")


@pytest.mark.parametrize(
    ("labels", "groups", "kind", "words"),
    [
        (X, None, ValueError, r"need \(rows,\)"),
        (Y[1:], None, ValueError, "203 rows in all, the labels 202"),
        (Y, USERS[1:], ValueError, "203 rows in all, the groups 202"),
        (Y, USERS.astype(float), TypeError, "they need integers"),
        (Y.astype("U2"), None, TypeError, "real numbers"),
    ],
)
def test_bad_labels_and_groups_are_found_on_opening(folder, tmp_path, labels, groups, kind, words):
    y = save(tmp_path / "y.npy", labels)
    ids = None if groups is None else save(tmp_path / "u.npy", groups)
    with pytest.raises(kind, match=words):
        open_shards(folder / "x-*.npy", y, groups=ids)


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_is_one_of_so_many(folder, rank, size):
    with pytest.raises(ValueError, match=r"(rank|size) is"):
        opened(folder, "npy", rank=rank, size=size)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path / "x.npy", X)
    # The superuser, who may run the tests, may read everything.
    monkeypatch.setattr(shards, "_NpyFile", refuse)
    with pytest.raises(PermissionError, match=r"x\.npy' cannot be read: .*ask for the right"):
        open_shards(path, path)


def test_a_file_cut_while_it_is_read_is_told(tmp_path):
    x, y = save(tmp_path / "x.npy", X), save(tmp_path / "y.npy", Y)
    shards = open_shards(x, y)
    cut(x)
    assert np.array_equal(shards.X[:10], X[:10])
    with pytest.raises(OSError, match="became shorter since it was opened"):
        shards.X[190:]


@pytest.mark.parametrize(
    ("module", "path", "extra"),
    [
        ("h5py", "all.h5:y", "hdf5"),
        ("pyarrow", "t-0.parquet", "parquet"),
        ("zarr", "all.zarr:x", "zarr"),
    ],
)
def test_a_missing_library_is_named(folder, monkeypatch, module, path, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "qexp\[{extra}\]"'):
        open_shards(folder / path, folder / "y.npy")


# ----------------------------------------------------------------------------------- memory

MEASURE = r"""
import re, sys
import numpy as np, qexp
from qexp.models import mlp
from qexp.shards import open_shards

features, labels, groups = sys.argv[1:4]
by_user = groups != "none"
model = mlp((64, 8, 3))
shards = open_shards(features, labels, groups=groups if by_user else None)
qexp.fine_tune(
    model, shards.X, shards.y, groups=shards.groups,
    schedule=qexp.Schedule(rounds=1, clipping_norm=1.0, step_size=1.0, damping=1.0),
    curvature=qexp.IdentityCurvature(len(model.weights)), target_epsilon=1.0, target_delta=1e-6)
# Not ru_maxrss, which begins with the parent's.
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
"""


def written(folder, kind, n):
    """Write n records, Parquet in files of 10,000; give features, labels and ids."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n, 64), dtype=np.float32)
    y = generator.integers(0, 3, n)
    if kind == "parquet":
        for i, start in enumerate(range(0, n, 10_000)):
            rows = slice(start, start + 10_000)
            table = pa.table({**{f"x{j}": x[rows, j] for j in range(64)}, "label": y[rows]})
            pq.write_table(table, folder / f"{n}-{i:02}.parquet", row_group_size=4000)
        files = folder / f"{n}-*.parquet"
        return files, f"{files}:label", "none"
    if kind == "hdf5":
        file = hdf5(folder / f"{n}.h5", x)
        with h5py.File(file, "a") as opened:
            opened["y"] = y
        return f"{file}:x", f"{file}:y", "none"
    users = "none" if kind == "npy" else save(folder / f"{n}u.npy", np.arange(n) // 5)
    return save(folder / f"{n}.npy", x), save(folder / f"{n}y.npy", y), users


def peak(arguments):
    # Freed memory goes back to the system, so that the peak is what was in use at one time.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **allocator}
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.parametrize("kind", ["npy", "npy by user", "parquet", "hdf5"])
def test_ten_times_the_records_take_the_same_memory(tmp_path, kind):
    few = 20_000 if kind == "parquet" else 10_000
    small, large = (written(tmp_path, kind, n) for n in (few, 10 * few))
    peaks = peak(small), peak(large)
    # The records are 23 MB more, or 46, which would show.
    assert 0.95 * peaks[0] < peaks[1] < 1.05 * peaks[0], peaks


# ------------------------------------------------------------------------------ users as units


def user_sums(rows, users=USERS, most=None):
    rows = np.where(np.isfinite(rows).all(axis=1)[:, None], rows, 0).astype(float)
    sums = []
    for user in np.unique(users):
        total = np.zeros(rows.shape[1])
        for row in rows[users == user][:most]:
            total += row
        sums.append(total)
    return np.array(sums)


@settings(max_examples=40)
@given(
    block_size=st.integers(1, 60),
    most=st.none() | st.integers(1, 6),
    at_once=st.integers(1, 80),
)
def test_a_user_s_gradient_is_the_sum_of_their_records(block_size, most, at_once):
    gradients = GENERATOR_ROWS.copy()
    gradients[::17, 3] = np.nan
    source = per_user(
        ArrayRecords(gradients, block_size=block_size), USERS, max_records_per_user=most
    )
    source._users_at_once = lambda: at_once
    blocks = [block.copy() for block in source.blocks()]
    assert np.array_equal(np.concatenate(blocks), user_sums(gradients, most=most))
    assert all(len(block) == at_once for block in blocks[:-1])
    assert source.n_records == len(np.unique(USERS)) == sum(map(len, blocks))


GENERATOR_ROWS = np.random.default_rng(1).standard_normal((N, 4))


@settings(max_examples=30)
@given(block_size=st.integers(1, 60), most=st.integers(1, 9), at_once=st.integers(1, 80))
def test_factors_of_a_user_are_positions_of_one_record(block_size, most, at_once):
    x = X.copy()
    x[40] = np.nan
    source = per_user(
        MODEL.gradient_blocks(x, Y, block_size=block_size), USERS, max_records_per_user=most
    )
    source._users_at_once = lambda: at_once
    rows = all_rows(MODEL.gradient_blocks(x, Y))
    made = []
    for factors in source.factor_blocks():
        assert all(part.shape[1] == most for pair in factors for part in pair)
        made.append(
            np.concatenate(
                [
                    np.einsum("mto,mti->moi", deltas, inputs).reshape(len(inputs), -1)
                    for inputs, deltas in factors
                ],
                axis=1,
            )
        )
    np.testing.assert_allclose(
        np.concatenate(made), user_sums(rows, most=most), rtol=1e-5, atol=1e-6
    )


SCHEDULE = qexp.Schedule(rounds=2, clipping_norm=1.0, step_size=0.1, damping=1e-2)
TARGET = {"target_epsilon": 1.0, "target_delta": 1e-5}


def tune(**settings):
    return qexp.fine_tune(
        MODEL,
        settings.pop("X", X),
        settings.pop("Y", Y),
        schedule=SCHEDULE,
        rng=qexp.bits.insecure_test_generator(0),
        **{"curvature": qexp.IdentityCurvature(P), **TARGET, **settings},
    )


def test_the_release_says_whose_privacy_it_is():
    by_user = tune(groups=USERS, max_records_per_user=4).release
    assert (by_user.unit_of_privacy, by_user.n_records) == ("user", len(np.unique(USERS)))
    certificate = by_user.certificate()
    assert certificate["unit_of_privacy"] == "user"
    assert certificate["public_inputs"]["unit_of_privacy"] == "user"
    assert certificate["public_inputs"]["max_records_per_user"] == 4
    by_record = tune().release
    assert (by_record.unit_of_privacy, by_record.n_records) == ("record", N)
    assert "unit_of_privacy" not in by_record.certificate()["public_inputs"]


def test_the_statement_and_the_file_keep_the_unit(tmp_path):
    release = qexp.sample_private_weights(
        MODEL.weights,
        per_user(MODEL.gradient_blocks(X, Y), USERS),
        curvature=qexp.IdentityCurvature(P),
        clipping_norm=1.0,
        **TARGET,
    )
    assert f"any one of the {len(np.unique(USERS))} users' records had been left blank" in (
        release.statement
    )
    release.save(tmp_path / "r.npz")
    assert qexp.PrivateRelease.load(tmp_path / "r.npz").unit_of_privacy == "user"


@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize("kind", ["identity", "kronecker", "diagonal", "dense"])
def test_one_user_changes_the_sum_by_their_own_vector_alone(kind, most):
    """All records of a user replaced by null ones: what is left is what the others gave."""
    curvature = qexp.LayeredCurvature.from_model(MODEL, X[:50], damping=1e-2, kinds=kind)
    big = np.unique(USERS, return_counts=True)
    user = big[0][np.argmax(big[1])]
    nulled = X.copy()
    nulled[user == USERS] = np.nan

    def total(x):
        sums = []
        source = per_user(MODEL.gradient_blocks(x, Y), USERS, max_records_per_user=most)
        if most is None:
            sums = [curvature.whiten(block) for block in source.blocks()]
        else:
            for factors in source.factor_blocks():
                pairs = curvature.whiten_factors(factors)
                sums.append(
                    np.concatenate(
                        [(a[:, :, None] * b[:, None]).reshape(len(a), -1) for a, b in pairs],
                        axis=1,
                    )
                )
        return np.concatenate(sums)

    before, after = total(X), total(nulled)
    different = np.flatnonzero((before != after).any(axis=1))
    assert different.tolist() == [np.flatnonzero(np.unique(USERS) == user)[0]]
    assert not after[different].any()


def test_users_in_files_are_users_in_arrays(folder):
    shards = opened(folder, "npy")
    expected = tune(groups=USERS)
    got = tune(X=shards.X, Y=shards.y, groups=shards.groups)
    assert np.array_equal(got.release.weights, expected.release.weights)


@pytest.mark.parametrize(
    ("groups", "kind", "words"),
    [
        (USERS[::-1], ValueError, "groups are not sorted"),
        (USERS[1:], ValueError, r"need \(203,\), one id a record"),
        (USERS.astype(float), TypeError, "need to be integer user ids"),
    ],
)
def test_groups_that_name_nobody_are_refused(groups, kind, words):
    with pytest.raises(kind, match=words):
        tune(groups=groups)


def test_private_curvature_knows_records_only():
    schedule = qexp.Schedule(
        rounds=1, clipping_norm=1.0, step_size=0.1, damping=1e-2, curvature_share=0.2
    )
    curvature = qexp.KroneckerCurvature.from_model(MODEL, X[:50], damping=1e-2)
    with pytest.raises(ValueError, match="choose one of the two"):
        qexp.fine_tune(MODEL, X, Y, schedule=schedule, curvature=curvature, groups=USERS, **TARGET)


@pytest.mark.parametrize(("most", "kind"), [(0, ValueError), (2.5, TypeError)])
def test_the_most_records_of_a_user_are_a_whole_number(most, kind):
    with pytest.raises(kind, match="max_records_per_user"):
        tune(groups=USERS, max_records_per_user=most)
