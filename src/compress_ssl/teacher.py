"""The frozen teacher: batch -> target (unit rows). A live encoder or stored rows, the same call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn

from compress_ssl.datasets import ImageSet, Unusual
from compress_ssl.embed import embed
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import Encoder, open_encoder, tell
from compress_ssl.folded import folded
from compress_ssl.loader import Batch
from compress_ssl.patch_tokens import token_rows, with_patches
from compress_ssl.refusal import Refusal
from compress_ssl.stored import open_stored, refuse_other_unusual
from compress_ssl.stored_teacher import StoredConfig, StoredTeacher
from compress_ssl.transforms import EvaluationView, Preprocessing, RandomView, ReplayView, TrainView
from compress_ssl.unit_rows import UncheckedRows
from compress_ssl.weights import weights_digest


class Teacher(Protocol):
    """What the loop needs of a teacher."""

    @property
    def width(self) -> int: ...

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Of the encoder behind the rows; None if it is not known."""
        ...

    def __call__(self, batch: Batch) -> Tensor:
        """Images and index of a batch -> (B, D_t) float32 unit rows on the batch's device."""
        ...

    def view(self, config: TrainView, size: int) -> RandomView | ReplayView:
        """What is cut of the training images for a student of this input size, and for the teacher, if it looks."""
        ...

    def announce(self, keys: list[tuple[int, int]]) -> None:
        """Hear (epoch, position) of the images of a batch to come."""
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
        """(B,) samples and (B, D_t) rows of the evaluation views of all usable training images, a part at a time.

        Raises: Refusal if nothing is stored.
        """
        ...

    def identity(self) -> dict[str, str]:
        """What makes the rows, by name: a resumed run must find the same. May take long: the first process is asked."""
        ...


def open_teacher(
    spec: str,
    images: ImageSet,
    *,
    size: int | None,
    device: torch.device,
    workers: int | None,
    check: Literal["now", "later"] = "now",
    ids: Path | None = None,
    stored: StoredConfig = StoredConfig(),
    whole: ImageSet | None = None,
    unusual: Unusual | None = None,
) -> LiveTeacher | StoredTeacher:
    """A run, a named encoder, a table of stored embeddings or a file of vectors as the teacher of `images`.

    Args:
        size: pixels of a live teacher's input; None: its own.
        check: of the rows of a live teacher: `later` leaves it to `settle`, so that no step waits for it.
        ids: of a file of vectors, one a line.
        whole: the training split that `images` is a part of.
        unusual: how `images` reads unusual files; None: a table need not have been made alike.
    Raises: Refusal if an option does not go with this kind of teacher.
    """
    rows = open_stored(spec, ids=ids, in_memory=stored.in_memory)
    if rows is None:
        if stored != StoredConfig():
            raise Refusal(f"--stored expected a table of stored embeddings or a file of vectors as --teacher, got "
                          f"{spec}, a live encoder: leave it out, or run `compress-ssl embed` first")  # fmt: skip
        encoder = open_encoder(spec, weights="pretrained", size=size)
        tell(encoder)
        return LiveTeacher(encoder, images, device=device, workers=workers, check=check)
    if unusual is not None:
        refuse_other_unusual(rows, unusual)
    made = None if rows.preprocessing is None else rows.preprocessing.size
    if size not in (None, made):
        told = "nothing is known of their images" if made is None else f"they were made at {made}"
        raise Refusal(f"--teacher-size expected the size that the stored rows of {spec} were made with, got {size}, "
                      f"where {told}: leave it out, or embed with --size {size}")  # fmt: skip
    return StoredTeacher(rows, images, device=device, config=stored, whole=whole)


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
        self.token_side: int | None = None  # of the grid of patch tokens that follow each row; None: no tokens
        side, noise = self.preprocessing.size, torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=noise).to(device)
        # what a step runs; scores, identity and sizes are those of the encoder as it was published
        self.swift = folded(self.encoder, pixels.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()  # not inference_mode: targets take part in the student's graph as constants
    def __call__(self, batch: Batch) -> Tensor:
        assert not self.encoder.training, "the teacher must stay in eval mode"
        if self.token_side is None:
            rows = self._rows(self.swift(batch.images), batch.host_index)
        else:
            embeddings, patches = with_patches(self.swift, batch.images)
            rows = self._rows(embeddings, batch.host_index)
            rows = torch.cat([rows, token_rows(patches, self.token_side)], dim=1)
        if self.check == "now":
            self.settle(wait=True)
        return rows

    def view(self, config: TrainView, size: int) -> RandomView:
        return RandomView(config, max(size, self.preprocessing.size))  # the smaller of the two is resized on the device

    def announce(self, keys: list[tuple[int, int]]) -> None:
        """Nothing is stored."""

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def settle(self, *, wait: bool) -> None:
        self._rows.settle(wait=wait)

    def modules(self) -> list[nn.Module]:
        return [self.swift]

    def embeddings(self, images: ImageSet, *, console: Console | None = None, told: str = "embedding") -> Embeddings:
        view = EvaluationView(self.preprocessing)
        return embed(
            self.encoder, images, view=view, device=self.device, workers=self.workers, console=console, told=told
        )

    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise Refusal(
            "--objective.anchors stored expected a table of stored embeddings as --teacher, got a live encoder: run "
            "`embed` and name its folder, or use --objective.anchors recent"
        )

    def identity(self) -> dict[str, str]:
        return {
            "teacher weights": weights_digest(self.encoder),
            "teacher preprocessing": json.dumps(self.preprocessing.identity(), sort_keys=True),
        }
