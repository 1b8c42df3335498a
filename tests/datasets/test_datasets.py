"""Subsets, held-out images and data sets from outside the package."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from compress_ssl.datasets import gallery_of, hold_out, known_names, open_splits, subset, trained_and_watched
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal


class Listed:
    """An image set made of its ids; image i is filled with the number its id ends in."""

    name = "listed"
    classes = ("even", "odd")

    def __init__(self, ids: list[str]) -> None:
        self.ids = tuple(ids)
        self.labels = np.array([int(name[-3:]) % 2 for name in ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        number = int(self.ids[position][-3:])
        if number == 13:
            raise UnusableImage("broken", "thirteen")
        return np.full((2, 3, 3), number, dtype=np.uint8)

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(self.ids).encode()).hexdigest()


def listed(count: int) -> Listed:
    return Listed([f"image{number:03d}" for number in range(count)])


def test_a_subset_keeps_ids_labels_and_images_together() -> None:
    """Labels of other images would be scored."""
    part = subset(listed(20), np.array([17, 3, 8]))
    assert list(part.ids) == ["image017", "image003", "image008"]
    assert part.labels.tolist() == [1, 1, 0]
    assert [part.read(position)[0, 0, 0] for position in range(3)] == [17, 3, 8]
    assert part.classes == ("even", "odd")


def test_a_subset_of_a_subset_counts_from_the_subset() -> None:
    """Few-label draws from held-out data would pick other images."""
    part = subset(subset(listed(20), np.array([17, 3, 8])), np.array([2, 0]))
    assert list(part.ids) == ["image008", "image017"]
    assert part.read(1)[0, 0, 0] == 17


def test_a_subset_passes_trouble_on() -> None:
    """A broken image of a subset would not be counted."""
    with pytest.raises(UnusableImage, match="thirteen"):
        subset(listed(20), np.array([13])).read(0)


@pytest.mark.parametrize("positions", [[], [0, 0], [-1], [20], [[1, 2]]])
def test_positions_that_make_no_subset_are_an_error(positions: list[int]) -> None:
    """Doubled images share an id, and -1 is the last image without a word."""
    with pytest.raises(ValueError, match="expected"):
        subset(listed(20), np.array(positions, dtype=np.int64))


def test_held_out_images_are_those_with_the_smallest_digest() -> None:
    """The documented rule is what lets another program draw the same images."""
    rest, held = hold_out(listed(50), count=7)
    by_digest = sorted(listed(50).ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert set(held.ids) == set(by_digest[:7])
    assert set(rest.ids) == set(by_digest[7:])
    assert list(held.ids) == sorted(held.ids)
    assert list(rest.ids) == sorted(rest.ids)


def test_holding_out_does_not_depend_on_the_order() -> None:
    """A rescanned folder would move validation images into the training set."""
    ids = list(listed(50).ids)
    shuffled = [ids[position] for position in np.random.default_rng(0).permutation(50)]
    assert set(hold_out(Listed(shuffled), count=7)[1].ids) == set(hold_out(Listed(ids), count=7)[1].ids)


def test_a_gallery_as_large_as_the_set_is_the_whole_set() -> None:
    """`distill` would score among one image fewer than `evaluate` does with the same data."""
    images = listed(150)
    training, watched = trained_and_watched(images, held_out=1000, gallery=5000)
    assert (len(training), len(watched.train)) == (135, 135)
    assert len(trained_and_watched(images, held_out=1000, gallery=134)[1].train) == 134
    chosen = hold_out(training, count=11)[1]
    assert gallery_of(training, at_most=11).ids == chosen.ids, "as it was chosen until now"


def test_new_images_displace_no_more_than_their_number() -> None:
    """One added photograph would reshuffle what has been trained on and what has been held out."""
    before = set(hold_out(listed(50), count=7)[1].ids)
    after = set(hold_out(listed(53), count=7)[1].ids)
    assert len(before - after) <= 3


@pytest.mark.parametrize("count", [0, 20, 21, -1])
def test_holding_out_nothing_or_everything_is_refused(count: int) -> None:
    """Training would start on no images at all."""
    with pytest.raises(Refusal, match="hold out at least 1 and fewer than all of the 20"):
        hold_out(listed(20), count=count)


def test_a_fingerprint_tells_subsets_apart() -> None:
    """Embeddings of the held-out images would be taken for those of the rest."""
    rest, held = hold_out(listed(20), count=5)
    assert len({listed(20).fingerprint(), rest.fingerprint(), held.fingerprint()}) == 3


def test_a_dotted_name_reaches_a_module_outside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with their own storage would have to edit the package."""
    package = tmp_path / "outsider_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "storage.py").write_text(
        "from compress_ssl.datasets import digits\n"
        "def open_splits(name, *, unusual, max_pixels):\n"
        "    assert name.endswith(':shelf-3')\n"
        "    return digits.open_splits('digits', unusual=unusual, max_pixels=max_pixels)\n"
    )
    (package / "empty.py").write_text("")
    (package / "old.py").write_text(
        "from compress_ssl.datasets import Splits\n"
        "class Old:\n"
        "    name, ids, labels, classes = 'old:train', ('a',), (0,), ()\n"
        "    def __len__(self): return 1\n"
        "    def read(self, position): ...\n"
        "    def fingerprint(self): return ''\n"
        "def open_splits(name, **_): return Splits(Old())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert len(open_splits("outsider_of_this_test.storage:shelf-3").train) == 1437
        with pytest.raises(Refusal, match="to define open_splits"):
            open_splits("outsider_of_this_test.empty")
        with pytest.raises(Refusal, match="got one without evidence"):
            open_splits("outsider_of_this_test.old")
        with pytest.raises(Refusal, match="a folder of images"):
            open_splits("outsider_of_this_test.misspelt")
    finally:
        for module in [module for module in sys.modules if module.startswith("outsider_of_this_test")]:
            del sys.modules[module]


def test_a_built_in_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command would mean other data in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert len(open_splits("digits").train) == 1437
    with pytest.raises(Refusal, match="got none"):
        open_splits("./digits")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config file has no shell to expand it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    with pytest.raises(Refusal, match=f"in {tmp_path}/photos"):
        open_splits("~/photos")


def test_known_names_hold_the_sets_people_ask_for() -> None:
    """The command line's help would leave out what the README promises."""
    for name in ("digits", "torchvision/CIFAR10", "torchvision/CIFAR100", "torchvision/STL10", "torchvision/Food101"):
        assert name in known_names()
