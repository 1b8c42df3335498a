"""PASCAL VOC's layout as an image set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress_ssl.datasets import open_splits
from compress_ssl.refusal import Refusal


def lay_out(root: Path, **splits: list[str]) -> Path:
    """Pictures of 5 x 7 for all ids, and the splits' lists; annotations are not this reader's business."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, ids in splits.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{id}\n" for id in ids))
    for value, id in enumerate(sorted({id for ids in splits.values() for id in ids})):
        pixels = np.random.default_rng(value).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{id}.jpg")
    return root


def example(folder: Path) -> str:
    splits = {"train": ["000005"], "val": ["000007", "000009"], "test": ["000001", "000002"]}
    return str(lay_out(folder / "VOC2007", trainval=splits["train"] + splits["val"], **splits))


def test_trainval_trains_and_test_tests(tmp_path: Path) -> None:
    """A test picture would be learnt from, or the numbers would be those of another split than everybody's."""
    splits = open_splits(example(tmp_path))
    assert list(splits.train.ids) == [f"JPEGImages/00000{number}.jpg" for number in (5, 7, 9)]
    assert splits.test is not None
    assert list(splits.test.ids) == ["JPEGImages/000001.jpg", "JPEGImages/000002.jpg"]
    assert splits.train.name.endswith("VOC2007:trainval")


def test_without_a_test_split_val_tests(tmp_path: Path) -> None:
    """VOC 2012, whose test annotations nobody has, could not be used."""
    splits = open_splits(str(lay_out(tmp_path / "VOC2012", train=["a", "b"], val=["c"], trainval=["a", "b", "c"])))
    assert list(splits.train.ids) == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    assert splits.test is not None
    assert list(splits.test.ids) == ["JPEGImages/c.jpg"]


def test_pictures_outside_the_splits_are_left_out(tmp_path: Path) -> None:
    """VOC 2012 has more pictures for segmentation than the lists for classes and objects name."""
    root = lay_out(tmp_path / "VOC", trainval=["a"], test=["b"], other=["c"])
    splits = open_splits(str(root))
    assert splits.test is not None
    assert [*splits.train.ids, *splits.test.ids] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]


def test_no_single_label_is_invented(tmp_path: Path) -> None:
    """A picture of a dog on a sofa would be scored as one of both, whichever came first."""
    splits = open_splits(example(tmp_path))
    assert splits.train.classes == ()
    assert splits.train.labels.tolist() == [-1, -1, -1]


def test_a_picture_may_be_a_png(tmp_path: Path) -> None:
    """Tools that write this layout keep the pictures they were given."""
    root = lay_out(tmp_path / "VOC", trainval=["a"], test=["b"])
    Image.open(root / "JPEGImages/b.jpg").save(root / "JPEGImages/b.png")
    (root / "JPEGImages/b.jpg").unlink()
    test = open_splits(str(root)).test
    assert test is not None
    assert list(test.ids) == ["JPEGImages/b.png"]
    assert test.read(0).shape == (5, 7, 3)


# fmt: off
UNUSABLE_SPLITS = [
    ({"trainval": ["a", "b"], "test": ["b"]}, "got b in trainval and test"),
    ({"train": ["a", "b"], "val": ["b"]}, "got b in train and val"),
    ({"train": ["a"], "val": ["a"], "trainval": ["a"], "test": ["b"]}, "got a in train and val"),
    ({"trainval": ["a", "a"], "test": ["b"]}, "got a twice"),
    ({"trainval": ["a"]}, "expected trainval.txt and test.txt, or train.txt and val.txt, in .* got trainval:"),
    ({"other": ["a"]}, "got none of them"),
    ({"trainval": ["a"], "test": []}, "test.txt, one a line, got none"),
]
# fmt: on


@pytest.mark.parametrize(("splits", "told"), UNUSABLE_SPLITS)
def test_splits_that_cannot_be_used_are_told(tmp_path: Path, splits: dict[str, list[str]], told: str) -> None:
    """A picture that is learnt from and scored, or scored twice, flatters every model."""
    with pytest.raises(Refusal, match=told):
        open_splits(str(lay_out(tmp_path / "VOC", **splits)))
