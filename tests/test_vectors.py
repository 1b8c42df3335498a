"""Vectors that came from elsewhere: every layout gives the same rows, and what is wrong is named by its image."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from compress_ssl import vectors
from compress_ssl.refusal import Refusal
from compress_ssl.vectors import Vectors, is_vectors, read_ids

pytestmark = pytest.mark.filterwarnings("error")
IDS = ("b/2.png", "a/1.png", "ü/ö, 3.png", "7", "c/5.png")
GIVEN = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)


def by_hand(rows: np.ndarray) -> list[list[float]]:
    """Every row divided by its length, in Python's floats."""
    lengths = [math.sqrt(math.fsum(float(value) ** 2 for value in row)) for row in rows]
    return [[float(value) / length for value in row] for row, length in zip(rows, lengths, strict=True)]


def npy(folder: Path, rows: np.ndarray = GIVEN, ids: tuple[str, ...] = IDS) -> tuple[Path, Path]:
    np.save(folder / "vectors.npy", rows)
    (folder / "ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    return folder / "vectors.npy", folder / "ids.txt"


def lists(rows: np.ndarray = GIVEN, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([row.tolist() for row in rows], type=kind or pa.list_(pa.float64()))


def parquet(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns or {"id": list(IDS), "embedding": lists()}), folder / "vectors.parquet")
    return folder / "vectors.parquet"


def text(folder: Path, lines: list[list[Any]], suffix: str = ".csv") -> Path:
    path = folder / f"vectors{suffix}"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",").writerows(lines)
    return path


def numbers(header: list[str] | None = None) -> list[list[Any]]:
    rows = [[id, *(repr(float(value)) for value in row)] for id, row in zip(IDS, GIVEN, strict=True)]
    return ([header] if header else []) + rows


def assert_given(found: Vectors) -> None:
    assert found.ids("all") == list(IDS)
    assert found.width == 3
    np.testing.assert_allclose(found.rows(np.array([4, 0, 0, 2])).numpy(), np.array(by_hand(GIVEN))[[4, 0, 0, 2]],
                               atol=1e-6)  # fmt: skip


