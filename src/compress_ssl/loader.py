"""Batches in an order that depends on the seed alone: never on the number of workers, processes or interruptions.

A step number says everything: its epoch, the images of its batch and, through (seed, epoch, id), the random view of
each. So a run continues at any step with the very pixels it would have seen, and four processes see what one would.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress_ssl.datasets import ImageSet, open_image
from compress_ssl.picture import Picture, UnusableImage
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Sample

# A `Picture` has `shape`, and np.asarray gives its pixels; `transforms.cut` decodes no more of it than the crop.
# A view may also return where it has cut, (V, 5) int32: top, left, height, width, flip; or local views of another size.
View = Callable[["np.ndarray | Picture", Sample], "Tensor | tuple[Tensor, np.ndarray] | tuple[Tensor, Tensor]"]
Announce = Callable[[list[tuple[int, int]]], None]


class Skipped(NamedTuple):
    """An image that could not be used, and why."""

    id: str
    kind: str
    detail: str


def refuse_skipped(skipped: Skipped) -> NoReturn:
    """What --strict says to an image that cannot be used."""
    raise Refusal(
        f"--strict expected every image to be usable, got {skipped.id}: {skipped.kind} ({skipped.detail}): "
        "mend or remove it, or leave out --strict"
    )


@dataclass
class Batch:
    """Images of one step.

    images: (B, 3, H, W) uint8, or (B, V, 3, H, W) where a view makes V pictures of one.
    index: (B,) int64, positions in the image set.
    skipped: unusable images met on the way; in training their places are taken by the next usable ones.
    target: (B, D_t) unit rows, where a stored teacher has already looked them up.
    host_index: (B,) the index on the host, wherever the rest is: reading it there stops no device.
    epoch: of all its images; it chose their random views.
    crops: (B, V, 5) int32 on the host, where the view says what it has cut: top, left, height, width, flip.
    local: (B, L, 3, s, s) uint8, where a view also makes L smaller pictures.
    """

    images: Tensor
    index: Tensor
    skipped: list[Skipped]
    failure: str | None = None
    target: Tensor | None = None
    host_index: Tensor = field(default=None)  # type: ignore[assignment]
    epoch: int = 0
    crops: Tensor | None = None
    local: Tensor | None = None

    def __post_init__(self) -> None:
        if self.host_index is None:
            self.host_index = self.index.cpu()

    def parts(self, count: int) -> Iterator[tuple[Batch, bool]]:
        """The batch in `count` nearly equal parts, in order, and whether each is the last."""
        names = ("images", "index", "host_index", "target", "crops", "local")
        whole = {name: getattr(self, name) for name in names}
        split = [[None] * count if tensor is None else tensor.tensor_split(count) for tensor in whole.values()]
        for number, tensors in enumerate(zip(*split, strict=True)):
            yield replace(self, **dict(zip(names, tensors, strict=True)), skipped=[]), number + 1 == count

    def pin_memory(self) -> Batch:
        self.images, self.index = self.images.pin_memory(), self.index.pin_memory()
        self.local = None if self.local is None else self.local.pin_memory()
        return self

    def to(self, device: torch.device) -> Batch:
        """On `device`, images in channels_last; the copy does not wait where memory is pinned."""
        images = self.images.to(device, non_blocking=True)
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        index = self.index.to(device, non_blocking=True)
        target, local = (
            None if tensor is None else tensor.to(device, non_blocking=True) for tensor in (self.target, self.local)
        )
        return replace(self, images=images, index=index, target=target, local=local)


class _Item(NamedTuple):
    """What one key becomes: a view, or why there is none."""

    view: Tensor | None
    beside: np.ndarray | Tensor | None  # its crops, or its local views
    position: int
    epoch: int
    skipped: list[Skipped]
    failure: str | None = None


class _Items(Dataset):
    """(epoch, position) -> view; picklable, holds no open files of its own."""

    def __init__(self, images: ImageSet, view: View, seed: int, substitute: bool):
        self.images, self.view, self.seed, self.substitute = images, view, seed, substitute

    def __getitem__(self, key: tuple[int, int]) -> _Item:
        epoch, position = key
        skipped: list[Skipped] = []
        tries = len(self.images) if self.substitute else 1
        for offset in range(tries):
            here = (position + offset) % len(self.images)
            id = self.images.ids[here]
            try:
                made = self.view(open_image(self.images, here), Sample(self.seed, epoch, here, id))
            except UnusableImage as trouble:
                skipped.append(Skipped(id, trouble.kind, trouble.detail))
                continue
            except Refusal as trouble:  # carried to the parent as words: a worker's traceback says nothing to a user
                return _Item(None, None, here, epoch, skipped, str(trouble))
            except OSError as trouble:
                told = f"{id} could not be read ({trouble}): check the disk"
                return _Item(None, None, here, epoch, skipped, told)
            view, beside = made if isinstance(made, tuple) else (made, None)
            return _Item(view, beside, here, epoch, skipped)
        failure = None
        if self.substitute:
            failure = f"expected usable images in {self.images.name}, got none ({skipped[0].kind}, …)"
        return _Item(None, None, position, epoch, skipped, failure)


def _collate(items: list[_Item]) -> Batch:
    found = [item for item in items if item.view is not None]
    crops = [item.beside for item in found if isinstance(item.beside, np.ndarray)]
    local = [item.beside for item in found if isinstance(item.beside, Tensor)]
    return Batch(
        _stack([item.view for item in found if item.view is not None]),
        torch.tensor([item.position for item in found], dtype=torch.int64),
        [skip for item in items for skip in item.skipped],
        next((item.failure for item in items if item.failure), None),
        epoch=items[0].epoch,
        crops=torch.from_numpy(np.stack(crops)) if crops else None,
        local=_stack(local) if local else None,
    )


def _stack(views: list[Tensor]) -> Tensor:
    """Views as they lie in memory, so that those of `transforms` make a batch in channels_last without being moved."""
    if not views:
        return torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    if all(view.movedim(-3, -1).is_contiguous() for view in views):
        return torch.stack([view.movedim(-3, -1) for view in views]).movedim(-1, -3)
    return torch.stack(views)


def default_workers() -> int:
    """One process a core, one core left to the training itself, eight at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(8, max(0, cores - 1))


