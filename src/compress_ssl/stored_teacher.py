"""A teacher known by its stored rows: an embeddings table, or vectors from anywhere, found by the images' ids.

Where random views are stored, the student is given exactly the crop and flip that the teacher saw (replay): epoch e
learns from random view e mod V. With as many views as epochs that is the training with the live teacher. Else the row
is that of the evaluation view and the student sees random crops of its own: the cached setting of the paper, which
costs it 0.4 to 0.5 points of accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from compress_ssl.datasets import ImageSet
from compress_ssl.embeddings import ROWS_AT_ONCE, Embeddings
from compress_ssl.loader import Batch
from compress_ssl.refusal import Refusal
from compress_ssl.stored import Stored, find, of
from compress_ssl.transforms import Crop, RandomView, ReplayView, TrainView

COMPARED = 64  # images whose crops tell two tables apart: of another seed or rule hardly any two are equal


@dataclass(frozen=True, kw_only=True)
class StoredConfig:
    """How a teacher known by its stored embeddings is used; a live teacher takes none of these."""

    # the student's crops: replay those that the teacher saw, or random ones (the paper's way); auto: replay if stored
    student_view: Literal["auto", "replay", "random"] = "auto"
    in_memory: bool = False  # read a table or .npy into memory at the start, not from disk; csv, parquet always are
    part: bool = False  # accept a table of more images than the data holds; a file of vectors may always hold more


class StoredTeacher:
    """Rows of a table or a vector file as the teacher of `images`.

    Args:
        images: what is trained on.
        whole: the training split that `images` is a part of: of it, no image may be missing that has a row.
    Raises: Refusal if an image has no row, or one of other bytes; if rows have no image any more; if the student is to
        see what the teacher saw and nobody knows what that was.

    Attributes:
        preprocessing: of the encoder that made the rows; None where it is not known.
        replay: whether the student sees what the teacher saw.
    """

    def __init__(
        self,
        rows: Stored,
        images: ImageSet,
        *,
        device: torch.device,
        config: StoredConfig = StoredConfig(),
        whole: ImageSet | None = None,
    ):
        self.rows, self.device, self.width, self.preprocessing = rows, device, rows.width, rows.preprocessing
        self.replay = config.student_view == "replay" or (config.student_view == "auto" and rows.views > 0)
        if self.replay and rows.preprocessing is None:
            raise Refusal(
                f"--stored.student-view replay expected a table that says what its encoder saw, got {rows.path}, which "
                "holds vectors alone: use random, or make a table with `compress-ssl embed --views`"
            )
        self._views = rows.views if self.replay else 0
        self._ids = images.ids
        self._places = find(rows, images, part=config.part, whole=whole)  # (N,), -1: could not be used when stored
        self._used = np.flatnonzero(self._places >= 0)

    def __call__(self, batch: Batch) -> Tensor:
        target = self.prepare(batch).target
        assert target is not None
        return target.to(self.device, non_blocking=True)

    def prepare(self, batch: Batch) -> Batch:
        """Look the rows up, and check them, on the host; they travel to the device with the images."""
        if batch.target is not None:
            return batch
        places = self._places[batch.host_index.numpy()]
        if places.min() < 0:
            id = self._ids[int(batch.host_index[int(places.argmin())])]
            raise Refusal(
                f"expected a stored embedding for {id}, got an image that could not be used when {self.rows.path} "
                "was made and can be now, though its size is the same: leave it out of the data, or run `compress-ssl "
                "embed` with another --out"
            )
        rows = self.rows.rows(places, view=self._view(batch.epoch))
        return replace(batch, target=rows.pin_memory() if self.device.type == "cuda" else rows)

    def announce(self, keys: list[tuple[int, int]]) -> None:
        """Have the rows of a batch to come, (epoch, position) of its images, read ahead."""
        places = self._places[[position for _, position in keys]]
        self.rows.announce(places[places >= 0], view=self._view(keys[0][0]))

    def view(self, config: TrainView, size: int) -> RandomView | ReplayView:
        """What the student sees, at its own size.

        Raises: Refusal if other crops are asked for than the stored ones.
        """
        if not self.replay:
            return RandomView(config, size)
        assert self.preprocessing is not None
        if config not in (TrainView(), self.rows.view):
            kept = f"{self._views} random views" if self._views else "the evaluation view alone"
            raise Refusal(
                f"--view expected no other crops than the stored ones, for the student sees what the teacher saw, got "
                f"{config}, where {self.rows.path} holds {kept}: leave --view out, embed with it, or use "
                "--stored.student-view random"
            )
        return ReplayView(self._crops(), size, self.preprocessing)

    def refuse_other_crops(self, other: StoredTeacher) -> None:
        """Refuse two that are to be replayed at once and saw other parts of the pictures: a crop can show but one.

        Raises: Refusal with what differs.
        """
        told = f"--teacher expected tables with the same crops, got {self.rows.path} and {other.rows.path} with"
        end = "embed both with the same --views, --view and --seed, or use --stored.student-view random"
        if self._views != other._views:
            raise Refusal(f"{told} {self._views} and {other._views} random views: {end}")
        if not self._views:
            seen = [one.preprocessing for one in (self, other) if one.preprocessing is not None]
            cut = [(one.crop, one.crop_fraction, one.interpolation) for one in seen]
            if cut[0] != cut[1]:
                raise Refusal(f"{told} evaluation views cut otherwise, {cut[0]} and {cut[1]}: use "
                              "--stored.student-view random")  # fmt: skip
            return
        mine, its = self._crops(), other._crops()
        for position in np.unique(np.linspace(0, len(self._ids) - 1, COMPARED).astype(np.int64)).tolist():
            for view in range(self._views):
                one, another = mine(position, view), its(position, view)
                if None not in (one, another) and one != another:
                    raise Refusal(f"{told} other boxes of {self._ids[position]} in view {view}: {end}")

    def _crops(self) -> StoredCrops:
        return StoredCrops(self.rows, self._places, self._views)

    def settle(self, *, wait: bool) -> None:
        """Stored rows are on the host: they were checked when they were looked up."""

    def modules(self) -> list[nn.Module]:
        return []

    def embeddings(self, images: ImageSet) -> Embeddings:
        return of(self.rows, images)

    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in np.split(self._used, range(ROWS_AT_ONCE, len(self._used), ROWS_AT_ONCE)):
            yield torch.from_numpy(part), self.rows.rows(self._places[part])

    def identity(self) -> dict[str, str]:
        return self.rows.identity()

    def _view(self, epoch: int) -> int | None:
        return epoch % self._views if self._views else None


class StoredCrops:
    """(position, epoch) -> how the stored view of that epoch was cut, None for the evaluation view; picklable.

    An image that could not be used when the rows were made comes as the evaluation view: decoding it says whether it
    still cannot be used, and then another takes its place.
    """

    def __init__(self, rows: Stored, places: np.ndarray, views: int):
        self.rows, self.places, self.views = rows, places, views

    def __call__(self, position: int, epoch: int) -> Crop | None:
        place = int(self.places[position])
        return self.rows.crop(place, view=epoch % self.views) if self.views and place >= 0 else None
