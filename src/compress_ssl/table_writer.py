"""Writing a table: what is finished stays when a process dies, several processes write at once, images can be added.

Nobody coordinates the writers. What is left to do follows from the data and from the shards that lie there finished:
images without a row, in the order of the data, cut into stretches, each given the lowest number that is free. A
finished stretch takes its images and its number away together, so whoever looks, whenever, numbers the rest alike.
Each process begins with the numbers that are its own modulo the number of processes, then helps with the rest. A shard
is made under a lock on a file beside it, which the system drops when its process dies; where it cannot be had, someone
else is at that shard. Who finds nothing left writes the manifest, the same to the last bit whoever it is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from compress_ssl import __version__, run_folder
from compress_ssl.datasets import digest
from compress_ssl.embeddings import Embeddings
from compress_ssl.lock import alone, lock_name
from compress_ssl.record import pack
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import differences
from compress_ssl.sealed import Damaged, seal_of, write_sealed
from compress_ssl.shard import About, read_about, write_shard
from compress_ssl.table import FORMAT, MANIFEST, Table, damage, is_table, read_manifest

STATISTICS_ROWS = 1000  # evenly spaced evaluation rows that the statistics are of


class Task(NamedTuple):
    """A shard to be made: its number, and the positions of its images in the data."""

    split: str
    number: int
    positions: np.ndarray


class Known(Protocol):
    """What a writer asks of a set of images."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def evidence(self) -> np.ndarray: ...

    def fingerprint(self) -> str: ...


