"""Speeds of a training's parts: reading, the teacher, whole steps. Measured with the training's own loader and step.

Where a part is too slow for the planned batch, a smaller one is measured: some laps must fit into the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compress_ssl.checkup.stopwatch import Speed, timed
from compress_ssl.datasets import ImageSet
from compress_ssl.feed import Feed
from compress_ssl.loader import Announce, Batch, TrainLoader, View
from compress_ssl.waits import Waits, shares

FEW = 8  # images of the lap by which the measured batch is chosen
LAPS = 6  # that should fit into each measurement
READ_AT_ONCE = 64  # images of a batch where reading alone is measured

Step = Callable[[Batch, Waits], Tensor]


class AtHand:
    """A teacher whose rows cost nothing where a batch brings some along, as it does with stored rows.

    Args:
        teacher: whom a batch without rows is given to.
    """

    def __init__(self, teacher: Any, *, seed: int, device: torch.device):
        rows = torch.randn(4096, teacher.width, generator=torch.Generator().manual_seed(seed))
        self.teacher, self.width, self.pinned = teacher, teacher.width, device.type == "cuda"
        self.rows = torch.nn.functional.normalize(rows, dim=1)

    def __call__(self, batch: Batch) -> Tensor:
        return self.teacher(batch) if batch.target is None else batch.target

    def prepare(self, batch: Batch) -> Batch:
        """The batch with random unit rows, pinned where stored ones would be."""
        rows = self.rows[batch.host_index % len(self.rows)]
        return replace(batch, target=rows.pin_memory() if self.pinned else rows)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where speeds are measured.

    Args:
        images: 2 at least.
        seconds: of each measurement; its first lap may take longer.
        batch_size: of the training; what is measured may be smaller.
    """

    images: ImageSet
    device: torch.device
    seconds: float
    batch_size: int
    seed: int
    workers: int | None
    announce: Announce = lambda _: None

    def reading(self, view: View) -> tuple[Speed, Batch]:
        """Of the loader alone, with one of its batches, on the host."""
        batches: Any = self._batches(view, min(READ_AT_ONCE, self.batch_size))
        try:
            first = next(batches)
            return self._timed(lambda: len(next(batches).index)), first
        finally:
            batches.close()

    def embedding(self, encode: Callable[[Tensor], Any], batch: Batch) -> Speed:
        """Of a forward pass without gradient."""

        def of(count: int) -> Callable[[], int]:
            images = repeated(batch, count).to(self.device).images

            def lap() -> int:
                with torch.no_grad():
                    encode(images)
                return count

            return lap

        return self._timed(of(self._fitting(of)))

    def alone(self, step: Step, batch: Batch) -> tuple[Speed, int]:
        """Of steps on a batch that is there already, with its rows; and of how many images it was."""
        waits = Waits(self.device)

        def of(count: int) -> Callable[[], int]:
            there = repeated(batch, count).to(self.device)

            def lap() -> int:
                step(there, waits)
                return count

            return lap

        count = self._fitting(of)
        return self._timed(of(count)), count

    def training(
        self, step: Step, view: View, *, batch_size: int, prepare: Callable[[Batch], Batch]
    ) -> tuple[Speed, dict[str, float]]:
        """Of the whole loop, reading included; and the share of a step by what it waits for."""
        waits = Waits(self.device)
        feed = Feed(self._batches(view, batch_size), device=self.device, prepare=prepare)

        def lap() -> int:
            waits.start()
            batch = next(feed)
            waits.lap("data")
            step(batch, waits)
            return len(batch.index)

        try:
            speed = self._timed(lap)
        finally:
            feed.close()
        return speed, {part: round(share, 4) for part, share in shares(waits.read()).items()}

    def fitting(self, images_per_second: float, at_most: int) -> int:
        """Images of a batch of which enough fit into the time, of a step that is expected to be this quick."""
        return max(min(FEW, at_most), min(at_most, int(images_per_second * self.seconds / LAPS)))

    def _fitting(self, of: Callable[[int], Callable[[], int]]) -> int:
        """Likewise, found by trying; `of` makes a lap of so many images."""
        count = min(FEW, self.batch_size)
        of(count)()
        while count < self.batch_size:
            if timed(of(count), seconds=0, device=self.device, warm_up=0).seconds * LAPS * 2 > self.seconds:
                break
            count = min(self.batch_size, 2 * count)
        return count

    def _batches(self, view: View, count: int) -> Iterator[Batch]:
        return TrainLoader(
            self.images, view, batch_size=count, seed=self.seed, workers=self.workers,
            pin_memory=self.device.type == "cuda", announce=self.announce,
        ).batches()  # fmt: skip

    def _timed(self, lap: Callable[[], int]) -> Speed:
        return timed(lap, seconds=self.seconds, device=self.device)


def repeated(batch: Batch, count: int) -> Batch:
    """A batch of `count` images, those of a batch on the host again and again, with their rows if it has some."""
    index = torch.arange(count) % len(batch.index)
    target = None if batch.target is None else batch.target[index]
    return Batch(batch.images[index], batch.index[index], [], target=target, host_index=batch.host_index[index])
