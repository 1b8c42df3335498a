"""One shard of a table: the records of some images in one file, read row by row through a memory map.

00000.npy     (n, 1 + V) records (`compress_ssl.record`) as NumPy writes arrays: np.load reads it anywhere
00000.json    ids, labels, evidence and skipped images of the shard, checksum of the records; sealed, written last,
              so a shard that has it is finished
"""

from __future__ import annotations

import errno
import hashlib
import io
import mmap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress_ssl.record import RowDtype, record_dtype
from compress_ssl.run_folder import replacing
from compress_ssl.sealed import Damaged, read_sealed, write_sealed

_NOT_THE_FILES = (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # troubles that a new file would not mend


@dataclass(frozen=True, kw_only=True)
class About:
    """What a shard holds.

    ids, labels, evidence: of its n images; evidence is what the data set cheaply knew of their bytes.
    skipped: id, kind, detail, evidence of images that could not be used.
    origin: seal of what produced the rows.
    rounding: largest and mean 1 - cosine between a row and what is stored of it.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    evidence: Sequence[int]
    skipped: Sequence[Sequence[Any]]
    origin: str
    rounding: tuple[float, float]


def records_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def write_shard(folder: Path, number: int, records: np.ndarray, about: About) -> None:
    """Write both files, records first.

    Args:
        records: (n, 1 + V) of `record_dtype`.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(records))
    sha = hashlib.sha256(header.getvalue())
    body = memoryview(records.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    sha.update(body)
    file = records_file(folder, number)
    with replacing(file) as temporary, temporary.open("wb") as stream:
        stream.write(header.getvalue())
        stream.write(body)
    told = {"ids": list(about.ids), "labels": list(about.labels), "evidence": list(about.evidence)}
    told |= {
        "skipped": [list(skip) for skip in about.skipped],
        "origin": about.origin,
        "rounding": list(about.rounding),
    }
    write_sealed(file.with_suffix(".json"), {**told, "records": sha.hexdigest()})


def read_about(folder: Path, number: int) -> tuple[About, str, str]:
    """What is told of a shard, the checksum of its records, and the seal.

    Raises: Damaged if a bit of it has changed; OSError if it is missing.
    """
    told, seal = read_sealed(records_file(folder, number).with_suffix(".json"))
    records = told.pop("records")
    return About(**{**told, "rounding": tuple(told["rounding"])}), records, seal


class Shard:
    """The records of one file.

    Args:
        images, views: the n and 1 + V that it must have.
        in_memory: read it whole, once; else it stays on disk.
    Raises: Damaged if the file is missing, cut off, or of another layout than promised; what lies inside is checked
        record by record when it is read. OSError if the system refuses for a reason that is not the file's.
    """

    def __init__(self, file: Path, *, images: int, views: int, width: int, dtype: RowDtype, in_memory: bool):
        layout = record_dtype(width, dtype)
        self.views, self.itemsize = views, layout.itemsize
        self._map: mmap.mmap | None = None
        try:
            with file.open("rb") as stream:
                shape, order, found = _read_header(stream)
                self.start = stream.tell()
                size = stream.seek(0, io.SEEK_END)
                if (found, shape, order) != (layout, (images, views), False):
                    raise Damaged(_difference(found, shape, layout, (images, views)))
                expected = self.start + images * views * self.itemsize
                if size != expected:
                    raise Damaged(f"{size} bytes instead of {expected}")
                if in_memory:
                    stream.seek(0)
                    self.bytes = memoryview(stream.read())
                else:
                    self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                    if hasattr(mmap, "MADV_RANDOM"):
                        self._map.madvise(mmap.MADV_RANDOM)  # else a row drags 128 KiB around it from the disk
                    self.bytes = memoryview(self._map)
        except OSError as trouble:
            if trouble.errno in _NOT_THE_FILES:
                raise
            raise Damaged(trouble.strerror or str(trouble)) from trouble

    def checksum(self) -> str:
        """sha256 (hex) of the whole file."""
        return hashlib.sha256(self.bytes).hexdigest()

    def records(self) -> np.ndarray:
        """(n * (1 + V), bytes of one) uint8, read-only."""
        return np.frombuffer(self.bytes, np.uint8, offset=self.start).reshape(-1, self.itemsize)

    def at(self, record: int) -> memoryview:
        """The bytes of one record."""
        offset = self.start + record * self.itemsize
        return self.bytes[offset : offset + self.itemsize]

    def announce(self, record: int) -> None:
        """Ask the system to have a record in memory soon; returns at once."""
        if self._map is not None and hasattr(mmap, "MADV_WILLNEED"):
            first = (self.start + record * self.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, first, self.start + (record + 1) * self.itemsize - first)


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version of the format")
        with warnings.catch_warnings():  # of what lies within damaged text
            warnings.simplefilter("ignore")
            shape, order, dtype = np.lib.format.read_array_header_1_0(stream)
    except OSError:
        raise
    except Exception as trouble:  # numpy takes it for Python, and so it may fail in any of Python's ways
        raise Damaged(f"no header of an array ({trouble})") from trouble
    return shape, order, dtype


def _difference(found: np.dtype, shape: tuple[int, ...], layout: np.dtype, expected: tuple[int, int]) -> str:
    """What is wrong with a layout, in a person's words."""
    if found != layout:
        return f"{_words(found)} instead of {_words(layout)}"
    return f"records of shape {shape} instead of {expected}"


def _words(layout: np.dtype) -> str:
    if layout.names is None or "row" not in layout.names:
        return f"an array of {layout}"
    row = layout["row"]
    return f"rows of {row.shape[0]} {row.base}"
