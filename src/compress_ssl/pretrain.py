"""Pretraining of a teacher: pictures, but for one method without labels -> a run folder that every verb takes as one.

The frame is training.py's; the method (views, head, loss) is a file of pretraining/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from compress_ssl import compilation, datasets, optim, pretraining
from compress_ssl.device import refuse_unsafe
from compress_ssl.embed import embed
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.evaluations import Embedded, nearest_neighbour
from compress_ssl.hardware import HardwareConfig, launch
from compress_ssl.loader import Batch, TrainLoader
from compress_ssl.optim import OptimizerConfig, ScheduleConfig
from compress_ssl.processes import on_first
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.settings import Flat
from compress_ssl.training import Training, TrainingConfig, step_seed
from compress_ssl.transforms import EvaluationView


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train an encoder on images alone, to be a teacher."""

    data: str  # images: a folder, parquet, digits, torchvision/CIFAR10, …
    out: Path  # the run folder
    # what to train: compress/NAME, timm/NAME, torchvision/NAME or a run folder; random weights unless it has @weights
    encoder: str = "compress/resnet18_small"
    size: int | None = None  # pixels of its input and of the training views; None: the encoder's own
    # simclr, moco_v2, swav or dino, or supervised, from labels; --method NAME --help lists what else each takes
    method: Any = field(default_factory=lambda: pretraining.find("simclr").Config())
    training: Flat[TrainingConfig] = TrainingConfig(epochs=100)
    optimizer: OptimizerConfig = OptimizerConfig(name="adamw", learning_rate=1e-3)
    schedule: ScheduleConfig = ScheduleConfig(name="cosine", warmup=0.05)
    hardware: Flat[HardwareConfig] = HardwareConfig()
    held_out: int = 1000  # training images kept aside to watch the 1-NN accuracy, at most a tenth; 0 for none
    gallery: int = 5000  # training images they are compared with
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    strict: bool = False  # an unusable image is an error
    resume: bool = False  # continue the run in --out


def run(config: Config) -> Path:
    """Train, and return the run folder."""
    console = Console(stderr=True)
    if config.training.accumulate != 1:
        raise Refusal(
            f"--accumulate expected 1, got {config.training.accumulate}: pretraining compares all images of a batch "
            "with each other, which parts cannot; lower --batch-size instead"
        )
    family = pretraining.find(config.method.name)
    images = datasets.open_splits(config.data, unusual=config.unusual).train
    classes = pretraining.classes_of(family, images)  # None: of no concern
    watching = config.held_out > 0 and len(images) >= 10
    if watching:
        images, watched = datasets.set_aside(images, at_most=config.held_out)
        gallery = datasets.gallery_of(images, at_most=config.gallery)
    fabric = launch(config.hardware, config.training.seed)
    folder = on_first(fabric, lambda: RunFolder.open(config.out, config, resume=config.resume))

    encoder = open_encoder(config.encoder, weights="random", size=config.size)
    known: dict[str, Any] = {} if classes is None else {"classes": classes}
    learner = family.make_learner(config.method, encoder, ranks=fabric.world_size, **known).train()
    loader = TrainLoader(
        images,
        family.make_view(config.method, encoder.preprocessing.size),
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        workers=config.hardware.workers,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        pin_memory=fabric.device.type == "cuda",
    )
    learner = learner.to(fabric.device).to(memory_format=torch.channels_last)
    refuse_unsafe(learner, fabric.device)
    known = {} if classes is None else {"labels": torch.tensor(images.labels, dtype=torch.int64)}
    method = family.Method(config.method, learner, images=len(images), fabric=fabric, **known)
    optimizer = optim.optimizer(learner.parameters(), config.optimizer)
    wrapped, optimizer = fabric.setup(learner, optimizer)

    def watch(training: Training) -> dict[str, float]:
        if folder is not None:
            save_encoder(encoder, folder.path / "student")  # the last one: choosing by labels would not be label-free
        if not watching or not fabric.is_global_zero or (watched.labels < 0).any():
            return {}
        encoder.eval()
        view = EvaluationView(encoder.preprocessing)
        rows = [
            embed(
                encoder,
                part,
                view=view,
                device=fabric.device,
                workers=config.hardware.workers,
                on_skip=training.skip,
                console=console,
            )
            for part in (gallery, watched)
        ]
        encoder.train()
        return nearest_neighbour.evaluate(Embedded(train=rows[0], test=rows[1]), nearest_neighbour.Config())

    training = Training(
        config.training,
        config.schedule,
        fabric=fabric,
        folder=folder,
        loader=loader,
        optimizer=optimizer,
        parts={"learner": learner, "method": method, "optimizer": optimizer},
        validate=watch,
        strict=config.strict,
        console=console,
    )
    if config.resume:
        training.resume(config.out)

    def rehearsal() -> Callable[[], None]:
        side, count = encoder.preprocessing.size, config.training.batch_size // fabric.world_size
        batch = Batch(compilation.noise(count, 2, 3, side, side, device=fabric.device), torch.arange(count), [])
        views = method.views(batch, torch.Generator().manual_seed(0))

        def rehearse() -> None:
            with fabric.autocast():
                embeddings = learner.encoder(views.query[0])
            embeddings.square().mean().backward()

        return rehearse

    compilation.decide(config.hardware.compile, training, [learner.encoder], rehearsal, console=console)
    for batch in training:  # images (B, 2, 3, S, S) uint8; with multi-crop local ones too, (B, L, 3, s, s)
        generator = torch.Generator().manual_seed(step_seed(config.training.seed, training.step))
        views = method.views(batch, generator)  # lists of (n, 3, s, s): colours changed, one tensor a size
        training.waits.lap("student")
        key = method.keys(views, generator)  # what a slow copy makes of its views, or None
        training.waits.lap("momentum")
        query = wrapped(views.query)  # what the learner makes of its own: the only tensors with a gradient
        training.waits.lap("student")
        loss = method.loss(query, key, batch.index, training.progress)  # reads bank and centre, changes nothing
        training.waits.lap("objective")
        optimizer.zero_grad()
        fabric.backward(loss)
        training.waits.lap("student")
        method.restrain(training.progress)  # gradients that are not to be followed
        optimizer.step()
        training.waits.lap("optimizer")
        method.update(query, key, batch.index, training.progress)  # bank and centre; the slow copy follows
        training.waits.lap("momentum")
        training.note(loss)
    if folder is not None and folder.skipped():
        console.print(folder.skipped_told(), markup=False)
    return config.out