# ---- every layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_of_any_floats_gives_unit_rows(tmp_path: Path, dtype: str, order: Any, in_memory: bool) -> None:
    """Half precision, another byte order or a transposed array would be read as other numbers."""
    path, ids = npy(tmp_path, np.asarray(GIVEN.astype(dtype), order=order))
    found = Vectors(path, ids, in_memory=in_memory)
    assert found.ids("all") == list(IDS)
    np.testing.assert_allclose(
        found.rows(np.arange(5)).numpy(), by_hand(GIVEN.astype(dtype).astype(np.float64)), atol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_integers_are_numbers_too(tmp_path: Path, dtype: Any) -> None:
    """Services send quantised vectors; a refusal would cost someone an hour for a cast."""
    rows = np.array([[1, 2, 2], [0, 3, 4]], dtype=dtype)
    found = Vectors(*npy(tmp_path, rows, ids=("a", "b")))
    np.testing.assert_allclose(found.rows(np.array([1, 0])).numpy(), [[0, 0.6, 0.8], [1 / 3, 2 / 3, 2 / 3]], atol=1e-6)


KINDS = {
    "list of doubles": pa.list_(pa.float64()),
    "list of floats": pa.list_(pa.float32()),
    "large list": pa.large_list(pa.float32()),
    "fixed-size list": pa.list_(pa.float32(), 3),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["parquet", "file", "stream", "feather", "compressed feather"])
def test_a_column_of_lists_gives_the_same_rows_whatever_wrote_it(tmp_path: Path, kind: str, layout: str) -> None:
    """Each library writes lists its own way; Hugging Face's data sets, which are streams, would be refused."""
    table = pa.table({"label": [1] * 5, "id": list(IDS), "embedding": lists(kind=KINDS[kind])})
    path = tmp_path / {"parquet": "v.parquet", "file": "v.arrow", "stream": "v.arrow"}.get(layout, "v.feather")
    if layout == "parquet":
        pq.write_table(table, path, row_group_size=2)
    elif "feather" in layout:
        pyarrow.feather.write_feather(table, path, compression="lz4" if layout != "feather" else "uncompressed")
    else:
        make = pa.ipc.new_file if layout == "file" else pa.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    assert_given(Vectors(path))


def test_half_precision_columns_keep_their_numbers(tmp_path: Path) -> None:
    """Half the memory would be the price of reading them as doubles."""
    halves = GIVEN.astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(halves.reshape(-1)), 3)
    found = Vectors(parquet(tmp_path, id=list(IDS), vector=column))
    np.testing.assert_allclose(found.rows(np.arange(5)).numpy(), by_hand(halves.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("id_name", ["id", "ids", "image_id", "key", "path", "file_name", "Path"])
@pytest.mark.parametrize("name", ["embedding", "vector", "embeddings"])
def test_columns_are_found_by_their_names_among_others(tmp_path: Path, id_name: str, name: str) -> None:
    """A table with a caption or a second vector would have to be cut down by hand."""
    others = {"caption": list("vwxyz"), "weights": lists(GIVEN[::-1]), "height": [1, 2, 3, 4, 5]}
    assert_given(Vectors(parquet(tmp_path, **others, **{name: lists(), id_name: list(IDS)})))


def test_columns_without_known_names_are_found_by_what_they_hold(tmp_path: Path) -> None:
    """The only strings and the only lists there are: no one could mean anything else."""
    assert_given(Vectors(parquet(tmp_path, score=[0.1] * 5, photo=list(IDS), clip=lists())))


def test_ids_of_numbers_and_of_categories_become_text(tmp_path: Path) -> None:
    """Image 7 of a data base would never meet the image called "7"."""
    assert Vectors(parquet(tmp_path, id=[7, 0, 12], v=lists(GIVEN[:3]))).ids("all") == ["7", "0", "12"]
    column = pa.array(IDS).dictionary_encode()
    assert_given(Vectors(parquet(tmp_path, photo=column, v=lists())))


@pytest.mark.parametrize(
    "header",
    [
        None,
        ["id", "d0", "d1", "d2"],
        ["key", "0", "1", "2"],
        ["", "0", "1", "2"],
        ["photo", "x_1", "x_2", "x_3"],
        ["Photo", "emb10", "emb2", "emb07"],
        ["path", "1", "2", "3"],
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_text_with_and_without_a_header_gives_the_same_rows(tmp_path: Path, header: Any, suffix: str) -> None:
    """The first image would be taken for a header, or a header such as pandas' for an image."""
    assert_given(Vectors(text(tmp_path, numbers(header), suffix)))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("id,label,x,y", "label, x, y too: drop what is not of the vector, and name its columns by one word and a"),
        ("id,label,emb_a,emb_b", "label, emb_a, emb_b too"),
        ("id,label,x0,x1", "label too"),
        ("id,Label,0,1", "Label too"),
        ("x0,x1,split,id", "split too"),
        ("id,x0,x1,fold1", "fold1 too"),
        ("id,score_0,score_1,score_2", "score_0, score_1, score_2 too"),
        ("id,classes1,classes2,classes3", "classes1, classes2, classes3 too"),
        (",id,x0,x1", "column 1 too"),
        ("id,a0,a1,b0", "b0 too"),
        ("id,x0,x1,x1", "x1 too"),
    ],
)
def test_columns_that_are_not_of_the_vector_are_refused_by_name(tmp_path: Path, header: str, told: str) -> None:
    """A label, or half of a second vector, would become a dimension of every embedding, and nobody would notice."""
    (tmp_path / "v.csv").write_text(f"{header}\n{'1,2,3,4' if header[-2:] != 'id' else '1,2,3,a'}\n")
    with pytest.raises(Refusal, match=rf"the numbers of one vector, or one JSON list, .*v\.csv, got {told}"):
        Vectors(tmp_path / "v.csv")


def test_a_long_list_of_columns_is_cut_short(tmp_path: Path) -> None:
    """A thousand names would be the whole screen."""
    names = [f"dim{letter}" for letter in "abcdefghijkl"]
    (tmp_path / "v.csv").write_text(f"id,{','.join(names)}\na{',1' * 12}\n")
    with pytest.raises(Refusal, match=r"got dima, .*, dimh, … too"):
        Vectors(tmp_path / "v.csv")


def test_a_line_that_counts_is_a_vector_all_the_same(tmp_path: Path) -> None:
    """The first image would be lost to a header that is none."""
    found = Vectors(text(tmp_path, [["a", 1, 2], ["b", 3, 4]]))
    assert found.ids("all") == ["a", "b"]


def test_ids_may_stand_in_any_column_of_a_header(tmp_path: Path) -> None:
    """The column called id would be read as a number."""
    lines = [[*line[1:], line[0]] for line in numbers(["id", "d0", "d1", "d2"])]
    assert_given(Vectors(text(tmp_path, lines)))


@pytest.mark.parametrize("header", [None, ["id", "embedding"], ["id", "what_a_service_calls_it"]])
def test_one_column_of_json_lists_is_a_vector(tmp_path: Path, header: Any) -> None:
    """It is what most services return."""
    rows = [[id, json.dumps(row.tolist())] for id, row in zip(IDS, GIVEN, strict=True)]
    assert_given(Vectors(text(tmp_path, ([header] if header else []) + rows)))


def test_of_several_columns_the_list_with_a_known_name_is_the_vector(tmp_path: Path) -> None:
    """An export with labels and boxes would have to be edited."""
    rows = [[n, "[1, 2]", json.dumps(row.tolist()), id] for n, (id, row) in enumerate(zip(IDS, GIVEN, strict=True))]
    assert_given(Vectors(text(tmp_path, [["label", "box", "embedding", "file_name"], *rows])))


def test_a_line_of_any_length_can_be_read(tmp_path: Path) -> None:
    """8192 numbers in one JSON list are longer than a field of csv may be."""
    row = np.random.default_rng(0).normal(size=8192)
    path = text(tmp_path, [["a", json.dumps(row.tolist())]])
    limit = csv.field_size_limit()
    np.testing.assert_allclose(Vectors(path).rows(np.array([0]))[0].numpy(), by_hand(row[None])[0], atol=1e-6)
    assert csv.field_size_limit() == limit, "other readers of this process keep their own"


def test_a_byte_order_mark_is_not_part_of_an_id(tmp_path: Path) -> None:
    """Of files saved on Windows the first image would be missing."""
    for lines in (numbers(), numbers(["id", "d0", "d1", "d2"])):
        path = text(tmp_path, lines)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert_given(Vectors(path))
    path, ids = npy(tmp_path)
    ids.write_bytes(b"\xef\xbb\xbf" + ids.read_bytes().replace(b"\n", b"\r\n"))
    assert_given(Vectors(path, ids))


def test_ids_are_lines_and_nothing_else_ends_them(tmp_path: Path) -> None:
    """A name with a space at its end, or with a rare separator in it, is a name."""
    names = ["a b.png ", "c\u2028d.png", "e\x85f\x0bg.png"]
    for end in ("", "\n"):
        (tmp_path / "ids.txt").write_bytes(("\n".join(names) + end).encode())
        assert read_ids(tmp_path / "ids.txt") == names


# ---- the interface of stored rows ------------------------------------------------------------------------------------


def test_nothing_is_claimed_that_a_file_of_vectors_does_not_tell(tmp_path: Path) -> None:
    """Random views, a preprocessing or labels that nobody stored would be made up."""
    found = Vectors(*npy(tmp_path))
    assert (found.views, found.preprocessing, found.splits(), found.first("all")) == (0, None, ["all"], 0)
    assert found.evidence("all") is None
    assert found.skipped("all") == {}
    assert found.unusual is None
    assert found.labels("all").tolist() == [-1] * 5
    assert found.labels("all").dtype == np.int64


def test_an_array_stays_on_the_disk_and_travels_as_its_name(tmp_path: Path) -> None:
    """One larger than memory could not be used, and each worker process would be sent a copy."""
    path, ids = npy(tmp_path, np.tile(GIVEN, (1, 400)))
    found = Vectors(path, ids)
    assert isinstance(found._rows, np.memmap)
    sent = pickle.dumps(found)
    assert len(sent) < 500 < found._rows.nbytes
    again = pickle.loads(sent)
    assert again.ids("all") == list(IDS)
    np.testing.assert_array_equal(again.rows(np.array([3])), found.rows(np.array([3])))


def test_an_array_larger_than_memory_is_opened_at_once(tmp_path: Path) -> None:
    """All of it would be read, and held, before the first step."""
    path, rows = tmp_path / "vectors.npy", 300_000
    with path.open("wb") as stream:  # 40 GB with holes: it takes no room on the disk, and would not fit into memory
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 2**15)}
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()
        stream.seek(start + 4 * 2**15 * 123_457)
        stream.write(struct.pack("<3f", 2, 1, 2))
        stream.truncate(start + 4 * 2**15 * rows)
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(rows))))
    found = Vectors(path, tmp_path / "ids.txt")
    found.announce(np.array([123_457, 0, rows - 1]))
    row = found.rows(np.array([123_457]))[0]
    assert row[:4].tolist() == pytest.approx([2 / 3, 1 / 3, 2 / 3, 0])
    with pytest.raises(Refusal, match=r"a zero row for 299999 \(row 300000\)"):
        found.rows(np.array([123_457, 299_999]))


