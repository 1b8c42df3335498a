"""Embeddings that lie on a disk: a table that `embed` wrote, or a file of vectors from elsewhere; and whose they are.

Rows belong to images by id, never by position: in which order either side lists them makes no difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from compress_ssl import room
from compress_ssl.datasets import ImageSet, Unusual, open_image
from compress_ssl.embeddings import ROWS_AT_ONCE, Embeddings
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal
from compress_ssl.table import Table, command, is_table
from compress_ssl.transforms import Crop, Preprocessing, TrainView
from compress_ssl.vectors import Vectors, is_vectors

MISSING_OPENED = 1000  # images without a vector, at most, that are opened to see whether they can be
SAMPLE = 4096  # images by which the split is told that they belong to


class Stored(Protocol):
    """N images' rows. A *place* numbers the images of all splits, in the order of the splits."""

    @property
    def path(self) -> Path: ...

    @property
    def width(self) -> int: ...

    @property
    def views(self) -> int:
        """V random views of each training image, beside the evaluation view."""
        ...

    @property
    def view(self) -> TrainView | None:
        """By what rule the random views were cut, None if there are none."""
        ...

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Of the encoder that made the rows, None if that is not known."""
        ...

    @property
    def unusual(self) -> Unusual | None:
        """What was done with unusual images when the rows were made, None if that is not known."""
        ...

    def splits(self) -> list[str]: ...

    def ids(self, split: str) -> list[str]: ...

    def labels(self, split: str) -> np.ndarray:
        """(N,) int64, -1 where unlabelled or not known."""
        ...

    def evidence(self, split: str) -> np.ndarray | None:
        """(N,) int64: what was cheaply known of each image's bytes when its rows were made; None: nothing."""
        ...

    def skipped(self, split: str) -> dict[str, int]:
        """id -> evidence of the images that could not be used when the rows were made."""
        ...

    def first(self, split: str) -> int:
        """The place of the split's first image."""
        ...

    def rows(self, places: np.ndarray, *, view: int | None = None) -> Tensor:
        """(B,) places -> (B, D) float32 unit rows on the CPU, of a random view in [0, V) or of the evaluation view.

        Raises: Refusal naming file and image if a row is damaged or no embedding.
        """
        ...

    def crop(self, place: int, *, view: int) -> Crop:
        """How a random view was cut."""
        ...

    def announce(self, places: np.ndarray, *, view: int | None = None) -> None:
        """Say that these rows will be wanted soon; returns at once."""
        ...

    def identity(self) -> dict[str, str]:
        """What makes the rows, by name: a resumed run must find the same."""
        ...


def is_stored(spec: str) -> bool:
    """Whether a model's name is that of stored rows."""
    path = Path(spec).expanduser()
    return is_table(path) or is_vectors(path)


def needs_ids(spec: str) -> bool:
    """Whether its ids lie in a file of their own."""
    return Path(spec).suffix.lower() == ".npy"


def open_stored(spec: str, *, ids: Path | None = None, in_memory: bool = False) -> Stored | None:
    """The rows that `spec` names; None if it names something else, such as an encoder.

    Args:
        spec: a table's folder, or a file of vectors.
        ids: text file with the ids of a .npy, one a line.
        in_memory: read all rows once; else they stay on disk, but for kinds of files that cannot be read in parts.
    Raises: Refusal if the file is missing, damaged or of another layout, or `ids` is given in vain.
    """
    path = Path(spec).expanduser()
    if is_vectors(path):
        return Vectors(path, ids.expanduser() if ids else None, in_memory=in_memory)
    if ids is not None:
        raise Refusal(f"expected --ids only with vectors in a .npy, got {ids} for {spec}: leave --ids out")
    return Table(path, in_memory=in_memory) if is_table(path) else None


