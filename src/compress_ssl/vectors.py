"""Stored embeddings that came from elsewhere: a file of vectors and the ids of their images, from any model or service.

    .npy                        (N, D) numbers, read row by row from the disk, however large; the ids lie in a text
                                file, one a line, in the order of the rows
    .parquet, .arrow, .feather  a column of ids and a column of lists of numbers; read into memory
    .csv, .tsv                  ids and columns of numbers, or ids and one column of JSON lists, with or without a
                                header; read into memory

Columns are found by their names (IDS, VECTORS below), in a header or schema without these names by what they hold.
Nobody knows how such vectors were made: they stand for the evaluation view, and their images cannot be told to have
changed. Nothing in a file is executed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import mmap
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from compress_ssl.embeddings import ROWS_AT_ONCE
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Crop, Preprocessing, TrainView
from compress_ssl.unit_rows import SHORTEST

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".npy", ".parquet", ".arrow", ".feather", ".csv", ".tsv")
SPLIT = "all"  # the one split of such a file
IDS = ("id", "ids", "image_id", "key", "path", "file_name", "filename", "file")  # the first of them that is there
NOT_VECTORS = ("label", "class", "target", "score", "split", "fold", "index", "cluster", "category", "group")
VECTORS = ("embedding", "vector", "embeddings", "vectors", "features", "feature")
CHECKED_AT_ONCE = 2**30  # bytes; smaller files are checked when they are opened: a second, before hours of training


def is_vectors(path: Path) -> bool:
    """Whether the name is that of a file of vectors; the file may be missing."""
    return path.suffix.lower() in SUFFIXES


class Vectors:
    """The rows of one file, found by id; the same interface as a table's as far as it goes.

    Args:
        path: a file of one of SUFFIXES.
        ids: the text file with the ids of a .npy; the other kinds hold their own.
        in_memory: read a .npy whole; else it stays on disk.
    Raises: Refusal naming the first image at fault if there are no rows, as many ids as rows, ids that occur twice, or
        rows that are ragged, zero, infinite or NaN. In files of more than 1 GiB a bad row is found when it is read.
    """

    views = 0  # random views: none were stored
    view: TrainView | None = None
    preprocessing: Preprocessing | None = None
    unusual: Literal["skip", "convert"] | None = None

    def __init__(self, path: Path, ids: Path | None = None, *, in_memory: bool = False):
        self.path, self._ids_file, self._in_memory = path, ids, in_memory
        _refuse_no_file(path)
        if path.suffix.lower() == ".npy":
            if ids is None:
                raise Refusal(f"expected --ids with {path}, got none: write the ids of its rows into a text file, one "
                              "a line in the order of the rows, and name it")  # fmt: skip
            self._rows = _open_npy(path, in_memory=in_memory)
            self._ids = read_ids(ids)
        elif ids is not None:
            raise Refusal(f"expected --ids only with a .npy, which holds no ids, got {ids} for {path}: leave --ids out")
        else:
            read = _read_text if path.suffix.lower() in (".csv", ".tsv") else _read_columns
            self._ids, self._rows = read(path)
        self.width = int(self._rows.shape[1])
        _refuse_ids(self._ids, len(self._rows), path, ids or path)
        if self._rows.nbytes <= CHECKED_AT_ONCE:
            for start in range(0, len(self._rows), ROWS_AT_ONCE):
                self.rows(np.arange(start, min(start + ROWS_AT_ONCE, len(self._rows))))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._ids_file, self._in_memory)  # a map would be pickled as all that it shows

    def splits(self) -> list[str]:
        return [SPLIT]

    def ids(self, split: str) -> list[str]:
        assert split == SPLIT, split
        return self._ids

    def labels(self, split: str) -> np.ndarray:
        """(N,) int64, all -1: labels are the data's."""
        return np.full(len(self.ids(split)), -1, dtype=np.int64)

    def evidence(self, split: str) -> None:
        """None: nothing is known of the images."""
        assert split == SPLIT, split

    def skipped(self, split: str) -> dict[str, int]:
        """None are known to have been unusable."""
        assert split == SPLIT, split
        return {}

    def first(self, split: str) -> int:
        assert split == SPLIT, split
        return 0

    def rows(self, places: np.ndarray, *, view: int | None = None) -> Tensor:
        """(B,) places -> (B, D) float32 unit rows on the CPU.

        Raises: Refusal naming the first image whose row is zero, infinite or NaN.
        """
        assert view is None, "no random views are stored"
        places = np.asarray(places, dtype=np.int64)
        if len(places) and not (places.min() >= 0 and places.max() < len(self._rows)):
            raise IndexError(f"expected places in [0, {len(self._rows)}), got {places.min()} to {places.max()}")
        picked = np.asarray(self._rows[places])
        with np.errstate(over="ignore"):  # a float64 that is infinite as a float32 is refused below
            # torch brings half precision to float32 several times as fast as NumPy
            picked = picked if picked.dtype == np.float16 else picked.astype(np.float32, copy=False)
        rows = torch.from_numpy(np.ascontiguousarray(picked)).float()
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        good = (torch.isfinite(lengths) & (lengths > SHORTEST)).squeeze(1)
        if not good.all():
            bad = int((~good).nonzero()[0])
            place, what = int(places[bad]), "a zero row" if float(lengths[bad]) <= SHORTEST else "NaN or infinity"
            raise Refusal(f"expected finite rows that are not zero in {self.path}, got {what} for {self._ids[place]} "
                          f"(row {place + 1}): embed that image again, or leave it out of file and data")  # fmt: skip
        return rows.div_(lengths)

    def crop(self, place: int, *, view: int) -> Crop:
        raise AssertionError(f"no random views are stored in {self.path}, got asked for view {view} of {place}")

    def announce(self, places: np.ndarray, *, view: int | None = None) -> None:
        """Say that these rows will be wanted soon; returns at once, and the system reads ahead."""
        del view
        mapped = getattr(self._rows, "_mmap", None)
        if mapped is None or not self._rows.flags.c_contiguous or not hasattr(mmap, "MADV_WILLNEED"):
            return
        assert isinstance(self._rows, np.memmap)
        row = self._rows.strides[0]
        # the map begins at the allocation boundary before the array, not at the start of the file
        start = self._rows.offset % mmap.ALLOCATIONGRANULARITY
        for place in places.tolist():
            first = (start + place * row) // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, first, start + (place + 1) * row - first)

    def identity(self) -> dict[str, str]:
        """What makes the rows, by name: a resumed run must find the same. Reads the whole file: ask one process."""
        found = {"teacher vectors": _sha256(self.path)}
        return found | ({"teacher ids": _sha256(self._ids_file)} if self._ids_file else {})