class TableWriter:
    """Writes the shards of a table.

    Args:
        path: the table's folder, new, empty, or holding a table of the same origin, finished or not.
        origin: what produces the rows; a table of another origin is refused, field by field.
        splits: name -> images and random views a row. What the table holds of them already is not made again.
        shard_rows: images a shard.
    Raises: Refusal if the folder holds something else, or an image has changed since its row was made.
    """

    def __init__(self, path: Path, origin: dict[str, Any], splits: Mapping[str, tuple[Known, int]], *, shard_rows: int):
        self.path, self.origin, self.splits, self.shard_rows = path, origin, splits, shard_rows
        self._seal = seal_of(_compared(origin))
        self._read: dict[tuple[str, int], tuple[About, str]] = {}  # finished shards never change
        if is_table(path):
            changed = differences(_compared(read_manifest(path)["origin"]), _compared(origin))
            if changed:
                raise Refusal(f"expected {path} to hold embeddings of the same origin, got {'; '.join(changed[:4])}: "
                              "name another --out, or remove the folder to make it anew")  # fmt: skip
        elif path.exists() and (not path.is_dir() or self._holds_something_else()):
            raise Refusal(f"--out expected a new or empty folder, got {path}, which holds something else: name another")
        else:
            write_sealed(path / MANIFEST, {"format": FORMAT, "origin": origin})

    def tasks(self) -> list[Task]:
        """What is left to be made, in order.

        Raises: Refusal if an image has changed since its row was made, or a finished shard is damaged.
        """
        return [task for split in self.splits for task in self._tasks(split)]

    def gone(self) -> list[str]:
        """Ids that have rows here and are no longer in the data.

        Raises: Refusal if they are most of those that have rows: then these are other data.
        """
        gone, count = [], 0
        for split, (images, _) in self.splits.items():
            held = self._held(split, self._finished(split))[0]
            count += len(held)
            gone += sorted(held.keys() - set(images.ids))
        if 2 * len(gone) > count:
            raise Refusal(
                f"--data expected the images that {self.path} holds rows of, and perhaps more, got only "
                f"{count - len(gone)} of these {count} ({gone[0]} is missing, …): name another --out"
            )
        return gone

    def unusable(self) -> list[str]:
        """Ids of images of the data that were found unusable, and are as they were then."""
        found = []
        for split, (images, _) in self.splits.items():
            rows, unusable = self._held(split, self._finished(split))
            told = zip(images.ids, images.evidence.tolist(), strict=True)
            found += [id for id, evidence in told if id not in rows and unusable.get(id) == evidence]
        return found

    @contextlib.contextmanager
    def claim(self, task: Task) -> Iterator[bool]:
        """Whether this process is to make the shard: nobody has finished it, nobody is at it."""
        with alone(self.path / task.split, f"{task.number:05d}") as ours:
            yield ours and task.number not in self._finished(task.split)

    def write(
        self, task: Task, usable: np.ndarray, rows: np.ndarray, crops: np.ndarray, skipped: Iterable[Sequence[str]]
    ) -> None:
        """Write one shard; inside `claim`.

        Args:
            usable: (n,) positions in the data of the images that have rows.
            rows: (n, 1 + V, D) float32 unit rows: the evaluation view, then V random views.
            crops: (n, 1 + V, 5) int32, see `record.pack`.
            skipped: (id, kind, detail) of the other images.
        """
        images, _ = self.splits[task.split]
        ids, evidence = images.ids, images.evidence
        known = {ids[place]: int(evidence[place]) for place in task.positions}
        records, error = pack(rows, crops, self.origin["dtype"])
        about = About(
            ids=[ids[place] for place in usable],
            labels=images.labels[usable].tolist(),
            evidence=evidence[usable].tolist(),
            skipped=[[*skip, known[skip[0]]] for skip in skipped],
            origin=self._seal,
            rounding=(float(error.max(initial=0)), float(error.mean()) if error.size else 0.0),
        )
        write_shard(self.path / task.split, task.number, records, about)

    def complete(self) -> bool:
        """Declare the table whole if nothing is left to be made; whether it was so."""
        if self.tasks():
            return False
        there = read_manifest(self.path)
        splits: dict[str, Any] = {}
        for split, (images, views) in self.splits.items():
            finished = {number: self._about(split, number) for number in sorted(self._finished(split))}
            splits[split] = {
                "views": views,
                "images": sum(len(about.ids) for about, _ in finished.values()),
                "fingerprint": images.fingerprint(),
                "shards": [[number, len(about.ids), seal] for number, (about, seal) in finished.items()],
                "rounding": _rounding([about for about, _ in finished.values()]),
            }
        splits |= {split: about for split, about in there.get("splits", {}).items() if split not in splits}
        manifest = {"format": FORMAT, "origin": self.origin, "splits": splits}
        table = Table(self.path, manifest=manifest)
        manifest["statistics"] = {split: statistics(table, split) for split in splits}
        if there != manifest or self._left_over():
            with alone(self.path, MANIFEST) as ours:
                if ours and there != manifest:
                    write_sealed(self.path / MANIFEST, manifest)
                if ours:
                    self._clear()
        return True

    def _tasks(self, split: str) -> Iterator[Task]:
        images, _ = self.splits[split]
        finished = self._finished(split)  # once: what another process finishes from here on is still left, as it was
        rows, unusable = self._held(split, finished)
        changed, left = [], []
        for position, (id, evidence) in enumerate(zip(images.ids, images.evidence.tolist(), strict=True)):
            if id in rows:
                if rows[id] != evidence:
                    changed.append((id, rows[id], evidence))
            elif unusable.get(id) != evidence:
                left.append(position)
        if changed:
            id, old, new = changed[0]
            raise Refusal(f"expected the images that {self.path} holds rows of, got {len(changed)} changed ones ({id}: "
                          f"{old} → {new}, …): put the old ones back, or name another --out")  # fmt: skip
        free = (number for number in range(len(finished) + len(left)) if number not in finished)
        for start in range(0, len(left), self.shard_rows):
            yield Task(split, next(free), np.array(left[start : start + self.shard_rows]))

    def _held(self, split: str, finished: set[int]) -> tuple[dict[str, int], dict[str, int]]:
        """id -> evidence of the images that have rows in these shards, and of those that were found unusable."""
        rows: dict[str, int] = {}
        unusable: dict[str, int] = {}
        for number in sorted(finished):
            about, _ = self._about(split, number)
            rows |= zip(about.ids, about.evidence, strict=True)
            unusable |= {skip[0]: skip[3] for skip in about.skipped}
        return rows, unusable

    def _about(self, split: str, number: int) -> tuple[About, str]:
        """What a finished shard holds, and its seal."""
        if (split, number) not in self._read:
            try:
                about, _, seal = read_about(self.path / split, number)
            except Damaged as trouble:
                raise damage(self.path / split / f"{number:05d}.json", str(trouble), self.origin) from trouble
            self._read[split, number] = about, seal
        return self._read[split, number]

    def _finished(self, split: str) -> set[int]:
        return {int(file.stem) for file in (self.path / split).glob("[0-9]*.json")}

    def _holds_something_else(self) -> bool:
        """Whether there is anything but shards of this origin and what a killed writer left."""
        for inside in self.path.iterdir():
            if inside.name in self.splits and inside.is_dir():
                finished = self._finished(inside.name)
                if any(self._about(inside.name, number)[0].origin != self._seal for number in finished):
                    return True
            elif inside.name not in (MANIFEST, lock_name(MANIFEST)) and not run_folder.is_left_over(inside.name):
                return True  # a manifest that was not there a moment ago is another process's of the same command
        return False

    def _left_over(self) -> list[tuple[Path, str]]:
        """Temporary files and locks in the table's folders, and the name of the lock under which each was written."""
        found = [(file, MANIFEST) for file in self.path.glob(f".{MANIFEST}.*") if run_folder.is_left_over(file.name)]
        for split in self.splits:
            for file in (self.path / split).glob(".*"):
                of_shard = re.match(r"\.(\d{5,})\.", file.name)
                if of_shard and (run_folder.is_left_over(file.name) or file.name == lock_name(of_shard[1])):
                    found.append((file, of_shard[1]))
        return sorted(found)

    def _clear(self) -> None:
        """Remove what killed writers left, but nothing that someone is at; we hold the manifest's lock."""
        for file, name in self._left_over():
            with contextlib.nullcontext(True) if name == MANIFEST else alone(file.parent, name) as ours:
                if ours and file.name != lock_name(name):  # a lock goes as it came; twice, and it would be another's
                    file.unlink(missing_ok=True)