def refuse_other_unusual(stored: Stored, unusual: Unusual) -> None:
    """Refuse to read images otherwise than when their rows were made: some would have no row, or no row of theirs.

    Raises: Refusal with both values of --unusual.
    """
    if stored.unusual not in (None, unusual):
        raise Refusal(f"--unusual expected {stored.unusual}, with which the rows in {stored.path} were made, got "
                      f"{unusual}: give --unusual {stored.unusual}, or run `compress-ssl embed` with --unusual "
                      f"{unusual} and another --out")  # fmt: skip


def refuse_too_large(*specs: str, processes: int) -> None:
    """Refuse to read stored rows into memory that they do not fit into; before any of the processes begins.

    Args:
        specs: tables' folders and .npy, read together; of anything else nothing is said here.
        processes: on this machine, each of which reads all rows.
    Raises: Refusal with the memory that is wanted and that is free.
    """
    paths, free = [Path(spec).expanduser() for spec in specs], room.free_memory()
    held = [path for path in paths if is_table(path) or (needs_ids(str(path)) and path.is_file())]
    files = [file for path in held for file in (path.glob("*/*.npy") if is_table(path) else [path])]
    wanted = processes * sum(file.stat().st_size for file in files)
    if free is not None and wanted > free:
        times = f" in each of {processes} processes" if processes > 1 else ""
        raise Refusal(f"--stored.in-memory expected {wanted / 1e9:.3g} GB of free memory, to hold the rows of "
                      f"{' and '.join(map(str, held))}"
                      f"{times}, got {free / 1e9:.3g} GB: leave it out, and rows are read from the disk")  # fmt: skip


def find(stored: Stored, images: ImageSet, *, part: bool = False, whole: ImageSet | None = None) -> np.ndarray:
    """Where the rows of these images are.

    Args:
        part: the data may hold fewer images than are stored.
        whole: the images that `images` are a part of; None: they are all.
    Returns: (N,) int64 places, -1 for an image that could not be used when the rows were made, and is as it was then.
    Raises: Refusal with the number of images at fault, the first of them and what mends it: images without a row
        (new, or unusable then and other ones now), images whose bytes have changed, and, unless `part`, rows of a table
        without an image.
    """
    data = images if whole is None else whole
    split, held = _split_of(stored, data)
    places = _look_up(held, images.ids)
    skipped, now = stored.skipped(split), _evidence(images)

    def unusable(place: int) -> bool:
        known = skipped.get(images.ids[place])
        return known is not None and (now is None or known == now[place])  # else it may have been mended

    added = [place for place in np.flatnonzero(places < 0).tolist() if not unusable(place)]
    if stored.evidence(split) is None and len(added) <= MISSING_OPENED:
        added = [place for place in added if _opens(images, place)]  # nobody has vectors of what cannot be opened
    if added:
        raise _of_added(stored, split, images, added)
    there = np.flatnonzero(places >= 0)
    before = stored.evidence(split)
    if before is not None and now is not None:
        changed = there[before[places[there]] != now[there]]
        if len(changed):
            first = int(changed[0])
            raise _of_changed(stored, images, len(changed), first, before[places[first]], now[first])
    if not part and before is not None:  # a file of vectors was made of no data set in particular
        wanted = np.zeros(len(held), dtype=bool)
        everywhere = places if whole is None else _look_up(held, whole.ids)
        wanted[everywhere[everywhere >= 0]] = True
        if not wanted.all():
            raise _of_missing(stored, split, data, np.flatnonzero(~wanted))
    return np.where(places >= 0, places + stored.first(split), -1)


def of(stored: Stored, images: ImageSet, *, strict: bool = False) -> Embeddings:
    """Rows of the evaluation views of these images, in their order, with their labels; without the unusable ones.

    Raises: Refusal as `find`; if no image was usable, or, with `strict`, not all of them.
    """
    places = find(stored, images, part=True)
    usable = np.flatnonzero(places >= 0)
    if strict and len(usable) < len(images):
        first = images.ids[int(np.flatnonzero(places < 0)[0])]
        raise Refusal(f"--strict expected every image of {images.name} to be usable, got {len(images) - len(usable)} "
                      f"that could not be when {stored.path} was made ({first}, …): mend or remove them, or leave out "
                      "--strict")  # fmt: skip
    if not len(usable):
        raise Refusal(f"expected at least one usable image in {images.name}, got none when {stored.path} was made: "
                      "mend them and run `compress-ssl embed` again")  # fmt: skip
    rows = np.empty((len(usable), stored.width), dtype=np.float32)
    for start in range(0, len(usable), ROWS_AT_ONCE):
        some = usable[start : start + ROWS_AT_ONCE]
        rows[start : start + len(some)] = stored.rows(places[some]).numpy()
    return Embeddings(
        rows=rows, labels=images.labels[usable], ids=tuple(images.ids[place] for place in usable.tolist())
    )


