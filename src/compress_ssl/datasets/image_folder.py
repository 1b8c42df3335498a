"""A folder of images, at any depth.

Splits: a root that holds `train` and one of `test`, `val`, `validation` (in any case) has these two; where several of
the latter exist, `test` is preferred to `val` and `val` to `validation`, and the others are left alone. So has a root
that holds nothing but the folder `train`, without a test split. Everything under any other root is the training set.

Labels: the first folder below the split's root is the class, however deep the image lies. Images directly in the root
are unlabelled, so a flat folder is unlabelled as a whole. Train and test number their classes together.

Ids are paths relative to the root, with forward slashes, sorted; bytes of a name that are not UTF-8 appear as `\\xNN`.
Only names that promise a picture count (`compress_ssl.picture.SUFFIXES`, in any case), hidden files and folders do not.
Such a name over something that is no picture is a broken image, reported when it is read. Links to folders are
followed, except back into a folder on the way to them.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from compress_ssl.datasets import Splits, Unusual, claimed_elsewhere, digest, sized_checksum
from compress_ssl.picture import SUFFIXES, Picture, UnusableImage, decode, open_picture
from compress_ssl.refusal import Refusal

_SUFFIXES = frozenset(suffix.encode() for suffix in SUFFIXES)
_UNCOMPRESSED = (".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")  # TIFF: often
_PAGE, _PAGES = 4096, 16  # of these files at most 64 KiB are read, spread evenly from their first byte to their last
_TEST_FOLDERS = ("test", "val", "validation")
_OUR_OWN_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # reading fails, but not because of the image


def claims(name: str) -> bool:
    """Any folder that no other file here knows better: one of parquet, of a published set."""
    return Path(name).is_dir() and not claimed_elsewhere(name, than=__name__)


def open_splits(name: str, *, unusual: Unusual, max_pixels: int) -> Splits:
    root = os.fsencode(name)
    folders = _split_folders(root)
    found = {split: sorted(_images_below(root, folder)) for split, folder in folders.items()}
    for split, paths in found.items():
        if not paths:
            raise Refusal(
                f"expected images ({' '.join(SUFFIXES)}) in {Path(name, os.fsdecode(folders[split]))}, "
                "got none: name a folder that holds some, at any depth"
            )
    owners = {split: [_class_of(path, folders[split]) for path in paths] for split, paths in found.items()}
    classes = tuple(sorted({owner for split in owners.values() for owner in split if owner is not None}))
    number = {owner: position for position, owner in enumerate(classes)}
    splits = {
        split: FolderImages(
            f"{name}:{split}",
            root,
            paths,
            np.array([-1 if owner is None else number[owner] for owner in owners[split]], dtype=np.int64),
            tuple(_readable(owner) for owner in classes),
            unusual=unusual,
            max_pixels=max_pixels,
        )
        for split, paths in found.items()
    }
    return Splits(train=splits["train"], test=splits.get("test"))


class FolderImages:
    """One split: paths in memory, images on disk."""

    def __init__(
        self,
        name: str,
        root: bytes,
        paths: list[bytes],
        labels: np.ndarray,
        classes: tuple[str, ...],
        *,
        unusual: Unusual,
        max_pixels: int,
    ) -> None:
        self.name = name
        self.ids = tuple(_readable(path) for path in paths)
        self.labels = labels
        self.classes = classes
        self._root = os.path.abspath(root)  # noqa: PTH100 - bytes, and a worker may stand in another folder
        # The few whose id is not their path; a million ordinary paths are held once, as ids.
        self._odd = {
            position: path
            for position, path in enumerate(paths)
            if not path.isascii() and os.fsencode(self.ids[position]) != path
        }
        if self._odd and len(set(self.ids)) != len(self.ids):
            position = next(position for position in self._odd if self.ids.count(self.ids[position]) > 1)
            raise Refusal(
                f"expected file names that differ when written as text, got {self.ids[position]!r} twice "
                f"in {os.fsdecode(root)}: rename one to UTF-8"
            )
        self._unusual: Unusual = unusual
        self._max_pixels = max_pixels

    @cached_property
    def evidence(self) -> np.ndarray:
        """(N,) int64: sizes of the files; where pixels may lie uncompressed, mixed with a checksum of the content.

        Two photographs of one camera saved as BMP have one size. A JPEG or PNG that is edited or exchanged hardly
        keeps its length, and opening a million of them at every start would take minutes: their size must do.
        """
        found = self._sizes.copy()
        for position, id in enumerate(self.ids):
            if found[position] >= 0 and id.lower().endswith(_UNCOMPRESSED):
                found[position] = _with_checksum(self.path(position))
        return found

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([_size(self.path(position)) for position in range(len(self.ids))], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, position: int) -> bytes:
        """Absolute path of one image."""
        return os.path.join(self._root, self._odd.get(position) or os.fsencode(self.ids[position]))  # noqa: PTH118

    def read(self, position: int) -> np.ndarray:
        return decode(self._file(position), unusual=self._unusual, max_pixels=self._max_pixels)

    def open(self, position: int) -> Picture | np.ndarray:
        return open_picture(self._file(position), unusual=self._unusual, max_pixels=self._max_pixels)

    def _file(self, position: int) -> bytes:
        position = range(len(self.ids))[position]  # an IndexError where there is no such image
        try:
            with open(self.path(position), "rb", buffering=0) as file:  # noqa: PTH123
                return file.read()
        except OSError as error:
            if error.errno in _OUR_OWN_TROUBLE:
                raise
            raise UnusableImage("broken", f"cannot be read: {error.strerror}") from error

    def fingerprint(self) -> str:
        return digest(self.ids, self.labels, self._sizes.astype("<i8").tobytes())


def _split_folders(root: bytes) -> dict[str, bytes]:
    """Split -> folder below the root, b"" for the root itself."""
    visible = [entry for entry in _entries(root) if not entry.name.startswith(b".")]
    folders = {entry.name.lower(): entry.name for entry in visible if entry.is_dir()}
    if b"train" in folders:
        for test in _TEST_FOLDERS:
            if test.encode() in folders:
                return {"train": folders[b"train"], "test": folders[test.encode()]}
        if len(folders) == 1 and not any(_promises_picture(entry.name) for entry in visible):
            return {"train": folders[b"train"]}
    return {"train": b""}


def _images_below(root: bytes, folder: bytes) -> Iterator[bytes]:
    """Paths relative to the root of all images in a folder below it; one pass, no stat of plain files."""
    waiting: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        current, above = waiting.pop()
        path = os.path.join(root, current)  # noqa: PTH118
        stat = os.stat(path)  # noqa: PTH116
        identity = (stat.st_dev, stat.st_ino)
        if identity in above:
            continue  # a link back to a folder we are inside of
        for entry in _entries(path):
            if entry.name.startswith(b"."):
                continue
            below = current + b"/" + entry.name if current else entry.name
            if entry.is_dir():
                waiting.append((below, above | {identity}))
            elif _promises_picture(entry.name) and (entry.is_file() or entry.is_symlink()):
                yield below  # a link to nowhere too: it is a broken image, not an absent one


def _entries(path: bytes) -> Iterator[os.DirEntry[bytes]]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except OSError as error:
        raise Refusal(
            f"expected a readable folder, got {os.fsdecode(path)} ({error.strerror}): change its permissions or name "
            "another folder"
        ) from error


def _promises_picture(name: bytes) -> bool:
    _, dot, suffix = name.rpartition(b".")
    return (dot + suffix).lower() in _SUFFIXES


def _class_of(path: bytes, split_folder: bytes) -> bytes | None:
    inside = path[len(split_folder) + 1 :] if split_folder else path
    first, slash, _ = inside.partition(b"/")
    return first if slash else None


def _readable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return -1  # a link to nowhere: reading it reports it as broken


def _with_checksum(path: bytes) -> int:
    """Size and checksum of a file's content, of 16 pages of it where it is longer; -1 where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            size = os.fstat(file.fileno()).st_size
            if size <= _PAGE * _PAGES:
                return sized_checksum(size, zlib.crc32(file.read()))
            checksum = 0
            for page in range(_PAGES):
                start = (size - _PAGE) * page // (_PAGES - 1)
                checksum = zlib.crc32(os.pread(file.fileno(), _PAGE, start), checksum)
            return sized_checksum(size, checksum)
    except OSError:
        return -1
