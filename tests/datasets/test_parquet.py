"""Tables of encoded images: layouts, labels, splits, ids, and the copy that makes random access fast."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compress_ssl.datasets import ImageSet, digest, open_splits
from compress_ssl.datasets import parquet as module
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal


def encoded(value: int, form: str = "PNG") -> bytes:
    """A picture of 5 x 7 whose top left pixel is `value`."""
    pixels = np.random.default_rng(value).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pixels[0, 0] = value
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def write(
    path: Path,
    images: list[bytes | None],
    *,
    labels: Any = None,
    paths: list[str | None] | None = None,
    names: list[str] | None = None,
    column: str = "image",
    **options: Any,
) -> Path:
    """A parquet file in the Hugging Face layout."""
    structs = pa.array(
        [{"bytes": image, "path": None if paths is None else paths[row]} for row, image in enumerate(images)],
        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    features: dict[str, Any] = {column: {"_type": "Image"}}
    columns = {column: structs}
    if labels is not None:
        columns["label"] = pa.array(labels)
    if names is not None:
        features["label"] = {"_type": "ClassLabel", "names": names}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def values(images: ImageSet) -> list[int]:
    return [int(images.read(position)[0, 0, 0]) for position in range(len(images))]


def example(folder: Path) -> str:
    write(
        folder / "train.parquet",
        [encoded(value) for value in range(7)],
        labels=[0, 1, 1, 0, -1, 0, 1],
        names=["a", "b"],
    )
    write(folder / "test.parquet", [encoded(value) for value in range(50, 53)], labels=[1, 0, 1], names=["a", "b"])
    return str(folder)


def test_images_labels_and_class_names_are_read(tmp_path: Path) -> None:
    """What a user downloads from the Hugging Face hub would not open."""
    splits = open_splits(example(tmp_path))
    assert splits.test is not None
    assert values(splits.train) == list(range(7))
    assert values(splits.test) == [50, 51, 52]
    assert splits.train.labels.tolist() == [0, 1, 1, 0, -1, 0, 1]
    assert splits.train.classes == splits.test.classes == ("a", "b")
    assert splits.train.name == f"{tmp_path}:train"


def test_pixels_are_those_of_the_encoded_file(tmp_path: Path) -> None:
    """Rows would be shifted by one byte, or images exchanged, and still look like pictures."""
    pictures = [encoded(value, form) for value, form in enumerate(["JPEG", "PNG", "WEBP", "BMP"] * 5)]
    images = open_splits(str(write(tmp_path / "a.parquet", pictures, row_group_size=3))).train
    for row in np.random.default_rng(0).permutation(20):
        np.testing.assert_array_equal(images.read(int(row)), np.array(Image.open(io.BytesIO(pictures[row]))))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_every_compression_and_row_group_size_reads_the_same(tmp_path: Path, compression: str) -> None:
    """Only files written like ours would open."""
    pictures = [encoded(value) for value in range(11)]
    write(tmp_path / "a.parquet", pictures, row_group_size=4, compression=compression)
    assert values(open_splits(str(tmp_path / "a.parquet")).train) == list(range(11))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_a_plain_binary_column_is_an_image_column(tmp_path: Path, kind: pa.DataType) -> None:
    """Tables written by other programs carry bytes without a struct."""
    pq.write_table(pa.table({"image": pa.array([encoded(3), encoded(4)], type=kind)}), tmp_path / "a.parquet")
    images = open_splits(str(tmp_path / "a.parquet")).train
    assert values(images) == [3, 4]
    assert images.labels.tolist() == [-1, -1]
    assert images.classes == ()


@pytest.mark.parametrize("column", ["img", "my_pictures"])
def test_the_image_column_may_have_another_name(tmp_path: Path, column: str) -> None:
    """The hub's own CIFAR-10 calls it 'img'."""
    write(tmp_path / "a.parquet", [encoded(3)], column=column)
    assert values(open_splits(str(tmp_path / "a.parquet")).train) == [3]


