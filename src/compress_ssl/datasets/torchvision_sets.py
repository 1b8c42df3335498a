"""Published data sets by name, `torchvision/CIFAR10` and its like, read and downloaded by torchvision.

They live in $COMPRESS_SSL_HOME/torchvision/NAME (else ~/.cache/compress-ssl/…), in the layout of their publishers. What
is not there is downloaded; without a network a refusal names the folder and what to put into it.

Splits are each set's own. A validation split joins the training split, as in the transfer literature: Flowers102, DTD
(the first of its ten partitions), Country211 and RenderedSST2 train on train and val, FGVCAircraft (classes: variants)
and OxfordIIITPet on trainval, all against test; Food101 and StanfordCars have train and test. Where the labels of test
were never published, val is test: Places365 (train-standard; `:256` for its small images) and Imagenette (`:320px`,
`:160px` for small ones). EuroSAT and SUN397 come without splits, there a fifth is held out as test (`hold_out`: the
same images everywhere). STL10 trains on its 5000 labelled images, `torchvision/STL10:unlabeled` on 100 000 unlabelled.

Sets of image files are read by our own decoder, so that their few CMYK, GIF or transparent files are counted as in any
other folder; ids are paths below the folder named above, sorted. Sets published as one array of decoded pixels (CIFAR,
MNIST, SVHN, STL10, USPS) are written once as `arrays/SPLIT.npy` beside the original and memory-mapped, so that neither
a worker process nor a second command unpacks them again; ids are "NAME/split/000000".

CIFAR's original files are Python pickles. torchvision compares their MD5 with the published one before it opens them;
nothing else here is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compress_ssl.datasets import ImageSet, Splits, Unusual, alone_in, cache_folder, digest, hold_out
from compress_ssl.datasets.image_folder import FolderImages
from compress_ssl.refusal import Refusal, nearest

_Arguments = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Source:
    """How one of torchvision's classes says "train" and "test"."""

    kind: str  # class in torchvision.datasets
    holds: str  # what lies in the folder when the set is there
    train: _Arguments  # arguments of the class; several are joined
    test: _Arguments
    one_array: bool = False  # published as decoded pixels
    more: dict[str, Any] = field(default_factory=dict)


def _split(*names: str) -> _Arguments:
    return tuple({"split": name} for name in names)


_FLAG = (({"train": True},), ({"train": False},))
_TRAIN_TEST = (_split("train"), _split("test"))
_TRAIN_VAL_TEST = (_split("train", "val"), _split("test"))
_TRAIN_VALID_TEST = (_split("train", "valid"), _split("test"))
_TRAINVAL_TEST = (_split("trainval"), _split("test"))
_TRAIN_VAL = (_split("train"), _split("val"))
_STANDARD_VAL = (_split("train-standard"), _split("val"))
_UNLABELLED_TEST = (_split("unlabeled"), _split("test"))
_NO_SPLITS: tuple[_Arguments, _Arguments] = (({},), ())