@pytest.mark.parametrize("order", ["C", "F"])
def test_announcing_rows_changes_none(tmp_path: Path, order: Any) -> None:
    """Reading ahead at a wrong place of the file would end the process."""
    path, ids = npy(tmp_path, np.asarray(np.tile(GIVEN, (1, 4321)), order=order))
    found = Vectors(path, ids)
    before = found.rows(np.arange(5))
    found.announce(np.array([4, 0, 2]), view=None)
    np.testing.assert_array_equal(found.rows(np.arange(5)), before)
    Vectors(parquet(tmp_path)).announce(np.array([0]))


def test_a_place_outside_of_the_rows_is_an_error(tmp_path: Path) -> None:
    """Place -1, of an image without a row, would be the last image's row."""
    found = Vectors(*npy(tmp_path))
    for places in ([0, -1], [5]):
        with pytest.raises(IndexError, match=r"places in \[0, 5\)"):
            found.rows(np.array(places))
    assert found.rows(np.array([], dtype=np.int64)).shape == (0, 3)


def test_another_vector_or_another_id_is_another_identity(tmp_path: Path) -> None:
    """A resumed run would go on with other targets."""
    path, ids = npy(tmp_path)
    before = Vectors(path, ids).identity()
    assert before == {
        "teacher vectors": hashlib.sha256(path.read_bytes()).hexdigest(),
        "teacher ids": hashlib.sha256(ids.read_bytes()).hexdigest(),
    }
    npy(tmp_path, GIVEN, ids=(*IDS[:4], "other.png"))
    after = Vectors(path, ids).identity()
    assert {name for name in before if before[name] != after[name]} == {"teacher ids"}
    npy(tmp_path, GIVEN + 1e-3, ids=IDS)
    assert Vectors(path, ids).identity()["teacher vectors"] != before["teacher vectors"]
    assert Vectors(parquet(tmp_path)).identity().keys() == {"teacher vectors"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.npy", True), ("a/b.PARQUET", True), ("x.tsv", True), ("timm/resnet18", False), ("runs/a", False)],
)
def test_a_file_of_vectors_is_known_by_its_suffix(name: str, expected: bool) -> None:
    """A name that was mistyped would be looked for among encoders."""
    assert is_vectors(Path(name)) is expected