def read_ids(path: Path) -> list[str]:
    """One id a line, UTF-8; the last line may be empty.

    Raises: Refusal if the file cannot be read as text or a line in between is empty.
    """
    _refuse_no_file(path)
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # an id may hold what str.splitlines splits at
    except UnicodeDecodeError as trouble:
        raise Refusal(f"expected ids as UTF-8 text in {path}, got {trouble.reason} at byte {trouble.start}: save it as "
                      "UTF-8") from trouble  # fmt: skip
    lines = [line.removesuffix("\r") for line in lines]
    if lines[-1] == "":
        lines.pop()
    if "" in lines:
        raise Refusal(f"expected one id a line in {path}, got an empty line {lines.index('') + 1}: remove it, or write "
                      "the id that is missing")  # fmt: skip
    return lines


def _reopen(path: Path, ids: Path | None, in_memory: bool) -> Vectors:
    return Vectors(path, ids, in_memory=in_memory)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- what is refused of every kind -----------------------------------------------------------------------------------


def _refuse_no_file(path: Path) -> None:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise Refusal(f"expected a file in {path}, got {found}: name another, one of {', '.join(SUFFIXES)}, with the "
                      "ids of a .npy in a text file")  # fmt: skip
    if path.stat().st_size == 0:
        raise Refusal(f"expected rows in {path}, got an empty file: write it again")


