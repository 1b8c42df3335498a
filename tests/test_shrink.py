"""The shrunk copy: what it holds, under which names, and that a killed one ends as if it had not been."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compress_ssl import jpeg, shrink
from compress_ssl.cli import main
from compress_ssl.datasets import SHRUNK, ImageSet, Splits, open_splits
from compress_ssl.loader import TrainLoader
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import RandomView, TrainView

FORMATS = ["folder", "parquet"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet leaves a copy of its images in the user's cache."""
    monkeypatch.setenv("COMPRESS_SSL_HOME", str(tmp_path / "home"))


def smooth(height: int, width: int, tint: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 200 / height, columns * 200 / width, np.full((height, width), tint)], axis=-1)
    return Image.fromarray((20 + picture).clip(0, 255).astype(np.uint8))


def photos(root: Path, *, suffix: str = "jpg") -> Path:
    """Eleven pictures of two classes in two splits, large and small, upright and not, one broken."""
    exif = Image.Exif()
    exif[274] = 6
    for number in range(11):
        split, owner = ("val" if number % 4 == 3 else "train"), ("dog" if number % 2 else "cat: big")
        path = root / split / owner / f"{number:02d} é.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = ((90, 141), (200, 61), (30, 50))[number % 3]
        smooth(height, width, 20 * number).save(path, exif=exif if number == 4 else b"")
    (root / "train" / "dog" / f"05 é.{suffix}").write_bytes(b"not a picture")
    return root


def make(data: Path | str, out: Path, **options) -> Path:
    return shrink.run(shrink.Config(data=str(data), out=out, **({"short_side": 40, "workers": 0} | options)))


def by_id(images: ImageSet) -> dict[str, tuple[str, np.ndarray]]:
    """Id -> class name and pixels."""
    return {
        name: (images.classes[label], images.read(place))
        for place, (name, label) in enumerate(zip(images.ids, images.labels, strict=True))
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def both(splits: Splits) -> tuple[ImageSet, ImageSet]:
    assert splits.test is not None
    return splits.train, splits.test


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("suffix", ["jpg", "JPEG"])
def test_a_copy_has_ids_labels_and_splits_of_the_original(tmp_path: Path, form: str, suffix: str) -> None:
    """Stored embeddings would be thrown away, and the images a student is judged on would be trained on."""
    data = photos(tmp_path / "photos", suffix=suffix)
    copy = make(data, tmp_path / "copy", format=form)
    for ours, theirs in zip(both(open_splits(str(copy))), both(open_splits(str(data))), strict=True):
        broken = {f"train/dog/05 é.{suffix}"} & set(theirs.ids)
        assert set(ours.ids) == set(theirs.ids) - broken
        labels = dict(zip(theirs.ids, theirs.labels.tolist(), strict=True))
        assert ours.classes == theirs.classes == ("cat: big", "dog")
        assert ours.labels.tolist() == [labels[name] for name in ours.ids]


@pytest.mark.parametrize("form", FORMATS)
def test_images_are_small_upright_and_otherwise_the_same(tmp_path: Path, form: str) -> None:
    """Students would learn from pictures that lie on their sides, are squeezed, or blown up."""
    data = photos(tmp_path / "photos")
    copy = make(data, tmp_path / "copy", format=form)
    for ours, theirs in zip(both(open_splits(str(copy))), both(open_splits(str(data))), strict=True):
        for name, (_, small) in by_id(ours).items():
            picture = theirs.read(theirs.ids.index(name))
            height, width = picture.shape[:2]
            if min(height, width) <= 40:
                assert small.shape == picture.shape
            else:
                assert min(small.shape[:2]) == 40
                assert abs(max(small.shape[:2]) - 40 * max(height, width) / min(height, width)) <= 0.5
            expected = Image.fromarray(picture).resize(small.shape[1::-1], Image.Resampling.LANCZOS)
            assert np.abs(small.astype(int) - np.asarray(expected)).mean() < 3


@pytest.mark.parametrize("form", FORMATS)
def test_what_cannot_be_used_is_left_out_and_listed(tmp_path: Path, form: str, capsys: pytest.CaptureFixture) -> None:
    """A user would never hear that a tenth of the images is missing from every later run."""
    copy = make(photos(tmp_path / "photos"), tmp_path / "copy", format=form)
    listed = [json.loads(line) for line in (copy / "skipped.jsonl").read_text().splitlines()]
    assert [(skip["id"], skip["kind"]) for skip in listed] == [("train/dog/05 é.jpg", "broken")]
    assert "skipped train/dog/05 é.jpg: broken" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMATS)