# ---- refusals --------------------------------------------------------------------------------------------------------


def bad(value: float) -> np.ndarray:
    rows = GIVEN.copy()
    rows[2] = [value, 0, 0] if value else 0
    return rows


ALL_KINDS: dict[str, Callable[[Path, np.ndarray], Vectors]] = {
    "npy": lambda folder, rows: Vectors(*npy(folder, rows)),
    "parquet": lambda folder, rows: Vectors(parquet(folder, id=list(IDS), embedding=lists(rows))),
    "csv": lambda folder, rows: Vectors(text(folder, [[id, *row.tolist()] for id, row in zip(IDS, rows, strict=True)])),
    "json": lambda folder, rows: Vectors(
        text(folder, [[id, json.dumps(row.tolist())] for id, row in zip(IDS, rows, strict=True)])
    ),
}


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(("value", "told"), [(math.nan, "NaN or infinity"), (math.inf, "NaN or infinity"), (0, "zero")])
def test_a_row_that_is_no_embedding_names_its_image(tmp_path: Path, kind: str, value: float, told: str) -> None:
    """Of a million rows the one that ruins a training at its thousandth step must be found before."""
    with pytest.raises(Refusal, match=rf"{told}.* for ü/ö, 3\.png \(row 3\)"):
        ALL_KINDS[kind](tmp_path, bad(value))