def _refuse_ids(ids: Sequence[str], rows: int, path: Path, where: Path) -> None:
    if not rows:
        raise Refusal(f"expected at least one row in {path}, got none: write it again")
    if len(ids) != rows:
        raise Refusal(f"expected an id for each of the {rows} rows of {path}, got {len(ids)} ids in {where}: write one "
                      "a line, in the order of the rows")  # fmt: skip
    if len(set(ids)) != len(ids):
        places: dict[str, int] = {}
        for place, id in enumerate(ids):
            if places.setdefault(id, place) != place:
                raise Refusal(f"expected every id once in {where}, got {id} twice (rows {places[id] + 1} and "
                              f"{place + 1}): keep one of them")  # fmt: skip


def _refuse_width(path: Path, shape: Sequence[int]) -> NoReturn:
    raise Refusal(f"expected an (N, D) array of one row an image in {path}, got shape {tuple(shape)}: save it as such")


# ---- .npy ------------------------------------------------------------------------------------------------------------


def _open_npy(path: Path, *, in_memory: bool) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
        if dtype.kind not in "fiu":
            raise Refusal(f"expected floating-point or integer numbers in {path}, got {dtype}: save them as float32")
        if len(shape) != 2 or not shape[1]:
            _refuse_width(path, shape)
        if not shape[0]:
            return np.empty(shape, np.float32)
        rows: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, TypeError) as trouble:
        if isinstance(trouble, Refusal):
            raise
        told = " ".join(str(trouble).split())
        raise Refusal(f"expected an array as numpy.save writes it in {path}, got {told}: write it again") from trouble
    if in_memory:
        return np.array(rows)
    mapped = getattr(rows, "_mmap", None)
    if rows.nbytes > CHECKED_AT_ONCE and mapped is not None and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)  # else a row drags 128 KiB around it from the disk
    return rows


# ---- parquet, arrow and feather --------------------------------------------------------------------------------------


def _read_columns(path: Path) -> tuple[list[str], np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            file = pq.ParquetFile(path)
            chosen = _choose(file.schema_arrow, path)
            return _gather(file.iter_batches(ROWS_AT_ONCE, columns=list(chosen)), file.metadata.num_rows, *chosen, path)
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:  # as streams are written, by the data sets of Hugging Face for one
                source.seek(0)
                table = pa.ipc.open_stream(source).read_all()
            chosen = _choose(table.schema, path)
            return _gather(table.select(list(chosen)).to_batches(), table.num_rows, *chosen, path)
    except (pa.ArrowException, OSError) as trouble:
        told = " ".join(str(trouble).split())
        raise Refusal(f"expected a table that pyarrow reads in {path}, got {told}: write it again") from trouble


def _choose(schema: pa.Schema, path: Path) -> tuple[str, str]:
    """The columns of the ids and of the vectors: by name, else the only one that can be it."""
    import pyarrow.types as kinds

    def is_id(kind: pa.DataType) -> bool:
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_integer(kind)

    def is_vector(kind: pa.DataType) -> bool:
        listed = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
        return listed and (kinds.is_floating(kind.value_type) or kinds.is_integer(kind.value_type))

    found = []
    for names, fits in ((IDS, is_id), (VECTORS, is_vector)):
        fitting = [field.name for field in schema if fits(field.type)]
        named = [name for wanted in names for name in fitting if name.lower() == wanted]
        found += named[:1] or (fitting if len(fitting) == 1 else [])
    if len(found) == 2:
        return found[0], found[1]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise Refusal(f"expected a column of ids ({', '.join(IDS[:5])}, …) and one of lists of numbers ("
                  f"{', '.join(VECTORS[:3])}, …) in {path}, got {columns or 'no columns'}: name them so")  # fmt: skip


def _gather(
    batches: Iterable[pa.RecordBatch], count: int, id_column: str, column: str, path: Path
) -> tuple[list[str], np.ndarray]:
    """Ids and rows of all batches; one copy of the rows beside the batch that is being read."""
    ids: list[str] = []
    rows: np.ndarray | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        start = len(ids)
        ids += _texts(batch.column(id_column), start, path)
        part = _matrix(batch.column(column), ids[start:], None if rows is None else rows.shape[1], path)
        if rows is None:
            rows = np.empty((count, part.shape[1]), np.float16 if part.dtype == np.float16 else np.float32)
        with np.errstate(over="ignore"):
            rows[start : len(ids)] = part
    return ids, np.empty((0, 1), np.float32) if rows is None else rows


def _texts(column: pa.Array, start: int, path: Path) -> list[str]:
    found = column.to_pylist()
    for place, id in enumerate(found):
        if id is None or id == "":
            raise Refusal(f"expected an id for every row of {path}, got none for row {start + place + 1}: write it")
    return [str(id) for id in found]


def _matrix(column: pa.Array, ids: Sequence[str], width: int | None, path: Path) -> np.ndarray:
    """(n, D) of n lists, all of `width` or, where that is None, as long as the first; a missing number is NaN."""
    import pyarrow.compute as pc

    if column.null_count:
        bad = ids[int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])]
        raise Refusal(f"expected a vector for every row of {path}, got none for {bad}: embed that image again, or "
                      "leave it out")  # fmt: skip
    widths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    width = width or int(widths[0])
    different = np.flatnonzero(widths != width) if width else np.array([0])
    if len(different):
        first = int(different[0])
        _refuse_ragged(ids[first], int(widths[first]), width or None, path)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)