def _split_of(stored: Stored, images: ImageSet) -> tuple[str, dict[str, int]]:
    """The split where most of the images are, and which id has which row in it.

    cat/1.png may be in train and in test: then what is known of its bytes tells, else the name of the data.
    """
    some = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(np.int64))
    ids, now = [images.ids[place] for place in some.tolist()], _evidence(images)
    best: tuple[tuple[int, int, bool], str, dict[str, int]] | None = None
    for name in stored.splits():
        held = {id: place for place, id in enumerate(stored.ids(name))}
        places = _look_up(held, ids)
        there, before = np.flatnonzero(places >= 0), stored.evidence(name)
        same = 0 if before is None or now is None else int((before[places[there]] == now[some[there]]).sum())
        fit = (same, len(there), images.name.rpartition(":")[2].startswith(name))
        if best is None or fit > best[0]:
            best = fit, name, held
    assert best is not None, "there is a split in whatever is stored"
    return best[1:]


def _look_up(held: dict[str, int], ids: Sequence[str]) -> np.ndarray:
    """(N,) int64, -1 for an id that is not held; a million in half a second."""
    return np.fromiter(map(held.get, ids, itertools.repeat(-1)), dtype=np.int64, count=len(ids))


def _evidence(images: ImageSet) -> np.ndarray | None:
    """None for a data set of one's own that cannot tell."""
    return getattr(images, "evidence", None)


def _opens(images: ImageSet, place: int) -> bool:
    try:
        np.asarray(open_image(images, place))
    except UnusableImage:
        return False
    return True


def _of_added(stored: Stored, split: str, images: ImageSet, added: Sequence[int]) -> Refusal:
    first = images.ids[added[0]]
    known = stored.ids(split)
    told = f"expected a stored embedding for every image of {images.name}, got none for {len(added)} of {len(images)}"
    if len(added) == len(images) and known:
        name = first.rpartition("/")[2]
        alike = next((id for id in known if name in id or id in first), known[0])
        told += f": the data's ids are as {first!r}, those in {stored.path} as {alike!r}"
        return Refusal(f"{told}: write them as the data has them, or embed this data with `compress-ssl embed`")
    told += f" ({first}, …) in {stored.path}"
    if isinstance(stored, Vectors):
        return Refusal(f"{told}: add their rows to the file, or take these images out of the data")
    again = (
        f"`{command(stored.origin, stored.path, data=images.name.rpartition(':')[0])}`"
        if isinstance(stored, Table)
        else f"`compress-ssl embed --out {stored.path}` again"
    )
    return Refusal(f"{told}: run {again}, which embeds only what is new or mended")


def _of_changed(stored: Stored, images: ImageSet, count: int, first: int, before: int, now: int) -> Refusal:
    return Refusal(
        f"expected the images of {images.name} as they were when {stored.path} was made, got {count} of {len(images)} "
        f"changed ({images.ids[first]}: size or checksum {before} expected, {now} found): restore them, or "
        "run `compress-ssl embed` over all images with another --out"
    )


def _of_missing(stored: Stored, split: str, whole: ImageSet, missing: np.ndarray) -> Refusal:
    ids = stored.ids(split)
    return Refusal(
        f"expected in {whole.name} the images of all {len(ids)} rows of {stored.path}, got {len(missing)} missing "
        f"({ids[int(missing[0])]}, …): put them back, or allow it by --stored.part"
    )
