"""Stored embeddings on disk, opened for reading."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from compress_ssl.embeddings import Embeddings
from compress_ssl.refusal import Refusal
from compress_ssl.sealed import write_sealed
from compress_ssl.table import MANIFEST, Table, is_table, read_manifest
from compress_ssl.table_writer import TableWriter, write_embeddings
from compress_ssl.transforms import Crop, Preprocessing, TrainView

WIDTH, VIEWS = 7, 2
ORIGIN = {
    "encoder": {
        "spec": "a",
        "weights": "0f",
        "width": WIDTH,
        "space": "own",
        "preprocessing": {"size": 9, "mean": [0.1, 0.2, 0.3]},
    },
    "data": {"name": "photos", "unusual": "skip"},
    "views": {"count": VIEWS, "seed": 3, "view": {"scale": [0.2, 1.0], "flip": 0.25}},
    "dtype": "float32",
    "code": "0",
}
BROKEN = "train/s04.jpg"


@dataclass
class Images:
    """Images known by what a writer asks of them."""

    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        self.labels = np.arange(len(self.ids)) % 3 - 1
        self.evidence = 100 + np.arange(len(self.ids))

    def fingerprint(self) -> str:
        return "f" * 64


TRAIN = Images(tuple(f"train/s{number:02d}.jpg" for number in range(11)))
TEST = Images(tuple(f"test/s{number:02d}.jpg" for number in range(3)))


def row_of(id: str, view: int) -> np.ndarray:
    """(D,) the unit row of one view: view 0 is the evaluation view."""
    seed = int.from_bytes(hashlib.sha256(f"{id} {view}".encode()).digest()[:4], "little")
    row = np.random.default_rng(seed).standard_normal(WIDTH)
    return (row / np.linalg.norm(row)).astype(np.float32)


def crop_of(id: str, view: int) -> Crop:
    number = int(id[-6:-4])
    return Crop(view, number, 10 + number, 20 + view, bool((number + view) % 2)) if view else Crop(0, 0, 0, 0, False)


def write(folder: Path, dtype: str = "float32") -> Path:
    """Train: shards of 4, 3 usable and 1 unusable among them; test: one of 3."""
    writer = TableWriter(folder, {**ORIGIN, "dtype": dtype}, {"train": (TRAIN, VIEWS), "test": (TEST, 0)}, shard_rows=4)
    for task in writer.tasks():
        images, views = writer.splits[task.split]
        usable = np.array([place for place in task.positions if images.ids[place] != BROKEN])
        ids = [images.ids[place] for place in usable]
        rows = np.array([[row_of(id, view) for view in range(1 + views)] for id in ids])
        crops = np.array([[crop_of(id, view) for view in range(1 + views)] for id in ids], np.int32)
        skipped = [(BROKEN, "broken", "no picture")] if len(usable) < len(task.positions) else []
        writer.write(task, usable, rows, crops, skipped)
    assert writer.complete()
    return folder


@pytest.fixture
def table(tmp_path) -> Path:
    return write(tmp_path / "table")


IDS = [id for id in TRAIN.ids if id != BROKEN]
ALL = [*IDS, *TEST.ids]


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_table_gives_back_what_was_written(table, in_memory):
    """A row under another image's id teaches the student the wrong thing, and nothing would show it."""
    opened = Table(table, in_memory=in_memory)
    assert opened.splits() == ["train", "test"]
    assert (opened.ids("train"), opened.ids("test")) == (IDS, list(TEST.ids))
    assert opened.labels("train").tolist() == [TRAIN.labels[TRAIN.ids.index(id)] for id in IDS]
    assert opened.evidence("train").tolist() == [TRAIN.evidence[TRAIN.ids.index(id)] for id in IDS]
    assert (set(opened.skipped("train")), opened.skipped("test")) == ({BROKEN}, {})
    assert (opened.first("train"), opened.first("test")) == (0, 10)
    assert (opened.width, opened.views, opened.origin) == (WIDTH, VIEWS, ORIGIN)
    assert opened.preprocessing == Preprocessing(size=9, mean=(0.1, 0.2, 0.3))
    assert opened.view == TrainView(scale=(0.2, 1.0), flip=0.25)
    for split, ids in (("train", IDS), ("test", TEST.ids)):
        found = opened.embeddings(split)
        assert found.ids == tuple(ids)
        np.testing.assert_allclose(found.rows, [row_of(id, 0) for id in ids], atol=1e-7)
        assert found.labels.tolist() == opened.labels(split).tolist()


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("view", [None, 0, 1])
def test_rows_are_found_across_shards_in_any_order(table, view, in_memory):
    """A batch is shuffled: rows taken shard by shard would come back in the shards' order."""
    places = np.array([9, 0, 4, 3, 0, 6, 2, 9])
    if view is None:
        places = np.append(places, [12, 10, 11, 12])
    rows = Table(table, in_memory=in_memory).rows(places, view=view)
    assert (rows.dtype, rows.shape) == (torch.float32, (len(places), WIDTH))
    expected = [row_of(ALL[place], 0 if view is None else 1 + view) for place in places]
    np.testing.assert_allclose(rows.numpy(), expected, atol=1e-7)


