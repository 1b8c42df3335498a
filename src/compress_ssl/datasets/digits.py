"""Handwritten digits that need no download: 1797 grey images of 8 x 8 from scikit-learn.

Source: `sklearn.datasets.load_digits`, the test part of the UCI Optical Recognition of Handwritten Digits data.
Every fifth image (0, 5, 10, ...) is test: 1437 to train, 360 to test, the same ones everywhere.
The one set that keeps decoded images in memory: all of them are 345 kB.
"""

from __future__ import annotations

import zlib
from functools import cached_property

import numpy as np

from compress_ssl.datasets import Splits, Unusual, digest

NAMES = ("digits",)


def claims(name: str) -> bool:
    return name == "digits"


def open_splits(name: str, *, unusual: Unusual, max_pixels: int) -> Splits:  # noqa: ARG001
    """Both splits; no image here is unusual or huge, so neither option changes anything."""
    from sklearn.datasets import load_digits  # 0.6 s to import, only paid by who asks for digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), stored as 0 to 16
    images = np.repeat(grey[..., None], 3, axis=-1)
    positions = np.arange(len(images))
    test = positions % 5 == 0
    return Splits(
        train=Digits(f"{name}:train", images, bunch.target, positions[~test]),
        test=Digits(f"{name}:test", images, bunch.target, positions[test]),
    )


class Digits:
    """One split."""

    def __init__(self, name: str, images: np.ndarray, target: np.ndarray, positions: np.ndarray) -> None:
        self.name = name
        self.ids = tuple(f"digits/{position:04d}" for position in positions)
        self.labels = target[positions].astype(np.int64)
        self.classes = tuple(str(digit) for digit in range(10))
        self._images = images[positions]

    @cached_property
    def evidence(self) -> np.ndarray:
        return np.array([zlib.crc32(image) for image in self._images], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        return self._images[position].copy()

    def fingerprint(self) -> str:
        return digest(self.ids, self.labels, self._images.tobytes())
