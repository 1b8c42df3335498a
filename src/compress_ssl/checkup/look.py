"""A look at images: can each be used, how large is it, what is in it; small enough to keep for a million of them.

Every image is decoded to its end, as a training would, but a JPEG at a fraction of its pixels. One Zen 3 core looks at
5000 images a second of 64 x 64 and at 600 photographs of 104 kB. What is kept are 300 bytes an image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

from compress_ssl.datasets import ImageSet, open_image
from compress_ssl.loader import Skipped, default_workers, quiet_worker
from compress_ssl.picture import Box, Picture, UnusableImage
from compress_ssl.refusal import Refusal

SIDE = 16  # pixels of a thumbnail's side
AT_ONCE = 64  # images that a worker process hands back together
GLIMPSE = 4096  # bytes, one page
WORTH_WORKERS = 512  # images; for fewer, starting processes takes longer


@dataclass(frozen=True, eq=False)
class Looks:
    """What was seen of n images.

    positions: (n,) int64 in the image set.
    sizes: (n, 2) int32 height and width, 0 0 where an image cannot be used.
    thumbnails: (n, 16, 16) uint8, grey.
    contents: (n,) uint64 digest of the file, or of the pixels where the set gives no file; 0 where it cannot be opened.
    jpeg: (n,) bool, a plain JPEG.
    unusable: those that cannot be used, and why.
    """

    positions: np.ndarray
    sizes: np.ndarray
    thumbnails: np.ndarray
    contents: np.ndarray
    jpeg: np.ndarray
    unusable: tuple[Skipped, ...]

    @property
    def usable(self) -> np.ndarray:
        """(n,) bool."""
        return self.sizes[:, 0] > 0


def some(ids: Sequence[str], count: int, *, seed: int) -> np.ndarray:
    """Positions of `count` images, those with the smallest sha256 of seed and id: (count,) int64, in order.

    The choice depends on each id alone, so it survives reordering; all of them if there are no more.
    """
    if count >= len(ids):
        return np.arange(len(ids))
    salt = f"{seed}:"
    digests = np.array(
        [int.from_bytes(hashlib.sha256(f"{salt}{id}".encode()).digest()[:8], "little") for id in ids], dtype=np.uint64
    )
    return np.sort(np.argsort(digests, kind="stable")[:count])


def look(
    images: ImageSet,
    positions: np.ndarray,
    *,
    workers: int | None = None,
    console: Console | None = None,
    told: str = "looking at images",
) -> Looks:
    """Look at the images at these positions.

    Args:
        positions: (n,) integers.
        workers: processes; None: one a core but one, eight at most.
    Raises: Refusal if the disk fails.
    """
    found = _each(_Look(images, positions), workers, console, told)
    return Looks(
        np.asarray(positions, dtype=np.int64),
        np.concatenate([np.empty((0, 2), np.int32), *(part[0] for part in found)]),
        np.concatenate([np.empty((0, SIDE, SIDE), np.uint8), *(part[1] for part in found)]),
        np.concatenate([np.empty(0, np.uint64), *(part[2] for part in found)]),
        np.concatenate([np.empty(0, bool), *(part[3] for part in found)]),
        tuple(skip for part in found for skip in part[4]),
    )


def contents(
    images: ImageSet,
    positions: np.ndarray,
    *,
    workers: int | None = None,
    console: Console | None = None,
    told: str = "comparing files",
) -> np.ndarray:
    """Digests alone, as `Looks.contents`: (n,) uint64, 0 where there is nothing to read. A JPEG is not decoded."""
    found = _each(_Contents(images, positions), workers, console, told)
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def glimpses(
    images: ImageSet,
    positions: np.ndarray,
    *,
    workers: int | None = None,
    console: Console | None = None,
    told: str = "glancing at files",
) -> np.ndarray | None:
    """Digests of a few kilobytes from the middle of each file: (n,) uint64; files that are the same agree in it.

    A million photographs are 100 GB, their glimpses 4 GB. None where the set's images are not files of their own.
    """
    if not hasattr(images, "path"):
        return None
    found = _each(_Glimpses(images, positions), workers, console, told)
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def thumbnail(picture: np.ndarray | Picture) -> np.ndarray:
    """(16, 16) uint8 grey of a picture, by bilinear interpolation with antialiasing.

    Raises: UnusableImage; a JPEG is decoded to its end.
    """
    if isinstance(picture, Picture):
        picture = picture.part(Box(0, 0, *picture.shape[:2]), enough=SIDE)[0]
    grey = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _digest(picture: np.ndarray | Picture) -> int:
    data: bytes = picture.encoded if isinstance(picture, Picture) else np.ascontiguousarray(picture).tobytes()
    shape = b"" if isinstance(picture, Picture) else repr(picture.shape).encode()
    return _hashed(data + shape)


def _hashed(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


class _Look(Dataset):
    """Number of a stretch of positions -> what was seen there; picklable."""

    def __init__(self, images: ImageSet, positions: np.ndarray):
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return -(-len(self.positions) // AT_ONCE)

    def __getitem__(self, number: int) -> tuple | str:
        here = self.positions[number * AT_ONCE : (number + 1) * AT_ONCE]
        sizes = np.zeros((len(here), 2), np.int32)
        thumbnails = np.zeros((len(here), SIDE, SIDE), np.uint8)
        digests, jpeg, unusable = np.zeros(len(here), np.uint64), np.zeros(len(here), bool), []
        for row, position in enumerate(here.tolist()):
            try:
                picture = open_image(self.images, position)
                digests[row] = _digest(picture)
                thumbnails[row] = thumbnail(picture)
                sizes[row], jpeg[row] = picture.shape[:2], isinstance(picture, Picture)
            except UnusableImage as trouble:
                unusable.append(Skipped(self.images.ids[position], trouble.kind, trouble.detail))
            except OSError as trouble:  # in words: a worker's traceback says nothing to a user
                return f"expected a readable file, got {trouble} for {self.images.ids[position]}: check the disk"
        return sizes, thumbnails, digests, jpeg, unusable


class _Contents(_Look):
    def __getitem__(self, number: int) -> np.ndarray | str:  # type: ignore[override]
        here = self.positions[number * AT_ONCE : (number + 1) * AT_ONCE]
        digests = np.zeros(len(here), np.uint64)
        for row, position in enumerate(here.tolist()):
            try:
                digests[row] = _digest(open_image(self.images, position))
            except UnusableImage:
                continue
            except OSError as trouble:
                return f"expected a readable file, got {trouble} for {self.images.ids[position]}: check the disk"
        return digests


class _Glimpses(_Look):
    def __getitem__(self, number: int) -> np.ndarray | str:  # type: ignore[override]
        here = self.positions[number * AT_ONCE : (number + 1) * AT_ONCE]
        digests = np.zeros(len(here), np.uint64)
        for row, position in enumerate(here.tolist()):
            try:
                with open(self.images.path(position), "rb", buffering=0) as file:  # type: ignore[attr-defined]  # noqa: PTH123
                    file.seek(file.seek(0, os.SEEK_END) // 2)
                    digests[row] = _hashed(file.read(GLIMPSE))
            except OSError:  # whoever reads all of it says what is wrong
                continue
        return digests


def _each(stretches: _Look, workers: int | None, console: Console | None, told: str) -> list:
    """What every stretch gives, in order."""
    count = len(stretches.positions)
    workers = default_workers() if workers is None else workers
    loader: DataLoader = DataLoader(
        stretches,
        batch_size=None,
        num_workers=workers if count > WORTH_WORKERS else 0,
        collate_fn=_as_it_is,
        generator=torch.Generator(),
        worker_init_fn=quiet_worker,
    )
    found = []
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task(told, total=count)
        for part in loader:
            if isinstance(part, str):
                raise Refusal(part)
            found.append(part)
            bar.advance(task, AT_ONCE)
    return found


def _as_it_is(part: object) -> object:
    return part