def test_each_crop_is_that_of_its_row(table):
    """The student would be shown another part of the picture than the teacher saw: noise instead of a target."""
    opened = Table(table)
    for place, id in enumerate(IDS):
        for view in range(VIEWS):
            assert opened.crop(place, view=view) == crop_of(id, 1 + view)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_in_fewer_bits_are_unit_rows_near_the_exact_ones(tmp_path, dtype):
    """A similarity above 1, or neighbours that change places, because of how rows were stored."""
    opened = Table(write(tmp_path / "table", dtype))
    rows = opened.rows(np.arange(13)).double()
    exact = torch.tensor(np.array([row_of(id, 0) for id in ALL])).double()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(13).double(), atol=1e-6, rtol=0)
    error = 1 - (rows * exact).sum(dim=1)
    assert error.max() < {"float16": 1e-7, "int8": 5e-5}[dtype]
    told = opened.manifest["splits"]["train"]["rounding"]
    assert 0 < told["mean"] < told["largest"] < {"float16": 1e-7, "int8": 5e-5}[dtype]


def test_announcing_rows_changes_none(table):
    """Reading ahead is a wish: were it more, runs with other numbers of workers would differ."""
    opened, places = Table(table), np.array([9, 0, 12, 4])
    before = opened.rows(places)
    opened.announce(places)
    opened.announce(np.array([], np.int64))
    opened.announce(places[:2], view=1)
    Table(table, in_memory=True).announce(places)
    assert torch.equal(opened.rows(places), before)


def test_no_rows_are_rows_of_the_tables_width(table):
    """An empty part of a batch would end the run where it is put beside the others."""
    assert Table(table).rows(np.array([], np.int64)).shape == (0, WIDTH)


def test_a_table_travels_to_worker_processes(table):
    """Mapped files cannot be pickled; and each worker would hold all rows where the first one does."""
    for in_memory in (False, True):
        opened = Table(table, in_memory=in_memory)
        rows = opened.rows(np.arange(10), view=1)
        data = pickle.dumps(opened)
        assert len(data) < 1000
        travelled = pickle.loads(data)
        assert not travelled.in_memory
        assert torch.equal(travelled.rows(np.arange(10), view=1), rows)
        assert travelled.crop(3, view=0) == opened.crop(3, view=0)


def test_in_memory_means_that_the_files_are_read_once(table):
    """A table on a slow or a shared disk would be asked for rows in every step all the same."""
    opened = Table(table, in_memory=True)
    for file in table.rglob("*.npy"):
        file.unlink()
    np.testing.assert_allclose(opened.rows(np.arange(13)).numpy(), [row_of(id, 0) for id in ALL], atol=1e-7)


