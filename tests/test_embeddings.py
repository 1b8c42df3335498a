"""Rows with their ids: in memory, and as a table on disk."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from compress_ssl.embeddings import Embeddings, Table, TableWriter, is_table, read_manifest
from compress_ssl.refusal import Refusal

WIDTH = 7
ORIGIN = {"encoder": {"spec": "a", "weights": "0f", "width": WIDTH}, "data": {"name": "photos"}, "dtype": "float32"}


def embeddings(count: int, seed: int = 0) -> Embeddings:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Embeddings(rows, np.arange(count) % 3 - 1, tuple(f"s{seed}/{number}.jpg" for number in range(count)))


@pytest.fixture
def table(tmp_path) -> Path:
    """Two shards of 5 and 3 rows, one image skipped, and a test split of one shard."""
    writer = TableWriter(tmp_path / "table", ORIGIN)
    writer.write("train", 0, embeddings(5, 1), [("s1/broken.jpg", "broken", "no picture")], "float32")
    writer.write("train", 1, embeddings(3, 2), [], "float32")
    writer.write("test", 0, embeddings(2, 3), [], "float32")
    writer.complete({"train": 2, "test": 1})
    return tmp_path / "table"


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_table_gives_back_what_was_written(table):
    """A row under another image's id teaches the student the wrong thing, and nothing would show it."""
    opened = Table(table)
    first, second = embeddings(5, 1), embeddings(3, 2)
    assert opened.splits() == ["train", "test"]
    assert opened.ids("train") == [*first.ids, *second.ids]
    assert opened.labels("train").tolist() == [*first.labels, *second.labels]
    assert opened.skipped("train") == {"s1/broken.jpg"}
    assert opened.skipped("test") == set()
    np.testing.assert_array_equal(opened.embeddings("test").rows, embeddings(2, 3).rows)
    assert (opened.width, opened.origin) == (WIDTH, ORIGIN)


def test_rows_are_found_across_shards_in_any_order(table):
    """A batch is shuffled: rows taken shard by shard would come back in the shards' order."""
    positions = np.array([7, 0, 4, 5, 0, 6, 3])
    both = np.concatenate([embeddings(5, 1).rows, embeddings(3, 2).rows])
    np.testing.assert_array_equal(Table(table).rows("train", positions), both[positions])


def test_a_shard_without_a_usable_image_is_part_of_a_table(tmp_path):
    """Some hundred broken files in a row would make the whole data set unusable."""
    writer = TableWriter(tmp_path / "table", ORIGIN)
    writer.write("train", 0, embeddings(2, 1), [], "float32")
    nothing = Embeddings(np.empty((0, WIDTH), np.float32), np.empty(0, np.int64), ())
    writer.write("train", 1, nothing, [("s2/0.jpg", "empty", "0 bytes")], "float32")
    writer.write("train", 2, embeddings(3, 3), [], "float32")
    writer.complete({"train": 3})
    opened = Table(tmp_path / "table")
    both = np.concatenate([embeddings(2, 1).rows, embeddings(3, 3).rows])
    np.testing.assert_array_equal(opened.rows("train", np.array([4, 1, 2])), both[[4, 1, 2]])
    assert len(opened.embeddings("train").ids) == 5


def test_float16_moves_a_cosine_by_less_than_a_thousandth(tmp_path):
    """Neighbours would change places because of how they were stored."""
    writer = TableWriter(tmp_path / "table", ORIGIN)
    original = embeddings(97, 4)
    writer.write("train", 0, original, [], "float16")
    writer.complete({"train": 1})
    stored = Table(tmp_path / "table").embeddings("train").rows
    np.testing.assert_allclose(stored @ stored.T, original.rows @ original.rows.T, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-6)


def test_an_unfinished_table_is_no_teacher(tmp_path):
    """Half the images would have no row, which nobody would notice before the first epoch is over."""
    TableWriter(tmp_path / "table", ORIGIN).write("train", 0, embeddings(3), [], "float32")
    with pytest.raises(Refusal, match="interrupted: run its `embed` again"):
        Table(tmp_path / "table")


def test_another_origin_is_refused_field_by_field(table):
    """Rows of two encoders in one table: half of the neighbours would be noise."""
    other = {**ORIGIN, "encoder": {**ORIGIN["encoder"], "weights": "ff"}, "dtype": "float16"}
    with pytest.raises(Refusal, match=r"encoder\.weights: 0f → ff; dtype: float32 → float16") as refusal:
        TableWriter(table, other)
    assert "name another --out" in str(refusal.value)
    assert Table(table).origin == ORIGIN, "the table that was there must stay as it was"