_SOURCES: dict[str, _Source] = {
    "CIFAR10": _Source("CIFAR10", "cifar-10-batches-py/", *_FLAG, one_array=True),
    "CIFAR100": _Source("CIFAR100", "cifar-100-python/", *_FLAG, one_array=True),
    "Country211": _Source("Country211", "country211/", *_TRAIN_VALID_TEST),
    "DTD": _Source("DTD", "dtd/dtd/", *_TRAIN_VAL_TEST),
    "EuroSAT": _Source("EuroSAT", "eurosat/2750/", *_NO_SPLITS),
    "FGVCAircraft": _Source("FGVCAircraft", "fgvc-aircraft-2013b/", *_TRAINVAL_TEST),
    "FashionMNIST": _Source("FashionMNIST", "FashionMNIST/raw/", *_FLAG, one_array=True),
    "Flowers102": _Source("Flowers102", "flowers-102/", *_TRAIN_VAL_TEST),
    "Food101": _Source("Food101", "food-101/", *_TRAIN_TEST),
    "GTSRB": _Source("GTSRB", "gtsrb/", *_TRAIN_TEST),
    "Imagenette": _Source("Imagenette", "imagenette2/", *_TRAIN_VAL),
    "Imagenette:160px": _Source("Imagenette", "imagenette2-160/", *_TRAIN_VAL, more={"size": "160px"}),
    "Imagenette:320px": _Source("Imagenette", "imagenette2-320/", *_TRAIN_VAL, more={"size": "320px"}),
    "KMNIST": _Source("KMNIST", "KMNIST/raw/", *_FLAG, one_array=True),
    "MNIST": _Source("MNIST", "MNIST/raw/", *_FLAG, one_array=True),
    "OxfordIIITPet": _Source("OxfordIIITPet", "oxford-iiit-pet/", *_TRAINVAL_TEST),
    "Places365": _Source("Places365", "categories_places365.txt, its lists, data_large_standard/", *_STANDARD_VAL),
    "Places365:256": _Source(
        "Places365", "categories_places365.txt, its lists, data_256_standard/", *_STANDARD_VAL, more={"small": True}
    ),
    "RenderedSST2": _Source("RenderedSST2", "rendered-sst2/", *_TRAIN_VAL_TEST),
    "STL10": _Source("STL10", "stl10_binary/", *_TRAIN_TEST, one_array=True),
    "STL10:unlabeled": _Source("STL10", "stl10_binary/", *_UNLABELLED_TEST, one_array=True),
    "SUN397": _Source("SUN397", "SUN397/", *_NO_SPLITS),
    "SVHN": _Source("SVHN", "train_32x32.mat and test_32x32.mat", *_TRAIN_TEST, one_array=True),
    "StanfordCars": _Source("StanfordCars", "stanford_cars/", *_TRAIN_TEST),
    "USPS": _Source("USPS", "usps.bz2 and usps.t.bz2", *_FLAG, one_array=True),
}
NAMES = tuple(f"torchvision/{name}" for name in _SOURCES)
_SECONDS_OF_SILENCE = 30.0  # of a server, after which there is no network; torchvision itself would wait for ever


def claims(name: str) -> bool:
    return name.startswith("torchvision/")


