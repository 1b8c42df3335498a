"""Folders of images as people have them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress_ssl.datasets import ImageSet, open_splits
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal


def save(path: Path | bytes, value: int = 0) -> None:
    """A picture of 5 x 7 whose top left pixel is `value`."""
    pixels = np.random.default_rng(value).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pixels[0, 0] = value
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    with open(path, "wb") as file:  # noqa: PTH123
        Image.fromarray(pixels).save(file, "PNG")


def fill(root: Path, *paths: str) -> Path:
    for value, path in enumerate(paths):
        save(root / path, value)
    return root


def opened(root: Path) -> ImageSet:
    splits = open_splits(str(root))
    assert splits.test is None
    return splits.train


def values(images: ImageSet) -> list[int]:
    return [int(images.read(position)[0, 0, 0]) for position in range(len(images))]


def example(folder: Path) -> str:
    paths = ("train/cat/1.png", "train/cat/deep/2.png", "train/dog/1.png", "test/dog/1.png", "test/cat/3.png")
    return str(fill(folder, *paths))


def test_class_folders_give_labels_however_deep_the_image_lies(tmp_path: Path) -> None:
    """A class sorted into years would become as many classes, or lose all but its top images."""
    images = opened(fill(tmp_path, "dog/a.png", "cat/2023/may/b.png", "cat/c.png"))
    assert images.classes == ("cat", "dog")
    assert list(images.ids) == ["cat/2023/may/b.png", "cat/c.png", "dog/a.png"]
    assert images.labels.tolist() == [0, 0, 1]
    assert values(images) == [1, 2, 0]


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    """A user's own photographs would be scored against an invented class."""
    images = opened(fill(tmp_path, "b.png", "a.png"))
    assert images.classes == ()
    assert images.labels.tolist() == [-1, -1]
    assert list(images.ids) == ["a.png", "b.png"]


def test_images_beside_class_folders_are_unlabelled(tmp_path: Path) -> None:
    """Not yet sorted images would be put into some class."""
    images = opened(fill(tmp_path, "loose.png", "cat/a.png", "dog/b.png"))
    assert dict(zip(images.ids, images.labels.tolist(), strict=True)) == {
        "cat/a.png": 0,
        "dog/b.png": 1,
        "loose.png": -1,
    }


@pytest.mark.parametrize("test", ["test", "val", "validation", "Val"])
def test_train_and_a_second_folder_are_splits(tmp_path: Path, test: str) -> None:
    """Training images would be scored as test images under two classes 'train' and 'val'."""
    splits = open_splits(str(fill(tmp_path, "train/cat/a.png", "train/dog/b.png", f"{test}/dog/c.png")))
    assert splits.test is not None
    assert list(splits.train.ids) == ["train/cat/a.png", "train/dog/b.png"]
    assert list(splits.test.ids) == [f"{test}/dog/c.png"]
    assert splits.train.classes == splits.test.classes == ("cat", "dog")
    assert splits.test.labels.tolist() == [1]
    assert splits.test.name == f"{tmp_path}:test"


def test_test_is_preferred_to_val(tmp_path: Path) -> None:
    """The documented choice between two second folders."""
    splits = open_splits(str(fill(tmp_path, "train/a.png", "val/b.png", "test/c.png")))
    assert splits.test is not None
    assert list(splits.test.ids) == ["test/c.png"]


