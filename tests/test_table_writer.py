"""Writing a table: nobody coordinates the writers, and every one of them may be killed."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from compress_ssl import run_folder, shard
from compress_ssl.datasets import digest
from compress_ssl.embeddings import Embeddings
from compress_ssl.lock import lock_name
from compress_ssl.refusal import Refusal
from compress_ssl.table import MANIFEST, Table
from compress_ssl.table_writer import TableWriter, Task, write_embeddings
from compress_ssl.verification import verify

WIDTH, SHARD_ROWS = 5, 3
ORIGIN = {
    "encoder": {"spec": "runs/a", "weights": "0f", "width": WIDTH, "space": "own", "preprocessing": {"size": 9}},
    "data": {"name": "photos", "unusual": "skip"},
    "views": {"count": 1, "seed": 3, "view": {"flip": 0.25}},
    "dtype": "float16",
    "code": "0",
}


@dataclass
class Images:
    """Images by their names; a name in `broken` cannot be used, one in `changed` has other bytes than before."""

    names: str
    broken: str = ""
    changed: str = ""
    ids: tuple[str, ...] = field(init=False)
    labels: np.ndarray = field(init=False)
    evidence: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.ids = tuple(self.names)
        self.labels = np.array([ord(name) % 3 - 1 for name in self.names])
        self.evidence = np.array([ord(name) + 1000 * (name in self.changed) for name in self.names])

    def fingerprint(self) -> str:
        return digest(self.ids, self.labels, self.evidence)


class Killed(BaseException):
    """What a process feels of SIGKILL: nothing after it runs, no clean-up of ours either."""


def splits(train: Images | str, test: str = "xyz") -> dict[str, tuple[Images, int]]:
    return {"train": (Images(train) if isinstance(train, str) else train, 1), "test": (Images(test), 0)}


def writer(folder: Path, images: Images | str, **origin) -> TableWriter:
    return TableWriter(folder, {**ORIGIN, **origin}, splits(images), shard_rows=SHARD_ROWS)


def make(writing: TableWriter, task: Task) -> None:
    """Embed and write one shard: each row follows from the name of its image."""
    images, views = writing.splits[task.split]
    usable = np.array([place for place in task.positions if images.ids[place] not in images.broken], np.int64)
    rows = np.zeros((len(usable), 1 + views, WIDTH), np.float32)
    crops = np.zeros((len(usable), 1 + views, 5), np.int32)
    for row, crop, place in zip(rows, crops, usable, strict=True):
        for view in range(1 + views):
            seed = hashlib.sha256(f"{images.ids[place]}{images.evidence[place]}{view}".encode()).digest()[0]
            row[view] = np.random.default_rng(seed).standard_normal(WIDTH)
            crop[view, :4] = view * seed
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    skipped = [(images.ids[place], "empty", "0 bytes") for place in task.positions if place not in usable]
    writing.write(task, usable, rows, crops, skipped)


def finish(folder: Path, images: Images | str, **origin) -> list[str]:
    """Do all that is left; the names embedded."""
    writing = writer(folder, images, **origin)
    names = []
    for task in writing.tasks():
        make(writing, task)
        names += [writing.splits[task.split][0].ids[place] for place in task.positions]
    assert writing.complete()
    return names


def contents(folder: Path) -> dict[str, str]:
    """File -> sha256 of all below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def untouched(folder: Path) -> dict[str, tuple[int, int]]:
    """Of all shards: another number means that the file was written again."""
    files = sorted(folder.glob("*/*"))
    return {str(file.relative_to(folder)): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.fixture
def whole(tmp_path) -> Path:
    finish(tmp_path / "whole", "abcdefghijk")
    return tmp_path / "whole"


def test_a_table_is_cut_into_shards_in_the_order_of_the_data(tmp_path):
    """A shard that left an image out, or held one twice, would be a table with a hole."""
    tasks = writer(tmp_path / "table", "abcdefghijk").tasks()
    assert [(task.split, task.number, task.positions.tolist()) for task in tasks] == [
        ("train", 0, [0, 1, 2]),
        ("train", 1, [3, 4, 5]),
        ("train", 2, [6, 7, 8]),
        ("train", 3, [9, 10]),
        ("test", 0, [0, 1, 2]),
    ]


@pytest.mark.parametrize("seed", range(10))
def test_the_numbering_is_the_same_whoever_looks_when(tmp_path, whole, seed):
    """Two processes would write different images into the shard of one number: rows lost, and others twice.

    Any number of writers look at any moment, work in any order, and are gone at any moment.
    """
    random = np.random.default_rng(seed)
    folder = tmp_path / "table"
    waiting: list[tuple[TableWriter, list[Task]]] = []
    for _ in range(60):
        if not waiting or random.random() < 0.2:
            ranks = int(random.integers(1, 4))
            rank = int(random.integers(ranks))
            writing = writer(folder, "abcdefghijk")
            waiting.append((writing, [task for task in writing.tasks() if task.number % ranks == rank]))
        which = int(random.integers(len(waiting)))
        writing, tasks = waiting[which]
        if tasks and random.random() < 0.8:
            make(writing, tasks.pop(int(random.integers(len(tasks)))))
        else:  # done, or killed
            if not tasks:
                writing.complete()
            waiting.pop(which)
    finish(folder, "abcdefghijk")
    assert contents(folder) == contents(whole)


def test_killed_at_any_moment_the_table_ends_up_the_same(tmp_path, whole, monkeypatch):
    """A kill after nine hours of ten would cost ten hours, or leave a table that is a little different.

    A writer dies at its first, second, third … file, before and after it has its name.
    """
    real = run_folder.replacing.__exit__
    for moment in range(1, 100):
        folder, count = tmp_path / f"table{moment}", [0]

        def leave(self, kind, *rest, count=count, moment=moment):
            count[0] += 1
            if count[0] * 2 == moment:
                raise Killed  # the temporary file stays
            real(self, kind, *rest)
            if count[0] * 2 + 1 == moment:
                raise Killed

        killed = False
        with monkeypatch.context() as patch:
            patch.setattr(run_folder.replacing, "__exit__", leave)
            try:
                finish(folder, "abcdefghijk")
            except Killed:
                killed = True
        before = untouched(folder)
        told = {name for name in before if name.endswith(".json") and "/." not in name}
        finish(folder, "abcdefghijk")
        after = untouched(folder)
        for name in told:
            assert after[name] == before[name], f"{name} was finished, and was written again"
        found = {name: sha for name, sha in contents(folder).items() if not name.startswith(".manifest")}
        assert found == contents(whole), moment
        if moment > 1 and not killed:
            break
    assert moment > 2 * 11, "two files a shard, the manifest twice"


def test_images_added_are_embedded_alone(whole):
    """Ten photographs more would cost the million again, or rewrite files that a training is reading."""
    before, old = untouched(whole), contents(whole)
    opened = Table(whole)
    rows = opened.rows(np.arange(14))
    writing = writer(whole, "aAbcdBefghijkC")
    assert [(task.number, task.positions.tolist()) for task in writing.tasks()] == [(4, [1, 5, 13])]
    make(writing, writing.tasks()[0])
    assert contents(whole) | old == contents(whole), "until the manifest is there the table is what it was"
    assert Table(whole).ids("train") == list("abcdefghijk")
    np.testing.assert_array_equal(Table(whole).rows(np.arange(14)), rows)
    assert writing.complete()
    after = untouched(whole)
    assert {name: after[name] for name in before} == before
    assert Table(whole).ids("train") == list("abcdefghijkABC")
    np.testing.assert_array_equal(opened.rows(np.arange(14)), rows)
    assert finish(whole, "aAbcdBefghijkC") == []
    assert verify(whole) == []


def test_images_added_before_a_table_is_finished_find_their_place(tmp_path):
    """Someone copies more photographs while the first are embedded: no row twice, none missing."""
    writing = writer(tmp_path / "table", "bdfhjln")
    for task in writing.tasks()[1:2]:  # h, j and l, and not what comes before them
        make(writing, task)
    assert sorted(finish(tmp_path / "table", "abcdefghijklmno")) == sorted("abcdefgikmnoxyz")
    assert sorted(Table(tmp_path / "table").ids("train")) == list("abcdefghijklmno")
    assert verify(tmp_path / "table") == []


def test_a_changed_image_is_refused(whole):
    """The old row would stand for the new picture under its name."""
    before = contents(whole)
    with pytest.raises(Refusal, match=r"got 2 changed ones \(c: 99 → 1099, …\): put the old ones back, or name"):
        writer(whole, Images("abcdefghijk", changed="ce")).tasks()
    assert contents(whole) == before


def test_an_unusable_picture_is_tried_again_when_it_was_mended(tmp_path):
    """It would be left out for ever, or broken files would be decoded again in every start."""
    broken = Images("abcdefgh", broken="bfg")
    assert sorted(finish(tmp_path / "table", broken)) == sorted("abcdefghxyz")
    opened = Table(tmp_path / "table")
    assert (opened.ids("train"), set(opened.skipped("train"))) == (list("acdeh"), set("bfg"))
    assert finish(tmp_path / "table", broken) == []
    assert finish(tmp_path / "table", Images("abcdefgh", broken="bg", changed="f")) == ["f"]
    opened = Table(tmp_path / "table")
    assert (opened.ids("train"), opened.skipped("train")) == (list("acdehf"), {"b": 98, "g": 103})
    assert finish(tmp_path / "table", Images("abcdefgh", broken="bg", changed="fg")) == ["g"], "changed, still broken"
    assert Table(tmp_path / "table").skipped("train") == {"b": 98, "g": 1103}, "as it is known now"
    assert finish(tmp_path / "table", Images("abcdefgh", broken="bg", changed="fg")) == []
    assert verify(tmp_path / "table") == []


def test_nothing_but_broken_pictures_in_a_shard_is_no_end(tmp_path):
    """Some thousand broken files in a row would make the whole data set unusable."""
    finish(tmp_path / "table", Images("abcdefgh", broken="def"))
    opened = Table(tmp_path / "table")
    assert opened.ids("train") == list("abcgh")
    first = Table(tmp_path / "table").rows(np.array([3, 0, 5]))
    finish(tmp_path / "other", "abcgh")
    np.testing.assert_array_equal(first, Table(tmp_path / "other").rows(np.array([3, 0, 5])))


def test_images_that_are_gone_are_told_and_their_rows_stay(whole):
    """A disk that is not mounted would cost its rows."""
    writing = writer(whole, "abdefghik")
    assert sorted(writing.gone()) == ["c", "j"]
    assert writing.tasks() == []
    assert writing.complete()
    assert Table(whole).ids("train") == list("abcdefghijk")
    assert writer(whole, "abcdefghijk").gone() == []


@pytest.mark.parametrize("name", ["train/00001.json", "train/00001.npy and its json", "test/00000.json", MANIFEST])
def test_what_is_removed_is_made_again_to_the_last_bit(whole, name):
    """The mend that a refusal names must give the table that was there, not one that is a little different."""
    before, bytes_ = untouched(whole), contents(whole)
    if " and " in name:
        (whole / "train" / "00001.npy").unlink()
        name = "train/00001.json"
    (whole / name).unlink()
    expected = {"train/00001.json": list("def"), "test/00000.json": list("xyz"), MANIFEST: []}[name]
    assert finish(whole, "abcdefghijk") == expected
    assert contents(whole) == bytes_
    kept = {file for file in before if not file.startswith(name.removesuffix(".json"))}
    assert {file: untouched(whole)[file] for file in kept} == {file: before[file] for file in kept}


def test_a_damaged_manifest_is_refused_with_its_mend(whole):
    """Going on would write a table of this encoder over one of another."""
    data = bytearray((whole / MANIFEST).read_bytes())
    data[100] ^= 1
    (whole / MANIFEST).write_bytes(data)
    with pytest.raises(
        Refusal, match=r"remove .*manifest\.json and run the `embed` that made .* again, which makes no row anew"
    ):
        writer(whole, "abcdefghijk")


def test_a_damaged_list_of_images_is_refused_with_its_mend(whole):
    """Its images would be embedded a second time, into a shard of another number."""
    file, bytes_ = whole / "train" / "00002.json", contents(whole)
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    with pytest.raises(Refusal, match=r"expected .*00002\.json as .*: remove .*00002\.json and run"):
        writer(whole, "abcdefghijk").tasks()
    file.unlink()
    assert finish(whole, "abcdefghijk") == list("ghi")
    assert contents(whole) == bytes_


def test_another_origin_is_refused_field_by_field(whole):
    """Rows of two encoders in one table: half of the neighbours would be noise."""
    before = contents(whole)
    other = {"encoder": {**ORIGIN["encoder"], "weights": "ff"}, "views": {"count": 2}, "dtype": "int8"}
    told = r"encoder\.weights: 0f → ff; views\.count: 1 → 2; views\.seed: 3 → None; .*: name another --out"
    with pytest.raises(Refusal, match=told):
        writer(whole, "abcdefghijk", **other)
    for changed in (
        {"encoder": {**ORIGIN["encoder"], "preprocessing": {"size": 8}}},
        {"data": {**ORIGIN["data"], "unusual": "convert"}},
        {"dtype": "float32"},
    ):
        with pytest.raises(Refusal, match="of the same origin"):
            writer(whole, "abcdefghijk", **changed)
    assert contents(whole) == before


def test_other_names_and_another_version_are_no_other_origin(whole):
    """A run folder that was moved, data under another mount, or an upgrade would cost every row."""
    renamed = {"encoder": {**ORIGIN["encoder"], "spec": "runs/b"}, "data": {**ORIGIN["data"], "name": "/mnt/photos"}}
    renamed["code"] = "1"
    assert finish(whole, "abcdefghijkl", **renamed) == ["l"]
    assert Table(whole).origin["encoder"]["spec"] == "runs/b"
    assert verify(whole) == []


def test_a_lost_manifest_is_not_made_for_shards_of_another_origin(whole):
    """The mend of a damaged manifest, called with another encoder's command, would put its name over these rows."""
    (whole / MANIFEST).unlink()
    with pytest.raises(Refusal, match="holds something else"):
        writer(whole, "abcdefghijk", dtype="int8")
    assert not (whole / MANIFEST).exists()


@pytest.mark.parametrize("what", ["picture", "folder", "file"])
def test_a_folder_with_other_files_is_not_written_into(tmp_path, what):
    """`--out photos` would scatter shards among someone's photographs."""
    folder = tmp_path / "photos"
    if what == "file":
        folder.write_bytes(b"1")
    else:
        folder.mkdir()
        (folder / "mine.jpg").write_bytes(b"1") if what == "picture" else (folder / "holiday").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refusal, match="holds something else: name another"):
        writer(folder, "abc")
    assert sorted(tmp_path.rglob("*")) == before


