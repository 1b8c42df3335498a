"""The layout of PASCAL VOC on disk: VOC2007/{JPEGImages,Annotations,ImageSets/Main}, as published or by tools.

Source: Everingham et al., The PASCAL Visual Object Classes Challenge 2007 (VOC2007) Development Kit.
ImageSets/Main/{train,val,trainval,test}.txt name the images of a split, one id a line. Annotations/ID.xml holds the
objects of an image; one marked `difficult` is neither to be found nor held against who finds it. Whether a class is in
a picture is told by its objects, which is what the devkit's CLASS_SPLIT.txt files are made of; those are not read.

Annotations come from strangers: a document type, the only way to entities that grow or that read files, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np

from compress_ssl.picture import SUFFIXES
from compress_ssl.refusal import Refusal

IMAGES, ANNOTATIONS, SPLITS = "JPEGImages", "Annotations", "ImageSets/Main"
Split = Literal["train", "val", "trainval", "test"]


class Object(NamedTuple):
    """One object in a picture.

    box: left, top, right, bottom edges in pixels from the picture's top left corner. The devkit counts pixels from 1
        and includes the last one: its (xmin, ymin, xmax, ymax) is (xmin - 1, ymin - 1, xmax, ymax) here, and its
        widths "+ 1" are right - left.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class Halves:
    """What a model may learn from, what it is scored on, and where within the first its options may be chosen."""

    learn: tuple[str, ...]  # ids
    report: tuple[str, ...]
    # two parts of `learn`; both empty where the layout does not divide it
    choose_from: tuple[str, ...] = ()
    choose_on: tuple[str, ...] = ()
    names: tuple[str, str] = ("trainval", "test")  # of `learn` and `report`


def is_voc(root: Path) -> bool:
    """Whether a folder is laid out like VOC2007."""
    return (root / IMAGES).is_dir() and (root / SPLITS).is_dir()


def require_voc(root: Path) -> None:
    """Refusal, with the folder that was most likely meant, of one that is not laid out like VOC2007."""
    if is_voc(root):
        return
    inside = [folder for folder in sorted(root.glob("*")) + sorted(root.glob("*/*")) if is_voc(folder)]
    hint = f"did you mean {inside[0]}?" if inside else "name the folder VOC2007 of an unpacked VOCdevkit"
    raise Refusal(f"expected a folder with {IMAGES}, {ANNOTATIONS} and {SPLITS}, got {str(root)!r} without: {hint}")


def read_split(root: Path, split: Split) -> tuple[str, ...] | None:
    """The ids of one split, in the order of its file; None where there is no such file.

    Raises: Refusal if an id stands there twice, or none at all.
    """
    file = root / SPLITS / f"{split}.txt"
    if not file.is_file():
        return None
    try:
        ids = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise Refusal(f"expected ids of images in {file}, one a line, got no text ({error}): mend the file") from error
    if not ids:
        raise Refusal(f"expected ids of images in {file}, one a line, got none: write them, or remove the file")
    if len(set(ids)) < len(ids):
        twice = next(id for place, id in enumerate(ids) if id in ids[:place])
        raise Refusal(f"expected every id once in {file}, got {twice} twice: remove one")
    return ids


def halves(root: Path) -> Halves:
    """Learn from trainval and report on test; without a test split (VOC 2012 publishes none) on train and on val.

    Where trainval is learnt from, options are chosen by learning from train and looking at val.

    Raises: Refusal if these files are not there, or an image is in both.
    """
    require_voc(root)
    found: dict[str, tuple[str, ...] | None] = {name: read_split(root, name) for name in ("train", "val", "test")}
    train, val, test = found["train"], found["val"], found["test"]
    trainval = read_split(root, "trainval") or (tuple(sorted((*train, *val))) if train and val else train)
    if test and trainval:
        divided = train is not None and val is not None and set(train) | set(val) <= set(trainval)
        parts = (train, val) if divided else ((), ())
        whole = Halves(trainval, test, *parts)  # type: ignore[arg-type]
    elif train and val:
        whole = Halves(train, val, names=("train", "val"))
    else:
        there = sorted(file.stem for file in (root / SPLITS).glob("*.txt") if file.stem in {*found, "trainval"})
        raise Refusal(f"expected trainval.txt and test.txt, or train.txt and val.txt, in {root / SPLITS}, got "
                      f"{', '.join(there) or 'none of them'}: write them, one id a line")  # fmt: skip
    for one, other, names in (
        (whole.learn, whole.report, whole.names),
        (whole.choose_from, whole.choose_on, ("train", "val")),
    ):
        both = set(one) & set(other)
        if both:
            raise Refusal(f"expected no image in two splits of {root}, got {min(both)} in {names[0]} and {names[1]}: "
                          "take it out of one, or what is learnt from would be scored")  # fmt: skip
    return whole


