"""Images to learn from: what every data set offers, and how a name finds its file in this folder.

A name is a folder of images, that of CUB-200-2011 or of PASCAL VOC, a .parquet file or a folder of them, `digits`,
`torchvision/NAME`, or the dotted name of a module outside the package. Each file here answers two questions:
`claims(name)`, is this name mine, and `open_splits(name, unusual=…, max_pixels=…)`; a new file joins by being here. A
file may list `NAMES` that stand for one data set each. These win over a folder of the same name, which is then
`./digits`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from compress_ssl.picture import MAX_PIXELS, Picture
from compress_ssl.refusal import Refusal, nearest

SHRUNK = "shrunk.json"  # beside a copy made by `shrink`: what of, and whether it is complete

Unusual = Literal["skip", "convert"]


@runtime_checkable
class ImageSet(Protocol):
    """N images in a fixed order. Picklable, so that worker processes can read; holds no decoded images.

    A set of encoded files may also have `open(position) -> Picture | np.ndarray`: `read`, but a plain JPEG is not
    decoded until a view knows its crop (see `open_image`).
    """

    @property
    def name(self) -> str:
        """As the user wrote it, a colon, the split: "photos:train"."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """(N,) unique; an image keeps its id whatever else is added to the set."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, -1 where unlabelled."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, () when the whole set is unlabelled."""
        ...

    @property
    def evidence(self) -> np.ndarray:
        """(N,) int64: a number for each image that most likely changes with its bytes, had without decoding it: the
        size of its file, a checksum of its bytes or pixels, or both (`sized_checksum`). The same on every machine. -1
        where there is nothing to be read."""
        ...

    def __len__(self) -> int: ...

    def read(self, position: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of one image; raises UnusableImage."""
        ...

    def fingerprint(self) -> str:
        """sha256 (hex) over ids, labels and sizes of the images: what a cache may be trusted for."""
        ...


@dataclass(frozen=True)
class Splits:
    """What a name opened: `test` is None where the source has one split only."""

    train: ImageSet
    test: ImageSet | None = None


def open_splits(name: str, *, unusual: Unusual = "skip", max_pixels: int = MAX_PIXELS) -> Splits:
    """Open the data set that `name` stands for.

    Args:
        name: see the top of this file.
        unusual: what to do with pictures that are not plain grey or RGB, see `compress_ssl.picture`.
        max_pixels: a picture of more is "huge" and never decoded.
    Raises: Refusal if nothing answers to the name, or what it names holds no images.
    """
    if name.startswith("~"):
        name = os.path.expanduser(name)  # noqa: PTH111 - in a config file no shell has done it
    _refuse_unfinished(name)
    for module in sorted(_family(), key=lambda module: not hasattr(module, "NAMES")):
        if name and module.claims(name):  # an empty name would be the working folder
            return module.open_splits(name, unusual=unusual, max_pixels=max_pixels)
    outside = _outside_module(name)
    if outside is not None:
        return _complete(outside.open_splits(name, unusual=unusual, max_pixels=max_pixels), name)
    raise Refusal(
        "expected a folder of images, a .parquet file or a folder of them, 'digits', 'torchvision/NAME' or a module's "
        f"dotted name as the data, got {name!r}{_what_lies_there(name)}: {nearest(name, known_names())}"
    )


def _refuse_unfinished(name: str) -> None:
    """A copy that `shrink` has not finished looks like a data set, and is a part of one."""
    manifest = Path(name) / SHRUNK
    if name and manifest.is_file() and not json.loads(manifest.read_text(encoding="utf-8"))["complete"]:
        raise Refusal(f"expected a whole data set in {name}, got a copy that is not finished: run `compress-ssl "
                      "shrink` again with the same --out")  # fmt: skip


def open_image(images: ImageSet, position: int) -> Picture | np.ndarray:
    """One image, not decoded yet where its set can offer that; raises UnusableImage, now or when it is decoded."""
    opens = getattr(images, "open", None)
    return images.read(position) if opens is None else opens(position)


def claimed_elsewhere(name: str, *, than: str) -> bool:
    """Whether a file of this folder other than the module `than` claims the name."""
    return any(module.claims(name) for module in _family() if module.__name__ != than)


def known_names() -> tuple[str, ...]:
    """Every name that stands for one data set by itself, sorted."""
    return tuple(sorted(name for module in _family() for name in getattr(module, "NAMES", ())))