@pytest.mark.parametrize(
    ("files", "train", "test"),
    [
        (["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"], [0, 1], [2]),
        (["data/train-0", "data/validation-0"], [0], [1]),
        (["default/train/0000", "default/train/0001", "default/test/0000"], [0, 1], [2]),
        (["cifar_train", "cifar_val"], [0], [1]),
        (["TRAIN", "Valid"], [0], [1]),
        (["train", "val", "test"], [0], [2]),
        (["part-0", "part-1"], [0, 1], None),
        (["only"], [0], None),
        (["test"], None, None),
        (["constrained", "contest"], [0, 1], None),
    ],
)
def test_splits_are_told_from_names(
    tmp_path: Path, files: list[str], train: list[int] | None, test: list[int] | None
) -> None:
    """Test images would be trained on."""
    for value, file in enumerate(files):
        write(tmp_path / f"{file}.parquet", [encoded(value)])
    if train is None:
        with pytest.raises(Refusal, match="expected a training split"):
            open_splits(str(tmp_path))
        return
    splits = open_splits(str(tmp_path))
    assert values(splits.train) == train
    assert (splits.test and values(splits.test)) == test


def test_one_file_by_itself_is_a_training_set_whatever_its_name(tmp_path: Path) -> None:
    """A user who names test.parquet as the data to learn from would be told that there is none."""
    splits = open_splits(str(write(tmp_path / "test.parquet", [encoded(3)])))
    assert values(splits.train) == [3]
    assert splits.test is None


def test_a_file_of_no_split_among_named_ones_is_refused(tmp_path: Path) -> None:
    """It might be test images; guessing would spoil every number."""
    write(tmp_path / "train.parquet", [encoded(0)])
    write(tmp_path / "more.parquet", [encoded(1)])
    with pytest.raises(Refusal, match=r"got more\.parquet"):
        open_splits(str(tmp_path))


def test_labels_without_names_are_their_own_names(tmp_path: Path) -> None:
    """The page would show no class, or the classes of train and test would be numbered apart."""
    write(tmp_path / "train.parquet", [encoded(0), encoded(1), encoded(2)], labels=[10, 2, None])
    write(tmp_path / "test.parquet", [encoded(3), encoded(4)], labels=[5, 10])
    splits = open_splits(str(tmp_path))
    assert splits.test is not None
    assert splits.train.classes == ("2", "5", "10")
    assert splits.train.labels.tolist() == [2, 0, -1]
    assert splits.test.labels.tolist() == [1, 2]


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_labels_may_be_strings(tmp_path: Path, as_dictionary: bool) -> None:
    """Tables from a data frame carry names, not numbers."""
    labels = pa.array(["dog", None, "cat", "dog"])
    write(
        tmp_path / "a.parquet",
        [encoded(row) for row in range(4)],
        labels=labels.dictionary_encode() if as_dictionary else labels,
    )
    images = open_splits(str(tmp_path / "a.parquet")).train
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [1, -1, 0, 1]


def test_a_shard_without_metadata_follows_the_names_of_the_others(tmp_path: Path) -> None:
    """Its labels would all be unknown."""
    write(tmp_path / "train.parquet", [encoded(0), encoded(1)], labels=[1, 0], names=["cat", "dog"])
    table = pa.table({"image": [encoded(2), encoded(3)], "label": [0, 1]})
    pq.write_table(table, tmp_path / "test.parquet")
    splits = open_splits(str(tmp_path))
    assert splits.test is not None
    assert splits.test.classes == ("cat", "dog")
    assert splits.test.labels.tolist() == [0, 1]


