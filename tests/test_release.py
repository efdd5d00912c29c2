"""A release in memory and on disk: frozen, exact, and never half a file."""

import contextlib
import copy
import dataclasses
import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qexp
from qexp import PrivateRelease
from qexp._checks import array_digest
from qexp.bits import insecure_test_generator

P, N = 12, 30
RECORDS = np.random.default_rng(0).normal(size=(N, P))
FIELDS = [f.name for f in dataclasses.fields(PrivateRelease) if f.name != "_certificate"]


def make_release(dtype=np.float64, **changes):
    arguments = {
        "curvature": qexp.IdentityCurvature(P),
        "target_epsilon": 1.0,
        "target_delta": 1e-5,
        "clipping_norm": 1.0,
        "rng": insecure_test_generator(1),
    }
    return qexp.sample_private_weights(np.ones(P, dtype), RECORDS, **(arguments | changes))


def assert_equal(a, b):
    assert a.weights.dtype == b.weights.dtype
    assert a.weights.tobytes() == b.weights.tobytes()
    for name in FIELDS:
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert a.certificate() == b.certificate()
    assert a.statement == b.statement


@pytest.fixture
def release():
    return make_release()


@pytest.fixture
def path(tmp_path, release):
    release.save(tmp_path / "release.npz")
    return tmp_path / "release.npz"


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, **changes):
    """Change entries of the document in a release; None takes one away."""
    with np.load(path, allow_pickle=False) as archive:
        document, weights = json.loads(archive["release"].tobytes()), archive["weights"]
    for name, value in changes.items():
        if value is None:
            del document[name]
        else:
            document[name] = value
    np.savez(path, release=np.frombuffer(json.dumps(document).encode(), np.uint8), weights=weights)


# ---------------------------------------------------------------------------------- in memory


