"""Duplicates: planted ones are found, others are not, whatever the order and however many there are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from compress_ssl.checkup import duplicates
from compress_ssl.checkup.look import thumbnail


def scene(seed: int, side: int = 96) -> Image.Image:
    """Something with large and small structure, like a photograph."""
    random = np.random.default_rng(seed)
    layers = [random.integers(0, 256, (cells, cells, 3), dtype=np.uint8) for cells in (3, 7, 24)]
    scaled = [
        np.asarray(Image.fromarray(layer).resize((side, side), Image.Resampling.BICUBIC), dtype=float)
        for layer in layers
    ]
    return Image.fromarray((0.6 * scaled[0] + 0.3 * scaled[1] + 0.1 * scaled[2]).astype(np.uint8))


def saved(image: Image.Image, quality: int = 60) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


CHANGES = {
    "saved again": lambda image: saved(image, 50),
    "half the size": lambda image: saved(image.resize((48, 48), Image.Resampling.BICUBIC)),
    "larger": lambda image: saved(image.resize((150, 150), Image.Resampling.BICUBIC)),
    "squeezed": lambda image: saved(image.resize((96, 70), Image.Resampling.BICUBIC)),
    "a pixel cut off": lambda image: saved(image.crop((1, 1, 95, 95))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_to_the_eye(change):
    """Copies that were saved again are the usual ones; a test set would hold training images and nobody knew."""
    scenes = [scene(seed) for seed in range(11)]
    rows = [thumbnail(np.asarray(one)) for one in scenes] + [thumbnail(CHANGES[change](one)) for one in scenes]
    groups = duplicates.near_groups(np.stack(rows), mirrored=False)
    assert np.array_equal(groups[:11], groups[11:])
    assert len(np.unique(groups)) == 11, "different pictures are different"


def test_a_mirror_image_counts_only_where_it_is_asked_for():
    """Training mirrors images: a mirrored test image has been seen. But it is no copy of the file."""
    scenes = [scene(seed) for seed in range(7)]
    rows = [thumbnail(np.asarray(one)) for one in scenes]
    rows += [thumbnail(saved(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) for one in scenes[:5]]
    rows = np.stack(rows)
    assert duplicates.copies(duplicates.near_groups(rows, mirrored=False)) == 0
    groups = duplicates.near_groups(rows, mirrored=True)
    assert np.array_equal(groups[:5], groups[7:])
    assert duplicates.copies(groups) == 5


def test_every_pair_of_close_codes_is_found():
    """Bands that skip a pair would lose copies at random; compared here with all pairs, one by one."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 2**64, 60, dtype=np.uint64)
    for place in range(40):  # near ones, up to and over the limit
        flips = random.choice(64, place % 12, replace=False)
        codes[20 + place] = codes[place % 20] ^ np.bitwise_or.reduce(
            np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0)
        )
    expected = {
        (one, other)
        for one in range(60)
        for other in range(one + 1, 60)
        if bin(int(codes[one]) ^ int(codes[other])).count("1") <= duplicates.BITS
    }
    found = {
        (int(a), int(b)) for one, other in duplicates._close(codes, first=60) for a, b in zip(one, other, strict=True)
    }
    assert found == expected
    assert len(expected) > 20
    some = {
        (int(a), int(b)) for one, other in duplicates._close(codes, first=25) for a, b in zip(one, other, strict=True)
    }
    assert some == {pair for pair in expected if pair[0] < 25}


def test_bits_are_counted_alike_without_numpy_2(monkeypatch):
    """An older numpy has no bitwise_count; wrong counts would make everything or nothing a copy."""
    codes = np.random.default_rng(0).integers(0, 2**64, (5, 7), dtype=np.uint64)
    expected = [[bin(int(code)).count("1") for code in row] for row in codes]
    assert duplicates._ones(codes).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert duplicates._ones(codes).tolist() == expected


def test_many_blank_images_are_one_group_in_no_time():
    """A million blank pages would be half a billion pairs, and the memory of them."""
    rows = np.full((30_000, 16, 16), 255, np.uint8)
    rows[:3] = np.random.default_rng(0).integers(0, 256, (3, 16, 16))
    groups = duplicates.near_groups(rows, mirrored=True)
    assert duplicates.copies(groups) == 29_996
    assert [len(part) for part in duplicates.repeated(groups)] == [29_997]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_copies(count):
    """A data set of unusable images would end in an error about shapes."""
    assert duplicates.near_groups(np.zeros((count, 16, 16), np.uint8), mirrored=True).tolist() == list(range(count))


def test_exact_groups_are_those_of_a_naive_comparison():
    """Images of one size are not one image; unread ones (0) must not fall together."""
    evidence = np.array([5, 7, 5, 5, 9, 7, -1, -1])
    contents = np.array([11, 12, 11, 13, 0, 0, 0, 0], dtype=np.uint64)
    assert duplicates.same_evidence(evidence).tolist() == [0, 1, 2, 3, 5]
    groups = duplicates.exact_groups(evidence, contents)
    assert [part.tolist() for part in duplicates.repeated(groups)] == [[0, 2]]
    assert duplicates.copies(groups) == 1


def test_leaks_are_test_images_with_a_training_copy():
    """Two copies within the test set leak nothing."""
    groups = np.array([4, 1, 2, 4, 3, 3, 1])
    is_test = np.array([False, False, False, True, True, True, True])
    assert duplicates.leaks(groups, is_test).tolist() == [3, 6]
