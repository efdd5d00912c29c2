import gzip
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qexp.datasets import load_mnist, read_idx

CODES = {
    "uint8": 0x08,
    "int8": 0x09,
    "int16": 0x0B,
    "int32": 0x0C,
    "float32": 0x0D,
    "float64": 0x0E,
}


def idx_bytes(array):
    header = struct.pack(
        f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.name], array.ndim, *array.shape
    )
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(root, images=5, labels=None, shape=(28, 28), top=9):
    folder = root / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        x = rng.integers(0, 256, (images, *shape), dtype=np.uint8)
        y = np.full(images if labels is None else labels, top, dtype=np.uint8)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(x)))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(y)))
    return folder


@given(
    array=st.sampled_from(sorted(CODES)).flatmap(
        lambda name: hnp.arrays(name, hnp.array_shapes(max_dims=4, max_side=5, min_side=0))
    ),
    compressed=st.booleans(),
)
def test_round_trip(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if compressed else "a")
    raw = idx_bytes(array)
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    read = read_idx(path)
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)


def test_values_are_big_endian_and_writeable(tmp_path):
    (tmp_path / "a").write_bytes(bytes([0, 0, 0x0C, 1, 0, 0, 0, 2, 0, 0, 1, 0, 255, 255, 255, 254]))
    read = read_idx(tmp_path / "a")
    assert read.tolist() == [256, -2]
    read[0] = 1


@given(st.integers(min_value=0), st.data())
def test_every_shorter_or_longer_file_is_refused(tmp_path_factory, extra, data):
    raw = idx_bytes(np.arange(6, dtype=np.int16).reshape(2, 3))
    path = tmp_path_factory.mktemp("idx") / "a"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(ValueError, match=r"not an IDX file|ends within its header|too short"):
        read_idx(path)
    path.write_bytes(raw + bytes(1 + extra % 20))
    with pytest.raises(ValueError, match="too long"):
        read_idx(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an IDX file: it begins nowhere"),
        (b"\x89PNG....", "not an IDX file: it begins 89 50 4e 47"),
        (bytes([0, 0, 0x0A, 1, 0, 0, 0, 0]), "not an IDX file: it begins 00 00 0a 01"),
        (bytes([0, 0, 0x08, 0, 7]), "0 dimensions"),
        (bytes([0, 0, 0x08, 33]) + bytes(4 * 33), "33 dimensions"),
        (bytes([0, 0, 0x08, 2, 0, 0, 0, 1]), "ends within its header, after 8 of 12 bytes"),
        (bytes([0, 0, 0x0E, 2]) + b"\xff" * 8, "too short"),
    ],
)
def test_wrong_headers_are_refused_with_the_file_named(tmp_path, raw, message):
    path = tmp_path / "some-idx"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["plain", "truncated", "bit flipped"])
def test_damaged_gzip_is_refused(tmp_path, damage):
    raw = idx_bytes(np.random.default_rng(1).integers(0, 256, 1000, dtype=np.uint8))
    packed = bytearray(gzip.compress(raw))
    packed[len(packed) // 2] ^= 1
    path = tmp_path / "a.gz"
    path.write_bytes(
        {"plain": raw, "truncated": gzip.compress(raw)[:-9], "bit flipped": bytes(packed)}[damage]
    )
    with pytest.raises(ValueError, match=r"a\.gz: not a complete gzip file"):
        read_idx(path)


def test_small_mnist_compressed_and_not(tmp_path):
    folder = write_mnist(tmp_path)
    packed = load_mnist(tmp_path)
    assert packed.x_train.shape == (5, 28, 28)
    assert packed.y_test.tolist() == [9] * 5
    assert not np.array_equal(packed.x_train, packed.x_test)
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    np.testing.assert_array_equal(load_mnist(tmp_path).x_train, packed.x_train)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"shape": (28, 27)}, r"images-idx3.*shape \(n, 28, 28\); this file .* \(5, 28, 27\)"),
        ({"labels": 4}, r"labels-idx1.*each of the 5 images .* holds uint8 of shape \(4,\)"),
        ({"top": 10}, "labels-idx1.*labels are 0 to 9"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, how, message):
    write_mnist(tmp_path, **how)
    with pytest.raises(ValueError, match=message):
        load_mnist(tmp_path)


@pytest.mark.data
def test_real_mnist():
    mnist = load_mnist()
    assert mnist.x_train.shape == (60000, 28, 28)
    assert mnist.x_test.shape == (10000, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.y_train).tolist() == counts
    assert np.bincount(mnist.y_test).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    pixels = math.prod(mnist.x_train.shape)
    assert mnist.x_train.sum(dtype=np.int64) / pixels / 255 == pytest.approx(0.1307, abs=5e-5)
