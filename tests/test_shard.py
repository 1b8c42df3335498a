"""One shard of a table: the records of some images in one file."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from compress_ssl.record import as_bytes, pack
from compress_ssl.sealed import Damaged
from compress_ssl.shard import About, Shard, read_about, records_file, write_shard

WIDTH, IMAGES, VIEWS = 7, 3, 5
ABOUT = About(
    ids=["a/ü.jpg", "b.jpg", "c.jpg"],
    labels=[2, -1, 0],
    evidence=[101, 7, 2**40],
    skipped=[["d.jpg", "empty", "0 bytes", 0]],
    origin="0f",
    rounding=(2e-8, 1e-8),
)


def records() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((IMAGES, VIEWS, WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return pack(rows, np.zeros((IMAGES, VIEWS, 5), np.int32), "float16")[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_shard(tmp_path, 41, records(), ABOUT)
    return tmp_path


def opened(folder: Path, **changes) -> Shard:
    promised = {"images": IMAGES, "views": VIEWS, "width": WIDTH, "dtype": "float16", "in_memory": False}
    return Shard(records_file(folder, 41), **{**promised, **changes})


def test_a_shard_is_an_array_that_numpy_reads(folder):
    """Whoever has the table and not this program could not use the rows."""
    assert sorted(file.name for file in folder.iterdir()) == ["00041.json", "00041.npy"]
    found = np.load(folder / "00041.npy", allow_pickle=False)
    assert found.shape == (IMAGES, VIEWS)
    assert found.tobytes() == records().tobytes()


def test_what_is_told_of_a_shard_comes_back(folder):
    """A label or an id in another image's place would only show as odd accuracies."""
    about, checksum, seal = read_about(folder, 41)
    assert about == ABOUT
    assert checksum == hashlib.sha256((folder / "00041.npy").read_bytes()).hexdigest()
    assert len(seal) == 64


@pytest.mark.parametrize("in_memory", [False, True])
def test_each_record_lies_where_its_number_says(folder, in_memory):
    """An offset that is wrong by a record gives every image its neighbour's row."""
    shard = opened(folder, in_memory=in_memory)
    for number, expected in enumerate(as_bytes(records())):
        assert bytes(shard.at(number)) == expected.tobytes()
    np.testing.assert_array_equal(shard.records(), as_bytes(records()))
    assert shard.checksum() == read_about(folder, 41)[1]


def test_announcing_any_record_is_allowed(folder):
    """The system takes pages only: an offset that is not rounded to one would end the run."""
    for in_memory in (False, True):
        shard = opened(folder, in_memory=in_memory)
        for number in range(IMAGES * VIEWS):
            shard.announce(number)
        assert bytes(shard.at(3)) == as_bytes(records())[3].tobytes()


def test_a_shard_without_images_is_a_shard(tmp_path):
    """Some thousand broken files in a row would make the whole data set unusable."""
    about = About(ids=[], labels=[], evidence=[], skipped=ABOUT.skipped, origin="0f", rounding=(0.0, 0.0))
    write_shard(tmp_path, 41, records()[:0], about)
    assert opened(tmp_path, images=0).records().shape[0] == 0
    assert read_about(tmp_path, 41)[0] == about


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": 4}, r"records of shape \(3, 5\) instead of \(4, 5\)"),
        ({"views": 1}, r"records of shape \(3, 5\) instead of \(3, 1\)"),
        ({"width": 8}, "rows of 7 float16 instead of rows of 8 float16"),
        ({"dtype": "int8"}, "rows of 7 float16 instead of rows of 7 int8"),
    ],
)
def test_another_layout_than_promised_is_told_in_words(folder, changes, told):
    """Two tables mixed by copying: the bytes of one row would be read as parts of two."""
    with pytest.raises(Damaged, match=told):
        opened(folder, **changes)


def test_arrays_of_something_else_are_told_in_words(folder):
    """A vector file under a shard's name would be read as records."""
    for array in (np.zeros((3, 5), np.float32), np.zeros((3, 5), [("a", "<f4")])):
        np.save(records_file(folder, 41), array)
        with pytest.raises(Damaged, match=r"an array of .* instead of rows of 7 float16"):
            opened(folder)


def test_a_cut_or_grown_file_is_told_with_its_size(folder):
    """Reading behind the end of a mapped file ends the process with a bus error and no word."""
    file = records_file(folder, 41)
    whole = file.read_bytes()
    for data in (whole[:-1], whole[:-200], whole + b"\0"):
        file.write_bytes(data)
        with pytest.raises(Damaged, match=rf"{len(data)} bytes instead of {len(whole)}"):
            opened(folder)


def test_no_change_of_the_header_ends_in_a_traceback(folder, recwarn):
    """NumPy reads it as Python: a flipped bit makes it raise TokenError, SyntaxError and others, or warn."""
    file = records_file(folder, 41)
    whole = file.read_bytes()
    header = len(whole) - records().nbytes
    accepted = 0
    for bit in range(0, 8 * header, 7):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            shard = opened(folder)
        except Damaged:
            continue
        accepted += 1  # a space that became a tab: the records are where they were
        np.testing.assert_array_equal(shard.records(), as_bytes(records()))
    assert accepted < 0.02 * 8 * header / 7
    for length in range(0, header, 3):
        file.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            opened(folder)
    assert not recwarn.list


def test_nothing_in_a_shard_is_unpickled(folder, tmp_path):
    """A table from the internet could run its author's code."""
    witness = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (witness,))

    stream = io.BytesIO()
    np.save(stream, np.array([[Trap()]], dtype=object), allow_pickle=True)
    for data in (stream.getvalue(), pickle.dumps(Trap())):
        records_file(folder, 41).write_bytes(data)
        with pytest.raises(Damaged):
            opened(folder)
    assert not witness.exists()


def test_a_missing_file_is_damage_and_the_systems_troubles_are_not(folder, monkeypatch):
    """With too many files open one would be told to remove a shard that is whole."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            opened(folder)
    records_file(folder, 41).unlink()
    with pytest.raises(Damaged, match="No such file"):
        opened(folder)


def test_rows_are_written_before_what_tells_of_them(tmp_path, monkeypatch):
    """A kill between the two would leave a shard that is told of and not there: finished, and lost."""
    written = []
    real = os.replace

    def note(source, target, **how):
        written.append(Path(target).name)
        return real(source, target, **how)

    monkeypatch.setattr(os, "replace", note)
    monkeypatch.setattr(Path, "replace", lambda self, target: note(self, target))
    write_shard(tmp_path, 41, records(), ABOUT)
    assert written == ["00041.npy", "00041.json"]