def test_the_numbers_of_a_table_are_those_of_its_rows(table):
    """`--info` is read to see whether an encoder tells images apart at all."""
    rows = np.array([row_of(id, 0) for id in IDS]).astype(np.float64)
    cosines = np.array([a @ b for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j])
    told = read_manifest(table)["statistics"]["train"]
    expected = {"mean": cosines.mean(), "std": cosines.std(), "smallest": cosines.min(), "largest": cosines.max()}
    for name, value in expected.items():
        assert told[f"cosine_{name}"] == pytest.approx(value, abs=2e-6)
    assert told["mean_row_length"] == pytest.approx(np.linalg.norm(rows.mean(axis=0)), abs=2e-6)


@pytest.mark.parametrize("places", [[-1], [13], [0, 99]])
def test_places_that_are_none_are_refused(table, places):
    """-1 would be the last image of the table, as Python counts."""
    with pytest.raises(IndexError, match=r"expected places in \[0, 13\)"):
        Table(table).rows(np.array(places))


def test_views_that_are_none_are_refused(table):
    """View V of one image is the evaluation view of the next: a row of another image."""
    for view in (-1, VIEWS):
        with pytest.raises(IndexError, match=r"expected a view in \[0, 2\)"):
            Table(table).rows(np.array([0]), view=view)
    with pytest.raises(IndexError, match="expected a split with random views, got 'test'"):
        Table(table).rows(np.array([0, 10]), view=0)


def test_an_unknown_split_is_refused(table):
    """A key error would not say which splits there are."""
    with pytest.raises(Refusal, match=r"expected the split 'val' .*got \['train', 'test'\]"):
        Table(table).ids("val")


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_damaged_row_is_refused_with_its_image(table):
    """A target with one bit changed is wrong in every epoch; no number would show it. The others are usable."""
    flip(table / "train" / "00001.npy", -1)
    opened = Table(table)
    np.testing.assert_allclose(opened.rows(np.arange(6)).numpy(), [row_of(id, 0) for id in ALL[:6]], atol=1e-7)
    assert opened.rows(np.array([6])).shape == (1, WIDTH), "another view of the same image"
    told = (r"expected .*train/00001\.npy as `embed` wrote it, got changed bytes in the row of train/s07\.jpg: "
            r"remove .*train/00001\.json and run `compress-ssl embed .*`, which makes this shard anew")  # fmt: skip
    with pytest.raises(Refusal, match=told):
        opened.rows(np.array([9, 6, 0]), view=1)
    with pytest.raises(Refusal, match=r"row of train/s07\.jpg"):
        opened.crop(6, view=1)


@pytest.mark.parametrize("wrong", ["cut", "missing", "foreign", "shape", "pickled"])
def test_a_damaged_or_foreign_shard_is_refused(table, wrong):
    """Rows of other images under these ids would be taken for the teacher's."""
    file = table / "train" / "00001.npy"
    if wrong == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif wrong == "missing":
        file.unlink()
    elif wrong == "foreign":
        np.save(file, np.zeros((3, 1, WIDTH), np.float32))
    elif wrong == "shape":
        shutil.copy(table / "train" / "00000.npy", file)
    else:
        file.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(Refusal, match=r"expected .*train/00001\.npy as .*, got .*: remove .*train/00001\.json and run"):
        Table(table).rows(np.array([0, 5]))
    with pytest.raises(Refusal, match=r"00001\.npy"):
        Table(table, in_memory=True)


@pytest.mark.parametrize("wrong", ["cut", "missing", "flipped", "of another shard"])
def test_a_damaged_list_of_images_is_refused(table, wrong):
    """One letter of an id changed: the row is not found, or is taken for another image's."""
    file = table / "train" / "00001.json"
    if wrong == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif wrong == "missing":
        file.unlink()
    elif wrong == "flipped":
        flip(file, 20)
    else:
        shutil.copy(table / "train" / "00000.json", file)
    with pytest.raises(Refusal, match=r"expected .*train/00001\.json as .*, got .*: remove .*00001\.json and run"):
        Table(table).ids("train")


