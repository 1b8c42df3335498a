"""What a table holds, and whether every bit of it is what was written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from compress_ssl import record, shard
from compress_ssl.embeddings import Embeddings
from compress_ssl.refusal import Refusal
from compress_ssl.sealed import write_sealed
from compress_ssl.table import MANIFEST, Table, read_manifest
from compress_ssl.table_writer import TableWriter, write_embeddings
from compress_ssl.verification import information, verify

WIDTH, VIEWS = 5, 2
ORIGIN = {
    "encoder": {
        "spec": "runs/a",
        "weights": "0123456789abcdef0123",
        "width": WIDTH,
        "space": "teacher",
        "preprocessing": {"size": 9, "interpolation": "bilinear", "crop_fraction": 0.875},
    },
    "data": {"name": "photos", "unusual": "skip"},
    "views": {"count": VIEWS, "seed": 3, "view": {"scale": [0.2, 1.0], "flip": 0.25}},
    "dtype": "float16",
    "code": "0.1",
}


class Images:
    """Images known by their names."""

    def __init__(self, names: str):
        self.ids, self.labels, self.evidence = tuple(names), np.zeros(len(names), np.int64), np.arange(len(names))

    def fingerprint(self) -> str:
        return "f" * 64


def writer(folder: Path) -> TableWriter:
    splits = {"train": (Images("abcdefgh"), VIEWS), "test": (Images("xyz"), 0)}
    return TableWriter(folder, ORIGIN, splits, shard_rows=3)


@pytest.fixture
def table(tmp_path) -> Path:
    writing = writer(tmp_path / "table")
    random = np.random.default_rng(0)
    for task in writing.tasks():
        views = 1 + writing.splits[task.split][1]
        rows = random.standard_normal((len(task.positions), views, WIDTH)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        usable = task.positions[task.positions != 4]
        skipped = [("e", "empty", "0 bytes")] if len(usable) < len(task.positions) else []
        writing.write(task, usable, rows[: len(usable)], np.ones((len(usable), views, 5), np.int32), skipped)
    writing.complete()
    return tmp_path / "table"


def files(table: Path) -> list[Path]:
    return sorted(file for file in table.rglob("*") if file.is_file())


def mentioned(table: Path) -> str:
    """What is wrong with a table; a damaged manifest is refused at once."""
    try:
        return " ".join(verify(table))
    except Refusal as refusal:
        return str(refusal)


def test_a_table_as_it_was_written_is_whole(table):
    """One would embed again what is in order."""
    assert verify(table) == []


def test_every_random_flip_and_truncation_is_reported_with_its_file(table):
    """`--verify` is asked after a crash or a copy: what it does not see is a wrong target from then on."""
    random = np.random.default_rng(1)
    for number in range(90):
        file = files(table)[random.integers(len(files(table)))]
        whole = file.read_bytes()
        if number % 3:
            changed = bytearray(whole)
            changed[random.integers(len(whole))] ^= 1 << random.integers(8)
        else:
            changed = whole[: random.integers(len(whole))]
        file.write_bytes(changed)
        told = mentioned(table)
        assert f"expected {file} as `embed` wrote it, got" in told, (number, file)
        assert told.count("as `embed` wrote it") == 1, "and nothing else"
        file.write_bytes(whole)
    assert verify(table) == []


def test_every_flip_in_a_row_is_refused_when_it_is_read_with_its_image(table):
    """Nobody verifies before each training: the wrong target would be taught."""
    random = np.random.default_rng(2)
    file, ids = table / "train" / "00002.npy", "gh"
    whole = file.read_bytes()
    size = record.record_dtype(WIDTH, "float16").itemsize
    start = len(whole) - 2 * (1 + VIEWS) * size
    for _ in range(60):
        byte = int(random.integers(start, len(whole)))
        changed = bytearray(whole)
        changed[byte] ^= 1 << random.integers(8)
        file.write_bytes(changed)
        image, view = divmod((byte - start) // size, 1 + VIEWS)
        place = Table(table).ids("train").index(ids[image])
        opened = Table(table)
        with pytest.raises(Refusal, match=rf"{file}.* changed bytes in the row of {ids[image]}:"):
            opened.rows(np.array([0, place, 1]), view=view - 1 if view else None)
        opened.rows(np.array([0, place, 1]), view=0 if view != 1 else None)
        assert f"row of {ids[image]}" in " ".join(verify(table))


def test_missing_and_exchanged_files_are_reported(table):
    """Each file is whole; the table is not: a copy that was interrupted, or two tables mixed."""
    train = table / "train"
    (train / "00000.npy").unlink()
    shutil.copy(train / "00001.json", train / "00002.json")  # of as many images
    (train / "00001.json").unlink()
    (one, two, three) = verify(table)
    assert f"expected {train / '00000.npy'} as `embed` wrote it, got No such file" in one
    assert f"expected {train / '00001.json'}" in two
    assert f"expected {train / '00002.json'} as `embed` wrote it, got another shard than the manifest lists" in three


def test_every_damaged_file_is_reported_not_only_the_first(table):
    """One would mend and verify a table of an hour once for each file."""
    for file in files(table):
        if file.name != MANIFEST:
            file.write_bytes(file.read_bytes()[:-1])
    assert len(verify(table)) == 4, "one sentence a shard"


def rewritten(table: Path, **changes) -> None:
    """The first training shard as a program of ours with a defect would have written it: every seal in order."""
    about, *_ = shard.read_about(table / "train", 0)
    records = np.load(table / "train" / "00000.npy")
    if "row" in changes:
        records["row"][1, 1] = changes.pop("row")
        records["check"] = record.checks(record.as_bytes(records)).reshape(records.shape)
    shard.write_shard(table / "train", 0, records, shard.About(**{**vars(about), **changes}))
    manifest = read_manifest(table)
    manifest["splits"]["train"]["shards"][0][2] = shard.read_about(table / "train", 0)[2]
    write_sealed(table / MANIFEST, manifest)


@pytest.mark.parametrize("row", [0.0, 0.9, np.nan])
def test_a_row_that_is_no_direction_is_reported_though_every_seal_is_right(table, row):
    """A row of zeros or of NaN makes every loss NaN; it may have been written so."""
    rewritten(table, row=row)
    (told,) = verify(table)
    assert "a row of length" in told
    assert "for b:" in told


@pytest.mark.parametrize("ids", ["aba", "ahc"])
def test_an_image_that_has_two_rows_is_reported(table, ids):
    """Which of the two is taught would depend on the order of a dictionary."""
    rewritten(table, ids=list(ids))
    (told,) = verify(table)
    assert "ids that stand in the table twice" in told


def test_an_unfinished_table_is_not_verified(tmp_path):
    """What is not there yet would be called damaged, or the part that is there the whole."""
    writer(tmp_path / "table")
    with pytest.raises(Refusal, match="interrupted: run `compress-ssl embed --encoder"):
        verify(tmp_path / "table")


def text(folder: Path) -> str:
    console = Console(width=200)
    with console.capture() as told:
        console.print(information(folder))
    return told.get()


def test_information_says_what_made_the_rows_and_how_they_lie(table):
    """Of a folder found on a disk nobody would know which encoder it is of, or whether its views can be replayed."""
    told = text(table)
    rows = Table(table).embeddings("train").rows
    cosines = (rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
    for part in (
        "runs/a, weights 0123456789abcdef",
        "5 × float16, in the teacher's space",
        "9 pixels, bilinear, crop fraction 0.875",
        "evaluation and 2 random ones of each training image: scale 0.2 to 1, flip 0.25, seed 3",
        "photos",
        "7 images, shards: 3, unusable: 1, fingerprint ffffffffffffffff",
        "3 images, shards: 1, unusable: 0",
        f"cosine of two images {cosines.mean():.3f} ± {cosines.std():.3f}",
        "1 - cosine by rounding: ",
        "made by compress-ssl 0.1",
    ):
        assert part in told, part
    size = sum(file.stat().st_size for file in files(table))
    assert f"{size / 2**20:.1f} MiB" in told


def test_information_of_an_unfinished_table_says_how_far_it_is(tmp_path):
    """Whether to wait for a table or to make it anew could not be told."""
    writing = writer(tmp_path / "table")
    rows = np.zeros((3, 1 + VIEWS, WIDTH), np.float32)
    rows[..., 0] = 1
    writing.write(writing.tasks()[0], np.arange(3), rows, np.zeros((3, 1 + VIEWS, 5), np.int32), [])
    assert "unfinished, 1 shards are there" in text(tmp_path / "table")


def test_information_of_rows_from_elsewhere_is_given_all_the_same(tmp_path):
    """A table of one's own rows, which know no weights and no name, would end in a stack trace."""
    one = {"all": Embeddings(np.eye(WIDTH, dtype=np.float32)[:1], np.zeros(1), ("a",))}
    preprocessing = ORIGIN["encoder"]["preprocessing"]
    write_embeddings(tmp_path / "table", one, {"encoder": {"width": WIDTH, "preprocessing": preprocessing}})
    told = text(tmp_path / "table")
    assert "unknown, weights unknown" in told
    assert "1 images, shards: 1" in told