def test_several_processes_may_begin_at_the_same_moment(tmp_path, monkeypatch):
    """The manifest that one has written a moment ago would be someone else's file to the other."""
    monkeypatch.setattr("compress_ssl.table_writer.is_table", lambda _: False)  # looked before the other wrote
    writer(tmp_path / "table", "abc")
    writer(tmp_path / "table", "abc")
    monkeypatch.undo()
    assert len(finish(tmp_path / "table", "abc")) == 6


def test_what_killed_writers_left_is_removed(tmp_path, monkeypatch):
    """Each kill would leave up to a shard's bytes on the disk, for ever, under a name that `ls` hides."""
    writing = writer(tmp_path / "table", "abcdefgh")

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.replacing, "__exit__", killed)
        for task in writing.tasks():
            with pytest.raises(Killed):
                make(writing, task)
    left = [file for file in (tmp_path / "table").rglob(".*") if file.is_file()]
    assert len(left) == 4
    (tmp_path / "table" / "train" / ".mine").write_text("1")
    finish(tmp_path / "table", "abcdefgh")
    assert [file.name for file in (tmp_path / "table").rglob(".*")] == [".mine"]


def test_a_shard_that_is_finished_while_someone_looks_changes_no_number(tmp_path, monkeypatch):
    """What another process finishes between two looks at the folder would shift all numbers after it: images twice."""
    first, second = writer(tmp_path / "table", "abcdefghijk"), writer(tmp_path / "table", "abcdefghijk")
    theirs = second.tasks()
    real = TableWriter._held

    def meanwhile(self, split, finished):
        held = real(self, split, finished)
        if split == "train":
            make(second, theirs[1])
        return held

    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "_held", meanwhile)
        mine = first.tasks()
    assert [(task.number, task.positions.tolist()) for task in mine] == [
        (task.number, task.positions.tolist()) for task in theirs
    ]


