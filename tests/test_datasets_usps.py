import sys

import numpy as np
import pytest

from qexp.datasets import load_usps


def arrays(**changes):
    rng = np.random.default_rng(0)
    made = {
        "x_train": rng.random((7, 256), dtype=np.float32),
        "y_train": np.arange(7, dtype=np.uint8),
        "x_test": rng.random((3, 256), dtype=np.float32),
        "y_test": np.array([9, 0, 9], dtype=np.uint8),
    }
    return {**made, **changes}


def write_npz(root, made):
    (root / "usps").mkdir()
    np.savez_compressed(root / "usps" / "usps.npz", **made)
    return root / "usps" / "usps.npz"


def assert_same(usps, made):
    for name, array in made.items():
        read = getattr(usps, name)
        assert read.dtype == (np.float32 if name[0] == "x" else np.uint8)
        np.testing.assert_array_equal(read, array)


def test_npz(tmp_path):
    made = arrays()
    write_npz(tmp_path, made)
    assert_same(load_usps(tmp_path), made)


def test_hdf5_where_there_is_no_npz(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py (qexp[hdf5]) is not installed")
    made = arrays()
    (tmp_path / "usps").mkdir()
    path = tmp_path / "usps" / "usps.h5"
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file[f"{split}/data"] = made[f"x_{split}"]
            file[f"{split}/target"] = made[f"y_{split}"].astype(np.int32)
    assert_same(load_usps(tmp_path), made)
    raw = path.read_bytes()
    for damaged in (b"", raw[:100], raw[: len(raw) // 2], b"x" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"usps\.h5: not an HDF5 file"):
            load_usps(tmp_path)
    with h5py.File(path, "w") as file:
        file["train/data"] = made["x_train"]
    with pytest.raises(ValueError, match="not an HDF5 file with groups train, test"):
        load_usps(tmp_path)


def test_hdf5_without_h5py_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "usps").mkdir()
    (tmp_path / "usps" / "usps.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"qexp\[hdf5\]"):
        load_usps(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((7, 255), np.float32)}, r"train images .* shape \(7, 255\)"),
        ({"x_test": np.zeros((3, 256), np.uint8)}, "test images are floats .* holds uint8"),
        ({"x_test": np.full((3, 256), 1.5, np.float32)}, "test pixels lie in"),
        ({"x_test": np.full((3, 256), np.nan, np.float32)}, "test pixels lie in"),
        ({"y_train": np.zeros(6, np.uint8)}, r"each of the 7 train images; .* shape \(6,\)"),
        ({"y_train": np.zeros(7)}, "one integer label .* holds float64"),
        ({"y_test": np.array([1, -1, 3])}, "test labels are 0 to 9"),
        ({"y_test": np.array([1, 2, 10])}, "test labels are 0 to 9"),
        ({"y_test": np.array([1, 2, None])}, "not an .npz file"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, change, message):
    path = write_npz(tmp_path, arrays(**change))
    with pytest.raises(ValueError, match=message) as caught:
        load_usps(tmp_path)
    assert str(path) in str(caught.value)


def test_damaged_npz_is_refused(tmp_path):
    path = write_npz(tmp_path, arrays())
    raw = path.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 3] ^= 0xFF
    for damaged in (b"", raw[:50], raw[: len(raw) // 2], raw[:-5], bytes(flipped), b"x" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"usps\.npz: not an \.npz file"):
            load_usps(tmp_path)


def test_every_layer_of_npz_reports_damage_alike(tmp_path):
    path = write_npz(tmp_path, arrays())
    np.savez(path, **arrays())
    raw = path.read_bytes()
    encrypted = bytearray(raw)
    for entry in (raw.index(b"PK\3\4") + 6, raw.index(b"PK\1\2") + 8):
        encrypted[entry] |= 1  # zipfile: RuntimeError
    unclosed = raw.replace(b"256), }", b"256), (")  # numpy's header: a tokenizer's error
    for damaged in (bytes(encrypted), unclosed):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"usps\.npz: not an \.npz file"):
            load_usps(tmp_path)


def test_lone_array_and_missing_array_are_refused(tmp_path):
    made = arrays()
    del made["y_test"]
    path = write_npz(tmp_path, made)
    with pytest.raises(ValueError, match="y_test"):
        load_usps(tmp_path)
    with path.open("wb") as file:
        np.save(file, made["x_test"])
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        load_usps(tmp_path)


@pytest.mark.data
def test_real_usps():
    usps = load_usps()
    assert usps.x_train.shape == (7291, 256)
    assert usps.y_train[:6].tolist() == [6, 5, 4, 7, 3, 6]
    assert usps.y_test[:6].tolist() == [9, 6, 3, 6, 6, 0]
    counts = [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    assert np.bincount(usps.y_test).tolist() == counts
