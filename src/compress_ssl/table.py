"""Stored embeddings on disk: a folder with the rows of a data set's images and of their views.

    manifest.json           what produced the rows: encoder, weights, preprocessing, views, data, versions; the shards
                            of each split; statistics. Sealed; written when all is there, and when images are added
    train/00000.npy, .json  shards (`compress_ssl.shard`): the evaluation view of each image, then V random views
    test/…                  the evaluation view of each image, where the data has a test split

Rows are found by id, never by position in the data. A *place* numbers the images of all splits, in the order of the
manifest. Rows stay on disk; of the next batches' one can say in advance that they will be wanted.
"""

from __future__ import annotations

import errno
import json
import shlex
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compress_ssl.embeddings import ROWS_AT_ONCE, Embeddings
from compress_ssl.record import crops_of, damaged, record_dtype, unpack
from compress_ssl.refusal import Refusal
from compress_ssl.sealed import Damaged, read_sealed
from compress_ssl.shard import Shard, read_about, records_file
from compress_ssl.transforms import Crop, Preprocessing, TrainView

FORMAT = 2
MANIFEST = "manifest.json"


def is_table(path: Path) -> bool:
    """Whether the folder holds an embeddings table."""
    return (path / MANIFEST).is_file()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a table, finished or not.

    Raises: Refusal if it is missing, damaged or of another format.
    """
    try:
        manifest, _ = read_sealed(path / MANIFEST)
    except FileNotFoundError:
        raise Refusal(f"expected an embeddings table in {path}, got no {MANIFEST}: make one with `embed`") from None
    except Damaged as trouble:
        raise damage(path / MANIFEST, str(trouble)) from trouble
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("origin"), dict):
        raise Refusal(f"expected a table of format {FORMAT} and its origin in {path}, got format "
                      f"{manifest.get('format')!r}: make it anew with `embed`")  # fmt: skip
    return manifest


class _Split(NamedTuple):
    ids: list[str]
    labels: np.ndarray
    evidence: np.ndarray
    skipped: dict[str, int]


class Table:
    """A finished table, opened for reading. Picklable; several processes may read one.

    Args:
        in_memory: read all rows now; else they stay on disk, and the system keeps what it has room for. Of a pickled
            table they stay on disk: a worker process needs few of them.
        manifest: of a table in the making; None: the one in the folder.
    Raises: Refusal naming the file, what was expected and what was found, if the table is unfinished, or a file of it
        is missing, cut off, damaged or of another layout. A damaged row is found when it is read.
    """

    def __init__(self, path: Path, *, in_memory: bool = False, manifest: dict[str, Any] | None = None):
        self.path, self.in_memory = path, in_memory
        self.manifest = read_manifest(path) if manifest is None else manifest
        if "splits" not in self.manifest:
            raise Refusal(
                f"expected a finished table in {path}, got one that was interrupted: run "
                f"`{command(self.manifest['origin'], path)}`"
            )
        self.origin = self.manifest["origin"]
        self.width: int = self.origin["encoder"]["width"]
        self.dtype = self.origin["dtype"]
        self.views: int = self.origin["views"]["count"]
        self.preprocessing = Preprocessing(**_tuples(self.origin["encoder"]["preprocessing"]))
        self.view = TrainView(**_tuples(self.origin["views"]["view"])) if self.views else None
        self.unusual: Literal["skip", "convert"] | None = self.origin["data"].get("unusual")  # as `embed` was told
        self._splits: dict[str, _Split] = {}
        self._shards: dict[int, Shard] = {}
        self._checksums: dict[tuple[str, int], str] = {}
        self._files = [
            (name, number, images, seal)
            for name, split in self.manifest["splits"].items()
            for number, images, seal in split["shards"]
        ]
        self._starts = np.cumsum([0, *(images for _, _, images, _ in self._files)])
        if in_memory:
            for shard in range(len(self._files)):
                self._shard(shard)

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.path,)

    def splits(self) -> list[str]:
        return list(self.manifest["splits"])

    def ids(self, split: str) -> list[str]:
        return self._split(split).ids

    def labels(self, split: str) -> np.ndarray:
        """(N,) int64, -1 where unlabelled."""
        return self._split(split).labels

    def evidence(self, split: str) -> np.ndarray:
        """(N,) int64: what the data set cheaply knew of each image's bytes when its rows were made."""
        return self._split(split).evidence

    def skipped(self, split: str) -> dict[str, int]:
        """id -> evidence of the images that could not be used when the table was made."""
        return self._split(split).skipped

    def first(self, split: str) -> int:
        """The place of the split's first image."""
        self._split(split)
        shards = [shard for shard, (name, *_) in enumerate(self._files) if name == split]
        return int(self._starts[shards[0]]) if shards else 0

    def rows(self, places: np.ndarray, *, view: int | None = None) -> Tensor:
        """(B,) places -> (B, D) float32 unit rows on the CPU.

        Args:
            view: a random view in [0, V); None: the evaluation view.
        Raises: Refusal naming file and image if a row has changed since it was written.
        """
        rows = unpack(self._records(places, view), self.width, self.dtype)
        return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))

    def crop(self, place: int, *, view: int) -> Crop:
        """How a random view was cut; raises as `rows`."""
        return Crop(*crops_of(self._records(np.array([place]), view), self.width, self.dtype)[0])

    def announce(self, places: np.ndarray, *, view: int | None = None) -> None:
        """Say that these rows will be wanted soon; returns at once, and the system reads ahead."""
        if self.in_memory:
            return
        for shard, local in zip(*self._located(places), strict=True):
            opened = self._shard(shard)
            opened.announce(local * opened.views + (0 if view is None else 1 + view))

    def embeddings(self, split: str) -> Embeddings:
        """The evaluation views of a split, all in memory."""
        found = self._split(split)
        places = self.first(split) + np.arange(len(found.ids))
        parts = np.split(places, range(ROWS_AT_ONCE, len(places), ROWS_AT_ONCE))
        rows = torch.cat([self.rows(part) for part in parts])
        return Embeddings(rows=rows.numpy(), labels=found.labels, ids=tuple(found.ids))

    def identity(self) -> dict[str, str]:
        """What makes the rows, by name: a resumed run must find the same."""
        encoder = self.origin["encoder"]
        return {
            "teacher weights": encoder["weights"],
            "teacher space": encoder["space"],
            "teacher preprocessing": json.dumps(encoder["preprocessing"], sort_keys=True),
            "teacher views": json.dumps(self.origin["views"], sort_keys=True),
            "teacher width": str(self.width),
            "teacher dtype": self.dtype,
        }

    def _located(self, places: np.ndarray) -> tuple[list[int], list[int]]:
        """Shard, and image within it, of each place."""
        shards = np.searchsorted(self._starts, places, side="right") - 1
        return shards.tolist(), (places - self._starts[shards]).tolist()

    def _records(self, places: np.ndarray, view: int | None) -> np.ndarray:
        """(B, bytes) uint8, checked. One copy a row: the same for one shard and for thousands."""
        places = np.asarray(places, dtype=np.int64)
        if len(places) and (places.min() < 0 or places.max() >= self._starts[-1]):
            raise IndexError(f"expected places in [0, {self._starts[-1]}), got {places.min()} to {places.max()}")
        if view is not None and not 0 <= view < self.views:
            raise IndexError(f"expected a view in [0, {self.views}), got {view}")
        column = 0 if view is None else 1 + view
        size = record_dtype(self.width, self.dtype).itemsize
        found = np.empty((len(places), size), np.uint8)
        room = memoryview(found.reshape(-1))  # type: ignore[arg-type]
        for number, (shard, local) in enumerate(zip(*self._located(places), strict=True)):
            opened = self._shard(shard)
            if column >= opened.views:
                raise IndexError(f"expected a split with random views, got {self._files[shard][0]!r}, which has none")
            room[number * size : (number + 1) * size] = opened.at(local * opened.views + column)
        bad = np.flatnonzero(damaged(found))
        if len(bad):
            name, number, *_ = self._files[self._located(places)[0][bad[0]]]
            id = self.ids(name)[int(places[bad[0]]) - self.first(name)]
            raise damage(records_file(self.path / name, number), f"changed bytes in the row of {id}", self.origin)
        return found

    def _shard(self, index: int) -> Shard:
        if index not in self._shards:
            name, number, images, _ = self._files[index]
            file = records_file(self.path / name, number)
            views = 1 + self.manifest["splits"][name]["views"]
            try:
                opened = Shard(
                    file, images=images, views=views, width=self.width, dtype=self.dtype, in_memory=self.in_memory
                )
                if self.in_memory and opened.checksum() != self._checksum(name, number):
                    raise Damaged("bytes that do not match their checksum")
            except Damaged as trouble:
                raise damage(file, str(trouble), self.origin) from trouble
            except OSError as trouble:
                if trouble.errno != errno.EMFILE:
                    raise
                raise Refusal(
                    f"expected to hold {len(self._files)} files of rows open, got the system's limit of open files: "
                    "raise it by `ulimit -n 65536`, or embed with larger --shard-rows"
                ) from trouble
            self._shards[index] = opened
        return self._shards[index]

    def _checksum(self, split: str, number: int) -> str:
        self._split(split)
        return self._checksums[split, number]

    def _split(self, split: str) -> _Split:
        if split not in self._splits:
            if split not in self.manifest["splits"]:
                raise Refusal(f"expected the split {split!r} in {self.path}, got {self.splits()}: embed it too")
            ids: list[str] = []
            labels: list[int] = []
            evidence: list[int] = []
            skipped: dict[str, int] = {}
            for name, number, images, seal in self._files:
                if name != split:
                    continue
                file = records_file(self.path / split, number).with_suffix(".json")
                try:
                    about, checksum, found = read_about(self.path / split, number)
                    if found != seal or len(about.ids) != images:
                        raise Damaged("another shard than the manifest lists")
                except (OSError, Damaged) as trouble:
                    raise damage(file, str(trouble), self.origin) from trouble
                self._checksums[split, number] = checksum
                ids += about.ids
                labels += about.labels
                evidence += about.evidence
                skipped |= {skip[0]: skip[3] for skip in about.skipped}
            for id in skipped.keys() & set(ids):
                del skipped[id]  # mended since
            self._splits[split] = _Split(ids, np.array(labels, np.int64), np.array(evidence, np.int64), skipped)
        return self._splits[split]


