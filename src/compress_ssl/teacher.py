"""The frozen teacher: batch -> target (unit rows). A live encoder or a table of stored embeddings, the same call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from compress_ssl.datasets import ImageSet
from compress_ssl.embed import embed
from compress_ssl.embeddings import Embeddings, Table, is_table
from compress_ssl.encoder import Encoder, open_encoder
from compress_ssl.folded import folded
from compress_ssl.loader import Batch
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import EvaluationView, Preprocessing
from compress_ssl.unit_rows import UncheckedRows, unit_rows
from compress_ssl.weights import weights_digest

STORED_AT_ONCE = 8192  # rows read from a table at a time when all of them become anchors


class Teacher(Protocol):
    """What the loop needs of a teacher."""

    width: int
    preprocessing: Preprocessing

    def __call__(self, batch: Batch) -> Tensor:
        """Images and index of a batch -> (B, D_t) float32 unit rows on the batch's device."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """What can be done for a batch on the host, while the step before it computes."""
        ...

    def settle(self, *, wait: bool) -> None:
        """Raise what is wrong with the rows so far, as far as it is known; with `wait`, all of it."""
        ...

    def modules(self) -> list[nn.Module]:
        """What computes the rows in a step, if anything does."""
        ...

    def embeddings(self, images: ImageSet) -> Embeddings:
        """Rows of the evaluation views of all usable images, in order."""
        ...

    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(B,) samples and (B, D_t) rows of all usable training images, a part at a time.

        Raises: Refusal if nothing is stored.
        """
        ...

    def fingerprint(self) -> str:
        """sha256 of what makes the rows: weights, or the stored table's origin."""
        ...


def open_teacher(
    spec: str,
    images: ImageSet,
    *,
    size: int | None,
    device: torch.device,
    workers: int | None,
    check: Literal["now", "later"] = "now",
) -> LiveTeacher | StoredTeacher:
    """A run, a named encoder or a table of stored embeddings as the teacher of `images`.

    Args:
        check: of the rows of a live teacher: `later` leaves it to `settle`, so that no step waits for it.
    """
    if is_table(Path(spec)):
        return StoredTeacher(Table(Path(spec)), images, device=device)
    encoder = open_encoder(spec, weights="pretrained", size=size)
    return LiveTeacher(encoder, images, device=device, workers=workers, check=check)


class LiveTeacher:
    """An encoder in eval mode, without gradient: it sees the very pixels that the student sees."""

    def __init__(
        self,
        encoder: Encoder,
        images: ImageSet,
        *,
        device: torch.device,
        workers: int | None,
        check: Literal["now", "later"] = "now",
    ):
        self.encoder = encoder.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self.width, self.preprocessing = encoder.width, encoder.preprocessing
        self.device, self.workers, self.check, self._ids = device, workers, check, images.ids
        self._rows = UncheckedRows(images.ids)
        side, noise = self.preprocessing.size, torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=noise).to(device)
        # what a step runs; scores, fingerprint and sizes are those of the encoder as it was published
        self.swift = folded(self.encoder, pixels.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()  # not inference_mode: targets take part in the student's graph as constants
    def __call__(self, batch: Batch) -> Tensor:
        assert not self.encoder.training, "the teacher must stay in eval mode"
        rows = self._rows(self.swift(batch.images), batch.host_index)
        if self.check == "now":
            self.settle(wait=True)
        return rows

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def settle(self, *, wait: bool) -> None:
        self._rows.settle(wait=wait)

    def modules(self) -> list[nn.Module]:
        return [self.swift]

    def embeddings(self, images: ImageSet) -> Embeddings:
        view = EvaluationView(self.preprocessing)
        return embed(self.encoder, images, view=view, device=self.device, workers=self.workers)

    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise Refusal(
            "--objective.anchors stored expected a table of stored embeddings as --teacher, got a live encoder: run "
            "`embed` and name its folder, or use --objective.anchors recent"
        )

    def fingerprint(self) -> str:
        return weights_digest(self.encoder)


class StoredTeacher:
    """Rows of a table, found by id. The evaluation view was stored, so the student's crop differs from the teacher's
    (the paper's cached setting, 0.4 to 0.5 points below a live teacher)."""

    def __init__(self, table: Table, images: ImageSet, *, device: torch.device):
        self.table, self.device, self._ids = table, device, images.ids
        self.width = table.width
        self.preprocessing = Preprocessing(**_tuples(table.origin["encoder"]["preprocessing"]))
        self._places = {id: place for place, id in enumerate(table.ids("train"))}
        self._index = self._positions(images)

    def _positions(self, images: ImageSet) -> np.ndarray:
        places = np.array([self._places.get(id, -1) for id in images.ids])
        # an image that could not be used when the table was made cannot be used now: the loader takes another instead
        skipped = self.table.skipped("train")
        missing = [place for place in np.flatnonzero(places < 0) if images.ids[int(place)] not in skipped]
        if missing:
            raise Refusal(
                f"expected a stored embedding for every image of {images.name}, got none for {len(missing)} of "
                f"{len(places)} ({images.ids[int(missing[0])]}, …) in {self.table.path}: run `embed` over this data"
            )
        return places

    def __call__(self, batch: Batch) -> Tensor:
        target = self.prepare(batch).target
        assert target is not None
        return target.to(self.device, non_blocking=True)

    def prepare(self, batch: Batch) -> Batch:
        """Look the rows up, and check them, on the host; they travel to the device with the images."""
        if batch.target is not None:
            return batch
        index = batch.host_index.numpy()
        places = self._index[index]
        if (places < 0).any():
            sample = self._ids[int(index[np.flatnonzero(places < 0)[0]])]
            raise Refusal(
                f"expected a stored embedding for {sample}, got an image that could not be used when {self.table.path} "
                "was made and can be now: run `embed` again with the same --unusual, into another folder"
            )
        rows = self._rows(places)
        return replace(batch, target=rows.pin_memory() if self.device.type == "cuda" else rows)

    def settle(self, *, wait: bool) -> None:
        """Stored rows are on the host: they were checked when they were looked up."""

    def modules(self) -> list[nn.Module]:
        return []

    def embeddings(self, images: ImageSet) -> Embeddings:
        places = self._positions(images)
        usable = np.flatnonzero(places >= 0)
        rows = self._rows(places[usable]).numpy()
        return Embeddings(
            rows=rows, labels=images.labels[usable], ids=tuple(images.ids[int(place)] for place in usable)
        )

    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        usable = np.flatnonzero(self._index >= 0)
        for part in np.split(usable, range(STORED_AT_ONCE, len(usable), STORED_AT_ONCE)):
            yield torch.from_numpy(part), self._rows(self._index[part])

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.table.origin, sort_keys=True).encode()).hexdigest()

    def _rows(self, places: np.ndarray) -> Tensor:
        rows = torch.from_numpy(self.table.rows("train", places).astype(np.float32))
        return unit_rows(rows, torch.from_numpy(places), self.table.ids("train"))


def _tuples(values: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
