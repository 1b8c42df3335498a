"""scikit-learn's digits as an image set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from compress_ssl.datasets import open_splits


def example(folder: Path) -> str:  # noqa: ARG001
    return "digits"


def test_every_fifth_image_is_test() -> None:
    """Numbers in the README could not be compared with a user's own run."""
    splits = open_splits("digits")
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (1437, 360)
    assert list(splits.test.ids)[:3] == ["digits/0000", "digits/0005", "digits/0010"]
    assert list(splits.train.ids)[:5] == ["digits/0001", "digits/0002", "digits/0003", "digits/0004", "digits/0006"]


def test_pixels_and_labels_are_scikit_learns() -> None:
    """The demo would train on something that is not the published data."""
    bunch = load_digits()
    splits = open_splits("digits")
    for images in (splits.train, splits.test):
        assert images is not None
        for position in (0, 7, len(images) - 1):
            number = int(images.ids[position].removeprefix("digits/"))
            expected = np.rint(bunch.images[number] / 16 * 255)
            np.testing.assert_array_equal(images.read(position), np.dstack([expected] * 3))
            assert images.labels[position] == bunch.target[number]
            assert images.classes[images.labels[position]] == str(bunch.target[number])


def test_writing_into_an_image_leaves_the_set_as_it_is() -> None:
    """An augmentation in place would wear the data out, epoch by epoch."""
    images = open_splits("digits").train
    before = images.read(0).copy()
    images.read(0)[:] = 0
    np.testing.assert_array_equal(images.read(0), before)