def test_a_test_split_without_labels_is_unlabelled(tmp_path: Path) -> None:
    """The hub hides test labels as -1; they would count as the last class."""
    write(tmp_path / "train.parquet", [encoded(0)], labels=[1], names=["cat", "dog"])
    write(tmp_path / "test.parquet", [encoded(1)], labels=[-1], names=["cat", "dog"])
    splits = open_splits(str(tmp_path))
    assert splits.test is not None
    assert splits.test.labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("labels", "names", "told"),
    [
        ([0, 2], ["cat", "dog"], "got 2 in row 1"),
        ([0.5, 1.0], None, "whole numbers or strings in the column 'label'"),
        ([[0], [1]], None, "whole numbers or strings in the column 'label'"),
    ],
)
def test_labels_that_name_no_class_are_refused(
    tmp_path: Path, labels: list[Any], names: list[str] | None, told: str
) -> None:
    """An IndexError in the evaluation, hours after the mistake."""
    write(tmp_path / "a.parquet", [encoded(0), encoded(1)], labels=labels, names=names)
    with pytest.raises(Refusal, match=told):
        open_splits(str(tmp_path / "a.parquet"))


def test_class_names_that_differ_between_files_are_refused(tmp_path: Path) -> None:
    """Cats would be scored as dogs."""
    write(tmp_path / "train.parquet", [encoded(0)], labels=[1], names=["cat", "dog"])
    write(tmp_path / "test.parquet", [encoded(1)], labels=[1], names=["dog", "cat"])
    with pytest.raises(Refusal, match="the same class names in every file"):
        open_splits(str(tmp_path))


def test_ids_are_the_paths_where_all_rows_have_different_ones(tmp_path: Path) -> None:
    """Rows shuffled by a later release would change every id."""
    images = open_splits(str(write(tmp_path / "a.parquet", [encoded(0), encoded(1)], paths=["y.png", "x.png"]))).train
    assert list(images.ids) == ["y.png", "x.png"]


@pytest.mark.parametrize("paths", [["x.png", "x.png"], ["x.png", None], ["x.png", ""], None])
def test_ids_are_file_and_row_otherwise(tmp_path: Path, paths: list[str | None] | None) -> None:
    """Two images would share an id, and so one embedding."""
    images = open_splits(str(write(tmp_path / "a.parquet", [encoded(0), encoded(1)], paths=paths))).train
    assert list(images.ids) == ["a:0", "a:1"]


def test_paths_that_both_splits_use_are_no_ids(tmp_path: Path) -> None:
    """The page would show a training image in the place of the test image of the same name."""
    write(tmp_path / "train.parquet", [encoded(0), encoded(1)], paths=["0.png", "1.png"])
    write(tmp_path / "test.parquet", [encoded(2)], paths=["0.png"])
    splits = open_splits(str(tmp_path))
    assert splits.test is not None
    assert list(splits.train.ids) == ["train:0", "train:1"]
    assert list(splits.test.ids) == ["test:0"]


def test_ids_of_shards_stay_when_another_shard_is_added(tmp_path: Path) -> None:
    """All stored embeddings would be lost for one more file."""
    write(tmp_path / "train-b.parquet", [encoded(0), encoded(1)])
    write(tmp_path / "sub" / "train-b.parquet", [encoded(2)])
    before = dict(zip(open_splits(str(tmp_path)).train.ids, [2, 0, 1], strict=True))
    write(tmp_path / "train-a.parquet", [encoded(7)])
    images = open_splits(str(tmp_path)).train
    now = dict(zip(images.ids, values(images), strict=True))
    assert before == {"sub/train-b:0": 2, "train-b:0": 0, "train-b:1": 1}
    assert now == before | {"train-a:0": 7}


def test_a_row_without_image_is_empty_and_the_others_are_read(tmp_path: Path) -> None:
    """One null would shift every later image by a row."""
    images = open_splits(str(write(tmp_path / "a.parquet", [encoded(0), None, encoded(2), b""]))).train
    assert int(images.read(2)[0, 0, 0]) == 2
    for row in (1, 3):
        with pytest.raises(UnusableImage) as caught:
            images.read(row)
        assert caught.value.kind == "empty"


