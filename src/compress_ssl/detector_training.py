"""Fine-tune a detector on pictures with objects: SGD over epochs, continued exactly after the last whole epoch.

Defaults are those of VOC in common use, for batches of 4: SGD at 0.02 for 16 pictures (so 0.005), momentum 0.9, weight
decay 1e-4, a short warm-up, the rate divided by 10 at 3/4 and 11/12 of the training, short sides from 480 to 800
pixels, mirrored half of the time, scored at 800. Source: He et al., Momentum Contrast, CVPR 2020, Sec. 4.2.1 and its
public configuration for Detectron2: 24 000 steps of 16 over 16 551 pictures, that is 23 epochs, fallen at 18 000 and
22 000. Difficult objects are learnt from like others, as in Detectron2.

What is random depends on the seed and the epoch: the order and the mirroring by themselves, sizes and samples of
proposals through torch's generator, which the checkpoint keeps. On GPUs sums of gradients keep no order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress_ssl import checkpoint, optim
from compress_ssl.datasets import ImageSet
from compress_ssl.detections import Detections
from compress_ssl.detector import Detector, detect
from compress_ssl.loader import default_workers, quiet_worker
from compress_ssl.optim import OptimizerConfig, ScheduleConfig
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.voc_layout import Object


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=0.005)


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(milestones=(18 / 24, 22 / 24), factor=0.1, warmup=100 / 24000)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Fine-tuning a detector."""

    epochs: int = 24  # over the images to learn from
    batch_size: int = 4  # pictures a step; with another number change the learning rate in proportion
    optimizer: OptimizerConfig = field(default_factory=_optimizer)
    schedule: ScheduleConfig = field(default_factory=_schedule)
    flip: float = 0.5  # probability of a mirror image

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1:
            raise Refusal(f"--detection.epochs and --detection.batch-size expected at least 1, got {self.epochs} and "
                          f"{self.batch_size}: raise them")  # fmt: skip
        if not 0 <= self.flip <= 1:
            raise Refusal(f"--detection.flip expected a probability in [0, 1], got {self.flip}: 0.5 is usual")