class _Steps:
    """The batch sampler: one list of (epoch, position) per step, for ever, from `start`."""

    def __init__(self, loader: TrainLoader, start: int):
        self.loader, self.start = loader, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start
        while True:
            keys = self.loader.keys(step)
            self.loader.announce(keys)
            yield keys
            step += 1


class TrainLoader:
    """An endless stream of training batches.

    Args:
        images: what to train on.
        view: (picture, sample) -> uint8 tensor.
        batch_size: images per step over all processes together.
        rank, ranks: this process takes the rank-th contiguous part of every batch.
        announce: told (epoch, position) of the images of a batch, in this process, as they are handed out to be read:
            with workers some batches before they are due.
    """

    def __init__(
        self,
        images: ImageSet,
        view: View,
        *,
        batch_size: int,
        seed: int,
        workers: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        pin_memory: bool = False,
        announce: Announce = lambda _: None,
    ):
        if len(images) < 2:
            raise Refusal(f"expected at least 2 training images in {images.name}, got {len(images)}: add images")
        if batch_size < 2:
            raise Refusal(
                f"--batch-size expected at least 2 (batch norm needs more than one image), got {batch_size}: raise it"
            )
        if batch_size > len(images):
            raise Refusal(
                f"--batch-size expected at most the number of training images ({len(images)} in {images.name}), "
                f"got {batch_size}: lower it"
            )
        if ranks > 1 and batch_size < 2 * ranks:
            raise Refusal(
                f"--batch-size expected at least 2 for each of the {ranks} processes, got {batch_size}: raise it"
            )
        if batch_size % ranks:
            raise Refusal(f"--batch-size expected a multiple of the {ranks} processes, got {batch_size}: change either")
        self.images, self.view, self.batch_size, self.seed = images, view, batch_size, seed
        self.workers = default_workers() if workers is None else workers
        self.rank, self.ranks, self.pin_memory, self.announce = rank, ranks, pin_memory, announce
        self.steps_per_epoch = len(images) // batch_size  # the rest of an epoch is dropped, as the paper does
        self._order: tuple[int, np.ndarray] | None = None

    def keys(self, step: int) -> list[tuple[int, int]]:
        """(epoch, position) of this process's images at a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
        share = self.batch_size // self.ranks
        first = place * self.batch_size + self.rank * share
        return [(epoch, int(position)) for position in self._order[1][first : first + share]]

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Batches of step `start`, `start` + 1, … without end."""
        loader: DataLoader[Batch] = DataLoader(
            _Items(self.images, self.view, self.seed, substitute=True),
            batch_sampler=_Steps(self, start),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.pin_memory,
            prefetch_factor=4 if self.workers else None,
            generator=torch.Generator(),  # else each new iterator draws from the generator that weights and dropout use
            worker_init_fn=quiet_worker if self.workers else None,
        )
        for batch in loader:
            if batch.failure:
                raise Refusal(batch.failure)
            yield batch


def evaluation_batches(
    images: ImageSet,
    view: View,
    *,
    batch_size: int,
    workers: int | None = None,
    positions: np.ndarray | None = None,
    epoch: int = 0,
    seed: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Every image once, in order; unusable ones are left out and reported in `skipped`.

    Args:
        positions: which images (all of them by default).
        epoch, seed: choose the random views, where `view` is random.
    """
    positions = np.arange(len(images)) if positions is None else positions
    workers = default_workers() if workers is None else workers
    keys = [[(epoch, int(p)) for p in positions[i : i + batch_size]] for i in range(0, len(positions), batch_size)]
    if len(keys) < 4:
        workers = 0  # starting processes would take longer than reading the images
    loader: DataLoader[Batch] = DataLoader(
        _Items(images, view, seed, substitute=False),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # as above
        worker_init_fn=quiet_worker if workers else None,
    )
    for batch in loader:
        if batch.failure:
            raise Refusal(batch.failure)
        yield batch


def quiet_worker(_: int) -> None:
    """Workers leave Ctrl-C and SIGTERM of the whole process group to the parent, which saves first; one thread each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