def subset(images: ImageSet, positions: np.ndarray) -> ImageSet:
    """The images at these positions, in this order, with the ids and labels they had.

    Args:
        images: (N,) images.
        positions: (M,) integers in [0, N), each at most once, M >= 1.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if positions.ndim != 1 or not len(positions):
        raise ValueError(f"expected at least one position in one dimension, got shape {positions.shape}")
    if positions.min() < 0 or positions.max() >= len(images) or len(np.unique(positions)) != len(positions):
        raise ValueError(
            f"expected positions in [0, {len(images)}), each at most once, got {len(positions)} of them "
            f"from {positions.min()} to {positions.max()}, {len(np.unique(positions))} different ones"
        )
    return _Subset(images, positions, name=images.name)


def hold_out(images: ImageSet, *, count: int) -> tuple[ImageSet, ImageSet]:
    """Split off `count` images: those whose ids have the smallest sha256.

    The choice depends on each id alone, so it survives reordering, and a newly added image displaces at most one.

    Args:
        count: in [1, N - 1].
    Returns: (rest, held out), both in the order of `images`.
    """
    if not 1 <= count < len(images):
        raise Refusal(
            f"expected to hold out at least 1 and fewer than all of the {len(images)} images of {images.name}, "
            f"got {count}: choose another number"
        )
    digests = [hashlib.sha256(name.encode()).digest() for name in images.ids]
    held = np.zeros(len(images), dtype=bool)
    held[sorted(range(len(images)), key=digests.__getitem__)[:count]] = True
    rest, out = np.flatnonzero(~held), np.flatnonzero(held)
    return (
        _Subset(images, rest, name=f"{images.name}, {count} held out"),
        _Subset(images, out, name=f"{images.name}, the {count} held out"),
    )


def set_aside(images: ImageSet, *, at_most: int) -> tuple[ImageSet, ImageSet]:
    """Split off what judges a student: `at_most` images, no more than a tenth of all, but one at least.

    Every verb goes by this rule: what `distill` never trained on is what `evaluate` asks about.

    Returns: (rest, set aside), both in the order of `images`.
    """
    return hold_out(images, count=max(1, min(at_most, len(images) // 10)))


def gallery_of(images: ImageSet, *, at_most: int) -> ImageSet:
    """Those among which neighbours are looked for: all, or `at_most` of them as `hold_out` chooses."""
    return images if at_most >= len(images) else hold_out(images, count=at_most)[1]


def trained_and_watched(images: ImageSet, *, held_out: int, gallery: int) -> tuple[ImageSet, Splits]:
    """What a student learns from, and what it is scored with: queries it never sees, and some that it does see.

    Args:
        images: a training split.
        held_out: queries at most, see `set_aside`.
        gallery: training images at most among which their neighbours are looked for.
    Returns: images to train on; gallery (as train) and queries (as test).
    """
    if len(images) < 4:
        raise Refusal(f"expected at least 4 images to train on and to score with, got {len(images)} in {images.name}: "
                      "add images")  # fmt: skip
    training, queries = set_aside(images, at_most=held_out)
    return training, Splits(gallery_of(training, at_most=gallery), queries)


def sized_checksum(size: Any, checksum: Any) -> Any:
    """Size in bytes and crc32 as one number that fits int64: of two numbers or two int64 arrays."""
    return (size & 0x7FFFFFFF) << 32 | checksum


def digest(ids: Sequence[str], labels: np.ndarray, evidence: np.ndarray | bytes) -> str:
    """sha256 over ids, labels and what is cheaply known of the contents: the fingerprint of every set here."""
    sha = hashlib.sha256()
    for part in ("\0".join(ids).encode(), np.ascontiguousarray(labels, dtype="<i8").tobytes(), bytes(evidence)):
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def cache_folder() -> Path:
    """Where downloads and copies live: $COMPRESS_SSL_HOME, else ~/.cache/compress-ssl."""
    return Path(os.environ.get("COMPRESS_SSL_HOME") or Path.home() / ".cache" / "compress-ssl")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it: the processes of one run open the same data at the same moment, one may write.

    Raises: OSError if the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Subset:
    """Some images of another set."""

    def __init__(self, images: ImageSet, positions: np.ndarray, *, name: str) -> None:
        self._images = images
        self._positions = positions
        self.name = name
        self.ids: Sequence[str] = tuple(images.ids[position] for position in positions)
        self.labels = images.labels[positions]
        self.classes = images.classes

    @property
    def evidence(self) -> np.ndarray:
        return self._images.evidence[self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, position: int) -> np.ndarray:
        return self._images.read(int(self._positions[position]))

    def open(self, position: int) -> Picture | np.ndarray:
        return open_image(self._images, int(self._positions[position]))

    def fingerprint(self) -> str:
        return digest(self.ids, self.labels, self._images.fingerprint().encode())


def _family() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(__path__):
        yield importlib.import_module(f"{__name__}.{found.name}")


def _outside_module(name: str) -> ModuleType | None:
    """The module of a dotted name such as "my_package.my_dataset"; what follows a colon is the module's business."""
    dotted = name.partition(":")[0]
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", dotted):
        return None
    try:
        if importlib.util.find_spec(dotted) is None:
            return None
    except ModuleNotFoundError as error:
        if error.name is not None and dotted.startswith(error.name):
            return None
        raise
    module = importlib.import_module(dotted)
    if not hasattr(module, "open_splits"):
        raise Refusal(
            f"expected the module {dotted} to define open_splits(name, *, unusual, max_pixels), got a module without "
            "it: see compress_ssl.datasets.digits for an example"
        )
    return module


def _complete(splits: Splits, name: str) -> Splits:
    """Refuse image sets from outside that lack something, before hours of work ask for it."""
    wanted = ("name", "ids", "labels", "classes", "evidence", "read", "fingerprint", "__len__")
    for images in (splits.train, splits.test):
        missing = [] if images is None else [part for part in wanted if not hasattr(images, part)]
        if missing:
            raise Refusal(f"expected the image sets of {name} to offer {', '.join(wanted)}, got one without "
                          f"{', '.join(missing)}: see compress_ssl.datasets.ImageSet")  # fmt: skip
    return splits


def _what_lies_there(name: str) -> str:
    path = Path(name)
    if path.is_file():
        return " (a file)"
    return "" if path.exists() else " (no such file or folder)"