def image_paths(root: Path, ids: Iterable[str]) -> list[str]:
    """The images' files relative to the root; JPEGImages/ID.jpg also where there is none, for it is to be missed."""
    files: dict[str, str] = {}
    for file in sorted((root / IMAGES).iterdir()):
        if file.suffix.lower() in SUFFIXES and (file.suffix.lower() == ".jpg" or file.stem not in files):
            files[file.stem] = file.name
    return [f"{IMAGES}/{files.get(id, f'{id}.jpg')}" for id in ids]


def read_annotations(root: Path, ids: Iterable[str]) -> dict[str, tuple[Object, ...]]:
    """id -> its objects, in the order of the file.

    Raises: Refusal naming the file that is missing, no XML, or not what VOC has in it.
    """
    return {id: read_annotation(root / ANNOTATIONS / f"{id}.xml") for id in ids}


def read_annotation(file: Path) -> tuple[Object, ...]:
    """The objects of one image; parts of objects (VOC's person layout) are left out."""
    try:
        tree = ElementTree.fromstring(file.read_bytes(), parser=ElementTree.XMLParser(target=_NoDocumentType(file)))
    except FileNotFoundError:
        raise Refusal(f"expected an annotation at {file}, got none: restore it, or take the image out of its "
                      "splits") from None  # fmt: skip
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(f"expected XML in {file}, got {error}: restore the file") from error
    return tuple(_object(element, file) for element in tree.findall("object"))


def classes_of(annotations: dict[str, tuple[Object, ...]]) -> tuple[str, ...]:
    """The names of all objects, sorted: of VOC 2007 its twenty."""
    return tuple(sorted({one.name for objects in annotations.values() for one in objects}))


def targets(annotations: Sequence[Sequence[Object]], classes: Sequence[str]) -> np.ndarray:
    """Which classes are in which image, as the devkit's lists for classification have it.

    Args:
        annotations: of N images.
        classes: C names, among them those of all objects.
    Returns: (N, C) int8: 1 in it, -1 not in it, 0 only as objects that are difficult: such an image does not count for
        the class, neither to learn nor to be scored.
    """
    places = {name: place for place, name in enumerate(classes)}
    found = np.full((len(annotations), len(classes)), -1, dtype=np.int8)
    for row, objects in zip(found, annotations, strict=True):
        for one in objects:
            place = places[one.name]
            row[place] = max(row[place], 0 if one.difficult else 1)
    return found


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses a document type as soon as it begins, before its entities are read."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def doctype(self, name: str, pubid: Any, system: Any) -> None:  # noqa: ARG002 - as ElementTree calls it
        raise Refusal(f"expected XML without a document type in {self._file}, got <!DOCTYPE {name[:40]} …>, by which "
                      "a file can read others or grow without end: take it out")  # fmt: skip


def _object(element: ElementTree.Element, file: Path) -> Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise Refusal(f"expected a name for every object in {file}, got one without: write <name> into it")
    edges = [_number(element, f"bndbox/{edge}", file) for edge in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = edges
    if right < left or bottom < top:
        raise Refusal(f"expected xmin <= xmax and ymin <= ymax in {file}, got {edges} for a {name}: mend the box")
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise Refusal(f"expected <difficult> to be 0 or 1 in {file}, got {difficult[:40]!r}: mend it")
    return Object(name, (left - 1, top - 1, right, bottom), difficult == "1")


def _number(element: ElementTree.Element, path: str, file: Path) -> float:
    text = (element.findtext(path) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refusal(f"expected a number as {path} of every object in {file}, got {text[:40]!r}: mend it")
    return value