def test_a_class_that_only_the_test_split_has_keeps_its_own_number(tmp_path: Path) -> None:
    """Its images would count as another class in the table."""
    splits = open_splits(str(fill(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/bird/c.png")))
    assert splits.test is not None
    assert splits.train.classes == ("bird", "cat", "dog")
    assert splits.train.labels.tolist() == [1, 2]
    assert splits.test.labels.tolist() == [0]


def test_a_lone_train_folder_is_the_training_split(tmp_path: Path) -> None:
    """Every image would be of the one class 'train'."""
    images = opened(fill(tmp_path, "train/cat/a.png", "train/dog/b.png"))
    assert images.classes == ("cat", "dog")


def test_a_class_named_train_among_others_is_a_class(tmp_path: Path) -> None:
    """A set of vehicles would shrink to its trains."""
    images = opened(fill(tmp_path, "train/a.png", "bus/b.png", "tram/c.png"))
    assert images.classes == ("bus", "train", "tram")


def test_hidden_and_other_files_are_left_alone(tmp_path: Path) -> None:
    """Thumbnails of the file manager and notes would be counted as broken images."""
    fill(tmp_path, "cat/a.png", "cat/.hidden.png", ".trash/b.png", "cat/.cache/c.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "cat" / "a.png.json").write_text("{}")
    (tmp_path / "png").write_text("a name without a dot")
    assert list(opened(tmp_path).ids) == ["cat/a.png"]


@pytest.mark.parametrize("suffix", [".JPG", ".Jpeg", ".PNG", ".WebP", ".TIF", ".jfif", ".PPM", ".avif", ".gif", ".bmp"])
def test_suffixes_match_in_any_case(tmp_path: Path, suffix: str) -> None:
    """Whole cameras write upper case; their images would silently be missing."""
    assert list(opened(fill(tmp_path, f"a{suffix}")).ids) == [f"a{suffix}"]


def test_what_a_file_is_decides_over_what_it_is_called(tmp_path: Path) -> None:
    """A PNG that somebody renamed to .jpg would be broken."""
    assert values(opened(fill(tmp_path, "really_png.jpg"))) == [0]


def test_a_file_with_a_pictures_name_and_no_picture_is_broken_not_absent(tmp_path: Path) -> None:
    """Ten thousand failed downloads would vanish from the count."""
    fill(tmp_path, "a.png")
    (tmp_path / "b.jpg").write_text("<html>not found</html>")
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "d.jpg").symlink_to(tmp_path / "gone.jpg")
    images = opened(tmp_path)
    assert list(images.ids) == ["a.png", "b.jpg", "c.jpg", "d.jpg"]
    kinds = []
    for position in (1, 2, 3):
        with pytest.raises(UnusableImage) as caught:
            images.read(position)
        kinds.append(caught.value.kind)
    assert kinds == ["broken", "empty", "broken"]
    assert len(images.fingerprint()) == 64


def test_a_file_that_disappears_after_opening_is_broken(tmp_path: Path) -> None:
    """A night of training would end with a stack trace because somebody tidied up."""
    images = opened(fill(tmp_path, "a.png", "b.png"))
    (tmp_path / "b.png").unlink()
    with pytest.raises(UnusableImage, match="No such file"):
        images.read(1)


def test_unusual_pictures_follow_the_callers_wish(tmp_path: Path) -> None:
    """--unusual convert would have no effect on folders."""
    Image.new("RGBA", (7, 5), (255, 0, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(UnusableImage, match="transparent"):
        open_splits(str(tmp_path)).train.read(0)
    assert (open_splits(str(tmp_path), unusual="convert").train.read(0) == 255).all()
    with pytest.raises(UnusableImage, match="huge"):
        open_splits(str(tmp_path), max_pixels=34).train.read(0)


def test_one_image_is_a_data_set(tmp_path: Path) -> None:
    """Embedding a single query image would be refused."""
    assert values(opened(fill(tmp_path, "only.png"))) == [0]


@pytest.mark.parametrize("folders", [(), ("cat", "dog/deep")])
def test_an_empty_folder_is_refused_by_name_with_what_was_looked_for(tmp_path: Path, folders: tuple[str, ...]) -> None:
    """'division by zero' some minutes later."""
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(Refusal, match=rf"expected images \(\.jpg .*\.png.*\) in {tmp_path}, got none"):
        open_splits(str(tmp_path))


def test_an_empty_split_is_refused_by_name(tmp_path: Path) -> None:
    """The user would look for the mistake in the training images."""
    fill(tmp_path, "train/cat/a.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(Refusal, match=f"in {tmp_path}/test, got none"):
        open_splits(str(tmp_path))


def test_ids_stay_when_files_are_added_and_others_renamed(tmp_path: Path) -> None:
    """Stored embeddings would be handed to other images after a photograph is added."""
    fill(tmp_path, "cat/b.png", "cat/d.png", "dog/a.png")
    before = opened(tmp_path)
    images = dict(zip(before.ids, values(before), strict=True))
    save(tmp_path / "ant" / "new.png", 100)
    (tmp_path / "cat" / "d.png").rename(tmp_path / "cat" / "0.png")
    after = opened(tmp_path)
    now = dict(zip(after.ids, values(after), strict=True))
    assert now == {
        "ant/new.png": 100,
        "cat/0.png": 1,
        "cat/b.png": images["cat/b.png"],
        "dog/a.png": images["dog/a.png"],
    }
    assert after.fingerprint() != before.fingerprint()


def test_a_fingerprint_notices_another_image_of_the_same_name_but_not_a_touch(tmp_path: Path) -> None:
    """A cache would survive exchanged images, or die of a copied folder's new dates."""
    fill(tmp_path, "a.png", "b.png")
    before = opened(tmp_path).fingerprint()
    os.utime(tmp_path / "a.png", (1, 1))
    assert opened(tmp_path).fingerprint() == before
    Image.new("RGB", (70, 50)).save(tmp_path / "a.png")
    assert opened(tmp_path).fingerprint() != before


def test_the_evidence_of_an_exchanged_image_changes_and_of_no_other(tmp_path: Path) -> None:
    """The stored embedding of the old picture would be taught to the new one."""
    fill(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "no such file")
    before = opened(tmp_path).evidence
    Image.new("RGB", (70, 50)).save(tmp_path / "b.png")
    after = opened(tmp_path).evidence
    assert (before != after).tolist() == [False, True, False, False]
    assert after[3] == -1, "a link to nowhere"


@pytest.mark.parametrize("suffix", [".bmp", ".PPM", ".tiff"])
@pytest.mark.parametrize("side", [8, 300])
def test_uncompressed_files_that_are_exchanged_or_edited_have_other_evidence(
    tmp_path: Path, suffix: str, side: int
) -> None:
    """All such files of one camera have one size: a stored embedding would be taught to another picture."""
    form = {".bmp": "BMP", ".PPM": "PPM", ".tiff": "TIFF"}[suffix]
    random = np.random.default_rng(0)
    for name in "abcd":
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}{suffix}", form)
    before = opened(tmp_path)
    evidence, fingerprint = before.evidence, before.fingerprint()
    one, other = (tmp_path / f"{name}{suffix}" for name in "ab")
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    edited = tmp_path / f"c{suffix}"
    bytes_ = bytearray(edited.read_bytes())
    bytes_[len(bytes_) // 2 : len(bytes_) * 3 // 4] = bytes(len(bytes_) * 3 // 4 - len(bytes_) // 2)
    edited.write_bytes(bytes_)
    after = opened(tmp_path)
    assert (evidence != after.evidence).tolist() == [True, True, True, False]
    assert after.evidence.tolist()[:2] == evidence.tolist()[1::-1]
    assert set((after.evidence >> 32).tolist()) == {len(contents[0])}
    assert after.fingerprint() == fingerprint, "what was stored stays valid"


def test_evidence_reads_little_of_large_files_and_nothing_of_compressed_ones(tmp_path: Path, monkeypatch) -> None:
    """Opening a million photographs takes minutes, reading them hours, at every start."""
    fill(tmp_path, "a.png", "b.jpg")
    Image.new("RGB", (700, 700)).save(tmp_path / "c.bmp")
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, start: read.append(count) or pread(file, count, start))
    evidence = opened(tmp_path).evidence
    assert 0 < sum(read) <= 2**16
    assert evidence[:2].tolist() == [(tmp_path / name).stat().st_size for name in ("a.png", "b.jpg")]
    assert evidence[2] >> 32 == (tmp_path / "c.bmp").stat().st_size


def test_the_set_is_the_same_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that changes its folder would find every image broken."""
    fill(tmp_path / "photos", "a.png")
    monkeypatch.chdir(tmp_path)
    images = open_splits("photos").train
    monkeypatch.chdir("/")
    assert values(images) == [0]


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    """A link to its own parent folder would be walked until the disk of ids is full."""
    fill(tmp_path / "elsewhere", "deep/b.png")
    fill(tmp_path / "photos", "cat/a.png")
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "photos" / "cat" / "again").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    images = opened(tmp_path / "photos")
    assert list(images.ids) == ["cat/a.png", "dog/deep/b.png"]


def test_names_that_are_not_utf_8_are_read_and_have_printable_ids(tmp_path: Path) -> None:
    """An old archive with one Latin-1 name would end in UnicodeEncodeError when its id is written down."""
    root = os.fsencode(tmp_path)
    save(root + b"/caf\xe9/a.png", 3)
    save(root + b"/caf\xe9/\xff\xfe.png", 4)
    save(tmp_path / "tree" / "ä.png", 5)
    images = opened(tmp_path)
    assert list(images.ids) == ["caf\\xe9/a.png", "caf\\xe9/\\xff\\xfe.png", "tree/ä.png"]
    assert images.classes == ("caf\\xe9", "tree")
    assert values(images) == [3, 4, 5]
    assert images.fingerprint() == opened(tmp_path).fingerprint()
    assert "".join(images.ids).encode()


def test_two_names_that_look_alike_as_text_are_refused(tmp_path: Path) -> None:
    """Two images would share one id, and one would get the other's embedding."""
    root = os.fsencode(tmp_path)
    save(root + b"/\xe9.png", 1)
    save(root + b"/\\xe9.png", 2)
    with pytest.raises(Refusal, match="twice"):
        open_splits(str(tmp_path))


def test_a_folder_without_permission_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole class would silently be missing."""
    fill(tmp_path, "cat/a.png", "dog/b.png")
    scandir = os.scandir

    def forbidding(path: bytes) -> object:  # chmod would not stop a test that runs as root
        if os.fsdecode(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    with pytest.raises(Refusal, match=r"readable folder, got .*/dog \(Permission denied\)"):
        open_splits(str(tmp_path))


def test_a_parquet_beside_images_that_only_describes_them_is_no_data_set(tmp_path: Path) -> None:
    """A Hugging Face folder of images would be opened as a table without images."""
    fill(tmp_path, "cat/a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    assert list(opened(tmp_path).ids) == ["cat/a.png"]


def test_real_photographs_are_read(shared_data: Path) -> None:
    """Everything here is made by hand; real JPEGs carry real metadata."""
    images = opened(shared_data / "imagenet-sample")
    assert len(images) == len(images.classes) == 200
    assert images.labels.tolist() == list(range(200))
    for position in (0, 57, 199):
        image = images.read(position)
        assert min(image.shape[:2]) > 50
        assert image.std() > 10
