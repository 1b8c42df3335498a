"""Encoded images in parquet, laid out as Hugging Face data sets are: one file, or a folder of shards.

Columns: `image` (struct{bytes, path}, or plain binary) and, if there are labels, `label`. Another name is found through
the schema's `huggingface` metadata (the first Image feature, the first ClassLabel feature); class names come from
there too. Without them classes are the numbers, or the different strings of a string column, sorted. A null or
negative label is unlabelled.

Splits are told from words in the names of files, then of their folders: train, test, val (validation, valid, dev);
`test` is preferred to `val` when both exist. `train-00000-of-00002.parquet`, `data/test.parquet`,
`cifar_train.parquet` and `validation/0000.parquet` are all understood. One file by itself is a training set, whatever
its name; so are files that name no split, but in a folder that also has named ones they are refused.

Ids are `image.path` where every row of both splits has one and no two agree, else "<file without suffix>:<row in it>".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from compress_ssl.datasets import Splits, Unusual, alone_in, cache_folder, digest, sized_checksum
from compress_ssl.picture import SUFFIXES, Picture, UnusableImage, decode, open_picture
from compress_ssl.refusal import Refusal

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture", "photo")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
_SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)
_ROWS_AT_ONCE = 256  # of the copy below: at most some 100 MB in memory even for photographs of 400 kB


def claims(name: str) -> bool:
    """A .parquet file, or a folder whose nearest files to the root include one."""
    path = Path(name)
    if path.is_dir():
        return _parquet_comes_first(path)
    return path.suffix.lower() == ".parquet" and path.exists()


def open_splits(name: str, *, unusual: Unusual, max_pixels: int) -> Splits:
    """Open the splits; the first time each split's encoded bytes are copied once, see `_RowBytes`."""
    root = Path(name)
    tables = {split: [_Table(file, root) for file in files] for split, files in _files_by_split(root).items()}
    if not sum(table.rows for table in tables["train"]):
        raise Refusal(f"expected at least one training image in {name}, got no rows: name a parquet file that has some")
    classes = _class_names([table for split in tables.values() for table in split])
    ids = _ids(tables)

    def images(split: str) -> ParquetImages | None:
        if not sum(table.rows for table in tables.get(split, ())):
            return None
        place = hashlib.sha256(os.fsencode(root.absolute()) + b":" + split.encode()).hexdigest()[:16]
        rows = _RowBytes(tables[split], cache_folder() / "parquet" / place)
        labels = np.concatenate([table.labels(classes) for table in tables[split]])
        return ParquetImages(
            f"{name}:{split}", ids[split], labels, classes.names, rows, unusual=unusual, max_pixels=max_pixels
        )

    train = images("train")
    assert train is not None
    return Splits(train=train, test=images("test"))


class ParquetImages:
    """One split: ids and labels in memory, encoded bytes on disk."""

    def __init__(
        self,
        name: str,
        ids: tuple[str, ...],
        labels: np.ndarray,
        classes: tuple[str, ...],
        rows: _RowBytes,
        *,
        unusual: Unusual,
        max_pixels: int,
    ) -> None:
        self.name = name
        self.ids = ids
        self.labels = labels
        self.classes = classes
        self._bytes = rows
        self._unusual: Unusual = unusual
        self._max_pixels = max_pixels

    @property
    def evidence(self) -> np.ndarray:
        """(N,) int64: length and checksum of the encoded bytes, both known since these were copied."""
        return sized_checksum(np.diff(self._bytes.offsets), self._bytes.checksums)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        return decode(self._bytes[position], unusual=self._unusual, max_pixels=self._max_pixels)

    def open(self, position: int) -> Picture | np.ndarray:
        return open_picture(self._bytes[position], unusual=self._unusual, max_pixels=self._max_pixels)

    def fingerprint(self) -> str:
        return digest(self.ids, self.labels, np.diff(self._bytes.offsets).astype("<i8").tobytes())