def write_embeddings(
    path: Path,
    splits: dict[str, Embeddings],
    origin: dict[str, Any],
    *,
    evidence: Mapping[str, np.ndarray] | None = None,
) -> Table:
    """A whole table of rows that are in memory, evaluation views only.

    Args:
        origin: at least "encoder" with "width" and "preprocessing"; what else is missing is filled in.
        evidence: of each split's images, (N,) int64, as their data set knows it; without it the rows are of no data set
            that knows any.
    """
    known = {name: np.zeros(len(rows.ids), np.int64) for name, rows in splits.items()} | dict(evidence or {})
    writer = TableWriter(
        path,
        {"data": {}, "views": {"count": 0}, "dtype": "float16", "code": __version__, **origin},
        {name: (_Named(rows, known[name]), 0) for name, rows in splits.items()},
        shard_rows=8192,
    )
    for task in writer.tasks():
        rows = splits[task.split].rows[task.positions][:, None]
        with writer.claim(task) as mine:
            if mine:
                writer.write(task, task.positions, rows, np.zeros((len(rows), 1, 5), np.int32), [])
    writer.complete()
    return Table(path)


class _Named:
    """Images known by their rows alone."""

    def __init__(self, rows: Embeddings, evidence: np.ndarray):
        self.ids, self.labels, self.evidence = rows.ids, rows.labels, evidence

    def fingerprint(self) -> str:
        return digest(self.ids, self.labels, self.evidence)


def statistics(table: Table, split: str) -> dict[str, float]:
    """Of evenly spaced evaluation rows: cosines of all pairs; length of their mean (1: all alike, 0: centred)."""
    count = len(table.ids(split))
    places = table.first(split) + np.unique(np.linspace(0, count - 1, min(count, STATISTICS_ROWS)).astype(np.int64))
    rows = table.rows(places).double().numpy()
    cosines = (rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
    if not len(cosines):
        return {}
    told = {"mean": cosines.mean(), "std": cosines.std(), "smallest": cosines.min(), "largest": cosines.max()}
    return {f"cosine_{name}": round(float(value), 6) for name, value in told.items()} | {
        "mean_row_length": round(float(np.linalg.norm(rows.mean(axis=0))), 6)
    }


def _rounding(abouts: list[About]) -> dict[str, float]:
    """1 - cosine between rows and what is stored of them."""
    counts = [len(about.ids) for about in abouts]
    mean = sum(n * about.rounding[1] for n, about in zip(counts, abouts, strict=True)) / max(1, sum(counts))
    return {"largest": max((about.rounding[0] for about in abouts), default=0.0), "mean": mean}


def _compared(origin: dict[str, Any]) -> dict[str, Any]:
    """What must be the same to go on with a table: all but names, our own version and the size of shards."""
    encoder = {name: value for name, value in origin["encoder"].items() if name != "spec"}
    data = {name: value for name, value in origin["data"].items() if name != "name"}
    return {
        **{name: value for name, value in origin.items() if name not in ("code", "shard_rows")},
        "encoder": encoder,
        "data": data,
    }