def test_a_bad_row_of_a_large_file_is_found_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of gigabytes are not read before a training; NaN must not enter it all the same."""
    monkeypatch.setattr(vectors, "CHECKED_AT_ONCE", 10)
    found = ALL_KINDS["npy"](tmp_path, bad(math.nan))
    found.rows(np.array([0, 4]))
    with pytest.raises(Refusal, match=r"NaN or infinity for ü/ö, 3\.png"):
        found.rows(np.array([0, 2]))


def test_a_number_too_large_for_float32_is_infinite(tmp_path: Path) -> None:
    """A warning from NumPy would be all that is seen of it."""
    with pytest.raises(Refusal, match=r"NaN or infinity for ü/ö, 3\.png"):
        ALL_KINDS["npy"](tmp_path, bad(0).astype(np.float64) + np.eye(5, 3, -2) * 1e300)


@pytest.mark.parametrize("kind", ["npy", "parquet", "csv"])
def test_an_id_that_occurs_twice_is_named(tmp_path: Path, kind: str) -> None:
    """One of two rows would be chosen by chance."""
    ids = ("a", "b", "c", "b", "a")
    make = {
        "npy": lambda: Vectors(*npy(tmp_path, GIVEN, ids)),
        "parquet": lambda: Vectors(parquet(tmp_path, id=list(ids), embedding=lists())),
        "csv": lambda: Vectors(text(tmp_path, [[id, *row.tolist()] for id, row in zip(ids, GIVEN, strict=True)])),
    }[kind]
    with pytest.raises(Refusal, match=r"every id once in .*, got b twice \(rows 2 and 4\)"):
        make()


def test_an_array_without_ids_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Rows by position would be another image's as soon as a file is added."""
    path, ids = npy(tmp_path)
    with pytest.raises(Refusal, match=r"--ids with .*vectors\.npy, got none: write the ids .* one a line"):
        Vectors(path)
    with pytest.raises(Refusal, match=r"--ids only with a \.npy.*vectors\.parquet: leave --ids out"):
        Vectors(parquet(tmp_path), ids)
    with pytest.raises(Refusal, match=r"nobody\.txt, got no such file"):
        Vectors(path, tmp_path / "nobody.txt")


@pytest.mark.parametrize("ids", [IDS[:4], (*IDS, "one more")])
def test_another_number_of_ids_than_rows_is_refused(tmp_path: Path, ids: tuple[str, ...]) -> None:
    """Every row after the gap would be another image's."""
    with pytest.raises(Refusal, match=rf"an id for each of the 5 rows of .*, got {len(ids)} ids in .*ids\.txt"):
        Vectors(*npy(tmp_path, GIVEN, ids))