def test_strict_refuses_an_unusable_image_at_once_and_afterwards(tmp_path: Path, form: str) -> None:
    """`--strict` would pass on the second try."""
    data = photos(tmp_path / "photos")
    for _ in range(2):
        with pytest.raises(Refusal, match=r"got train/dog/05 é\.jpg: broken"):
            make(data, tmp_path / "copy", format=form, strict=True)
    make(data, tmp_path / "copy", format=form)
    with pytest.raises(Refusal, match=r"got train/dog/05 é\.jpg: broken"):
        make(data, tmp_path / "copy", format=form, strict=True)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_killed_and_started_again_it_ends_as_if_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, after: int
) -> None:
    """A copy of a million images would begin anew after every power cut, or have half a file in it."""
    data = photos(tmp_path / "photos")
    whole = contents(make(data, tmp_path / "whole", format=form, shard_rows=3))
    work, done = shrink.shrink, []

    def killed(*arguments):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(arguments)
        return work(*arguments)

    monkeypatch.setattr(shrink, "shrink", killed)
    with pytest.raises(KeyboardInterrupt):
        make(data, tmp_path / "copy", format=form, shard_rows=3)
    monkeypatch.setattr(shrink, "shrink", work)
    for name in (".0123456789abcdef.unfinished", ".train-00000-of-00003.parquet.abcd1234.parquet"):
        (tmp_path / "copy" / name).write_bytes(b"half")
    for path in list((tmp_path / "copy").rglob("*.jpg"))[:1]:
        path.write_bytes(path.read_bytes()[:-7])  # as a power cut leaves it
    assert contents(make(data, tmp_path / "copy", format=form, shard_rows=3)) == whole


@pytest.mark.parametrize("form", FORMATS)
def test_only_what_is_missing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, form: str
) -> None:
    """Continuing would take as long as beginning."""
    data = photos(tmp_path / "photos")
    copy = make(data, tmp_path / "copy", format=form, shard_rows=3)
    manifest = copy / "shrunk.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    work, done = shrink.shrink, []
    monkeypatch.setattr(shrink, "shrink", lambda *a: done.append(a) or work(*a))
    missing = next(iter(sorted(copy.rglob("*.jpg" if form == "folder" else "train-*.parquet"))))
    missing.unlink()
    make(data, copy, format=form, shard_rows=3)
    assert len(done) == (1 if form == "folder" else 3)
    make(data, copy, format=form, shard_rows=3)
    assert "complete already: nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMATS)
def test_the_number_of_workers_changes_nothing(tmp_path: Path, form: str) -> None:
    """Two machines would train on different copies of the same data."""
    data = photos(tmp_path / "photos")
    one = contents(make(data, tmp_path / "one", format=form))
    assert contents(make(data, tmp_path / "two", format=form, workers=2)) == one


@pytest.mark.parametrize("form", FORMATS)
def test_a_copy_trains(tmp_path: Path, form: str) -> None:
    """The loader would refuse what shrink wrote."""
    images = open_splits(str(make(photos(tmp_path / "photos"), tmp_path / "copy", format=form))).train
    loader = TrainLoader(images, RandomView(TrainView(), 23), batch_size=5, seed=0, workers=0)
    batch = next(loader.batches())
    assert batch.images.shape == (5, 3, 23, 23)
    assert not batch.skipped


def test_a_copy_is_read_around_the_crop_alone(tmp_path: Path) -> None:
    """The copy would be hardly quicker to read than the original: this is half of what it is for."""
    data = tmp_path / "photos"
    data.mkdir()
    smooth(700, 1000, 7).save(data / "a.jpg")
    for side, reach in ((384, 16 * 3), (100, 8 * 3)):
        file = (make(data, tmp_path / str(side), short_side=side) / "a.jpg").read_bytes()
        header = jpeg.read_header(file)
        assert header is not None
        found = jpeg.part(file, header, (50, 60, 20, 20))
        assert found is not None
        assert max(found[0].shape[:2]) <= 20 + 2 * reach


def parquet(path: Path) -> Path:
    """Three labelled rows, in classes whose order is not the alphabet's, and one without a label."""
    images = []
    for number in range(4):
        buffer = io.BytesIO()
        smooth(50, 70, 60 * number).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"a/{number}.png" if number else "../b.png"})
    features = {"image": {"_type": "Image"}, "label": {"names": ["zebra", "a/b", ".c"], "_type": "ClassLabel"}}
    table = pa.table({"image": images, "label": [0, 1, 2, None]})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return path