def test_a_table_of_the_same_origin_is_continued(tmp_path):
    """A kill would cost everything that was done before it."""
    TableWriter(tmp_path / "table", ORIGIN).write("train", 1, embeddings(3), [], "float32")
    again = TableWriter(tmp_path / "table", ORIGIN)
    assert again.finished("train", 1)
    assert not again.finished("train", 0)
    assert not again.finished("test", 1)


def test_rows_without_their_record_are_not_finished(tmp_path):
    """The record is written last: rows that stand alone may be from the moment of the kill."""
    writer = TableWriter(tmp_path / "table", ORIGIN)
    writer.write("train", 0, embeddings(3), [], "float32")
    (tmp_path / "table" / "train" / "00000.json").unlink()
    assert not TableWriter(tmp_path / "table", ORIGIN).finished("train", 0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "foreign", "shape", "pickled", "no record", "record"])
def test_a_damaged_or_foreign_shard_is_refused(table, damage):
    """Rows of other images under these ids would be taken for the teacher's."""
    file = table / "train" / "00001.npy"
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[:-5])
    elif damage == "flipped":
        file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "missing":
        file.unlink()
    elif damage == "foreign":
        np.save(file, embeddings(3, 9).rows[:, None])
    elif damage == "shape":
        np.save(file, embeddings(4, 9).rows[:, None])
    elif damage == "pickled":
        file.write_bytes(pickle.dumps([1, 2, 3]))
    elif damage == "no record":
        file.with_suffix(".json").unlink()
    else:
        file.with_suffix(".json").write_text("[]")
    with pytest.raises(Refusal, match=r"expected a shard of rows in .*00001\.npy, got .*: make the table anew"):
        Table(table).rows("train", np.array([0]))


def test_a_shard_of_another_width_is_refused(table):
    """The record may match its rows and still not the table: two tables mixed by copying."""
    edit(table / "manifest.json", origin={**ORIGIN, "encoder": {**ORIGIN["encoder"], "width": WIDTH + 4}})
    with pytest.raises(Refusal, match=r"expected rows of shape \(5, 1, 11\) .* got \(5, 1, 7\)"):
        Table(table).embeddings("train")


def test_nothing_in_a_table_is_unpickled(table, tmp_path):
    """A table from the internet could run its author's code."""
    witness = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (witness,))

    file = table / "train" / "00000.npy"
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    edit(file.with_suffix(".json"), sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(Refusal, match="expected a shard of rows"):
        Table(table).embeddings("train")
    assert not witness.exists()


def test_an_unknown_split_is_refused(table):
    """A key error would not say which splits there are."""
    with pytest.raises(Refusal, match=r"expected the split 'val' .*got \['train', 'test'\]"):
        Table(table).ids("val")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 1}', '{"format": 99, "origin": {}}', "\ufffd\x00"])
def test_a_manifest_of_something_else_is_refused(tmp_path, text):
    """Any folder with a manifest.json (a web page's, say) would end in a stack trace."""
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(Refusal, match="expected a"):
        read_manifest(tmp_path)
    with pytest.raises(Refusal):
        Table(tmp_path)


def test_a_folder_without_manifest_is_no_table(tmp_path):
    """A run folder or photos would be taken for stored embeddings."""
    assert not is_table(tmp_path)
    assert not is_table(tmp_path / "nothing")
    with pytest.raises(Refusal, match="got no manifest"):
        read_manifest(tmp_path)


def test_a_folder_with_other_files_is_not_written_into(tmp_path):
    """`--out photos` would scatter shards among someone's photographs."""
    (tmp_path / "mine.jpg").write_bytes(b"1")
    with pytest.raises(Refusal, match="holds something else: name another"):
        TableWriter(tmp_path, ORIGIN)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.jpg"]


@pytest.mark.parametrize("wrong", ["length", "nan", "labels", "ids", "dimensions"])
def test_embeddings_are_unit_rows_with_as_many_labels_and_ids(wrong):
    """A similarity above 1, or labels shifted by one, would only show as strangely good or bad numbers."""
    good = embeddings(5)
    rows, labels, ids = good.rows.copy(), good.labels, good.ids
    if wrong == "length":
        rows[3] *= 1.01
    elif wrong == "nan":
        rows[3, 2] = np.nan
    elif wrong == "labels":
        labels = labels[:-1]
    elif wrong == "ids":
        ids = ids[1:]
    else:
        rows = rows[:, None]
    with pytest.raises(ValueError, match="expected"):
        Embeddings(rows, labels, ids)
