"""One stored view as one stretch of bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest

from compress_ssl.record import as_bytes, checks, crops_of, damaged, pack, record_dtype, unpack

DTYPES = ("float16", "float32", "int8")


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def some_crops(count: int, views: int) -> np.ndarray:
    crops = np.random.default_rng(1).integers(0, 2**31 - 1, (count, views, 5)).astype(np.int32)
    crops[..., 4] %= 2
    crops[:, 0] = 0
    return crops


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_crops_come_back_in_their_places(dtype):
    """A row beside another view's crop: the student would be shown a part of the picture that the teacher never saw."""
    rows, crops = unit(5, 3, 7), some_crops(5, 3)
    records, _ = pack(rows, crops, dtype)
    assert records.shape == (5, 3)
    found = unpack(as_bytes(records), 7, dtype).numpy()
    exact = {"float16": 2**-11, "float32": 0, "int8": 0.5 / 127}[dtype] * np.abs(rows).max(axis=-1).reshape(-1, 1)
    assert (np.abs(found - rows.reshape(-1, 7)) <= exact * 1.001).all()
    assert crops_of(as_bytes(records), 7, dtype) == [
        (int(top), int(left), int(height), int(width), bool(flip))
        for top, left, height, width, flip in crops.reshape(-1, 5)
    ]
    if dtype == "float16":
        np.testing.assert_array_equal(found, rows.reshape(-1, 7).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_records_are_packed_as_one_is(dtype):
    """They are packed in blocks: a row at a block's edge would be left out, or be its neighbour's."""
    rows, crops = unit(257, 5, 3), some_crops(257, 5)
    records, error = pack(rows, crops, dtype)
    for place in (0, 102, 103, 204, 256):
        alone, its_error = pack(rows[place : place + 1], crops[place : place + 1], dtype)
        assert records[place].tobytes() == alone[0].tobytes()
        np.testing.assert_array_equal(error[place], its_error[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_of_a_record_is_noticed(dtype):
    """A row with one bit changed is a wrong target in every epoch, and nothing else would show it."""
    records, _ = pack(unit(1, 1, 5), some_crops(1, 1), dtype)
    whole = as_bytes(records)
    assert not damaged(whole).any()
    bits = 8 * whole.shape[1]
    flipped = np.repeat(whole, bits, axis=0)
    for bit in range(bits):
        flipped[bit, bit // 8] ^= 1 << bit % 8
    assert damaged(flipped).all()


def test_words_that_change_places_are_noticed():
    """A plain sum would not see two stretches of a row exchanged."""
    records, _ = pack(unit(1, 1, 16), some_crops(1, 1), "float32")
    words = as_bytes(records).view(np.uint64)
    changed = np.concatenate([words, words])
    changed[1, [0, 1]] = words[0, [1, 0]]
    assert damaged(changed.view(np.uint8)).tolist() == [False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_checks_are_the_sum_that_is_written_down(dtype):
    """Another program, or another release of NumPy, could not check a table that this one made."""
    records, _ = pack(unit(3, 2, 11), some_crops(3, 2), dtype)
    weights = [word | 1 for word in np.random.PCG64(20201022).random_raw(1000).tolist()]
    for record, found in zip(as_bytes(records), checks(as_bytes(records)), strict=True):
        words = [int.from_bytes(record[place : place + 8].tobytes(), "little") for place in range(0, len(record), 8)]
        products = (weight * word for weight, word in zip(weights[1:], words[:-1], strict=False))
        assert found == (weights[0] + sum(products)) % 2**64 == words[-1]
    assert weights[:2] == [17845969116475299991, 18299261959902026891], "other numbers, and no old table can be read"


def test_lost_blocks_that_read_as_zeros_are_noticed():
    """A disk or a sparse copy gives zeros for what is lost: a row of zeros has no direction, its loss is NaN."""
    assert damaged(np.zeros((3, record_dtype(7, "float16").itemsize), np.uint8)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 64, 2048])
def test_a_record_is_whole_words_and_numbers_lie_where_processors_want_them(dtype, width):
    """The check is over 8-byte words: bytes left over would be in no word, and a flip in them would go unnoticed."""
    layout = record_dtype(width, dtype)
    assert layout.itemsize % 8 == 0
    for name in ("row", "scale", "box", "check"):
        place, size = layout.fields[name][1], layout[name].base.itemsize
        assert place % size == 0, name
    payload = width * layout["row"].base.itemsize + 4 + 16 + 1 + 8
    assert layout.itemsize - payload < 12, "little is wasted"
    stream = io.BytesIO()
    np.save(stream, np.zeros((3, 2), layout))
    stream.seek(0)
    assert np.load(stream, allow_pickle=False).dtype == layout


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("float16", 1e-8, 1e-7), ("float32", 0, 1e-12), ("int8", 1e-6, 1e-4)]
)
def test_the_error_of_storing_is_measured_against_the_exact_rows(dtype, low, high):
    """`--dtype` says how far neighbours move; a wrong number there would have someone store noise."""
    rows = unit(11, 3, 129, seed=3)
    records, error = pack(rows, some_crops(11, 3), dtype)
    exact = rows.reshape(-1, 129).astype(np.float64)
    fields = records.reshape(-1)
    kept = fields["row"].astype(np.float64) * fields["scale"].astype(np.float64)[:, None]
    cosine = (exact * kept).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(kept, axis=1)
    np.testing.assert_allclose(error.reshape(-1), 1 - cosine, rtol=1e-3, atol=1e-12)
    assert low <= error.min() <= error.max() <= high


def test_rows_of_no_image_make_no_record():
    """A shard of nothing but broken files would end the run."""
    records, error = pack(np.empty((0, 3, 7), np.float32), np.empty((0, 3, 5), np.int32), "float16")
    assert records.shape == error.shape == (0, 3)
    assert unpack(as_bytes(records), 7, "float16").shape == (0, 7)