def test_a_copy_of_parquet_in_parquet_keeps_ids_and_numbers_of_classes(tmp_path: Path) -> None:
    """Labels would be those of other classes wherever their order is not the alphabet's."""
    data = parquet(tmp_path / "data" / "rows.parquet")
    copy, original = (open_splits(str(name)).train for name in (make(data, tmp_path / "p", format="parquet"), data))
    assert list(copy.ids) == list(original.ids)
    assert copy.labels.tolist() == original.labels.tolist() == [0, 1, 2, -1]
    assert copy.classes == original.classes


def test_names_that_no_folder_can_have_are_written_as_in_a_url(tmp_path: Path) -> None:
    """A data set could write outside of --out, hide its images behind a dot, or lose a class to a slash."""
    copy = make(parquet(tmp_path / "data" / "rows.parquet"), tmp_path / "copy")
    assert {path for path in contents(copy) if path.endswith("jpg")} == {
        *("train/zebra/%2E.%2Fb.png.jpg", "train/a%2Fb/a%2F1.png.jpg", "train/%2Ec/a%2F2.png.jpg"),
        "train/a%2F3.png.jpg",
    }
    images = open_splits(str(copy)).train
    assert sorted(images.classes) == ["%2Ec", "a%2Fb", "zebra"]
    assert sorted(images.labels.tolist()) == [-1, 0, 1, 2]


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["cat/a.png", "cat/b.jpg", "c.webp"], ["c.webp.jpg", "cat/a.png.jpg", "cat/b.jpg"]),
        (["a.png", "a.png.jpg"], ["train/a.png.jpg", "train/a.png.jpg.jpg"]),
        (["train/cat/a.jpg"], ["train/cat/a.jpg"]),
        (["train/cat/a.jpg", "VAL/cat/a.jpg"], ["VAL/cat/a.jpg", "train/cat/a.jpg"]),
        (["train/cat/a.jpg", "more/b.jpg"], None),
    ],
)
def test_names_of_a_folder_are_kept_where_they_may(tmp_path: Path, names: list[str], written: list[str] | None) -> None:
    """Two images would be written over each other, or ids change that need not."""
    for name in names:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(50, 60, 9).save(path)
    copy = make(tmp_path / "data", tmp_path / "copy")
    if written is not None:
        assert [path for path in contents(copy) if path.endswith(".jpg")] == written
    original, opened = open_splits(str(tmp_path / "data")), open_splits(str(copy))
    assert len(opened.train) == len(original.train)
    assert opened.train.classes == original.train.classes
    assert (opened.test is None) == (original.test is None)


def refusals() -> dict[str, tuple[Callable[[Path], object], str]]:
    return {
        "inside": (lambda at: make(at / "photos", at / "photos" / "small"), "--out expected a folder outside"),
        "occupied": (lambda at: make(at / "photos", at), "--out expected a new or empty folder"),
        "other": (
            lambda at: (make(at / "photos", at / "c"), make(at / "photos", at / "c", quality=7)),
            r"same settings, got .*quality: 95 → 7",
        ),
        "none": (lambda at: make(at / "junk", at / "c"), "expected at least one usable image in .*junk"),
        "side": (lambda at: make(at / "photos", at / "c", short_side=0), "--short-side expected at least 1"),
        "quality": (lambda at: make(at / "photos", at / "c", quality=101), "--quality expected 1 to 100"),
        "shard": (lambda at: make(at / "photos", at / "c", shard_rows=0), "--shard-rows expected at least 1"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_cannot_become_a_copy_is_refused(tmp_path: Path, name: str) -> None:
    """A folder of originals would be mixed with copies, or a copy be made of two settings."""
    photos(tmp_path / "photos")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.jpg").write_bytes(b"no picture")
    action, words = refusals()[name]
    with pytest.raises(Refusal, match=words):
        action(tmp_path)


def test_the_command_says_where_the_copy_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The next command would have to be guessed."""
    data, out = str(photos(tmp_path / "photos")), str(tmp_path / "copy")
    assert main(["shrink", "--data", data, "--short-side", "40", "--out", out, "--workers", "0"]) == 0
    assert capsys.readouterr().out.strip() == out


def test_a_copy_that_is_not_finished_is_not_a_data_set(tmp_path: Path) -> None:
    """Half of the images would be trained on without a word."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / SHRUNK).write_text('{"complete": false}')
    with pytest.raises(Refusal, match=r"expected a whole data set in .*, got a copy that is not finished"):
        open_splits(str(tmp_path))
    (tmp_path / SHRUNK).write_text('{"complete": true}')
    assert len(open_splits(str(tmp_path)).train) == 1