def test_a_shard_is_made_by_one_process_at_a_time(tmp_path):
    """Two that write one shard could leave the rows of one beside the checksum of the other."""
    one, other = writer(tmp_path / "table", "abcdefgh"), writer(tmp_path / "table", "abcdefgh")
    task, *_, last = one.tasks()
    with one.claim(task) as mine:
        assert mine
        with other.claim(task) as theirs, other.claim(last) as free:
            assert (theirs, free) == (False, True)
        make(one, task)
    with other.claim(task) as theirs:
        assert not theirs, "it is finished"
    with pytest.raises(Killed), one.claim(last):
        raise Killed
    with other.claim(last) as theirs:
        assert theirs, "whoever was at it has gone"
    assert not list((tmp_path / "table").rglob(".*"))


def test_a_file_system_without_locks_holds_a_table_too(tmp_path, monkeypatch):
    """Some network file systems have none: nothing could be embedded there at all."""

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("compress_ssl.lock.fcntl.flock", none)
    writing = writer(tmp_path / "table", "abcdefgh")
    for task in writing.tasks():
        with writing.claim(task) as mine:
            assert mine
            make(writing, task)
    assert writing.complete()
    assert verify(tmp_path / "table") == []


def test_what_another_process_is_writing_is_not_removed(tmp_path):
    """A second start of the same command, done first, would take the file from under the other's hands."""
    writing = writer(tmp_path / "table", "abcdefgh")
    tasks = writing.tasks()
    for task in tasks:
        make(writing, task)
    temporary = tmp_path / "table" / "train" / ".00001.npy.kkoas6gc.npy"
    temporary.write_bytes(b"1")
    with writing.claim(tasks[0]):
        theirs = tmp_path / "table" / "train" / ".00000.npy.a8sd9f0k.npy"
        theirs.write_bytes(b"1")
        assert writer(tmp_path / "table", "abcdefgh").complete()
        assert (theirs.exists(), temporary.exists()) == (True, False)