class Sample(NamedTuple):
    """One picture and its objects, as they come from the disk.

    pixels: (3, H, W) uint8.
    boxes: (G, 4) float32, edges as of `voc_layout.Object`.
    labels: (G,) int64, 1 the first class.
    proposals: (P, 4) float32, boxes to look at; None where the detector looks for them itself.
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    proposals: Tensor | None = None


class Pictures(Dataset):
    """(position, mirrored) -> a `Sample`, or the Refusal that there is to be told of it: workers cannot raise it."""

    def __init__(
        self,
        images: ImageSet,
        objects: Sequence[Sequence[Object]],
        classes: Sequence[str],
        proposals: Sequence[np.ndarray] | None = None,
    ):
        self.images, self.objects, self.proposals = images, objects, proposals
        self.numbers = {name: number for number, name in enumerate(classes, 1)}

    def __getitem__(self, asked: tuple[int, bool]) -> Sample | Refusal:
        position, mirrored = asked
        id, objects = self.images.ids[position], self.objects[position]
        try:
            pixels = np.ascontiguousarray(self.images.read(position).transpose(2, 0, 1))
        except UnusableImage as trouble:
            return Refusal(f"expected every image of the splits to be usable, got {id}: {trouble}: mend it, or take it "
                           "out of ImageSets/Main")  # fmt: skip
        boxes = np.array([one.box for one in objects], dtype=np.float32).reshape(-1, 4)
        given = None if self.proposals is None else self.proposals[position]
        height, width = pixels.shape[1:]
        for some, what in ((boxes, "boxes"), (given, "proposals")):
            if some is not None and not _inside(some, width, height):
                mend = "mend its annotation" if some is boxes else "mend them in the file of --proposals"
                return Refusal(f"expected the {what} of {id} within its {width} x {height} pixels, got one outside: "
                               f"{mend}")  # fmt: skip
        if mirrored:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
            boxes = _mirrored(boxes, width)
            given = None if given is None else _mirrored(given, width)
        proposals = None if given is None else torch.from_numpy(given)
        labels = torch.tensor([self.numbers[one.name] for one in objects], dtype=torch.int64)
        return Sample(torch.from_numpy(pixels), torch.from_numpy(boxes), labels, proposals)


def train(
    detector: Detector,
    pictures: Pictures,
    config: Config,
    *,
    folder: RunFolder,
    seed: int,
    workers: int | None,
    console: Console,
) -> None:
    """Train, from the last whole epoch in the folder's checkpoint if there is one; every step goes to metrics.jsonl.

    Raises: Refusal if a picture cannot be used, or the loss is no longer a number.
    """
    device = next(detector.parameters()).device
    optimizer = optim.optimizer(detector.parameters(), config.optimizer)
    parts: dict[str, checkpoint.Stateful] = {"detector": detector, "optimizer": optimizer}
    file = checkpoint_file(folder)
    first = checkpoint.load(file, parts)["epoch"] if file.exists() else 0
    count = len(pictures.images)
    steps = math.ceil(count / config.batch_size)
    folder.forget_after(first * steps)
    detector.train()
    for epoch in range(first, config.epochs):
        sums: dict[str, float] = {}
        batches = _batches(pictures, plan(count, config, seed=seed, epoch=epoch), workers)
        with _bar(console) as bar:
            for step, batch in enumerate(bar.track(batches, total=steps, description=f"epoch {epoch + 1}"), 1):
                done = epoch * steps + step
                share = optim.rate((done - 1) / (config.epochs * steps), config.schedule)
                optim.set_rate(optimizer, config.optimizer.learning_rate * share)
                losses = detector(*_on(device, batch))
                loss = torch.stack(list(losses.values())).sum()
                told = {name.removeprefix("loss_"): float(value.detach()) for name, value in losses.items()}
                if not math.isfinite(sum(told.values())):
                    raise Refusal(f"expected a loss that is a number, got {told} in step {done}: lower "
                                  "--detection.optimizer.learning-rate")  # fmt: skip
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                whole = {"loss": sum(told.values()), **told}
                folder.log("train", step=done, epoch=done / steps, **whole)
                sums = {name: sums.get(name, 0.0) + value for name, value in whole.items()}
        checkpoint.save(file, parts, {"epoch": epoch + 1})
        means = ", ".join(f"{name.replace('_', ' ')} {value / steps:.3f}" for name, value in sums.items())
        console.print(f"epoch {epoch + 1} of {config.epochs}: {means}", highlight=False, soft_wrap=True)


def find(
    detector: Detector, pictures: Pictures, *, batch_size: int, workers: int | None, console: Console
) -> Detections:
    """What the detector finds in every picture, in order."""
    device = next(detector.parameters()).device
    plan = [[(position, False) for position in range(start, min(start + batch_size, len(pictures.images)))]
            for start in range(0, len(pictures.images), batch_size)]  # fmt: skip
    found: list[tuple[int, dict[str, Tensor]]] = []
    with _bar(console) as bar:
        for batch in bar.track(_batches(pictures, plan, workers), total=len(plan), description="scoring"):
            images, _, proposals = _on(device, batch)
            some = detect(detector, images, proposals)
            found += enumerate(some, start=len(found))
    return Detections(
        images=np.concatenate([np.full(len(one["scores"]), image) for image, one in found]),
        classes=torch.cat([one["labels"] for _, one in found]).numpy() - 1,
        scores=torch.cat([one["scores"] for _, one in found]).double().numpy(),
        boxes=torch.cat([one["boxes"] for _, one in found]).double().numpy(),
    )


def checkpoint_file(folder: RunFolder) -> Path:
    """Where a fine-tuning keeps what continues it."""
    return folder.path / "checkpoints" / "last.pt"


def plan(count: int, config: Config, *, seed: int, epoch: int) -> list[list[tuple[int, bool]]]:
    """The steps of one epoch: every picture once, in an order and mirrored as seed and epoch say."""
    random = np.random.default_rng((seed, epoch))
    order, mirrored = random.permutation(count), random.random(count) < config.flip
    asked = [(int(position), bool(mirrored[position])) for position in order]
    return [asked[start : start + config.batch_size] for start in range(0, count, config.batch_size)]


def _batches(pictures: Pictures, plan: list[list[tuple[int, bool]]], workers: int | None) -> DataLoader:
    return DataLoader(
        pictures,
        batch_sampler=plan,
        num_workers=default_workers() if workers is None else workers,
        collate_fn=list,
        worker_init_fn=quiet_worker,
    )


def _on(
    device: torch.device, batch: list[Sample | Refusal]
) -> tuple[list[Tensor], list[dict[str, Tensor]], list[Tensor] | None]:
    """What the detector takes; raises the Refusal of a picture that cannot be used."""
    images, objects, proposals = [], [], []
    for sample in batch:
        if isinstance(sample, Refusal):
            raise sample
        images.append(sample.pixels.to(device, non_blocking=True).float() / 255)
        objects.append({"boxes": sample.boxes.to(device), "labels": sample.labels.to(device)})
        if sample.proposals is not None:
            proposals.append(sample.proposals.to(device))
    return images, objects, proposals if len(proposals) == len(images) else None


def _inside(boxes: np.ndarray, width: int, height: int) -> bool:
    return not len(boxes) or bool(boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height)


def _mirrored(boxes: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _bar(console: Console) -> Progress:
    return Progress(console=console, transient=True, disable=not console.is_terminal)
