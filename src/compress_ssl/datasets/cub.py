"""CUB-200-2011, birds of 200 kinds, as its publishers lay it out; so may be any other set of such tables.

Source: Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011. Named by its folder, or by the one that the archive
was unpacked in and that holds CUB_200_2011/. It is never downloaded.

The folder holds images/ and tables of one line an image, `NUMBER VALUE`: images.txt (path below images/),
image_class_labels.txt (class, from 1) and train_test_split.txt (1: train, 0: test; 5994 and 5794 images); classes.txt
names the classes. The split is the publishers'. Ids are paths below the folder, sorted.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from compress_ssl.datasets import Splits, Unusual
from compress_ssl.datasets.image_folder import FolderImages
from compress_ssl.refusal import Refusal

TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt")


def claims(name: str) -> bool:
    """A folder with the three tables, or with one that has them under the archive's own name."""
    return _home(Path(name)) is not None


def open_splits(name: str, *, unusual: Unusual, max_pixels: int) -> Splits:
    """Both splits; raises Refusal where the tables do not speak of the same images or miss a class."""
    home = _home(Path(name))
    assert home is not None
    paths, owners, trained = (_table(home / table) for table in TABLES)
    for table, found in zip(TABLES[1:], (owners, trained), strict=True):
        if found.keys() != paths.keys():
            odd = min(found.keys() ^ paths.keys())
            raise Refusal(f"expected in {home / table} one line for each image of images.txt, got image {odd} in one "
                          "of them alone: unpack the archive again")  # fmt: skip
    names = _table(home / "classes.txt") if (home / "classes.txt").is_file() else {}
    numbers = sorted({*owners.values(), *names}, key=_order)
    position = {number: place for place, number in enumerate(numbers)}
    kinds = {"1": "train", "0": "test"}
    members: dict[str, list[tuple[bytes, int]]] = {"train": [], "test": []}
    for image, path in paths.items():
        split = kinds.get(trained[image])
        if split is None:
            raise Refusal(f"expected 1 (train) or 0 (test) of image {image} in {home / 'train_test_split.txt'}, got "
                          f"{trained[image]!r}: unpack the archive again")  # fmt: skip
        members[split].append((os.fsencode(f"images/{path}"), position[owners[image]]))
    sets = {}
    for split, listed in members.items():
        if not listed:
            raise Refusal(f"expected images to {split} in {home / 'train_test_split.txt'}, got none: give some a "
                          f"{'1' if split == 'train' else '0'}")  # fmt: skip
        listed.sort()
        sets[split] = FolderImages(
            f"{name}:{split}",
            os.fsencode(home),
            [path for path, _ in listed],
            np.array([label for _, label in listed], dtype=np.int64),
            tuple(names.get(number, number) for number in numbers),
            unusual=unusual,
            max_pixels=max_pixels,
        )
    return Splits(train=sets["train"], test=sets["test"])


def _home(folder: Path) -> Path | None:
    for home in (folder, folder / "CUB_200_2011"):
        if all((home / table).is_file() for table in TABLES):
            return home
    return None


def _table(file: Path) -> dict[str, str]:
    """Number -> what stands after it."""
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), start=1):
        key, _, value = line.strip().partition(" ")
        if not line.strip():
            continue
        if not value or key in found:
            raise Refusal(f"expected a number of its own and a value in line {number} of {file}, got {line!r}: unpack "
                          "the archive again")  # fmt: skip
        found[key] = value
    return found


def _order(number: str) -> tuple[int, str]:
    """Classes as numbers count: 2 before 10."""
    return (int(number), "") if number.isdecimal() else (-1, number)