def test_a_lock_that_a_killed_process_left_is_removed_once(tmp_path, monkeypatch):
    """Between two removals another process has made its own, and would no longer be alone at its shard."""
    writing = writer(tmp_path / "table", "abcdefgh")
    for task in writing.tasks():
        make(writing, task)
    stale = tmp_path / "table" / "train" / lock_name("00000")
    stale.touch()
    unlink = Path.unlink

    def followed(file: Path, **options: bool) -> None:
        there = file.exists()
        unlink(file, **options)
        if file == stale and there and not list(tmp_path.glob("theirs")):
            (tmp_path / "theirs").touch()
            stale.write_text("another process's")

    monkeypatch.setattr(Path, "unlink", followed)
    assert writing.complete()
    assert stale.read_text() == "another process's"


def test_other_data_do_not_become_part_of_a_table(whole):
    """Rows of two data sets under one name: found by nobody, and the first one's test split forgotten."""
    before = contents(whole)
    with pytest.raises(Refusal, match=r"--data expected the images that .* got only 3 of these 14 \(a is missing, …\)"):
        writer(whole, "lmnop").gone()
    assert contents(whole) == before
    writing = TableWriter(whole, ORIGIN, {"train": (Images("abcdefghijkl"), 1)}, shard_rows=SHARD_ROWS)
    for task in writing.tasks():
        make(writing, task)
    assert writing.complete()
    assert Table(whole).splits() == ["train", "test"], "data without a test split take none away"
    assert Table(whole).ids("test") == ["x", "y", "z"]