def open_splits(name: str, *, unusual: Unusual, max_pixels: int) -> Splits:
    """Open a set, downloading what is not yet there."""
    source = _SOURCES.get(name.removeprefix("torchvision/"))
    if source is None:
        spelt = next((known for known in NAMES if known.lower() == name.lower()), name)
        raise Refusal(f"expected one of torchvision's image sets, got {name!r}: {nearest(spelt, NAMES)}")
    root = cache_folder() / "torchvision" / source.kind
    with _refusing(name, source, root), alone_in(root):
        if source.one_array:
            train: ImageSet = _array(f"{name}:train", source, source.train[0], root)
            return Splits(train=train, test=_array(f"{name}:test", source, source.test[0], root))
        train = _files(f"{name}:train", source, source.train, root, unusual, max_pixels)
        if not source.test:
            train, test = hold_out(train, count=max(1, len(train) // 5))
            return Splits(train=train, test=test)
        return Splits(train=train, test=_files(f"{name}:test", source, source.test, root, unusual, max_pixels))


class ArrayImages:
    """One split that was published as decoded pixels, memory-mapped."""

    def __init__(self, name: str, prefix: str, pixels: Path, labels: np.ndarray, classes: tuple[str, ...]) -> None:
        self.name = name
        self.ids = tuple(f"{prefix}/{position:06d}" for position in range(len(labels)))
        self.labels = labels
        self.classes = classes
        self._path = pixels
        self._pixels: np.ndarray | None = None  # (N, H, W, 3) or, for grey, (N, H, W); uint8

    @cached_property
    def evidence(self) -> np.ndarray:
        return np.array([zlib.crc32(np.ascontiguousarray(image).data) for image in self._mapped()], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        image = self._mapped()[position]
        return np.array(image) if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)

    def fingerprint(self) -> str:
        with self._path.open("rb") as file:
            return digest(self.ids, self.labels, hashlib.file_digest(file, "sha256").digest())

    def _mapped(self) -> np.ndarray:
        if self._pixels is None:
            self._pixels = np.load(self._path, mmap_mode="r")
        return self._pixels

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # a memory map would travel as all of its bytes


def _array(name: str, source: _Source, arguments: dict[str, Any], root: Path) -> ArrayImages:
    """One split from arrays/SPLIT.npy and .json, which are written now if they are not there."""
    split = str(arguments.get("split") or ("train" if arguments["train"] else "test"))
    pixels, rest = root / "arrays" / f"{split}.npy", root / "arrays" / f"{split}.json"
    if not rest.exists():
        published = _published(source, arguments, root)
        pixels.parent.mkdir(exist_ok=True)
        images = np.asarray(published.data)
        if images.ndim == 4 and images.shape[1] == 3:
            images = images.transpose(0, 2, 3, 1)
        labels = [int(label) for label in (published.targets if hasattr(published, "targets") else published.labels)]
        described = json.dumps({"labels": labels, "classes": _classes(published, labels)})
        _write(pixels, lambda file: np.save(file, np.ascontiguousarray(images)))
        _write(rest, lambda file: file.write(described.encode()))
    read = json.loads(rest.read_text())
    numbers = np.array(read["labels"], dtype=np.int64)
    return ArrayImages(name, f"{source.kind}/{split}", pixels, numbers, tuple(read["classes"]))


def _write(path: Path, write: Any) -> None:
    unfinished = path.with_suffix(path.suffix + ".unfinished")
    with unfinished.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _files(
    name: str, source: _Source, parts: Sequence[dict[str, Any]], root: Path, unusual: Unusual, max_pixels: int
) -> FolderImages:
    """One split of a set of image files."""
    sets = [_published(source, arguments, root) for arguments in parts]
    found = sorted(
        (os.path.relpath(os.fsencode(path), os.fsencode(root)), int(label))
        for published in sets
        for path, label in _paths_and_labels(published)
    )
    labels = [label for _, label in found]
    return FolderImages(
        name,
        os.fsencode(root),
        [path for path, _ in found],
        np.array(labels, dtype=np.int64),
        _classes(sets[0], labels),
        unusual=unusual,
        max_pixels=max_pixels,
    )


def _paths_and_labels(published: Any) -> Iterator[tuple[Any, int]]:
    """torchvision has no public name for these; a few cover its sets (0.21 to 0.29)."""
    for attribute in ("samples", "_samples", "imgs"):
        if hasattr(published, attribute):
            return iter(getattr(published, attribute))
    for attribute in ("_image_files", "_images"):
        if hasattr(published, attribute):
            return zip(getattr(published, attribute), published._labels, strict=True)
    raise RuntimeError(f"this version of torchvision keeps the files of {type(published).__name__} elsewhere")


def _classes(published: Any, labels: Sequence[int]) -> tuple[str, ...]:
    names = getattr(published, "classes", None)
    if names is None:
        return tuple(str(number) for number in range(max(labels) + 1))
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


def _published(source: _Source, arguments: dict[str, Any], root: Path) -> Any:
    """torchvision's own object, from what is on disk, else from the network."""
    from torchvision import datasets  # 3.5 s on top of torch: paid when a set is first opened

    make = getattr(datasets, source.kind)
    try:
        published = make(root=str(root), **arguments, **source.more)
        if not Path(getattr(published, "images_dir", root)).is_dir():  # Places365 looks at its lists alone
            raise RuntimeError(f"{published.images_dir} not found")
        return published
    except RuntimeError:  # torchvision's "not found or corrupted"
        with _network_may_be_silent():
            return make(root=str(root), **arguments, **source.more, download=True)


@contextmanager
def _network_may_be_silent() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_OF_SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _refusing(name: str, source: _Source, root: Path) -> Iterator[None]:
    try:
        yield
    except Refusal:
        raise
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        # On the way here: no network, a server's refusal, a full disk, or files that are not the published ones.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refusal(
            f"expected the files of {name} in {root}, or a network and room to download them, got '{reason}': put "
            f"{source.holds} there, or set COMPRESS_SSL_HOME to the folder that has torchvision/{source.kind}"
        ) from error
