"""CUB-200-2011, from a small folder in its publishers' layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress_ssl.datasets import open_splits
from compress_ssl.refusal import Refusal

# number, path below images/, class, 1 where it is of the training split; as in the original not sorted by path
BIRDS = (
    (1, "010.Red_Winged_Blackbird/b.jpg", 10, 1),
    (2, "001.Black_footed_Albatross/a 1.jpg", 1, 0),
    (3, "002.Laysan_Albatross/c.jpg", 2, 1),
    (4, "001.Black_footed_Albatross/d.jpg", 1, 1),
    (5, "010.Red_Winged_Blackbird/e.jpg", 10, 0),
)


def write(home: Path) -> Path:
    for number, path, _, _ in BIRDS:
        file = home / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 7, 3), 10 * number, dtype=np.uint8)).save(file, "PNG")
    (home / "images.txt").write_text("".join(f"{number} {path}\n" for number, path, _, _ in BIRDS))
    (home / "image_class_labels.txt").write_text("".join(f"{number} {kind}\n" for number, _, kind, _ in BIRDS))
    (home / "train_test_split.txt").write_text("".join(f"{number} {train}\n" for number, _, _, train in BIRDS))
    folders = {kind: path.split("/")[0] for _, path, kind, _ in BIRDS}
    (home / "classes.txt").write_text("".join(f"{kind} {folder}\n" for kind, folder in sorted(folders.items())))
    (home / "README").write_text("birds")
    return home


def example(folder: Path) -> str:
    return str(write(folder / "birds"))


@pytest.mark.parametrize("unpacked_in", ["", "CUB_200_2011"])
def test_the_publishers_split_and_classes_are_used(tmp_path, unpacked_in) -> None:
    """As a folder of images it would have no test split, or half of the birds would be in the wrong one."""
    write(tmp_path / unpacked_in)
    splits = open_splits(str(tmp_path))
    assert splits.test is not None
    assert list(splits.train.ids) == [f"images/{BIRDS[place][1]}" for place in (3, 2, 0)]
    assert list(splits.test.ids) == [f"images/{BIRDS[place][1]}" for place in (1, 4)]
    assert splits.train.classes == ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_Winged_Blackbird")
    assert splits.train.classes == splits.test.classes
    assert splits.train.labels.tolist() == [0, 1, 2]
    assert splits.test.labels.tolist() == [0, 2]
    assert [int(splits.train.read(place)[0, 0, 0]) for place in range(3)] == [40, 30, 10]
    assert [int(splits.test.read(place)[0, 0, 0]) for place in range(2)] == [20, 50]


def test_classes_without_names_keep_their_numbers(tmp_path) -> None:
    """Another set of the same tables, without classes.txt, could not be read; 10 must not come before 2."""
    write(tmp_path)
    (tmp_path / "classes.txt").unlink()
    splits = open_splits(str(tmp_path))
    assert splits.train.classes == ("1", "2", "10")
    assert splits.train.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("table", "text", "told"),
    [
        ("train_test_split.txt", "1 1\n2 0\n3 1\n4 1\n", "image 5 in one of them alone"),
        ("image_class_labels.txt", "1 10\n2 1\n3 2\n4\n5 10\n", "line 4 of .*image_class_labels.txt, got '4'"),
        ("train_test_split.txt", "1 1\n2 0\n3 1\n4 2\n5 0\n", "of image 4 in .*, got '2'"),
        ("train_test_split.txt", "1 1\n2 1\n3 1\n4 1\n5 1\n", "expected images to test .*, got none"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(tmp_path, table, text, told) -> None:
    """A download that broke off would be scored as a smaller, other data set."""
    write(tmp_path)
    (tmp_path / table).write_text(text)
    with pytest.raises(Refusal, match=told):
        open_splits(str(tmp_path))