def test_a_table_is_not_complete_before_all_is_there(tmp_path):
    """The first of several processes to end would declare the others' shards missing, or not needed."""
    writing = writer(tmp_path / "table", "abcdefgh")
    for task in writing.tasks():
        assert not writing.complete()
        make(writing, task)
    assert "splits" not in json.loads((tmp_path / "table" / MANIFEST).read_text())
    assert writing.complete()


def test_a_finished_table_is_not_written_again(whole):
    """A table on a disk that is mounted read-only could not be looked at, and copies would differ in their times."""
    before = (whole / MANIFEST).stat()
    assert finish(whole, "abcdefghijk") == []
    after = (whole / MANIFEST).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_rows_in_memory_become_a_table(tmp_path, monkeypatch):
    """Rows that someone computed otherwise could not be used as stored ones."""
    rows = np.random.default_rng(0).standard_normal((7, WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    given = {
        "all": Embeddings(rows, np.arange(7) % 2, tuple("abcdefg")),
        "few": Embeddings(rows[:2], np.zeros(2), ("a", "b")),
    }
    table = write_embeddings(tmp_path / "table", given, {"encoder": ORIGIN["encoder"], "dtype": "float32"})
    assert table.splits() == ["all", "few"]
    for name, expected in given.items():
        found = table.embeddings(name)
        np.testing.assert_allclose(found.rows, expected.rows, atol=1e-7)
        assert (found.ids, found.labels.tolist()) == (expected.ids, expected.labels.tolist())
    assert (table.views, verify(tmp_path / "table")) == (0, [])
    assert table.evidence("all").tolist() == [0] * 7
    known = {"all": np.arange(7), "few": np.array([5, 6])}
    other = write_embeddings(tmp_path / "other", given, {"encoder": ORIGIN["encoder"]}, evidence=known)
    assert [other.evidence(name).tolist() for name in known] == [list(range(7)), [5, 6]]
    monkeypatch.setattr(shard, "write_sealed", None)
    assert write_embeddings(tmp_path / "table", given, {"encoder": ORIGIN["encoder"], "dtype": "float32"}).width == 5
