"""Embeddings: unit rows with the ids and labels of their images, in memory and as a table on disk.

A table is a folder:

    manifest.json           what produced it: encoder, weights, preprocessing, data, versions; when complete, statistics
    train/00000.npy         rows of one shard, (n, V, D) float16 unit rows; V = 1 here, the evaluation view
    train/00000.json        their ids, labels, skipped images and the checksum of the rows: written last, so a shard
                            that has it is finished
    test/…                  likewise, where the data has a test split

Rows are found by id, never by position, and read through a memory map.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import differences, write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Embeddings:
    """N unit rows in memory.

    rows: (N, D) float32, each of length one.
    labels: (N,) int64, -1 where unlabelled.
    ids: N sample ids.
    """

    rows: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or not len(self.rows) == len(self.labels) == len(self.ids):
            raise ValueError(
                f"expected as many rows as labels and ids, got rows {self.rows.shape}, {len(self.labels)} labels, "
                f"{len(self.ids)} ids"
            )
        lengths = np.linalg.norm(self.rows, axis=1)
        if not np.all(np.abs(lengths - 1) < 1e-3):  # also False for NaN
            raise ValueError(f"expected unit rows, got lengths from {lengths.min()} to {lengths.max()}")


class TableWriter:
    """Writes a table shard by shard; whatever is finished stays when the process dies, and is not done again.

    Args:
        path: the table's folder, new, empty or holding an unfinished table of the same origin.
        origin: what produces the rows; a table of another origin is refused, field by field.
    """

    def __init__(self, path: Path, origin: dict[str, Any]):
        self.path, self.origin = path, origin
        file = path / "manifest.json"
        if file.exists():
            changed = differences(read_manifest(path)["origin"], origin)
            if changed:
                raise Refusal(
                    f"expected {path} to hold embeddings of the same origin, got {'; '.join(changed[:4])}: "
                    "name another --out, or remove the folder to make it anew"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise Refusal(f"--out expected a new or empty folder, got {path}, which holds something else: name another")
        else:
            self._write(complete=False)

    def _write(self, **more: Any) -> None:
        manifest = {"format": FORMAT, "origin": self.origin, **more}
        write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    def finished(self, split: str, shard: int) -> bool:
        return (self.path / split / f"{shard:05d}.json").exists()

    def write(
        self, split: str, shard: int, embeddings: Embeddings, skipped: Sequence[tuple[str, str, str]], dtype: str
    ) -> None:
        """Write one shard: rows first, then the file that declares it finished."""
        rows = np.ascontiguousarray(embeddings.rows[:, None].astype(dtype))
        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        data = buffer.getvalue()
        write_atomically(self.path / split / f"{shard:05d}.npy", data)
        about = {
            "ids": list(embeddings.ids),
            "labels": embeddings.labels.tolist(),
            "skipped": [list(skip) for skip in skipped],
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        write_atomically(self.path / split / f"{shard:05d}.json", json.dumps(about, ensure_ascii=False) + "\n")

    def complete(self, splits: dict[str, int]) -> None:
        """Declare the table whole.

        Args:
            splits: name -> number of shards.
        """
        self._write(complete=True, splits=splits)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a table.

    Raises: Refusal if it is missing, unreadable or of another format.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        raise Refusal(f"expected an embeddings table in {path}, got no manifest.json: make one with `embed`") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as trouble:
        raise Refusal(f"expected a JSON manifest in {path}, got {trouble}: make the table anew") from trouble
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("origin"), dict)
    ):
        found = manifest.get("format") if isinstance(manifest, dict) else f"a {type(manifest).__name__}"
        raise Refusal(f"expected a table of format {FORMAT} and its origin in {path}, got {found!r}: make it anew")
    return manifest


def is_table(path: Path) -> bool:
    """Whether the folder holds an embeddings table."""
    return (path / "manifest.json").is_file()


class Table:
    """A finished table, opened for reading; rows stay on disk.

    Raises: Refusal if it is unfinished, or a shard is missing, of another shape, or not the one that was written (its
        bytes are compared with their checksum once, when a split is first used).
    """

    def __init__(self, path: Path):
        self.path = path
        self.manifest = read_manifest(path)
        if not self.manifest.get("complete"):
            raise Refusal(f"expected a finished table in {path}, got one that was interrupted: run its `embed` again")
        self.origin = self.manifest["origin"]
        self.width: int = self.origin["encoder"]["width"]
        self._shards: dict[str, tuple[list[np.ndarray], list[str], np.ndarray]] = {}
        self._skipped: dict[str, set[str]] = {}

    def splits(self) -> list[str]:
        return list(self.manifest["splits"])

    def ids(self, split: str) -> list[str]:
        return self._open(split)[1]

    def labels(self, split: str) -> np.ndarray:
        return self._open(split)[2]

    def skipped(self, split: str) -> set[str]:
        """Ids of images that could not be used when the table was made."""
        self._open(split)
        return self._skipped[split]

    def rows(self, split: str, positions: np.ndarray) -> np.ndarray:
        """(B,) positions -> (B, D) rows as stored."""
        shards = self._open(split)[0]
        starts = np.cumsum([0] + [len(shard) for shard in shards])
        which = np.searchsorted(starts, positions, side="right") - 1
        found = np.empty((len(positions), self.width), dtype=shards[0].dtype)
        for shard in np.unique(which):
            here = which == shard
            found[here] = shards[shard][positions[here] - starts[shard], 0]
        return found

    def embeddings(self, split: str) -> Embeddings:
        """All rows of a split in memory, float32, brought back to length one after rounding."""
        rows = np.concatenate([np.asarray(shard[:, 0], dtype=np.float32) for shard in self._open(split)[0]])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return Embeddings(rows=rows, labels=self.labels(split), ids=tuple(self.ids(split)))

    def _open(self, split: str) -> tuple[list[np.ndarray], list[str], np.ndarray]:
        if split not in self._shards:
            shards, ids, labels, skipped = [], [], [], set()
            if split not in self.manifest["splits"]:
                raise Refusal(f"expected the split {split!r} in {self.path}, got {self.splits()}: embed it too")
            for number in range(self.manifest["splits"][split]):
                file = self.path / split / f"{number:05d}.npy"
                try:
                    about = json.loads(file.with_suffix(".json").read_text())
                    with file.open("rb") as stream:
                        found = hashlib.file_digest(stream, "sha256").hexdigest()
                    if found != about["sha256"]:
                        raise ValueError("bytes that do not match their checksum")
                    shard = np.load(file, mmap_mode="r", allow_pickle=False)
                except (OSError, ValueError, KeyError, TypeError) as trouble:
                    raise Refusal(
                        f"expected a shard of rows in {file}, got {trouble}: make the table anew"
                    ) from trouble
                if shard.shape != (len(about["ids"]), 1, self.width):
                    raise Refusal(f"expected rows of shape {(len(about['ids']), 1, self.width)} in {file}, "
                                  f"got {shard.shape}: make the table anew")  # fmt: skip
                shards.append(shard)
                ids += about["ids"]
                labels += about["labels"]
                skipped |= {id for id, _, _ in about["skipped"]}
            self._skipped[split] = skipped
            self._shards[split] = shards, ids, np.asarray(labels, dtype=np.int64)
        return self._shards[split]