def test_an_empty_line_among_ids_and_text_in_another_encoding_are_refused(tmp_path: Path) -> None:
    """A lost id would move all that follow; a guessed encoding would find no image with an umlaut."""
    path, ids = npy(tmp_path, ids=("a", "b", "", "d", "e"))
    with pytest.raises(Refusal, match=r"one id a line in .*ids\.txt, got an empty line 3"):
        Vectors(path, ids)
    ids.write_bytes("ü".encode("latin-1"))
    with pytest.raises(Refusal, match=r"UTF-8 text in .*ids\.txt"):
        Vectors(path, ids)


class Trap:
    """Its unpickling would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_an_array_is_executed(tmp_path: Path) -> None:
    """A file from a stranger would run his program."""
    _, ids = npy(tmp_path)
    path = tmp_path / "trap.npy"
    np.save(path, np.array([[Trap(tmp_path / "sprung")] * 3] * 5, dtype=object), allow_pickle=True)
    with pytest.raises(Refusal, match=r"numbers in .*trap\.npy, got object"):
        Vectors(path, ids)
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(Refusal, match=r"an array as numpy\.save writes it in .*trap\.npy"):
        Vectors(path, ids)
    assert not (tmp_path / "sprung").exists()


def truncated(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()[:-7]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "got an empty file"),
        (b"no array", "an array as numpy.save writes it"),
        (truncated(GIVEN), "an array as numpy.save writes it"),
        (GIVEN[0], r"\(N, D\) array of one row an image in .*, got shape \(3,\)"),
        (GIVEN[:, None], r"got shape \(5, 1, 3\)"),
        (GIVEN[:, :0], r"got shape \(5, 0\)"),
        (GIVEN[:0], "at least one row in .*, got none"),
        (np.array([["a"] * 3] * 5), "numbers in .*, got <U1"),
        (np.ones((5, 3), bool), "numbers in .*, got bool"),
        (np.ones((5, 3), complex), "numbers in .*, got complex128"),
    ],
)
def test_an_array_of_another_kind_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    """It would end in a stack trace, or in numbers that nobody meant."""
    path, ids = npy(tmp_path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(Refusal, match=told):
        Vectors(path, ids)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"id": list(IDS), "size": [1.0] * 5}, r"got id \(string\), size \(double\): name them so"),
        ({"embedding": lists(), "at": [0.5] * 5}, r"got embedding \(list<.*double>\), at \(double\)"),
        (
            {"who": list(IDS), "what": list(IDS), "embedding": lists()},
            r"got who \(string\), what \(string\), embedding",
        ),
        ({"id": list(IDS), "here": lists(), "there": lists()}, r"here \(list<.*, there \(list<"),
        ({"id": list(IDS), "embedding": [["a"]] * 5}, r"embedding \(list<.*string>\)"),
    ],
)
def test_a_table_without_clear_columns_lists_what_it_has(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    """The wrong one of two vectors would be distilled."""
    with pytest.raises(Refusal, match=told):
        Vectors(parquet(tmp_path, **columns))


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (
            [[1.0, 2.0], [3.0, 4.0], [5.0], [6.0, 7.0], [8.0, 9.0]],
            r"every row as in the first, 2, in .*, got 1 for ü/ö, 3\.png",
        ),
        ([[1.0, 2.0], [3.0, 4.0], None, [6.0, 7.0], [8.0, 9.0]], r"a vector for every row of .*, got none for ü/ö, 3"),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, None], [6.0, 7.0], [8.0, 9.0]], r"NaN or infinity for ü/ö, 3\.png"),
        ([[]] * 5, r"expected numbers in .*, got 0 for b/2\.png"),
    ],
)
@pytest.mark.parametrize("row_group_size", [2, 9])
def test_ragged_and_missing_vectors_name_their_image(
    tmp_path: Path, column: Any, told: str, row_group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All later rows would be shifted by the numbers that are missing."""
    monkeypatch.setattr(vectors, "ROWS_AT_ONCE", row_group_size)
    path = tmp_path / "v.parquet"
    table = pa.table({"id": list(IDS), "embedding": pa.array(column, pa.list_(pa.float64()))})
    pq.write_table(table, path, row_group_size=row_group_size)
    with pytest.raises(Refusal, match=told):
        Vectors(path)