class _RowBytes:
    """Row number -> encoded bytes, from a copy made once under the cache folder: all rows end to end, their
    offsets and checksums.

    Why a copy: a row cannot be read from parquet by itself. The smallest unit is a page or a row group, compressed, of
    1000 rows (CIFAR-10 here: 0.9 MB, 0.5 ms to unpack) to 100 MB, so a shuffled epoch would decode each of them
    hundreds of times. From the copy a row is one positioned read of 5 to 10 us, the operating system keeps what
    fits in memory, and worker processes share it. The price is the size of the images once more on disk, in
    COMPRESS_SSL_HOME.
    """

    def __init__(self, tables: Sequence[_Table], folder: Path) -> None:
        self._path, offsets, checksums = _copied_once(tables, folder)
        self.offsets: np.ndarray = np.load(offsets)  # (N + 1,) int64
        self.checksums: np.ndarray = np.load(checksums)  # (N,) int64, crc32
        self._file: IO[bytes] | None = None

    def __getitem__(self, row: int) -> bytes:
        row = range(len(self.offsets) - 1)[row]  # an IndexError where there is no such row
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        if self._file is None:
            self._file = self._path.open("rb", buffering=0)
        data = os.pread(self._file.fileno(), end - start, start)  # no shared position: safe after a fork and in threads
        if len(data) != end - start:
            raise UnusableImage("truncated", f"{self._path} ends early: delete it to have it copied again")
        return data

    def __del__(self) -> None:
        file = self.__dict__.get("_file")
        if file is not None:
            file.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


@dataclass(frozen=True)
class _Classes:
    """Class names, and whether a file's metadata declared them or they were gathered from the labels."""

    names: tuple[str, ...]
    declared: bool