def test_a_null_struct_is_an_empty_image_too(tmp_path: Path) -> None:
    """A missing struct is not the same as a struct of nothing, to Arrow."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": encoded(5), "path": "a"}, None, {"bytes": encoded(6), "path": "b"}]
    pq.write_table(pa.table({"image": pa.array(rows, type=kind)}), tmp_path / "a.parquet")
    images = open_splits(str(tmp_path / "a.parquet")).train
    assert [int(images.read(row)[0, 0, 0]) for row in (0, 2)] == [5, 6]
    with pytest.raises(UnusableImage, match="empty"):
        images.read(1)


def test_a_table_without_an_image_column_is_refused_with_its_columns(tmp_path: Path) -> None:
    """The user has to open the file in another program to see what it holds."""
    pq.write_table(pa.table({"text": ["a"], "vector": [[1.0]]}), tmp_path / "a.parquet")
    with pytest.raises(Refusal, match=r"got the columns text \(string\), vector \(list<"):
        open_splits(str(tmp_path / "a.parquet"))


def test_a_table_of_file_names_only_is_refused(tmp_path: Path) -> None:
    """Every image would be reported as empty, one by one."""
    with pytest.raises(Refusal, match="rows without bytes"):
        open_splits(str(write(tmp_path / "a.parquet", [None, None], paths=["a.png", "b.png"])))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """A stack trace out of a library the user has never heard of."""
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(Refusal, match=r"readable parquet file, got .*a\.parquet"):
        open_splits(str(tmp_path / "a.parquet"))


def test_damage_in_the_middle_of_a_file_is_refused_by_name(tmp_path: Path) -> None:
    """An interrupted download keeps a readable footer if it was written in pieces."""
    path = write(tmp_path / "a.parquet", [encoded(value) for value in range(20)], compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with pytest.raises(Refusal, match=r"a\.parquet"):
        open_splits(str(path))


def test_no_rows_are_refused_and_one_row_is_a_data_set(tmp_path: Path) -> None:
    """Nothing to train on would surface as a division by zero."""
    assert len(open_splits(str(write(tmp_path / "one.parquet", [encoded(0)]))).train) == 1
    with pytest.raises(Refusal, match="got no rows"):
        open_splits(str(write(tmp_path / "none.parquet", [])))


def test_an_empty_test_split_is_no_test_split(tmp_path: Path) -> None:
    """Scores over no images would be NaN."""
    write(tmp_path / "train.parquet", [encoded(0)])
    write(tmp_path / "test.parquet", [])
    assert open_splits(str(tmp_path)).test is None


def test_unusual_pictures_follow_the_callers_wish(tmp_path: Path) -> None:
    """--unusual convert would have no effect on tables."""
    buffer = io.BytesIO()
    Image.new("RGBA", (7, 5), (255, 0, 0, 0)).save(buffer, "PNG")
    name = str(write(tmp_path / "a.parquet", [buffer.getvalue()]))
    with pytest.raises(UnusableImage, match="transparent"):
        open_splits(name).train.read(0)
    assert (open_splits(name, unusual="convert").train.read(0) == 255).all()
    with pytest.raises(UnusableImage, match="huge"):
        open_splits(name, max_pixels=34).train.read(0)


def test_the_copy_is_made_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command would first copy a hundred gigabytes."""
    name = example(tmp_path)
    open_splits(name)
    copies = {path: path.stat().st_mtime_ns for path in cache.rglob("*.bytes")}
    assert len(copies) == 2

    def never(*_: object) -> None:
        raise AssertionError("copied a second time")

    monkeypatch.setattr(module, "_copy", never)
    assert values(open_splits(name).train) == list(range(7))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.bytes")} == copies


def test_a_changed_file_is_copied_again_and_the_old_copy_removed(tmp_path: Path, cache: Path) -> None:
    """The images of last week would be read, or the disk fill up with every version."""
    path = write(tmp_path / "a.parquet", [encoded(1), encoded(2)])
    before = open_splits(str(path)).train.fingerprint()
    write(path, [encoded(3), encoded(4), encoded(5)])
    os.utime(path, ns=(1, 1))
    images = open_splits(str(path)).train
    assert values(images) == [3, 4, 5]
    assert images.fingerprint() != before
    assert sorted(path.name.partition(".")[2] for path in cache.rglob("*.*") if path.is_file() and path.stem) == [
        "bytes", "checksums.npy", "lock", "offsets.npy"
    ]  # fmt: skip