def test_rows_without_an_id_are_refused(tmp_path: Path) -> None:
    """ "None" would become the name of an image."""
    for missing in (None, ""):
        with pytest.raises(Refusal, match=r"an id for every row of .*, got none for row 2"):
            Vectors(parquet(tmp_path, id=["a", missing, "c"], embedding=lists(GIVEN[:3])))


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    """A download that ended early would be a stack trace of the reader's."""
    for suffix in (".parquet", ".arrow", ".feather"):
        path = tmp_path / f"v{suffix}"
        path.write_bytes(b"PAR1 or something like it")
        with pytest.raises(Refusal, match=rf"a table that pyarrow reads in .*v\{suffix}, got .*: write it again"):
            Vectors(path)
    whole = parquet(tmp_path).read_bytes()
    parquet(tmp_path).write_bytes(whole[:-9])
    with pytest.raises(Refusal, match="a table that pyarrow reads"):
        Vectors(tmp_path / "vectors.parquet")
    pq.write_table(
        pa.table({"id": pa.array([], pa.string()), "v": pa.array([], pa.list_(pa.float32()))}), whole_path(tmp_path)
    )
    with pytest.raises(Refusal, match="at least one row"):
        Vectors(whole_path(tmp_path))
    with pytest.raises(Refusal, match=r"missing\.parquet, got no such file"):
        Vectors(tmp_path / "missing.parquet")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(Refusal, match=r"folder\.npy, got a folder"):
        Vectors(tmp_path / "folder.npy")


def whole_path(folder: Path) -> Path:
    return folder / "vectors.parquet"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([["a", 1, 2], ["b", 3]], r"3 cells in every line of .*, got 2 for b"),
        ([["a", 1, 2], ["b", 3, 4, 5]], r"3 cells in every line of .*, got 4 for b"),
        ([["a", 1, 2], ["b", 3, "four"]], r"numbers in every line of .*, got 'four' for b"),
        ([["id", "d0", "d1"], ["a", 1, 2], ["b", "x", 4]], r"numbers in every line of .*, got 'x' for b"),
        ([["a", 1, 2], ["b", 3, ""]], r"NaN or infinity for b \(row 2\)"),
        ([["id", "d0", "d1"]], r"got a header alone"),
        ([[], []], r"got empty lines"),
        ([["id", "label", "d0", "d1"], ["a", 1, 2, 3]], r"got label too: drop what is not of the vector"),
        ([["a"], ["b"]], r"ids and the numbers of one vector"),
        ([["a", "[1, 2]"], ["b", "[1, 2"]], r"a JSON list of numbers for b in .*, got '\[1, 2'"),
        ([["a", "[1, 2]"], ["b", "[1 2]"]], r"a JSON list of numbers for b in"),
        ([["a", "[1, 2]"], ["b", "[1, 2, 3]"]], r"every row as in the first, 2, in .*, got 3 for b"),
        ([["a", "[[1, 2]]"]], r"expected numbers in"),
        ([["a", "[1, null]"]], r"NaN or infinity for a"),
        ([["a", '["x"]']], r"a JSON list of numbers for a"),
    ],
)
def test_text_that_is_wrong_names_the_image_of_its_line(tmp_path: Path, lines: list[list[Any]], told: str) -> None:
    """ "CSV parse error" does not say which of a million lines to look at."""
    with pytest.raises(Refusal, match=told):
        Vectors(text(tmp_path, lines))