class _Table:
    """One parquet file: its schema, and its columns on request."""

    def __init__(self, path: Path, root: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        self.stem = path.stem if path == root else path.relative_to(root).with_suffix("").as_posix()
        try:
            with pq.ParquetFile(path) as file:  # and closed again: a folder may hold more shards than files may be open
                self.schema: pa.Schema = file.schema_arrow
                self.rows: int = file.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise Refusal(_cannot_read(path, error)) from error
        self.features = _huggingface_features(self.schema)
        self.image_column = self._find_image_column()
        self.label_column = self._find_label_column()

    def _find_image_column(self) -> str:
        import pyarrow as pa

        marked = [column for column, feature in self.features.items() if feature.get("_type") == "Image"]
        for column in [*marked, *_IMAGE_COLUMNS]:
            if column not in self.schema.names:
                continue
            kind = self.schema.field(column).type
            if pa.types.is_struct(kind):
                kind = next((field.type for field in kind if field.name == "bytes"), None)
            if kind is not None and (_is_binary(kind) or pa.types.is_null(kind)):
                return column
        columns = ", ".join(f"{field.name} ({field.type})" for field in self.schema) or "none"
        raise Refusal(
            f"expected a column 'image' of encoded images (struct with bytes and path, or binary) in {self.path}, got "
            f"the columns {columns}: rename or convert the column that holds the images"
        )

    def _find_label_column(self) -> str | None:
        marked = [column for column, feature in self.features.items() if feature.get("_type") == "ClassLabel"]
        named = [column for column in _LABEL_COLUMNS if column in self.schema.names]
        return next(iter([*(column for column in named if column in marked), *named, *marked]), None)

    def label_names(self) -> tuple[str, ...]:
        """Class names by number from the Hugging Face metadata, () if it has none."""
        return tuple(self.features.get(self.label_column or "", {}).get("names") or ())

    def raw_labels(self) -> list[int | str | None]:
        """The label column as it stands, None where there is no label."""
        import pyarrow as pa

        if self.label_column is None:
            return [None] * self.rows
        column = self._column(self.label_column)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not (pa.types.is_integer(kind) or _is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise Refusal(
                f"expected whole numbers or strings in the column {self.label_column!r} of {self.path}, got {kind}: "
                "convert it, or drop it to use the images without labels"
            )
        return column.to_pylist()

    def labels(self, classes: _Classes) -> np.ndarray:
        """(rows,) int64, -1 where there is none."""
        number: dict[int | str, int] = {name: position for position, name in enumerate(classes.names)}
        if classes.declared:  # then an integer is a position, otherwise it is itself a name
            number |= {position: position for position in range(len(classes.names))}
        labels = np.full(self.rows, -1, dtype=np.int64)
        for row, value in enumerate(self.raw_labels()):
            if value is None or (not isinstance(value, str) and value < 0):
                continue
            found = number.get(value if classes.declared or isinstance(value, str) else str(value))
            if found is None:
                raise Refusal(
                    f"expected every label to be one of the {len(classes.names)} classes named in the metadata, got "
                    f"{value!r} in row {row} of {self.path}: correct the metadata or the label"
                )
            labels[row] = found
        return labels

    def paths(self) -> list[str | None]:
        """`image.path` of each row, None where there is none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = self.schema.field(self.image_column).type
        if not pa.types.is_struct(kind) or not any(field.name == "path" and _is_text(field.type) for field in kind):
            return [None] * self.rows
        return pc.struct_field(self._column(f"{self.image_column}.path"), "path").to_pylist()

    def image_bytes(self) -> Iterator[pa.LargeBinaryArray]:
        """The encoded images, some rows at a time; a null becomes no bytes."""
        import pyarrow as pa
        import pyarrow.compute as pc

        struct = pa.types.is_struct(self.schema.field(self.image_column).type)
        wanted = f"{self.image_column}.bytes" if struct else self.image_column
        with self._opened() as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[wanted], use_threads=False):
                column = pc.struct_field(batch.column(0), "bytes") if struct else batch.column(0)
                yield column.cast(pa.large_binary()).fill_null(b"")

    def _column(self, name: str) -> pa.ChunkedArray:
        with self._opened() as file:
            return file.read(columns=[name], use_threads=False).column(0)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise Refusal(_cannot_read(self.path, error)) from error


def _ids(tables: dict[str, list[_Table]]) -> dict[str, tuple[str, ...]]:
    """Split -> ids, unique over all splits: a page shows test images and their neighbours in train side by side."""
    paths = {split: [path for table in found for path in table.paths()] for split, found in tables.items()}
    every = [path for found in paths.values() for path in found]
    if all(every) and len(set(every)) == len(every):
        return {split: tuple(str(path) for path in found) for split, found in paths.items()}
    return {
        split: tuple(f"{table.stem}:{row}" for table in found for row in range(table.rows))
        for split, found in tables.items()
    }


def _class_names(tables: Sequence[_Table]) -> _Classes:
    """Class names over all files: from the metadata, else the different labels found, numbers in their own order."""
    declared = {names: table for table in tables if (names := table.label_names())}
    if len(declared) > 1:
        one, other, *_ = declared.values()
        raise Refusal(
            f"expected the same class names in every file, got different ones in {one.path} and {other.path}: "
            "open them one by one, or make their metadata agree"
        )
    if declared:
        return _Classes(next(iter(declared)), declared=True)
    found = {value for table in tables for value in table.raw_labels() if value is not None}
    if all(isinstance(value, int) for value in found):
        return _Classes(tuple(str(number) for number in sorted(found) if number >= 0), declared=False)  # type: ignore[operator]
    return _Classes(tuple(sorted(str(value) for value in found)), declared=False)


def _files_by_split(root: Path) -> dict[str, list[Path]]:
    """The files of "train" and, where there is one, "test"."""
    if not root.is_dir():
        return {"train": [root]}
    splits: dict[str, list[Path]] = {}
    for file in sorted(_parquet_files(root)):
        splits.setdefault(_split_of(file.relative_to(root)), []).append(file)
    unnamed = splits.pop("", [])
    if unnamed and splits:
        raise Refusal(
            f"expected train, val or test in the name of every parquet file of {root}, since some have it, got "
            f"{unnamed[0].name}: rename it or move it away"
        )
    if unnamed:
        return {"train": unnamed}
    if "train" not in splits:
        raise Refusal(
            f"expected a training split in {root}, got only {' and '.join(sorted(splits))}: name one of its files as "
            "the data to use it by itself"
        )
    test = splits.get("test", splits.get("val"))
    return {"train": splits["train"]} | ({"test": test} if test else {})


def _split_of(path: Path) -> str:
    """Split named by the file, else by its nearest folder; "" if by none. `path` is relative to the root."""
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return ""


def _parquet_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if _is_parquet(name))


def _is_parquet(name: str) -> bool:
    # metadata.parquet beside a folder of images describes those images (Hugging Face "imagefolder") and holds none.
    return name.lower().endswith(".parquet") and not name.startswith(".") and name.lower() != "metadata.parquet"


def _parquet_comes_first(root: Path) -> bool:
    """Whether, going down folder by folder, parquet is met before images: one look, however many images there are."""
    level = [root]
    while level:
        below: list[Path] = []
        images = False
        for folder in sorted(level):
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            below.append(Path(entry.path))
                        elif _is_parquet(entry.name):
                            return True
                        elif not images and os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122
                            images = True
            except OSError:
                continue  # an unreadable folder is refused by whoever opens it
            if images:
                return False
        level = below
    return False


def _copied_once(tables: Sequence[_Table], folder: Path) -> tuple[Path, Path, Path]:
    """Files with all rows' bytes, their offsets and their checksums; made now, unless an earlier run made them of these
    very tables."""
    sha = hashlib.sha256()
    for table in tables:
        stat = table.path.stat()
        sha.update(os.fsencode(table.path.absolute()) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    kinds = ("bytes", "offsets.npy", "checksums.npy")
    data, offsets, checksums = (folder / f"{sha.hexdigest()[:16]}.{kind}" for kind in kinds)
    try:
        with alone_in(folder):
            there = all(file.exists() for file in (data, offsets, checksums))
            if not there or np.load(offsets)[-1] != data.stat().st_size:
                for stale in folder.glob("[!.]*"):
                    stale.unlink()
                _copy(tables, data, offsets, checksums)
    except OSError as error:
        size = sum(table.path.stat().st_size for table in tables)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise Refusal(
            f"expected to keep a copy of the images of {tables[0].path} (some {size / 1e6:.0f} MB) in {folder}, got "
            f"'{error.strerror}': {'free some space or set' if full else 'set'} the environment variable "
            "COMPRESS_SSL_HOME to another folder"
        ) from error
    return data, offsets, checksums


def _copy(tables: Sequence[_Table], data: Path, offsets: Path, checksums: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress

    rows = sum(table.rows for table in tables)
    lengths: list[np.ndarray] = []
    sums: list[int] = []
    unfinished = data.with_suffix(".unfinished")
    large = sum(table.path.stat().st_size for table in tables) > 2**28  # some seconds: worth a word
    with (
        unfinished.open("wb") as out,
        Progress(console=Console(stderr=True), transient=True, disable=not large) as progress,
    ):
        task = progress.add_task("copying images out of parquet, once", total=rows)
        for table in tables:
            for images in table.image_bytes():
                _, starts, values = images.buffers()
                ends = np.frombuffer(starts, dtype=np.int64)[images.offset : images.offset + len(images) + 1]
                lengths.append(np.diff(ends))
                content = memoryview(b"" if values is None else values)
                out.write(content[ends[0] : ends[-1]])
                sums += [zlib.crc32(content[start:end]) for start, end in itertools.pairwise(ends.tolist())]
                progress.advance(task, len(images))
        out.flush()
        os.fsync(out.fileno())
    end_of_row = np.concatenate([[0], *lengths]).cumsum(dtype=np.int64)
    if not end_of_row[-1]:
        unfinished.unlink()
        raise Refusal(
            f"expected encoded images in {tables[0].path}, got {rows} rows without bytes (file names only?): embed the "
            "files, or name the folder they are in"
        )
    unfinished.replace(data)
    for path, numbers in ((checksums, np.array(sums, dtype=np.int64)), (offsets, end_of_row)):
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as out:
            np.save(out, numbers)
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(path)


def _huggingface_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Column -> feature description, {} where the schema carries none that can be understood."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}  # somebody else's metadata under this key: the columns still speak for themselves
    if not isinstance(features, dict):
        return {}
    return {column: feature for column, feature in features.items() if isinstance(feature, dict)}


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    views = pa.types.is_binary_view(kind) if hasattr(pa.types, "is_binary_view") else False  # since pyarrow 16
    return views or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    views = pa.types.is_string_view(kind) if hasattr(pa.types, "is_string_view") else False
    return views or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _cannot_read(path: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"expected a readable parquet file, got {path} ({reason}): download or write it again"