def test_a_copy_cut_short_is_made_again(tmp_path: Path, cache: Path) -> None:
    """A machine that lost power while copying would read images that end in the middle."""
    path = write(tmp_path / "a.parquet", [encoded(1), encoded(2)])
    open_splits(str(path))
    (copy,) = cache.rglob("*.bytes")
    copy.write_bytes(copy.read_bytes()[:-5])
    assert values(open_splits(str(path)).train) == [1, 2]


def test_images_of_one_length_that_are_exchanged_have_other_evidence(tmp_path: Path) -> None:
    """Of the 50 000 images of CIFAR-10 a length is shared by 130: stored embeddings would be taught to others."""
    pictures = [encoded(value, "BMP") for value in range(3)]
    assert len(set(map(len, pictures))) == 1
    images = open_splits(str(write(tmp_path / "a.parquet", pictures))).train
    other = open_splits(str(write(tmp_path / "b" / "a.parquet", [pictures[1], pictures[0], pictures[2]]))).train
    assert images.evidence.tolist() == [len(bytes_) << 32 | zlib.crc32(bytes_) for bytes_ in pictures]
    assert (images.evidence != other.evidence).tolist() == [True, True, False]
    lengths = np.array(list(map(len, pictures)), dtype="<i8")
    assert images.fingerprint() == digest(images.ids, images.labels, lengths.tobytes()), "what was stored stays valid"


def test_a_copy_from_before_checksums_is_made_again(tmp_path: Path, cache: Path) -> None:
    """Whoever has used the data before would end in an error about a file that is not there."""
    path = write(tmp_path / "a.parquet", [encoded(1), encoded(2)])
    before = open_splits(str(path)).train.evidence
    next(cache.rglob("*.checksums.npy")).unlink()
    np.testing.assert_array_equal(open_splits(str(path)).train.evidence, before)


def _open_in_a_process(name: str, results: Any) -> None:
    results.put(values(open_splits(name).train))


def test_processes_that_open_the_same_data_at_once_all_read_it(tmp_path: Path) -> None:
    """Distributed training would start with one rank deleting another's half-made copy."""
    name = str(write(tmp_path / "a.parquet", [encoded(value) for value in range(30)]))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open_in_a_process, args=(name, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [list(range(30))] * 3
    for process in processes:
        process.join()


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "COMPRESS_SSL_HOME")])
def test_a_disk_that_takes_no_copy_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    """'No space left on device' without saying on which one."""
    name = str(write(tmp_path / "a.parquet", [encoded(1)]))

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refusal, match=told):
        open_splits(name)


def test_a_folder_of_images_with_a_table_at_its_root_is_a_table(tmp_path: Path) -> None:
    """Preview pictures beside the data would be taken for the data."""
    write(tmp_path / "train.parquet", [encoded(5)])
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "a.png").write_bytes(encoded(0))
    assert values(open_splits(str(tmp_path)).train) == [5]


def test_cifar_10_as_found_is_read(shared_data: Path) -> None:
    """Everything here is written by this test; a real file carries real metadata, row groups and doubled paths."""
    splits = open_splits(str(shared_data / "cifar10"))
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (50_000, 10_000)
    assert splits.train.classes[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(splits.train.labels).tolist() == [5000] * 10
    assert len(set(splits.train.ids)) == 50_000
    table = pq.ParquetFile(shared_data / "cifar10" / "train.parquet")
    for group, row in ((0, 0), (23, 571), (49, 999)):
        position = 1000 * group + row
        data = table.read_row_group(group)["image"][row].as_py()["bytes"]
        np.testing.assert_array_equal(splits.train.read(position), np.array(Image.open(io.BytesIO(data))))
        assert splits.train.labels[position] == table.read_row_group(group)["label"][row].as_py()