def _refuse_ragged(id: str, found: int, expected: int | None, path: Path) -> NoReturn:
    wanted = "numbers" if expected is None else f"as many numbers in every row as in the first, {expected},"
    raise Refusal(f"expected {wanted} in {path}, got {found} for {id}: embed that image again")


# ---- csv and tsv -----------------------------------------------------------------------------------------------------


def _read_text(path: Path) -> tuple[list[str], np.ndarray]:
    import pyarrow as pa
    import pyarrow.csv as text

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = _cells(path, delimiter)
    first = next(lines, None)
    if first is None:
        raise Refusal(f"expected rows in {path}, got empty lines: write it again")
    header = _is_header(first)
    sample = next(lines, None) if header else first
    if sample is None:
        raise Refusal(f"expected rows in {path}, got a header alone: write it again")
    id_at, columns, listed = _choose_text(first if header else None, sample, path)
    names = [str(place) for place in range(len(first))]
    kinds = {name: pa.string() if listed else pa.float32() for name in names} | {names[id_at]: pa.string()}
    try:
        table = text.read_csv(
            path,
            read_options=text.ReadOptions(column_names=names, skip_rows=int(header), block_size=2**25),
            parse_options=text.ParseOptions(delimiter=delimiter),
            convert_options=text.ConvertOptions(
                column_types=kinds, include_columns=[names[place] for place in (id_at, *columns)]
            ),
        )
    except pa.ArrowException as trouble:
        _refuse_first_wrong(path, delimiter, len(first), id_at, [] if listed else columns)
        told = " ".join(str(trouble).split())
        raise Refusal(f"expected comma- or tab-separated text in {path}, got {told}: write it again") from trouble
    ids = _texts(table.column(names[id_at]), 0, path)
    if listed:
        return ids, _from_json(table.column(names[columns[0]]).to_pylist(), ids, path)
    rows = np.empty((len(ids), len(columns)), np.float32)
    for place, column in enumerate(columns):
        rows[:, place] = table.column(names[column]).to_numpy()
    return ids, rows


def _cells(path: Path, delimiter: str) -> Iterator[list[str]]:
    """Lines that hold something, cell by cell."""
    data = path.open("rb")
    try:
        reader = csv.reader(io.TextIOWrapper(data, encoding="utf-8-sig", newline=""), delimiter=delimiter)
        before = csv.field_size_limit(2**31 - 1)  # a JSON list of 8192 numbers is longer than the default
        try:
            for cells in reader:
                if cells:
                    yield cells
        finally:
            csv.field_size_limit(before)
    except (UnicodeDecodeError, csv.Error) as trouble:
        raise Refusal(
            f"expected comma- or tab-separated UTF-8 text in {path}, got {trouble}: write it again"
        ) from trouble
    finally:
        data.close()