def test_in_memory_another_shard_under_the_same_name_is_refused(tmp_path):
    """Each of its rows is whole, and is another image's: files mixed up in a copy."""
    table = write(tmp_path / "table")
    other = tmp_path / "other"
    write_embeddings(other, {"train": Embeddings(np.eye(WIDTH, dtype=np.float32)[:3], np.zeros(3), ("a", "b", "c"))},
                     {**ORIGIN, "views": {"count": 0}})  # fmt: skip
    shutil.copy(other / "train" / "00000.npy", table / "test" / "00000.npy")
    with pytest.raises(Refusal, match=r"expected .*test/00000\.npy as .*, got bytes that do not match"):
        Table(table, in_memory=True)


def test_too_many_files_are_no_damage(table, monkeypatch):
    """One would be told to remove a shard that is whole."""
    opened, real = Table(table), Path.open

    def refuse(self, *words, **how):
        if self.suffix == ".npy":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(self, *words, **how)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(Refusal, match=r"expected to hold 4 files of rows open, .*ulimit -n"):
        opened.rows(np.array([0]))


def test_a_damaged_manifest_is_refused_with_what_mends_it(table):
    """The weights or the width that it tells would be others, and the whole table would seem lost."""
    flip(table / MANIFEST, 200)
    with pytest.raises(
        Refusal,
        match=r"got .*: remove .*manifest\.json and run the `embed` that made .* again, which makes no row anew",
    ):
        Table(table)


def test_an_unfinished_table_is_no_teacher(tmp_path):
    """Half the images would have no row, which nobody would notice before the first epoch is over."""
    TableWriter(tmp_path / "table", ORIGIN, {"train": (TRAIN, VIEWS)}, shard_rows=4)
    assert is_table(tmp_path / "table")
    with pytest.raises(Refusal, match="interrupted: run `compress-ssl embed --encoder"):
        Table(tmp_path / "table")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 2}', '{"format": 2, "origin": {}}', "\ufffd\x00"])
def test_a_manifest_of_something_else_is_refused(tmp_path, text):
    """Any folder with a manifest.json (a web page's, say) would end in a stack trace."""
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(Refusal, match="expected"):
        Table(tmp_path)


@pytest.mark.parametrize("value", [{}, {"format": 2}, {"format": 1, "origin": {}}, {"format": 3, "origin": {}}])
def test_another_format_is_refused(tmp_path, value):
    """A table of another release would be read as this one's, wrongly."""
    write_sealed(tmp_path / MANIFEST, value)
    with pytest.raises(Refusal, match=r"expected a table of format 2 .*make it anew"):
        read_manifest(tmp_path)


def test_a_folder_without_manifest_is_no_table(tmp_path):
    """A run folder or photos would be taken for stored embeddings."""
    for folder in (tmp_path, tmp_path / "nothing"):
        assert not is_table(folder)
        with pytest.raises(Refusal, match="got no manifest"):
            read_manifest(folder)


def test_the_identity_changes_with_what_makes_the_rows(table, tmp_path):
    """A run resumed with rows of another teacher would go on without a word."""
    names = set(Table(table).identity())
    assert names == {f"teacher {name}" for name in ("weights", "space", "preprocessing", "views", "width", "dtype")}
    assert all(isinstance(value, str) for value in Table(table).identity().values())
    other = Table(write(tmp_path / "other", "int8")).identity()
    assert {name for name in names if other[name] != Table(table).identity()[name]} == {"teacher dtype"}


def test_the_manifest_says_which_rows_there_are(table):
    """Someone without this program could not tell where an image's row is."""
    manifest = json.loads((table / MANIFEST).read_text())
    assert manifest["splits"]["train"]["images"] == 10
    assert [shard[:2] for shard in manifest["splits"]["train"]["shards"]] == [[0, 4], [1, 3], [2, 3]]
    assert [shard[:2] for shard in manifest["splits"]["test"]["shards"]] == [[0, 3]]