def test_a_release_is_frozen(release):
    for name in FIELDS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(release, name, 0)
    with pytest.raises(ValueError, match="read-only"):
        release.weights[0] = 1.0


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda release: pickle.loads(pickle.dumps(release))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_is_frozen_and_the_same(release, copied):
    other = copied(release)
    assert_equal(other, release)
    with pytest.raises(ValueError, match="read-only"):
        other.weights[0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        other.epsilon = 0.0


def test_the_certificate_is_a_copy_that_json_holds(release):
    certificate = release.certificate()
    assert json.loads(json.dumps(certificate, allow_nan=False)) == certificate
    certificate["public_inputs"]["clipping_norm"] = 99.0
    certificate["epsilon"] = 0.0
    assert release.certificate()["public_inputs"]["clipping_norm"] == 1.0
    assert release.certificate()["epsilon"] == 1.0


def test_the_representation_shows_the_guarantee_and_not_the_weights(release):
    text = repr(release)
    assert "epsilon=1.0" in text
    assert "generator_is_secure=False" in text
    assert "weights" not in text


def test_the_statement_of_an_insecure_release_promises_nothing(release):
    assert release.statement.startswith("NOT PRIVATE")
    assert "must not be published" in release.statement
    assert "epsilon" not in release.statement


@pytest.mark.parametrize(
    ("relation", "words"),
    [("replace_special", "had been left blank"), ("replace_one", "had been somebody else's")],
)
def test_the_statement_of_a_secure_release(relation, words):
    statement = make_release(rng=None, neighboring_relation=relation).statement
    assert "NOT PRIVATE" not in statement
    assert words in statement
    assert f"any one of the {N} records" in statement
    assert "at most 2.72 times what it would be" in statement  # e¹
    assert "epsilon 1 and delta 1e-05" in statement


def test_the_statement_never_says_less_than_the_privacy_costs():
    release = make_release(rng=None)
    eight = dataclasses.replace(release, epsilon=8.0, delta=1.23456789e-7).statement
    assert "at most 2.99e+03 times" in eight  # e⁸ is 2,980.96
    assert "blank, plus 1.23457e-07, and" in eight
    assert "epsilon 8 and" in eight
    stopped = dataclasses.replace(release, epsilon=0.7654321, delta=1.23456123e-7).statement
    assert "epsilon 0.765433 and delta 1.23457e-07" in stopped


def test_the_statement_holds_for_an_epsilon_beyond_floats():
    release = make_release(rng=None)
    with_epsilon = dataclasses.replace(release, epsilon=800.0)
    assert "at most more than 1e304 times" in with_epsilon.statement


# ------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("relation", ["replace_special", "replace_one"])
@pytest.mark.parametrize("secure", [True, False])
def test_save_and_load_give_back_every_bit(tmp_path, dtype, relation, secure):
    rng = None if secure else insecure_test_generator(3)
    release = make_release(dtype, neighboring_relation=relation, rng=rng)
    release.save(tmp_path / "r.npz")
    loaded = PrivateRelease.load(str(tmp_path / "r.npz"))
    assert_equal(loaded, release)
    assert not loaded.weights.flags.writeable
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.npz"]


def test_any_file_name_will_do(tmp_path, release):
    """Nothing is appended to it behind the user's back."""
    release.save(tmp_path / "weights of June")
    assert_equal(PrivateRelease.load(tmp_path / "weights of June"), release)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights of June"]


def test_saving_again_replaces_the_file(path):
    other = make_release(rng=insecure_test_generator(2))
    other.save(path)
    assert_equal(PrivateRelease.load(path), other)


def test_the_file_is_a_plain_archive_without_pickle(path):
    for name, data in members_of(path).items():
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        assert array.dtype.kind in "uf", name


# --------------------------------------------------------------------------- what is refused


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        PrivateRelease.load(tmp_path / "none.npz")


def as_text(path):
    path.write_text("not a release")


def as_nothing(path):
    path.write_bytes(b"")


def as_bare_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def as_other_archive(path):
    np.savez(path, a=np.zeros(3))


def as_pickle(path):
    with open(path, "wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def as_archive_of_objects(path):
    np.savez(path, release=np.array([{"a": 1}], dtype=object), weights=np.zeros(3))


def as_objects_for_weights(path):
    with np.load(path) as archive:
        text = archive["release"]
    np.savez(path, release=text, weights=np.array([1.0, None], dtype=object))


def as_json_list(path):
    np.savez(path, release=np.frombuffer(b"[1, 2]", np.uint8), weights=np.zeros(3))


def as_no_json(path):
    np.savez(path, release=np.frombuffer(b"\xff{", np.uint8), weights=np.zeros(3))


def as_deep_json(path):
    text = np.frombuffer(b"[" * 200_000, np.uint8)
    np.savez(path, release=text, weights=np.zeros(3))


def as_other_archive_of_ours(path):
    rewrite(path, format="qexp.Something")


def as_cut_off(path):
    path.write_bytes(path.read_bytes()[:-40])


FOREIGN = [
    as_text,
    as_nothing,
    as_bare_array,
    as_other_archive,
    as_pickle,
    as_archive_of_objects,
    as_objects_for_weights,
    as_json_list,
    as_no_json,
    as_deep_json,
    as_other_archive_of_ours,
    as_cut_off,
]


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
def test_what_is_no_release_is_refused(path, make):
    make(path)
    with pytest.raises(
        ValueError, match=r"release\.npz is not a (readable )?release.*needs a file"
    ):
        PrivateRelease.load(path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_version_that_is_not_known_is_refused(path, version):
    rewrite(path, version=version)
    with pytest.raises(ValueError, match=r"release\.npz"):
        PrivateRelease.load(path)


def test_a_later_version_is_named(path):
    rewrite(path, version=7)
    with pytest.raises(ValueError, match=r"has release format 7; .* reads format 1"):
        PrivateRelease.load(path)


@pytest.mark.parametrize("name", ["mu", "epsilon", "certificate", "weights_digest", "n_records"])
def test_a_release_that_lacks_an_entry_is_refused(path, name):
    rewrite(path, **{name: None})
    with pytest.raises(ValueError, match=r"release\.npz"):
        PrivateRelease.load(path)


def test_weights_that_are_not_those_of_the_digest_are_refused(path):
    with np.load(path) as archive:
        text, weights = archive["release"], archive["weights"]
    for other in (weights + 1, weights[:-1], weights.astype(np.float32), weights[:, None]):
        np.savez(path, release=text, weights=other)
        with pytest.raises(ValueError, match="do not match their digest"):
            PrivateRelease.load(path)


def test_weights_other_than_the_certificates_are_not_saved(path, release):
    changed = copy.deepcopy(release)
    changed.weights.flags.writeable = True
    changed.weights[0] += 1
    with pytest.raises(ValueError, match="this release differs from its certificate in weights: "):
        changed.save(path)
    assert_equal(PrivateRelease.load(path), release)


def test_weights_other_than_the_certificates_are_not_loaded(path):
    with np.load(path) as archive:
        weights = archive["weights"] + 1
    certificate = {**PrivateRelease.load(path).certificate(), "weights": "0" * 64}
    rewrite(path, certificate=certificate)
    with pytest.raises(ValueError, match=r"release\.npz differs .* in weights: it was changed"):
        PrivateRelease.load(path)
    # A file whose own digest was made to fit.
    rewrite(path, weights_digest=array_digest(weights))
    with np.load(path) as archive:
        np.savez(path, release=archive["release"], weights=weights)
    with pytest.raises(ValueError, match=r"release\.npz differs .* in weights: it was changed"):
        PrivateRelease.load(path)


@pytest.mark.parametrize(
    ("name", "value"), [("epsilon", 0.1), ("delta", 1e-9), ("mu", 0.01), ("n_records", 10**9)]
)
def test_a_claim_other_than_the_certificates_is_refused(path, release, name, value):
    better = dataclasses.replace(release, **{name: value})
    with pytest.raises(ValueError, match=f"differs from its certificate in {name}: "):
        better.save(path)
    rewrite(path, **{name: value})
    with pytest.raises(ValueError, match=rf"release\.npz differs .* in {name}: .* as it was drawn"):
        PrivateRelease.load(path)


def test_a_certificate_that_is_no_mapping_is_refused(path):
    rewrite(path, certificate=[1])
    with pytest.raises(ValueError, match="is not a whole release: its certificate"):
        PrivateRelease.load(path)


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_refused_or_harmless(tmp_path, data):
    release = make_release()
    path = tmp_path / "damaged.npz"
    release.save(path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        # What passes is a change in a time stamp or the like.
        assert_equal(PrivateRelease.load(path), release)


@given(length=st.integers(0, 10_000))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_was_cut_off_is_refused(tmp_path, length):
    path = tmp_path / "cut.npz"
    make_release().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: length % len(content)])
    with pytest.raises(ValueError, match=r"cut\.npz"):
        PrivateRelease.load(path)


def test_a_folder_is_no_release(tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        PrivateRelease.load(tmp_path)


def test_a_file_that_was_refused_is_closed(path):
    descriptors = len(os.listdir("/dev/fd"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a readable release"):
        PrivateRelease.load(path)
    assert len(os.listdir("/dev/fd")) == descriptors


# ------------------------------------------------------------------ writing that goes wrong

SAVE_FOR_EVER = """
import sys, numpy as np, qexp
from qexp.bits import insecure_test_generator
releases = [
    qexp.sample_private_weights(
        np.zeros(50_000), np.zeros((2, 50_000)), curvature=qexp.IdentityCurvature(50_000),
        target_epsilon=1.0, target_delta=1e-5, clipping_norm=1.0,
        rng=insecure_test_generator(seed))
    for seed in (1, 2)
]
print("ready", flush=True)
while True:
    for release in releases:
        release.save(sys.argv[1])
"""


def test_a_process_killed_while_it_saves_leaves_a_whole_file(tmp_path):
    path = tmp_path / "release.npz"
    seen = set()
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(path)], stdout=subprocess.PIPE
        )
        try:
            assert process.stdout.readline() == b"ready\n"
            while not path.exists():
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 0.05)))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        # load() holds the weights against their digest.
        loaded = PrivateRelease.load(path)
        assert len(loaded.weights) == 50_000
        seen.add(loaded.certificate()["generator"][-1])
        leftovers = {entry.name for entry in tmp_path.iterdir()} - {path.name}
        assert all(name.startswith(".qexp-") and name.endswith(".tmp") for name in leftovers)
    assert seen <= {"1", "2"}


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.ENOSPC, OSError, "free some space"),
        (errno.EIO, OSError, "check the path and its disk"),
        (errno.EROFS, OSError, "may write to"),
        (errno.EACCES, PermissionError, "may write to"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_whole(
    path, release, monkeypatch, number, kind, advice, call
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    other = make_release(rng=insecure_test_generator(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(kind, match=advice) as caught:
            other.save(path)
    assert caught.value.errno == number
    assert str(path) in str(caught.value)
    assert_equal(PrivateRelease.load(path), release)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    # The draw is not lost: it can be saved once there is room.
    other.save(path)
    assert_equal(PrivateRelease.load(path), other)


def test_a_file_size_limit_stops_a_real_write_half_way(path, release):
    """A limit on the file size makes the write itself fail, as a full disk does."""
    script = (
        "import resource, sys, numpy as np, qexp\n"
        "release = qexp.PrivateRelease.load(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try:\n"
        "    release.save(sys.argv[1])\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-B", "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "free some space" in result.stdout
    assert str(path) in result.stdout
    assert_equal(PrivateRelease.load(path), release)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_not_there_is_named(tmp_path, release):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*create the folder first"):
        release.save(tmp_path / "nowhere" / "r.npz")


def test_a_pipe_is_not_replaced(tmp_path, release):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="give the name of a file on a disk"):
        release.save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