def damage(file: Path, found: str, origin: dict[str, Any] | None = None) -> Refusal:
    """Of a damaged file, with what mends it at the least cost.

    Args:
        origin: of the table, from which the command follows.
    """
    if file.name == MANIFEST or origin is None:
        mend = f"remove {file} and run the `embed` that made the table again, which makes no row anew"
    else:
        again = command(origin, file.parents[1])
        mend = f"remove {file.with_suffix('.json')} and run `{again}`, which makes this shard anew"
    return Refusal(f"expected {file} as `embed` wrote it, got {found}: {mend}")


def command(origin: dict[str, Any], out: Path, *, data: str | None = None) -> str:
    """The command that makes a table of this origin, and goes on with it.

    Args:
        data: the images under the name that they have now; None: under the one they had then.
    """
    encoder, then, views = origin["encoder"], origin["data"], origin["views"]
    now = data or then.get("name", "?")
    words = ["compress-ssl", "embed", "--encoder", encoder.get("spec", "?"), "--data", now]
    words += ["--out", str(out), "--size", str(encoder["preprocessing"]["size"]), "--dtype", origin["dtype"]]
    if encoder.get("space", "own") != "own":
        words += ["--space", encoder["space"]]
    if then.get("unusual", "skip") != "skip":
        words += ["--unusual", then["unusual"]]
    if "shard_rows" in origin:
        words += ["--shard-rows", str(origin["shard_rows"])]
    if views["count"]:
        words += ["--views", str(views["count"]), "--seed", str(views["seed"])]
        for name, value in views["view"].items():
            words += [f"--view.{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _tuples(values: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