def _is_header(cells: Sequence[str]) -> bool:
    """No cell is a list, and none a number or one after the first none; or they are counted, as by pandas: ",0,1,2"."""
    counted = list(cells[1:]) in ([str(n + start) for n in range(len(cells) - 1)] for start in (0, 1))
    if counted and (
        cells[0].strip().lower() in ("", *IDS) or len(cells) > 8
    ):  # a vector of a few numbers may count too
        return True
    if any(cell.lstrip().startswith("[") for cell in cells):
        return False
    return not any(map(_is_number, cells)) or any(cell.strip() and not _is_number(cell) for cell in cells[1:])


def _choose_text(header: Sequence[str] | None, sample: Sequence[str], path: Path) -> tuple[int, list[int], bool]:
    """Where the ids stand, where the numbers or the lists do, and whether they are lists."""
    names = [name.strip().lower() for name in header] if header else [""] * len(sample)
    id_at = next((names.index(name) for name in IDS if name in names), 0)
    others = [place for place in range(len(names)) if place != id_at]
    lists = [place for place in others if place < len(sample) and sample[place].lstrip().startswith("[")]
    named = [names.index(name) for name in VECTORS if name in names and names.index(name) in lists]
    if named or len(lists) == 1:
        return id_at, [(named or lists)[0]], True
    odd = _odd(names, others) if header else []
    if not others or lists or odd:  # a label among the numbers would become a dimension without a word
        listed = odd or lists or list(range(len(names)))
        told = [header[place] if header and header[place] else f"column {place + 1}" for place in listed[:8]]
        raise Refusal(f"expected ids and the numbers of one vector, or one JSON list, in each line of {path}, got "
                      f"{', '.join(told)}{', …' if len(listed) > 8 else ''} too: drop what is not of the vector, and "
                      "name its columns by one word and a counter, as x0, x1, …")  # fmt: skip
    return id_at, others, False


def _odd(names: Sequence[str], others: Sequence[int]) -> list[int]:
    """Of the columns beside the ids, those that are not of the most frequent word followed by a counter."""
    words: dict[str, dict[int, int]] = {}  # word -> counter -> column
    for place in others:
        counted = re.fullmatch(r"(.*?)(\d+)", names[place])
        if counted and not re.fullmatch(rf"({'|'.join(NOT_VECTORS)})(e?s)?[\W_]*", counted[1]):
            words.setdefault(counted[1], {}).setdefault(int(counted[2]), place)
    vector = set(max(words.values(), key=len).values()) if words else set()
    return [place for place in others if place not in vector]


def _from_json(cells: Sequence[str], ids: Sequence[str], path: Path) -> np.ndarray:
    rows: np.ndarray | None = None
    for place, (cell, id) in enumerate(zip(cells, ids, strict=True)):
        try:
            row = np.array(json.loads(cell), dtype=np.float64)
        except (ValueError, TypeError) as trouble:
            raise Refusal(f"expected a JSON list of numbers for {id} in {path}, got {cell[:40]!r}: write it as [0.1, "
                          "0.2]") from trouble  # fmt: skip
        if rows is None:
            if row.ndim != 1 or not len(row):
                _refuse_ragged(id, int(row.size), None, path)
            rows = np.empty((len(cells), len(row)), np.float32)
        if row.shape != rows.shape[1:]:
            _refuse_ragged(id, int(row.size), rows.shape[1], path)
        with np.errstate(over="ignore"):
            rows[place] = row
    return np.empty((0, 1), np.float32) if rows is None else rows


def _refuse_first_wrong(path: Path, delimiter: str, width: int, id_at: int, columns: Sequence[int]) -> None:
    """Read the file again, slowly, for the sentence about it."""
    for number, cells in enumerate(_cells(path, delimiter)):
        id = cells[id_at] if id_at < len(cells) else f"line {number + 1}"
        if len(cells) != width:
            raise Refusal(f"expected {width} cells in every line of {path}, got {len(cells)} for {id}: write that line "
                          "again")  # fmt: skip
        wrong = [cells[place] for place in columns if cells[place].strip() and not _is_number(cells[place])]
        if number and wrong:
            raise Refusal(f"expected numbers in every line of {path}, got {wrong[0]!r} for {id}: write that line again")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
