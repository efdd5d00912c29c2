"""Arrays and sources of private records: shapes are checked, values never."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexp import ArrayRecords, RecordSource
from qexp.models import mlp
from qexp.records import as_record_source

RECORDS = np.arange(42.0).reshape(14, 3)


class Source:
    n_records, n_parameters = 14, 3

    def blocks(self):
        yield RECORDS


@given(n=st.integers(1, 40), p=st.integers(1, 5), block_size=st.integers(1, 50))
def test_blocks_are_the_array_in_order(n, p, block_size):
    array = np.arange(float(n * p)).reshape(n, p)
    source = ArrayRecords(array, block_size=block_size)
    blocks = list(source.blocks())
    assert (source.n_records, source.n_parameters) == (n, p)
    assert np.array_equal(np.concatenate(blocks), array)
    assert all(len(block) == block_size for block in blocks[:-1])
    assert 1 <= len(blocks[-1]) <= block_size


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_can_be_read_again_and_keep_the_dtype(dtype):
    source = ArrayRecords(RECORDS.astype(dtype), block_size=5)
    for _ in range(2):
        blocks = list(source.blocks())
        assert [block.dtype for block in blocks] == [dtype] * 3
        assert np.array_equal(np.concatenate(blocks), RECORDS)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(RECORDS),
        np.repeat(RECORDS, 2, axis=0)[::2],
        np.repeat(RECORDS, 2, axis=1)[:, ::2],
        RECORDS[::-1],
        np.broadcast_to(RECORDS[0], (14, 3)),
    ],
    ids=["fortran", "rows apart", "columns apart", "backwards", "one row"],
)
def test_any_layout_gives_contiguous_blocks(array):
    blocks = list(ArrayRecords(array, block_size=4).blocks())
    assert all(block.flags.c_contiguous for block in blocks)
    assert np.array_equal(np.concatenate(blocks), array)


def test_contiguous_arrays_are_not_copied():
    for block in ArrayRecords(RECORDS, block_size=4).blocks():
        assert np.shares_memory(block, RECORDS)


@pytest.mark.parametrize("n_columns", [10, 100_000, 3_000_000])
def test_default_blocks_stay_near_four_mebibytes(n_columns):
    array = np.broadcast_to(np.zeros(n_columns), (1000, n_columns))
    block = next(ArrayRecords(array).blocks())
    assert len(block) == 1 or block.nbytes <= 4 * 2**20
    assert len(block) == min(1000, max(1, 4 * 2**20 // (8 * n_columns)))


def test_a_memory_map_is_read_a_block_at_a_time(tmp_path):
    np.save(tmp_path / "g.npy", RECORDS)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    source = ArrayRecords(mapped, block_size=5)
    for block in source.blocks():
        assert np.shares_memory(block, mapped)
    assert np.array_equal(np.concatenate(list(source.blocks())), RECORDS)


def test_values_are_never_looked_at():
    array = RECORDS.copy()
    array[3] = np.nan
    array[4, 1] = np.inf
    blocks = list(ArrayRecords(array, block_size=5).blocks())
    assert np.array_equal(np.concatenate(blocks), array, equal_nan=True)


def test_what_counts_as_a_source():
    model = mlp((2, 2))
    model_source = model.gradient_blocks(np.zeros((4, 2)), np.zeros(4))
    for source in (Source(), ArrayRecords(RECORDS), model_source):
        assert isinstance(source, RecordSource)
        assert as_record_source(source, n_parameters=source.n_parameters) is source
    assert not isinstance(RECORDS, RecordSource)
    assert isinstance(as_record_source(RECORDS, n_parameters=3), ArrayRecords)


@pytest.mark.parametrize("records", [[[0.0] * 3], None, 3, "file.npy", iter([RECORDS])])
def test_anything_else_is_refused(records):
    with pytest.raises(TypeError, match=r"need to be an \(n, p\) array .* or a source"):
        as_record_source(records, n_parameters=3)


@pytest.mark.parametrize("records", [RECORDS, Source()])
def test_another_length_is_refused(records):
    with pytest.raises(ValueError, match="gradients of 3 entries, pretrained has 4 weights"):
        as_record_source(records, n_parameters=4)


@pytest.mark.parametrize("n_records", [0, -1, 2.0, None])
def test_a_source_must_announce_a_number_of_records(n_records):
    source = Source()
    source.n_records = n_records
    with pytest.raises((TypeError, ValueError), match=r"n_records is .*an integer of at least 1"):
        as_record_source(source, n_parameters=3)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_arrays_are_refused(shape):
    with pytest.raises(ValueError, match="need at least one row and column"):
        ArrayRecords(np.zeros(shape))


@pytest.mark.parametrize("dtype", [int, bool, np.float16, complex, object, "U3", ">f8"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=r"records has dtype .*; it needs float32 or float64"):
        ArrayRecords(np.zeros((2, 3), dtype))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_other_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match=r"records has shape .*; it needs 2 dimension"):
        ArrayRecords(np.zeros(shape))


@pytest.mark.parametrize(
    ("block_size", "kind"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)]
)
def test_a_block_holds_a_whole_number_of_records(block_size, kind):
    with pytest.raises(kind, match=r"block_size is .*an integer of at least 1"):
        ArrayRecords(RECORDS, block_size=block_size)
